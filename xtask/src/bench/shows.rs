//! The lines that volund has to meet, as items of `cargo xtask soak`: each plays its cases and judges the ratios.
//!
//! Against qemu-storage-daemon, the less favourable of the two versions counts, figure by figure.

use anyhow::{Context, Result, bail, ensure};

use super::programs::Build;
use super::report::Outcome;
use super::rounds::{self, Series};
use super::sample::Sample;
use super::stats::{Line, Ratio, judge};
use super::{Bench, Options, cases};
use crate::packages;

type Figure = fn(&Sample) -> f64;

/// What has been judged so far.
#[derive(Debug, Default)]
struct Judged {
    lines: Vec<String>,
    missed: bool,
}

/// Plays cases and collects what they come to.
struct Judge {
    bench: Bench,
    options: Options,
    judged: Judged,
}

impl Judge {
    fn new(seed: u64) -> Result<Judge> {
        let mut options = Options::default();
        options.plan.seed = seed;
        Ok(Judge {
            bench: Bench::new(&options)?,
            options,
            judged: Judged::default(),
        })
    }

    /// Plays a case, and shows its table.
    fn play(&self, name: &str) -> Result<Outcome> {
        let case = cases::named(name)?;
        case.prepare(&self.bench.store)?;
        let outcome = self.bench.play(case, &self.options)?;
        print!("{}", outcome.text());
        Ok(outcome)
    }

    /// volund against the contender of this name.
    fn against(
        &mut self,
        outcome: &Outcome,
        other: &str,
        (what, figure): (&str, Figure),
        line: Line,
    ) -> Result<()> {
        let ratio = ours(outcome)?.ratio(theirs(outcome, other)?, figure);
        let what = format!("{}: {what} of {other}'s", outcome.case);
        self.judged.ratio(&what, ratio, line);
        Ok(())
    }

    /// volund against both versions of qemu-storage-daemon.
    fn against_qemu(
        &mut self,
        outcome: &Outcome,
        figure: (&str, Figure),
        line: Line,
    ) -> Result<()> {
        for (name, _) in self.bench.programs.qemus.clone() {
            self.against(outcome, &name, figure, line)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<String> {
        self.judged.finish()
    }
}

impl Judged {
    fn ratio(&mut self, what: &str, ratio: Ratio, line: Line) {
        let judgement = judge(what, ratio, line);
        self.missed |= !judgement.verdict.holds();
        self.lines.push(judgement.to_string());
    }

    /// Something that is counted and not compared.
    fn count(&mut self, what: &str, counted: f64, most: f64) {
        let holds = counted <= most;
        self.missed |= !holds;
        let word = if holds { "holds" } else { "MISSES" };
        self.lines
            .push(format!("{what}: {counted:.3}, at most {most}: {word}"));
    }

    fn finish(self) -> Result<String> {
        let text = self.lines.join("\n");
        if self.missed {
            bail!("a line is missed\n{text}");
        }
        Ok(format!("\n{text}"))
    }
}

fn ours(outcome: &Outcome) -> Result<&Series> {
    theirs(outcome, "volund")
}

fn theirs<'a>(outcome: &'a Outcome, name: &str) -> Result<&'a Series> {
    let series = outcome.series(name);
    series.with_context(|| format!("{name} took no part in {}", outcome.case))
}

const IOPS: (&str, Figure) = ("IOPS", |sample| sample.iops);
const P50: (&str, Figure) = ("p50", |sample| sample.p50_us);
const EFFICIENCY: (&str, Figure) = ("IOPS per CPU-second", Sample::iops_per_cpu);
const CPU_PER_BYTE: (&str, Figure) = ("CPU per byte", |sample| {
    sample.backend_cpu_seconds.unwrap_or(f64::NAN) / sample.bytes
});

/// Depth 1: latency and efficiency, without spinning and with `--poll auto`.
pub(crate) fn depth_1(seed: u64) -> Result<String> {
    let mut judge = Judge::new(seed)?;
    let outcome = judge.play("randread-d1")?;
    judge.against_qemu(&outcome, P50, Line::AtMost(0.92))?;
    judge.against_qemu(&outcome, EFFICIENCY, Line::AtLeast(1.2))?;
    let outcome = judge.play("randread-d1-auto")?;
    judge.against_qemu(&outcome, P50, Line::AtMost(0.75))?;
    judge.finish()
}

/// Depth 32: against the raw file, and efficiency.
pub(crate) fn depth_32(seed: u64) -> Result<String> {
    let mut judge = Judge::new(seed)?;
    for (case, of_raw, of_qemu) in [("randread-d32", 0.95, 1.6), ("randwrite-d32", 0.88, 1.4)] {
        let outcome = judge.play(case)?;
        judge.against(&outcome, "fio", IOPS, Line::AtLeast(of_raw))?;
        judge.against_qemu(&outcome, EFFICIENCY, Line::AtLeast(of_qemu))?;
    }
    judge.finish()
}

/// 128 KiB: against the raw file, and CPU.
pub(crate) fn large(seed: u64) -> Result<String> {
    let mut judge = Judge::new(seed)?;
    for case in ["read-128k-d8", "write-128k-d8"] {
        let outcome = judge.play(case)?;
        judge.against(&outcome, "fio", IOPS, Line::AtLeast(0.97))?;
        judge.against_qemu(&outcome, CPU_PER_BYTE, Line::AtMost(0.9))?;
    }
    judge.finish()
}

