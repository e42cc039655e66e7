//! `cargo xtask test`: everything, with counts that fit 45 minutes on two cores, each printed. It ends with one line,
//! `N passed, N failed`. The full counts are `cargo xtask soak`.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::shows::{self, SHOWS};
use crate::{check, guest, judges};

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: Vec<String>,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("test takes no argument, found {unknown:?}");
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    tally.step(
        "check: formatting, lints, unit and integration tests, tidy, docs",
        || check::run(&[]).map(|()| String::new()),
    );
    let prepared = shows::prepare();
    tally.step("packages and programs that the rest needs", || {
        prepared.map(|()| String::new())
    });
    tally.step(
        "configs: taplo, tombi and `volund check` on every example",
        judges::configs,
    );
    tally.step("guest boot: both kernels, the harness itself", || {
        guest::run(&[
            "boot".to_owned(),
            "--machine".to_owned(),
            "microvm".to_owned(),
        ])
        .map(|()| String::new())
    });
    for show in &SHOWS {
        for round in 1..=show.rounds_in_test {
            let name = format!(
                "{}, round {round} of {}: {}",
                show.name, show.rounds_in_test, show.about
            );
            tally.step(&name, || show.run(u64::from(round)));
        }
    }

    println!(
        "\ntest: {} minutes",
        started.elapsed().as_secs().div_ceil(60)
    );
    for failure in &tally.failed {
        println!("FAILED {failure}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    if tally.failed.is_empty() {
        Ok(())
    } else {
        bail!("{} steps failed", tally.failed.len())
    }
}

impl Tally {
    /// Runs a step to its end whatever the others did, and says how it went.
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<String>) {
        println!("\n== {name}");
        let started = Instant::now();
        let done = work();
        let seconds = started.elapsed().as_secs();
        match done {
            Ok(result) => {
                self.passed += 1;
                println!("PASSED in {seconds} s {result}");
            }
            Err(error) => {
                println!("FAILED in {seconds} s: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }
}
