//! `xtask blocks run|check|scatter|discard PATH --bytes N --seed N [--ops N] [--per-op BLOCKS] [--until FILE] [--jobs N]
//! [--state FILE] [--after-power-cut yes]`:
//! writes self-describing blocks to a device and verifies them. Runs inside guests in place of fio; the example
//! `vhost_blocks` is the same over vhost-user.
//!
//! A block says which run wrote it, where, and in which version, and every byte follows from that. `run` fills its range,
//! then mixes writes, reads and flushes, verifying each read, for a number of operations or until a file appears, and at
//! last reads all back; `check` reads all back. Without a state file `check` plays the same run again on paper, so the same
//! arguments are enough. With one it takes what the run noted: after an I/O error a block may hold the last acknowledged
//! version or the one that was on its way; after a power cut, any from the last flushed one on.

mod content;
mod device;
#[allow(
    dead_code,
    reason = "the judge of the example crash_client; this program only tests it"
)]
pub(crate) mod history;
mod scatter;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub(crate) use content::{BLOCK, Random};
use content::{fill, version_of};

const BLOCKS_MAX_PER_OP: u64 = 32;

/// What lies under a job: a disk with one buffer, through which all data goes.
pub(crate) trait Disk: Send {
    /// The first `length` bytes of the buffer.
    fn buffer(&mut self, length: usize) -> &mut [u8];
    /// Reads into the start of the buffer.
    fn read(&mut self, offset: u64, length: usize) -> Result<()>;
    /// Writes the start of the buffer.
    fn write(&mut self, offset: u64, length: usize) -> Result<()>;
    /// Returns when every write that was acknowledged before is durable.
    fn flush(&mut self) -> Result<()>;
    /// Gives a range back; it reads as zeroes.
    fn discard(&mut self, _offset: u64, _length: u64) -> Result<()> {
        bail!("this disk can't discard")
    }
}

#[derive(Debug, Clone)]
struct Options {
    path: PathBuf,
    bytes: u64,
    seed: u64,
    ops: u64,
    per_op: u64,
    until: Option<PathBuf>,
    jobs: u64,
    state: Option<PathBuf>,
    after_power_cut: bool,
}

/// What a block may hold: any version from the last acknowledged (after a power cut: flushed) to the last issued.
/// Version 0 is all zeroes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Model {
    flushed: Vec<u64>,
    acked: Vec<u64>,
    issued: Vec<u64>,
}

/// The share of the disk that one thread works on.
struct Job {
    /// Absent when the run is only played on paper.
    disk: Option<Box<dyn Disk>>,
    first: u64,
    seed: u64,
    random: Random,
    model: Model,
    takes_flushed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Run,
    Check,
    Scatter,
    Discard,
}

/// On a device or file of this host.
pub(crate) fn run(args: &[String]) -> Result<()> {
    on_disks(args, |path, jobs, buffer| {
        let open = |_| Ok(Box::new(device::Device::open(path, buffer)?) as Box<dyn Disk>);
        (0..jobs).map(open).collect()
    })
}

/// On what `open` gives: as many disks, all the same one underneath, as there are jobs.
pub(crate) fn on_disks(
    args: &[String],
    open: impl FnOnce(&Path, usize, usize) -> Result<Vec<Box<dyn Disk>>>,
) -> Result<()> {
    let (verb, rest) = args
        .split_first()
        .context("blocks run|check|scatter|discard PATH ...")?;
    let work = match verb.as_str() {
        "run" => Work::Run,
        "check" => Work::Check,
        "scatter" => Work::Scatter,
        "discard" => Work::Discard,
        other => bail!("blocks knows run, check, scatter and discard, not {other:?}"),
    };
    let options = Options::parse(rest)?;
    let disks = open(
        &options.path,
        index(options.jobs),
        index(BLOCKS_MAX_PER_OP) * BLOCK,
    )?;
    let (models, failed) = in_threads(&options, disks, work)?;
    if let (Work::Run | Work::Scatter | Work::Discard, Some(path)) = (work, &options.state) {
        std::fs::write(path, serde_json::to_vec(&models)?)?;
    }
    failed.map_or(Ok(()), Err)
}

/// Works on each job's share in a thread of its own; gives every model and the first error.
fn in_threads(
    options: &Options,
    disks: Vec<Box<dyn Disk>>,
    work: Work,
) -> Result<(Vec<Model>, Option<anyhow::Error>)> {
    let known: Option<Vec<Model>> = match (&options.state, work) {
        (Some(path), Work::Check) => Some(serde_json::from_slice(&std::fs::read(path)?)?),
        (Some(path), Work::Scatter) if path.exists() => {
            Some(serde_json::from_slice(&std::fs::read(path)?)?)
        }
        _ => None,
    };
    let mut threads = Vec::new();
    for (at, disk) in disks.into_iter().enumerate() {
        let options = options.clone();
        let model = known.as_ref().and_then(|models| models.get(at).cloned());
        let mut job = Job::new(&options, at as u64, disk, model)?;
        threads.push(std::thread::spawn(move || {
            let done = match work {
                Work::Run => job.run(&options),
                Work::Check => job.check(&options),
                Work::Scatter => job.scatter(&options),
                Work::Discard => job.discard(),
            };
            (job.model, done.err())
        }));
    }
    let mut models = Vec::new();
    let mut failed = None;
    for thread in threads {
        let (model, error) = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread of blocks panicked"))?;
        models.push(model);
        failed = failed.or(error);
    }
    Ok((models, failed))
}