/// System calls for each request.
pub(crate) fn syscalls(seed: u64) -> Result<String> {
    let mut judge = Judge::new(seed)?;
    judge.options.only = vec!["volund".to_owned()];
    judge.options.plan.rounds = 1;
    for (case, most) in [("randread-d1", 2.3), ("randread-d32", 0.25)] {
        let outcome = judge.play(case)?;
        let counted = ours(&outcome)?.syscalls_per_request;
        let counted = counted.context("system calls were not counted")?;
        let what = format!("{case}: system calls per request");
        judge.judged.count(&what, counted, most);
    }
    judge.finish()
}

/// Mirrors: writes with room in the intent bitmap and without, reads, and flushes, which are counted too.
pub(crate) fn mirror(seed: u64) -> Result<String> {
    let mut judge = Judge::new(seed)?;
    for (case, other, least) in [
        ("mirror2-randwrite-d32", "fio", 0.85),
        ("mirror2-intent-1024", "fio", 0.5),
        ("mirror2-randread-d32", "volund-single", 0.9),
        ("mirror2-flush-32", "fio", 0.85),
        // No promise, but it must not get worse: each batch waits for a durable mark that fio does not make.
        ("mirror2-flush-32-new", "fio", 0.6),
    ] {
        let outcome = judge.play(case)?;
        judge.against(&outcome, other, IOPS, Line::AtLeast(least))?;
        let p99 = ours(&outcome)?.ratio(theirs(&outcome, other)?, |sample| sample.p99_us);
        let line = format!("{case}: p99 of {other}'s: {p99}");
        judge.judged.lines.push(line);
    }
    judge.flushes()?;
    judge.finish()
}

/// The protocol alone.
pub(crate) fn null(seed: u64) -> Result<String> {
    let mut judge = Judge::new(seed)?;
    let outcome = judge.play("null")?;
    judge.against_qemu(&outcome, EFFICIENCY, Line::AtLeast(1.4))?;
    judge.finish()
}

impl Judge {
    /// Every flush of the front end is one fdatasync for each of two members, through the ring (opcode 3) or as a call. What
    /// is counted are those of the whole process, of any file: two for each flush, no more and no fewer. That they are
    /// those of both members is for the nexus's tests to show.
    fn flushes(&mut self) -> Result<()> {
        const EVENTS: [&str; 8] = [
            "-e",
            "io_uring:io_uring_submit_req",
            "--filter",
            "opcode == 3",
            "-e",
            "syscalls:sys_enter_fdatasync",
            "-e",
            "syscalls:sys_enter_fsync",
        ];
        let only = ["volund".to_owned()];
        let setup =
            cases::named("mirror2-flush-32")?.start(&self.bench.entry(&self.options, &only))?;
        let volund = setup.contenders.first().context("volund takes no part")?;
        let answered = || volund.metric("volund_volume_flushes_completed_total{volume=\"v0\"}");
        let before = answered()?;
        let plan = &self.options.plan;
        let counted = rounds::counted(
            &self.bench.programs,
            volund,
            &setup.load,
            0,
            (plan, &EVENTS),
        )?;
        let (syncs, _) = counted.context("volund has no process")?;
        let flushes = answered()? - before;
        ensure!(flushes > 0.0, "the front end has not flushed");
        let what = "mirror2-flush-32: fdatasyncs of the process per flush, with two members";
        self.judged.count(what, syncs / flushes, 2.0);
        ensure!(
            syncs >= 2.0 * flushes,
            "{flushes} flushes were answered after {syncs} fdatasyncs of the process, which has two members"
        );
        Ok(())
    }
}

/// That the machinery works: very short, with builds for tests, and not judged on speed.
pub(crate) fn smoke(seed: u64) -> Result<String> {
    packages::need(&[packages::BUILD])?;
    let mut options = Options {
        build: Build::Debug,
        ..Options::default()
    };
    options.plan.seed = seed;
    options.plan.rounds = 2;
    options.plan.seconds = 0.2;
    options.plan.warm = 0.1;
    options.plan.syscalls = false;
    let bench = Bench::new(&options)?;
    let mut played = Vec::new();
    for name in [
        "memory-randread-d32",
        "thin-first-writes",
        "mirror2-flush-32",
    ] {
        let outcome = bench.play(cases::named(name)?, &options)?;
        ensure!(
            outcome
                .contenders
                .iter()
                .all(|series| series.rounds.len() == 2),
            "{name}: not everyone played every round"
        );
        played.push(format!("{name} with {}", outcome.contenders.len()));
    }
    Ok(played.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_missed_line_fails_the_show_and_all_lines_are_printed() {
        let mut judged = Judged::default();
        judged.ratio("a", Ratio::of(&[1.0, 1.0]), Line::AtLeast(0.9));
        judged.count("b", 2.0, 2.3);
        assert!(!judged.missed);
        judged.count("c", 2.4, 2.3);
        let error = judged.finish().unwrap_err().to_string();
        assert!(error.contains("a: 1.000") && error.contains("c: 2.400"));
    }
}
