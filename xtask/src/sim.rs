//! `cargo xtask sim`: takes the nexus through crashes on simulated disks, a seed at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{packages, shell};

/// The tests that do the work are in `src/nexus/sim/seeds.rs`.
const TESTS: &str = "nexus::sim::seeds";
const USAGE: &str = "usage: cargo xtask sim [--seeds N (2000)] [--from S (0)] [--mutant NAME]   plays seeds
       cargo xtask sim --replay SEED [--mutant NAME]                  tells all that happens in one
       cargo xtask sim --shrink SEED [--mutant NAME]                  finds the smallest scenario that still fails
       cargo xtask sim --mutants [NAME]                               shows that planted bugs are found";

#[derive(Debug, PartialEq, Eq)]
enum Job {
    Seeds,
    Replay,
    Shrink,
    Mutants,
}

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    job: Job,
    from: u64,
    seeds: u64,
    mutant: Option<String>,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let arguments = parse(args)?;
    let Arguments { from, seeds, .. } = arguments;
    let commit = shell::capture(shell::command("git").args(["describe", "--always", "--dirty"]))?;
    println!("sim: commit {}", commit.trim());
    match arguments.job {
        Job::Seeds => return play(from, seeds, arguments.mutant.as_deref()).map(drop),
        Job::Replay => start("replay", from, 1, arguments.mutant.as_deref())?,
        Job::Shrink => start("smallest", from, 1, arguments.mutant.as_deref())?,
        Job::Mutants => start("planted_bugs", 0, seeds, arguments.mutant.as_deref())?,
    };
    Ok(())
}

/// Plays seeds and says how fast that was.
pub(crate) fn play(from: u64, seeds: u64, mutant: Option<&str>) -> Result<String> {
    build()?;
    println!("sim: seeds {from} to {}", from.saturating_add(seeds));
    let took = start("seeds_keep_the_guarantees", from, seeds, mutant)?;
    let per_second = seeds as f64 / took.as_secs_f64();
    let speed = format!(
        "{seeds} seeds in {:.0} s, {per_second:.0} seeds/s",
        took.as_secs_f64()
    );
    println!("sim: {speed}");
    Ok(speed)
}

/// Where a fresh range of seeds begins: another one for each commit, the same one each time for one commit.
pub(crate) fn fresh_range() -> Result<u64> {
    let head = shell::capture(shell::command("git").args(["rev-parse", "HEAD"]))?;
    from_commit(head.trim())
}

fn from_commit(hash: &str) -> Result<u64> {
    let digits = hash.get(..8).context("the commit has no hash")?;
    let number = u64::from_str_radix(digits, 16).context("the commit's hash is no number")?;
    // Far from the seeds that everybody plays, and from each other.
    Ok(1_000_000_000 + number * 100_000)
}

fn parse(args: &[String]) -> Result<Arguments> {
    let mut parsed = Arguments {
        job: Job::Seeds,
        from: 0,
        seeds: 2000,
        mutant: None,
    };
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let text = args
                .next()
                .with_context(|| format!("{arg} needs a number"))?;
            text.parse()
                .with_context(|| format!("{arg} {text:?} is no number"))
        };
        match arg.as_str() {
            "--seeds" => parsed.seeds = number()?,
            "--from" => parsed.from = number()?,
            "--replay" => (parsed.job, parsed.from) = (Job::Replay, number()?),
            "--shrink" => (parsed.job, parsed.from) = (Job::Shrink, number()?),
            "--mutant" => parsed.mutant = args.next().cloned(),
            "--mutants" => {
                parsed.job = Job::Mutants;
                let name = args.next_if(|next| !next.starts_with("--"));
                parsed.mutant = parsed.mutant.or_else(|| name.cloned());
            }
            other => bail!("unknown argument {other:?}\n{USAGE}"),
        }
    }
    Ok(parsed)
}

fn cargo_test() -> std::process::Command {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--quiet", "--profile", "sim", "--lib"]);
    cargo
}

fn build() -> Result<()> {
    packages::need(&[packages::BUILD])?;
    shell::run(cargo_test().arg("--no-run"))
}

/// Runs one of the tests, and says how long it took without the build.
fn start(test: &str, from: u64, seeds: u64, mutant: Option<&str>) -> Result<Duration> {
    build()?;
    let mut cargo = cargo_test();
    cargo
        .args(["--", "--include-ignored", "--exact", "--nocapture"])
        .arg(format!("{TESTS}::{test}"))
        .env("VOLUND_SIM_SEEDS", seeds.to_string())
        .env("VOLUND_SIM_FROM", from.to_string());
    if let Some(mutant) = mutant {
        cargo.env("VOLUND_SIM_MUTANT", mutant);
    }
    let started = Instant::now();
    shell::run(&mut cargo)?;
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    #[test]
    fn arguments_say_what_to_do_and_with_which_seeds() {
        let check = |line: &str, job: Job, from: u64, seeds: u64, mutant: Option<&str>| {
            let mutant = mutant.map(str::to_owned);
            let expected = Arguments {
                job,
                from,
                seeds,
                mutant,
            };
            assert_eq!(parsed(line).unwrap(), expected, "{line}");
        };
        check("--seeds 5 --from 7", Job::Seeds, 7, 5, None);
        check(
            "--replay 3 --mutant NoIntent",
            Job::Replay,
            3,
            2000,
            Some("NoIntent"),
        );
        check("--mutants", Job::Mutants, 0, 2000, None);
        check(
            "--mutants NoIntent --seeds 9",
            Job::Mutants,
            0,
            9,
            Some("NoIntent"),
        );
        assert!(parsed("--seeds").is_err() && parsed("7").is_err());
    }

    #[test]
    fn each_commit_has_its_own_seeds() {
        let (one, two) = (
            from_commit("00000001aaaa").unwrap(),
            from_commit("00000002aaaa").unwrap(),
        );
        assert_eq!(two - one, 100_000);
        assert!(from_commit("xyz").is_err());
    }
}