impl Job {
    fn new(options: &Options, at: u64, disk: Box<dyn Disk>, model: Option<Model>) -> Result<Job> {
        let blocks = options.bytes / BLOCK as u64 / options.jobs;
        let zero = vec![0; usize::try_from(blocks)?];
        let blank = Model {
            flushed: zero.clone(),
            acked: zero.clone(),
            issued: zero,
        };
        let seed = options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(at + 1);
        Ok(Job {
            disk: Some(disk),
            first: blocks * at,
            seed,
            random: Random::new(seed),
            model: model.unwrap_or(blank),
            takes_flushed: options.after_power_cut,
        })
    }

    fn blocks(&self) -> u64 {
        self.model.acked.len() as u64
    }

    fn run(&mut self, options: &Options) -> Result<()> {
        let mut at = 0;
        while at < self.blocks() {
            let count = BLOCKS_MAX_PER_OP.min(self.blocks() - at);
            self.write(at, count)?;
            at += count;
            // A flush now and then, so that one was seen also by who ends the run early.
            if self.random.below(8) == 0 {
                self.flush()?;
            }
        }
        let is_over = |done: u64| match &options.until {
            Some(file) => done.is_multiple_of(16) && file.exists(),
            None => done >= options.ops,
        };
        let mut done = 0;
        while !is_over(done) {
            self.step()?;
            done += 1;
        }
        self.flush()?;
        self.verify_all()
    }

    /// One random operation: mostly writes, reads that are verified, now and then a flush.
    fn step(&mut self) -> Result<()> {
        let count = (1 + self.random.below(BLOCKS_MAX_PER_OP)).min(self.blocks());
        let at = self.random.below(self.blocks() - count + 1);
        match self.random.below(20) {
            0 => self.flush(),
            1..=6 => self.verify(at, count),
            _ => self.write(at, count),
        }
    }

    fn check(&mut self, options: &Options) -> Result<()> {
        if options.state.is_none() {
            let disk = self.disk.take();
            self.run(options)?;
            self.disk = disk;
        }
        self.verify_all()
    }

    fn verify_all(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.blocks() {
            let count = BLOCKS_MAX_PER_OP.min(self.blocks() - at);
            self.verify(at, count)?;
            at += count;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(disk) = &mut self.disk {
            disk.flush().context("flush")?;
        }
        self.model.flushed.clone_from(&self.model.acked);
        Ok(())
    }

    fn write(&mut self, at: u64, count: u64) -> Result<()> {
        let range = index(at)..index(at + count);
        for block in range.clone() {
            self.model.issued[block] += 1;
        }
        if let Some(disk) = &mut self.disk {
            let length = index(count) * BLOCK;
            let blocks = disk.buffer(length).chunks_exact_mut(BLOCK);
            for (block, bytes) in range.clone().zip(blocks) {
                fill(
                    bytes,
                    self.seed,
                    self.first + block as u64,
                    self.model.issued[block],
                );
            }
            let place = self.first + at;
            disk.write(place * BLOCK as u64, length)
                .with_context(|| format!("write of {count} blocks at block {place}"))?;
        }
        for block in range {
            self.model.acked[block] = self.model.issued[block];
        }
        Ok(())
    }

    fn verify(&mut self, at: u64, count: u64) -> Result<()> {
        let Some(disk) = &mut self.disk else {
            return Ok(());
        };
        let length = index(count) * BLOCK;
        let place = self.first + at;
        disk.read(place * BLOCK as u64, length)
            .with_context(|| format!("read of {count} blocks at block {place}"))?;
        let least = if self.takes_flushed {
            &self.model.flushed
        } else {
            &self.model.acked
        };
        for (block, bytes) in (index(at)..).zip(disk.buffer(length).chunks_exact(BLOCK)) {
            let place = self.first + block as u64;
            let version = version_of(bytes, self.seed, place)?;
            let (least, most) = (least[block], self.model.issued[block]);
            ensure!(
                (least..=most).contains(&version),
                "block {place} holds version {version}, expected {least} to {most}"
            );
        }
        Ok(())
    }
}

pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("a block number fits the address space of a 64-bit machine")
}

impl Options {
    fn parse(args: &[String]) -> Result<Options> {
        let (path, rest) = args.split_first().context("which device or file?")?;
        let mut options = Options {
            path: PathBuf::from(path),
            bytes: 0,
            seed: 0,
            ops: 0,
            per_op: 16,
            until: None,
            jobs: 1,
            state: None,
            after_power_cut: false,
        };
        let mut rest = rest.iter();
        while let Some(name) = rest.next() {
            let value = rest
                .next()
                .with_context(|| format!("{name} takes a value"))?;
            match name.as_str() {
                "--bytes" => options.bytes = bytes(value)?,
                "--seed" => options.seed = value.parse()?,
                "--ops" => options.ops = value.parse()?,
                "--per-op" => options.per_op = value.parse()?,
                "--until" => options.until = Some(PathBuf::from(value)),
                "--jobs" => options.jobs = value.parse()?,
                "--state" => options.state = Some(PathBuf::from(value)),
                "--after-power-cut" => options.after_power_cut = value == "yes",
                other => bail!("unknown argument {other:?}"),
            }
        }
        ensure!(options.jobs > 0, "--jobs is at least 1");
        ensure!(
            options.bytes >= options.jobs * BLOCK as u64,
            "--bytes must give each job a block"
        );
        ensure!(
            (1..=BLOCKS_MAX_PER_OP).contains(&options.per_op),
            "--per-op is 1 to {BLOCKS_MAX_PER_OP}"
        );
        Ok(options)
    }
}

fn bytes(text: &str) -> Result<u64> {
    let (number, factor) = match text.strip_suffix("MiB") {
        Some(number) => (number, 1 << 20),
        None => (text, 1),
    };
    Ok(number
        .parse::<u64>()
        .with_context(|| format!("{text:?} is no size"))?
        * factor)
}

#[cfg(test)]
mod tests;
