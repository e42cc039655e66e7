//! `cargo xtask check`: formatting, clippy, the fast tests, tidy and docs. What guards main; under 2 minutes when warm.

use anyhow::{Result, bail};

use crate::{packages, shell, tidy};

pub(crate) fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("check takes no argument, found {unknown:?}");
    }
    packages::need(&[packages::BUILD])?;
    packages::need_nextest()?;
    step("tidy");
    tidy::run(&[])?;
    step("fmt");
    shell::run(shell::cargo().args(["fmt", "--all", "--", "--check"]))?;
    step("clippy");
    shell::run(
        shell::cargo()
            .args(["clippy", "--quiet", "--workspace", "--all-targets"])
            .args(["--", "--deny", "warnings"]),
    )?;
    step("tests");
    shell::run(
        shell::cargo()
            .args(["nextest", "run", "--workspace", "--cargo-quiet"])
            .args([
                "--show-progress",
                "none",
                "--status-level",
                "fail",
                "--no-tests",
                "pass",
            ]),
    )?;
    step("docs");
    shell::run(
        shell::cargo()
            .args([
                "doc",
                "--quiet",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )
}

fn step(name: &str) {
    println!("check: {name}");
}
