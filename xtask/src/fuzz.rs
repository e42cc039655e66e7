//! `cargo xtask fuzz [--seconds 60] [--only TARGET]`: libFuzzer on every target of `fuzz/`, each for so long.
//!
//! Builds what `cargo fuzz` would build, with the one toolchain that is there: coverage by LLVM's own pass, and the address
//! sanitizer, which the stable compiler ships but names unstable, hence RUSTC_BOOTSTRAP for this build alone. What it finds
//! is kept in `fuzz/artifacts/`; new inputs go to `target/fuzz-corpus/`, and a person picks those worth committing.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{packages, shell};

const TARGETS: [&str; 4] = ["config", "label", "vhost_messages", "vhost_chains"];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Zsanitizer=address -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut seconds = 60;
    let mut only = None;
    let mut rest = args.iter();
    while let Some(name) = rest.next() {
        let value = rest
            .next()
            .with_context(|| format!("{name} takes a value"))?;
        match name.as_str() {
            "--seconds" => seconds = value.parse().context("--seconds takes a number")?,
            "--only" => only = Some(value.as_str()),
            other => bail!("unknown argument {other:?}"),
        }
    }
    let targets: Vec<&str> = TARGETS
        .into_iter()
        .filter(|target| only.is_none_or(|name| name == *target))
        .collect();
    if targets.is_empty() {
        bail!("no such target; there are {}", TARGETS.join(", "));
    }
    packages::need(&[packages::BUILD, packages::FUZZ])?;
    println!("fuzz: building");
    shell::run(
        shell::cargo()
            .args([
                "build",
                "--quiet",
                "--release",
                "--locked",
                "--target",
                TRIPLE,
            ])
            .args(["--manifest-path", "fuzz/Cargo.toml"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", FLAGS),
    )?;
    let mut failed = Vec::new();
    for target in &targets {
        println!("fuzz: {target} for {seconds} s");
        if let Err(error) = shell::run(&mut fuzzer(target, seconds)?) {
            println!("fuzz: {target}: {error:#}");
            failed.push(*target);
        }
    }
    println!(
        "{} passed, {} failed",
        targets.len() - failed.len(),
        failed.len()
    );
    if !failed.is_empty() {
        bail!(
            "found something: {}; the inputs are in fuzz/artifacts",
            failed.join(", ")
        );
    }
    Ok(())
}

fn fuzzer(target: &str, seconds: u64) -> Result<Command> {
    let fuzz = shell::root().join("fuzz");
    let found = fuzz.join("artifacts").join(target);
    let corpus: PathBuf = shell::root().join("target/fuzz-corpus").join(target);
    std::fs::create_dir_all(&found)?;
    std::fs::create_dir_all(&corpus)?;
    let mut command = shell::command(
        fuzz.join("target")
            .join(TRIPLE)
            .join("release")
            .join(target),
    );
    command
        .arg(format!("-max_total_time={seconds}"))
        .args([
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=8192",
            "-print_final_stats=1",
        ])
        .args(["-verbosity=0", "-print_funcs=0"])
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(corpus)
        .arg(fuzz.join("corpus").join(target));
    Ok(command)
}
