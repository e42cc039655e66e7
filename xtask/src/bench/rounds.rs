//! Interleaved rounds: in each, every contender is loaded once, alone, in an order that the seed shuffles.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::contenders::{Contender, Reach};
use super::load::Load;
use super::programs::Programs;
use super::sample::{self, Sample, Span};
use super::stats::{Ratio, median};
use super::store::DATA_OFFSET;
use crate::shell;

/// How many rounds, and what is done to the files between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    pub(crate) warm: f64,
    pub(crate) seed: u64,
    pub(crate) between: Between,
    /// Whether system calls are counted, in a round of their own.
    pub(crate) syscalls: bool,
}

/// What puts files back into the state that a round starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Between {
    /// Nothing: they are as good as before.
    Nothing,
    /// What a round has written is given back to the filesystem after it.
    Punch,
    /// Room is taken before a round that gives it back.
    Allocate,
}

/// All rounds of one contender.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) rounds: Vec<Sample>,
    pub(crate) syscalls_per_request: Option<f64>,
}

impl Series {
    /// One figure, round by round.
    pub(crate) fn figures(&self, figure: fn(&Sample) -> f64) -> Vec<f64> {
        self.rounds.iter().map(figure).collect()
    }

    pub(crate) fn median(&self, figure: fn(&Sample) -> f64) -> f64 {
        median(&self.figures(figure))
    }

    /// The ratio of a figure to that of another contender in the same rounds.
    pub(crate) fn ratio(&self, other: &Series, figure: fn(&Sample) -> f64) -> Ratio {
        Ratio::paired(&self.figures(figure), &other.figures(figure))
    }
}

/// Plays all rounds.
pub(crate) fn interleave(
    programs: &Programs,
    contenders: &[Contender],
    load: &Load,
    plan: &Plan,
) -> Result<Vec<Series>> {
    let mut series: Vec<Series> = contenders
        .iter()
        .map(|contender| Series {
            name: contender.name.clone(),
            rounds: Vec::new(),
            syscalls_per_request: None,
        })
        .collect();
    let mut seed = plan.seed;
    for round in 0..plan.rounds as usize {
        for index in order(contenders.len(), plan.seed + round as u64) {
            seed += 1;
            let contender = &contenders[index];
            plan.before(contender, round, load)?;
            let span = Span {
                seconds: plan.seconds,
                warm: plan.warm,
                seed,
            };
            let sample = sample::measure(programs, contender, load, round, span)
                .with_context(|| format!("{} in round {round}", contender.name))?;
            series[index].rounds.push(sample);
            plan.after(contender, round)?;
        }
    }
    if plan.syscalls {
        for (contender, series) in contenders.iter().zip(&mut series) {
            let round = plan.rounds as usize;
            plan.before(contender, round, load)?;
            series.syscalls_per_request = syscalls(programs, contender, load, round, plan)?;
            plan.after(contender, round)?;
        }
    }
    Ok(series)
}

/// A permutation that the seed decides (splitmix64, Fisher and Yates).
fn order(count: usize, seed: u64) -> Vec<usize> {
    let mut state = seed;
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let chosen = (mixed ^ (mixed >> 31)) % (last as u64 + 1);
        order.swap(last, usize::try_from(chosen).unwrap_or(0));
    }
    order
}

impl Plan {
    fn before(&self, contender: &Contender, round: usize, load: &Load) -> Result<()> {
        if self.between != Between::Allocate {
            return Ok(());
        }
        let length = load.size.to_string();
        on_files(contender, round, &["--length", &length])
    }

    fn after(&self, contender: &Contender, round: usize) -> Result<()> {
        match self.between {
            Between::Nothing => Ok(()),
            Between::Punch | Between::Allocate => {
                // To the end of any file here, and it stays as long as it is.
                let length = (1_u64 << 40).to_string();
                on_files(contender, round, &["--punch-hole", "--length", &length])
            }
        }
    }
}

/// `fallocate` on the data of each file of a round, and all that follows from it on disk before anything is measured.
fn on_files(contender: &Contender, round: usize, args: &[&str]) -> Result<()> {
    let Some(set) = contender.files.get(round % contender.files.len().max(1)) else {
        return Ok(());
    };
    for file in set {
        let mut command = shell::command("fallocate");
        command.args(["--offset", &DATA_OFFSET.to_string()]);
        shell::capture(command.args(args).arg(file))?;
    }
    if let Some(file) = set.first() {
        shell::capture(shell::command("sync").arg("--file-system").arg(file))?;
    }
    Ok(())
}

/// System calls of the backend for each request, all threads.
fn syscalls(
    programs: &Programs,
    contender: &Contender,
    load: &Load,
    round: usize,
    plan: &Plan,
) -> Result<Option<f64>> {
    let event = ["-e", "raw_syscalls:sys_enter"];
    let counted = counted(programs, contender, load, round, (plan, &event))?;
    Ok(counted.map(|(events, sample)| events / sample.requests))
}

/// Loads the contender while perf counts events of its process; `None` if it has no process of its own.
pub(crate) fn counted(
    programs: &Programs,
    contender: &Contender,
    load: &Load,
    round: usize,
    (plan, event): (&Plan, &[&str]),
) -> Result<Option<(f64, Sample)>> {
    let Reach::Vhost { sockets, pid } = &contender.reach else {
        return Ok(None);
    };
    // perf counts from the client's start to its end, so the start belongs to what is measured.
    let span = Span {
        seconds: plan.seconds,
        warm: 0.0,
        seed: plan.seed,
    };
    let socket = &sockets[round % sockets.len()];
    let client = sample::client(programs, socket, *pid, load, span);
    let out = shell::temp_path("perf");
    let mut perf = shell::command(&programs.perf);
    perf.args(["stat", "-x", ","]).args(event);
    perf.args(["-p", &pid.to_string(), "-o"])
        .arg(&out)
        .arg("--");
    perf.arg(client.get_program()).args(client.get_args());
    let said = shell::capture(&mut perf).context("perf cannot count here")?;
    let events = events(&out);
    let _it_was_read = std::fs::remove_file(&out);
    let sample: Sample = serde_json::from_str(said.trim())
        .with_context(|| format!("bench_client under perf said {said}"))?;
    sample.check(&contender.name)?;
    Ok(Some((events?, sample)))
}

/// The sum of all counters in perf's file.
fn events(file: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(file)?;
    let counts: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split(',').next()?.parse().ok())
        .collect();
    anyhow::ensure!(!counts.is_empty(), "perf counted nothing: {text}");
    Ok(counts.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_order_has_everyone_once_and_no_place_belongs_to_anyone() {
        let mut first = [0; 4];
        for seed in 0..400 {
            let order = order(4, seed);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            first[order[0]] += 1;
        }
        assert!(first.iter().all(|&times| times > 60), "{first:?}");
    }
}
