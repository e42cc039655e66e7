//! `cargo xtask bench guest [--part loop|mirror] [--kernel NAME] [--rounds N] [--turn MILLISECONDS] [--volund PROGRAM]
//! [--other PROGRAM]`: ublk inside a guest, in turns with what the kernel has: one copy with a loop device (direct I/O), two
//! with md RAID1 over two loop devices (internal write-intent bitmap). `--other` adds another build of the daemon to the
//! turns, `--volund` takes one that is there instead of a fresh release build.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::stats::{Judgement, Line, Ratio, judge, median};
use crate::guest::{self, Kernel, bench};
use crate::shell;

/// Volund's part of its peer's IOPS, at least.
const LINE: Line = Line::AtLeast(0.9);
const OPERATIONS: [&str; 2] = ["randread", "randwrite"];
/// The kernel that is judged; others are for comparison.
const KERNEL: &str = "7.x";
const ROUNDS: u32 = 15;
const TURN: Duration = Duration::from_millis(1200);

struct Options {
    part: Option<bench::Part>,
    kernel: String,
    rounds: u32,
    turn: Duration,
    /// Measured instead of a fresh release build.
    volund: Option<PathBuf>,
    other: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    kernel: &'a str,
    part: &'a str,
    samples: &'a [bench::Sample],
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    measure(&Options::parse(args)?).map(drop)
}

/// Both parts with 15 rounds on the judged kernel; an error when a line is missed.
pub(crate) fn round() -> Result<String> {
    let judgements = measure(&Options::parse(&[])?)?;
    let lines: Vec<String> = judgements.iter().map(Judgement::to_string).collect();
    let all = lines.join("; ");
    ensure!(
        judgements.iter().all(|judgement| judgement.verdict.holds()),
        "{all}"
    );
    Ok(all)
}

impl Options {
    fn parse(args: &[String]) -> Result<Options> {
        let mut options = Options {
            part: None,
            kernel: KERNEL.to_owned(),
            rounds: ROUNDS,
            turn: TURN,
            volund: None,
            other: None,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = args
                .next()
                .with_context(|| format!("{arg} takes a value"))?;
            match (arg.as_str(), value.as_str()) {
                ("--part", "loop") => options.part = Some(bench::Part::Loop),
                ("--part", "mirror") => options.part = Some(bench::Part::Mirror),
                ("--kernel", name) => options.kernel = name.to_owned(),
                ("--rounds", rounds) => options.rounds = rounds.parse()?,
                ("--turn", turn) => options.turn = Duration::from_millis(turn.parse()?),
                ("--volund", path) => options.volund = Some(PathBuf::from(path)),
                ("--other", path) => options.other = Some(PathBuf::from(path)),
                _ => bail!("unknown argument {arg} {value}"),
            }
        }
        Ok(options)
    }
}

fn measure(options: &Options) -> Result<Vec<Judgement>> {
    let volund = match &options.volund {
        Some(path) => path.clone(),
        None => release()?,
    };
    let mut judgements = Vec::new();
    for kernel in guest::kernels(Some(&options.kernel))? {
        for part in [bench::Part::Loop, bench::Part::Mirror] {
            if options.part.is_some_and(|only| only != part) {
                continue;
            }
            let plan = bench::Plan {
                part,
                rounds: options.rounds,
                turn: options.turn,
                volund: &volund,
                other: options.other.as_deref(),
            };
            let samples = bench::samples(&kernel, &plan)?;
            keep(&kernel, part, &samples)?;
            judgements.extend(compare(&kernel, part, &samples));
        }
    }
    Ok(judgements)
}

fn release() -> Result<PathBuf> {
    shell::run(shell::cargo().args(["build", "--quiet", "--release", "--bin", "volund"]))?;
    Ok(shell::root().join("target/release/volund"))
}

/// Leaves every figure in `target/bench`.
fn keep(kernel: &Kernel, part: bench::Part, samples: &[bench::Sample]) -> Result<()> {
    let folder = shell::root().join("target/bench");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("guest-{}-{}.json", part.name(), kernel.name));
    let report = Report {
        kernel: &kernel.version,
        part: part.name(),
        samples,
    };
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("every turn: {}", path.display());
    Ok(())
}

/// Prints medians and ratios, and judges volund against its peer.
fn compare(kernel: &Kernel, part: bench::Part, samples: &[bench::Sample]) -> Vec<Judgement> {
    let mut judgements = Vec::new();
    for operation in OPERATIONS {
        let ours = column(samples, "volund", operation);
        let theirs = column(samples, part.peer(), operation);
        println!(
            "kernel {}, {operation}: volund {:.0} IOPS, {} {:.0}",
            kernel.version,
            median(&ours),
            part.peer(),
            median(&theirs)
        );
        let what = format!("{operation} of {} (kernel {})", part.peer(), kernel.name);
        let judgement = judge(what, Ratio::paired(&ours, &theirs), LINE);
        println!("{judgement}");
        judgements.push(judgement);
        let other = column(samples, "other", operation);
        if !other.is_empty() {
            let gain = Ratio::paired(&ours, &other);
            println!("{operation} of the other build: {gain}");
        }
    }
    judgements
}

/// A contender's IOPS, round by round, without the one that warms up.
fn column(samples: &[bench::Sample], contender: &str, operation: &str) -> Vec<f64> {
    let is_it = |sample: &&bench::Sample| {
        sample.round > 0 && sample.contender == contender && sample.operation == operation
    };
    samples
        .iter()
        .filter(is_it)
        .map(|sample| sample.iops)
        .collect()
}
