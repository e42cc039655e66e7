//! `cargo xtask bench --guard [--against REV]`: has this commit become slower than the one before?
//!
//! Both are built in release with the same flags. Instructions are what decides: `bench_fixed` does the same work on both data
//! paths under callgrind, whose counts two runs of one program share to the last digit, so a loss of more than 3 % of a request's
//! instructions fails. Time is noisy here: both daemons serve the same load from memory in turns, and only a loss whose whole
//! interval lies beyond 5 % fails. The present commit's `bench_fixed` and front end are used for both.
//!
//! What neither sees: system calls and the kernel (their counts per request are lines of the shows), disks, ublk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::contenders::{Contender, Volumes};
use super::load::Load;
use super::programs::Programs;
use super::rounds::{self, Between, Plan};
use super::sample::Sample;
use super::stats::{Line, Verdict, judge};
use crate::{packages, shell};

/// A request may take so many times the instructions that it took.
const INSTRUCTIONS_MAX: f64 = 1.03;
/// So much of the speed must be left, by the favourable end of the interval.
const SPEED_MIN: f64 = 0.95;
/// Kinds of work of `bench_fixed`.
const WORKS: [&str; 6] = ["ring", "read-1", "write-1", "read-2", "write-2", "flush-2"];
/// Work is counted twice, and the difference divided by the requests that one has more: what the start takes cancels out.
const REQUESTS: [u32; 2] = [1024, 5120];
/// Volumes of the time comparison, and the jobs that they are loaded with.
const SIZE: u64 = 64 << 20;
const TIMED: [(&str, usize, &str); 3] = [
    ("1 replica", 1, "randread-4k-d1"),
    ("1 replica", 1, "randread-4k-d32"),
    ("2 replicas", 2, "randwrite-4k-d32"),
];
const PLAN: Plan = Plan {
    rounds: 15,
    seconds: 0.5,
    warm: 0.2,
    seed: 1,
    between: Between::Nothing,
    syscalls: false,
};

type Figure = fn(&Sample) -> f64;

/// What is built of one commit.
#[derive(Debug)]
struct Built {
    volund: PathBuf,
    client: PathBuf,
    fixed: PathBuf,
}

pub(super) fn run(args: &[String]) -> Result<()> {
    let (against, only_counts) = match args {
        [] => (before()?, false),
        [flag] if flag == "--counts" => (before()?, true),
        [flag, rev] if flag == "--against" => (rev.clone(), false),
        [flag, rev, counts] if flag == "--against" && counts == "--counts" => (rev.clone(), true),
        _ => bail!("bench --guard takes --against REV and then --counts, for instructions only"),
    };
    packages::need(&[packages::BUILD, packages::GUARD])?;
    let revision = revision(&against)?;
    println!("guard: building {revision} ({against}) and what is here");
    let there = build(&checkout(&revision)?, "before")?;
    let here = build(&shell::root(), "here")?;
    let mut losses = counts(&here, &there)?;
    if !only_counts {
        losses.extend(times(&here, &there)?);
    }
    ensure!(
        losses.is_empty(),
        "slower than {revision}:\n  {}",
        losses.join("\n  ")
    );
    println!("guard: no loss against {revision}");
    Ok(())
}

/// The last commit if something is uncommitted, else the one before it.
fn before() -> Result<String> {
    let changes = shell::capture(shell::command("git").args(["status", "--porcelain"]))?;
    let before = if changes.is_empty() { "HEAD~1" } else { "HEAD" };
    Ok(before.to_owned())
}

fn revision(name: &str) -> Result<String> {
    let mut git = shell::command("git");
    git.args([
        "rev-parse",
        "--short",
        "--verify",
        &format!("{name}^{{commit}}"),
    ]);
    let revision =
        shell::capture(&mut git).with_context(|| format!("there is no commit {name}"))?;
    Ok(revision.trim().to_owned())
}

/// The other commit's tree, with the fixed work of this one.
fn checkout(revision: &str) -> Result<PathBuf> {
    let tree = shell::root().join("target/guard/tree");
    // Only files that differ are written, so that cargo builds no more than it must.
    if tree.join(".git").exists() {
        let mut git = shell::command("git");
        git.arg("-C").arg(&tree);
        shell::capture(git.args(["checkout", "--quiet", "--force", "--detach", revision]))?;
    } else {
        let mut git = shell::command("git");
        git.args(["worktree", "add", "--quiet", "--force", "--detach"]);
        shell::capture(git.arg(&tree).arg(revision))?;
    }
    let work = "examples/bench_fixed.rs";
    fs::copy(shell::root().join(work), tree.join(work))?;
    Ok(tree)
}

/// Builds a tree, and puts the programs aside under this name.
fn build(tree: &Path, name: &str) -> Result<Built> {
    let guard = shell::root().join("target/guard");
    let has_client = tree.join("examples/bench_client").exists();
    let mut cargo = shell::cargo();
    cargo
        .current_dir(tree)
        .args(["build", "--quiet", "--release", "--bin=volund"]);
    cargo.arg("--example=bench_fixed");
    if has_client {
        cargo.arg("--example=bench_client");
    }
    // valgrind hides the vDSO, which rustix would look into.
    cargo.args(["--features", "rustix/use-libc-auxv", "--target-dir"]);
    let built = guard.join("build");
    shell::run(cargo.arg(&built)).with_context(|| {
        format!(
            "{} can't be built; if only bench_fixed can't, the data path's interface has changed since then",
            tree.display()
        )
    })?;
    let aside = guard.join(name);
    fs::create_dir_all(&aside)?;
    let keep = |program: &str| {
        let to = aside.join(Path::new(program).file_name().unwrap_or_default());
        fs::copy(built.join("release").join(program), &to)
            .with_context(|| format!("{program} was not built"))?;
        Ok::<PathBuf, anyhow::Error>(to)
    };
    Ok(Built {
        volund: keep("volund")?,
        fixed: keep("examples/bench_fixed")?,
        client: match has_client {
            true => keep("examples/bench_client")?,
            false => PathBuf::new(),
        },
    })
}

