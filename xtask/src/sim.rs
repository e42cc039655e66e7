//! `cargo xtask sim`: takes the nexus through crashes on simulated disks, a seed at a time.

use anyhow::{Context, Result, bail};

use crate::{packages, shell};

/// The unit test that runs the seeds; it is in `src/nexus/sim/seeds.rs`.
const TEST: &str = "nexus::sim::seeds::seeds_keep_the_guarantees";
const USAGE: &str = "usage: cargo xtask sim [--seeds N (200)] [--from S (0)] [--release (for 10,000 seeds and more)]";

pub(crate) fn run(args: &[String]) -> Result<()> {
    let (mut seeds, mut from, mut release) = (200, 0, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let text = args
                .next()
                .with_context(|| format!("{arg} needs a number"))?;
            text.parse()
                .with_context(|| format!("{arg} {text:?} is no number"))
        };
        match arg.as_str() {
            "--seeds" => seeds = number()?,
            "--from" => from = number()?,
            "--release" => release = true,
            other => bail!("unknown argument {other:?}\n{USAGE}"),
        }
    }
    packages::need(&[packages::BUILD])?;
    println!("sim: seeds {from} to {}", from.saturating_add(seeds));
    let mut cargo = shell::cargo();
    cargo.args(["test", "--quiet", "--lib"]);
    if release {
        cargo.arg("--release");
    }
    cargo
        .args(["--", "--exact", "--nocapture", TEST])
        .env("VOLUND_SIM_SEEDS", seeds.to_string())
        .env("VOLUND_SIM_FROM", from.to_string());
    shell::run(&mut cargo)
}
