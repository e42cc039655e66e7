//! `cargo xtask check`: formatting, clippy, the fast tests, tidy and docs. What guards main; under 2 minutes when warm.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{packages, shell, tidy};

pub(crate) fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("check takes no argument, found {unknown:?}");
    }
    packages::need(&[packages::BUILD])?;
    packages::need_nextest()?;
    let mut failed = Vec::new();
    let mut step = |name: &'static str, done: Result<()>| {
        if let Err(error) = done {
            eprintln!("check: {name}: {error:#}");
            failed.push(name);
        }
    };
    println!("check: tidy, locks, fmt, clippy, tests, docs");
    step("tidy", tidy::run(&[]));
    step("fuzz/Cargo.lock", shell::run(&mut fuzz_lock()));
    step("fmt", shell::run(&mut fmt()));
    step("clippy", shell::run(&mut clippy()));
    step("tests", shell::run(&mut tests()));
    step("docs", shell::run(&mut docs()));
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("check failed: {}", failed.join(", "))
    }
}

/// The fuzz targets are a workspace of their own, and are built with what their lock file says.
fn fuzz_lock() -> Command {
    let mut fetch = shell::cargo();
    fetch.args(["fetch", "--quiet", "--locked"]);
    fetch.args(["--manifest-path", "fuzz/Cargo.toml"]);
    fetch
}

fn fmt() -> Command {
    let mut fmt = shell::cargo();
    fmt.args(["fmt", "--all", "--", "--check"]);
    fmt
}

fn clippy() -> Command {
    let mut clippy = shell::cargo();
    clippy.args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]);
    clippy
}

fn tests() -> Command {
    let mut tests = shell::cargo();
    tests.args([
        "nextest",
        "run",
        "--workspace",
        "--cargo-quiet",
        "--no-fail-fast",
    ]);
    tests.args(["--show-progress", "none", "--status-level", "fail"]);
    tests
}

fn docs() -> Command {
    let mut docs = shell::cargo();
    docs.args([
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    // These docs are for who works on the code, private items included, so a link to one is no mistake; and what clap
    // prints as help is plain text, in which `<dir>` is no HTML.
    docs.env(
        "RUSTDOCFLAGS",
        "--deny warnings --allow rustdoc::private-intra-doc-links --allow rustdoc::invalid-html-tags",
    );
    docs
}
