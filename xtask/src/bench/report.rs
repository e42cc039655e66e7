//! What a case came to: a table for people, JSON for programs.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::load::Load;
use super::programs::{self, Programs};
use super::rounds::{Plan, Series};
use super::sample::Sample;
use super::stats::Ratio;
use crate::shell;

/// A case that was played.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) case: &'static str,
    pub(crate) about: &'static str,
    pub(crate) load: Load,
    pub(crate) contenders: Vec<Series>,
    pub(crate) ratios: Vec<Pair>,
}

/// The first contender against another one, round by round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) of: String,
    pub(crate) to: String,
    pub(crate) iops: Ratio,
    pub(crate) p50: Ratio,
    pub(crate) p99: Ratio,
    pub(crate) iops_per_cpu: Ratio,
}

impl Outcome {
    /// The first contender is the one that is compared with the others.
    pub(crate) fn new(
        (case, about): (&'static str, &'static str),
        load: Load,
        contenders: Vec<Series>,
    ) -> Outcome {
        let ratios = contenders
            .split_first()
            .map_or_else(Vec::new, |(ours, others)| {
                others
                    .iter()
                    .map(|theirs| Pair::new(ours, theirs))
                    .collect()
            });
        Outcome {
            case,
            about,
            load,
            contenders,
            ratios,
        }
    }

    /// The contender of this name.
    pub(crate) fn series(&self, name: &str) -> Option<&Series> {
        self.contenders.iter().find(|series| series.name == name)
    }

    /// The table.
    pub(crate) fn text(&self) -> String {
        let rounds = self
            .contenders
            .first()
            .map_or(0, |series| series.rounds.len());
        let mut text = format!(
            "\n{}: {} ({rounds} rounds, medians)\n{:14}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}{:>9}{:>9}{:>7}{:>7}\n",
            self.case,
            self.about,
            "",
            "IOPS",
            "MiB/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "cores",
            "IOPS/cpu",
            "sys/req",
            "kicks",
            "calls",
        );
        for series in &self.contenders {
            text.push_str(&row(series));
        }
        for pair in &self.ratios {
            text.push_str(&format!(
                "  {} / {}: IOPS {}, p50 {}, p99 {}, IOPS per CPU-second {}\n",
                pair.of, pair.to, pair.iops, pair.p50, pair.p99, pair.iops_per_cpu
            ));
        }
        text
    }
}

impl Pair {
    fn new(ours: &Series, theirs: &Series) -> Pair {
        Pair {
            of: ours.name.clone(),
            to: theirs.name.clone(),
            iops: ours.ratio(theirs, |sample| sample.iops),
            p50: ours.ratio(theirs, |sample| sample.p50_us),
            p99: ours.ratio(theirs, |sample| sample.p99_us),
            iops_per_cpu: ours.ratio(theirs, Sample::iops_per_cpu),
        }
    }
}

fn row(series: &Series) -> String {
    let per_request = |figure: fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = series
            .rounds
            .iter()
            .map(|sample| sample.per_request(figure(sample)))
            .collect();
        cell(super::stats::median(&values), 3)
    };
    format!(
        "{:14}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}{:>9}{:>9}{:>7}{:>7}\n",
        series.name,
        cell(series.median(|sample| sample.iops), 0),
        cell(
            series.median(|sample| sample.bytes / sample.seconds / 1_048_576.0),
            0
        ),
        cell(series.median(|sample| sample.p50_us), 1),
        cell(series.median(|sample| sample.p99_us), 1),
        cell(series.median(|sample| sample.p999_us), 1),
        cell(series.median(Sample::cores), 2),
        cell(series.median(Sample::iops_per_cpu), 0),
        cell(series.syscalls_per_request.unwrap_or(f64::NAN), 3),
        per_request(|sample| sample.kicks),
        per_request(|sample| sample.calls),
    )
}

/// A number with so many decimals; a dash if there is none.
fn cell(value: f64, decimals: usize) -> String {
    if value.is_finite() {
        format!("{value:.decimals$}")
    } else {
        "-".to_owned()
    }
}

/// Writes `target/bench/NAME.json` and gives its path.
pub(crate) fn write_json(
    name: &str,
    programs: &Programs,
    plan: &Plan,
    outcomes: &[Outcome],
) -> Result<PathBuf> {
    let commit = shell::capture(shell::command("git").args(["rev-parse", "HEAD"]))?;
    let changed = shell::capture(shell::command("git").args(["status", "--porcelain"]))?;
    let kernel = shell::capture(shell::command("uname").args(["-srm"]))?;
    let mut versions = serde_json::Map::new();
    for (name, binary) in &programs.qemus {
        versions.insert(name.clone(), json!(programs::version(binary)));
    }
    versions.insert("fio".to_owned(), json!(programs::version(&programs.fio)));
    let value = json!({
        "commit": commit.trim(),
        "changes": !changed.is_empty(),
        "kernel": kernel.trim(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "versions": versions,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "warm_seconds": plan.warm,
        "seed": plan.seed,
        "cases": outcomes,
    });
    let folder = shell::root().join("target/bench");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(&value)?)?;
    Ok(path)
}