/// Compares instructions; returns what was lost.
fn counts(here: &Built, there: &Built) -> Result<Vec<String>> {
    println!(
        "{:10} {:>12} {:>12} {:>8}",
        "work", "before", "here", "ratio"
    );
    let mut losses = Vec::new();
    for work in WORKS {
        let (before, now) = (
            per_request(&there.fixed, work)?,
            per_request(&here.fixed, work)?,
        );
        let ratio = now / before;
        println!("{work:10} {before:12.0} {now:12.0} {ratio:8.3}");
        losses.extend(loss(work, before, now));
    }
    Ok(losses)
}

/// What is wrong with these instructions of a request, if anything is. No work takes none: then the counts are no good.
fn loss(work: &str, before: f64, now: f64) -> Option<String> {
    let ratio = now / before;
    let holds = before > 0.0 && now > 0.0 && ratio <= INSTRUCTIONS_MAX;
    (!holds).then(|| {
        format!(
            "{work}: {now:.0} instructions a request, {before:.0} before ({ratio:.3} times; at most {INSTRUCTIONS_MAX} are allowed)"
        )
    })
}

/// Instructions of one request.
fn per_request(fixed: &Path, work: &str) -> Result<f64> {
    let few = instructions(fixed, work, REQUESTS[0])?;
    let many = instructions(fixed, work, REQUESTS[1])?;
    Ok((many - few) / f64::from(REQUESTS[1] - REQUESTS[0]))
}

fn instructions(fixed: &Path, work: &str, requests: u32) -> Result<f64> {
    let out = shell::temp_path("callgrind");
    let mut valgrind = shell::command("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet"]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    let done = shell::capture(valgrind.arg(fixed).arg(work).arg(requests.to_string()));
    let text = fs::read_to_string(&out).unwrap_or_default();
    let _it_was_read = fs::remove_file(&out);
    done?;
    total(&text).with_context(|| format!("callgrind counted nothing of {work}"))
}

/// The sum that callgrind's file ends with.
fn total(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    line.trim().parse().ok()
}

/// Compares time; returns what was lost.
fn times(here: &Built, there: &Built) -> Result<Vec<String>> {
    let programs = Programs {
        volund: here.volund.clone(),
        client: here.client.clone(),
        // Nobody else takes part.
        null: PathBuf::new(),
        fio: PathBuf::new(),
        perf: PathBuf::new(),
        qemus: Vec::new(),
    };
    let mut losses = Vec::new();
    for (what, replicas, job) in TIMED {
        let load = Load::read(job, SIZE)?;
        let volumes = Volumes {
            pools: vec![format!("memory = \"{}MiB\"", 2 * (SIZE >> 20)); replicas],
            count: 1,
            size: SIZE,
            queues: load.queues,
            more: String::new(),
        };
        let contenders = [(here, "here"), (there, "before")].map(|(built, name)| {
            let started = Contender::volund(&built.volund, &volumes, None, &[]);
            started.map(|contender| contender.named(name))
        });
        let contenders = contenders.into_iter().collect::<Result<Vec<_>>>()?;
        let series = rounds::interleave(&programs, &contenders, &load, &PLAN)?;
        let figures: [(&str, Figure); 2] = [
            ("requests a second", |sample| sample.iops),
            ("requests a CPU-second", Sample::iops_per_cpu),
        ];
        for (figure, of) in figures {
            let ratio = series[0].ratio(&series[1], of);
            let name = format!("{what}, {job}: {figure}");
            let judged = judge(name, ratio, Line::AtLeast(SPEED_MIN));
            println!("{judged}");
            // A loss counts when no value of the interval is within what is allowed.
            if judged.verdict == Verdict::Misses {
                losses.push(judged.to_string());
            }
        }
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_that_of_all_functions() {
        let text = "events: Ir\nsummary: 12\nfn=(1)\n5 7\ntotals: 756883\n";
        assert_eq!(total(text), Some(756_883.0));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn only_counts_that_can_be_compared_and_are_close_are_no_loss() {
        assert_eq!(loss("x", 1000.0, 1030.0), None);
        assert_eq!(loss("x", 1000.0, 900.0), None);
        for (before, now) in [
            (1000.0, 1031.0),
            (f64::NAN, 1000.0),
            (1000.0, f64::NAN),
            (0.0, 0.0),
            (0.0, 1000.0),
            (1000.0, -5.0),
        ] {
            assert!(loss("x", before, now).is_some(), "{before} to {now}");
        }
    }

    #[test]
    fn every_timed_job_exists() {
        for (_, _, job) in TIMED {
            assert!(Load::read(job, SIZE).is_ok(), "{job}");
        }
    }
}
