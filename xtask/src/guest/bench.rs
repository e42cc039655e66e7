//! The boot behind `cargo xtask bench guest`: volund's ublk devices and the kernel's own in turns, each turn's IOPS told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{Contents, Guest, Kernel, Machine, test_script};
use crate::{packages, shell};

/// The guest's disk: null_blk keeps its pages in memory and completes where it is asked, so that what is compared is software.
const DISK: &str = "null_blk nr_devices=1 memory_backed=1 gb=2 queue_mode=2 irqmode=0";
/// A turn's share of starting fio under emulation, and of everything before the first turn.
const SLACK: Duration = Duration::from_secs(2);
const BEFORE: Duration = Duration::from_secs(240);

/// Who is compared with volund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// One copy, with a loop device.
    Loop,
    /// Two copies, with md RAID1 over two loop devices.
    Mirror,
}

/// One boot's work.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) part: Part,
    pub(crate) rounds: u32,
    pub(crate) turn: Duration,
    pub(crate) volund: &'a Path,
    /// Another build of volund, a contender of its own.
    pub(crate) other: Option<&'a Path>,
}

/// One turn. Round 0 only warms up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) contender: String,
    pub(crate) operation: String,
    pub(crate) iops: f64,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Part::Loop => "loop",
            Part::Mirror => "mirror",
        }
    }

    /// Whom volund has to keep up with.
    pub(crate) fn peer(self) -> &'static str {
        match self {
            Part::Loop => "loop",
            Part::Mirror => "md",
        }
    }
}

/// Boots once and gives all turns.
pub(crate) fn samples(kernel: &Kernel, plan: &Plan<'_>) -> Result<Vec<Sample>> {
    packages::need(&[packages::LOAD, packages::POOLS, packages::RAID])?;
    let mut programs = vec![
        tool("fio", "/usr/bin/fio")?,
        tool("losetup", "/usr/sbin/losetup")?,
        tool("mdadm", "/usr/sbin/mdadm")?,
        (plan.volund.to_path_buf(), "/usr/bin/volund".to_owned()),
    ];
    if let Some(other) = plan.other {
        programs.push((other.to_path_buf(), "/usr/bin/other".to_owned()));
    }
    let settings = format!(
        "part={} rounds={} turn_ms={}\n",
        plan.part.name(),
        plan.rounds,
        plan.turn.as_millis()
    );
    let guest = Guest {
        kernel,
        machine: Machine::Microvm,
        cpus: 2,
        memory_mib: 3072,
        devices: Vec::new(),
        contents: Contents {
            programs,
            files: vec![
                test_script("bench.sh")?,
                ("/bench.env".to_owned(), settings),
            ],
            // The scheduler is what Debian's kernels give a disk with one queue.
            modules: ["raid1", "mq-deadline", DISK].map(str::to_owned).into(),
        },
        limit: BEFORE + (plan.turn + SLACK) * 6 * (plan.rounds + 1),
    };
    let mut samples = Vec::new();
    let outcome = guest.run(&mut |word| {
        let said = word.strip_prefix("sample ");
        samples.push(said.and_then(parse).context("no sample")?);
        Ok("heard".to_owned())
    })?;
    ensure!(outcome.failed == 0, "the guest could not measure");
    Ok(samples)
}

fn tool(name: &str, guest: &str) -> Result<(PathBuf, String)> {
    let path = shell::which(name).with_context(|| format!("{name} is not installed"))?;
    Ok((path, guest.to_owned()))
}

/// `ROUND CONTENDER/OPERATION IOPS`.
fn parse(said: &str) -> Option<Sample> {
    let mut words = said.split(' ');
    let round = words.next()?.parse().ok()?;
    let (contender, operation) = words.next()?.split_once('/')?;
    let iops: f64 = words.next()?.parse().ok()?;
    (iops > 0.0).then(|| Sample {
        round,
        contender: contender.to_owned(),
        operation: operation.to_owned(),
        iops,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_without_any_request_is_no_sample() {
        let sample = parse("3 loop/randread 1234.5").unwrap();
        assert_eq!((sample.round, sample.iops), (3, 1234.5));
        assert_eq!(
            (&*sample.contender, &*sample.operation),
            ("loop", "randread")
        );
        assert_eq!(parse("3 loop/randread 0"), None);
        assert_eq!(parse("3 loop"), None);
    }
}
