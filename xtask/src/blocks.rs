//! `xtask blocks run|check PATH --bytes N --seed N [--ops N|--seconds N] [--jobs N] [--state FILE]`: writes
//! self-describing blocks to a device and verifies them. This is what runs inside guests, in place of fio.
//!
//! A block says which run wrote it, where, and in which version, and every byte follows from that. `run` fills its range,
//! then mixes writes, reads and flushes, verifying each read, and at last reads all back; `check` reads all back. Without a
//! state file `check` plays the same run again on paper, so the same arguments are enough. With one, it takes what the run
//! noted: after an I/O error a block may hold the last acknowledged version or the one that was on its way.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

const BLOCK: usize = 4096;
const BLOCKS_MAX_PER_OP: u64 = 32;
const O_DIRECT: i32 = 0o40_000;
const MAGIC: u64 = 0x766f_6c75_6e64_626c;

#[derive(Debug, Clone)]
struct Options {
    path: PathBuf,
    bytes: u64,
    seed: u64,
    ops: u64,
    seconds: Option<u64>,
    jobs: u64,
    state: Option<PathBuf>,
}

/// What a block may hold: any version from the last acknowledged to the last issued. Version 0 is all zeroes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Model {
    acked: Vec<u64>,
    issued: Vec<u64>,
}

/// The share of the device that one thread works on.
struct Job {
    /// Absent when the run is only played on paper.
    file: Option<File>,
    first: u64,
    seed: u64,
    random: Random,
    model: Model,
    buffer: Aligned,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let (verb, rest) = args.split_first().context("blocks run|check PATH ...")?;
    let options = Options::parse(rest)?;
    match verb.as_str() {
        "run" => {
            let (models, failed) = in_threads(&options, Work::Run)?;
            if let Some(path) = &options.state {
                std::fs::write(path, serde_json::to_vec(&models)?)?;
            }
            failed.map_or(Ok(()), Err)
        }
        "check" => {
            let (_, failed) = in_threads(&options, Work::Check)?;
            failed.map_or(Ok(()), Err)
        }
        other => bail!("blocks knows run and check, not {other:?}"),
    }
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Run,
    Check,
}

/// Runs `work` on each job's share in a thread of its own; gives every model and the first error.
fn in_threads(options: &Options, work: Work) -> Result<(Vec<Model>, Option<anyhow::Error>)> {
    let known: Option<Vec<Model>> = match (&options.state, work) {
        (Some(path), Work::Check) => Some(serde_json::from_slice(&std::fs::read(path)?)?),
        _ => None,
    };
    let threads: Vec<_> = (0..options.jobs)
        .map(|index| {
            let options = options.clone();
            let at = usize::try_from(index).unwrap_or_default();
            let model = known.as_ref().and_then(|models| models.get(at).cloned());
            std::thread::spawn(move || -> Result<(Model, Option<anyhow::Error>)> {
                let mut job = Job::open(&options, index, model)?;
                let done = match work {
                    Work::Run => job.run(&options),
                    Work::Check => job.check(&options),
                };
                let error = done.err();
                Ok((job.model, error))
            })
        })
        .collect();
    let mut models = Vec::new();
    let mut failed = None;
    for thread in threads {
        let (model, error) = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread of blocks panicked"))??;
        models.push(model);
        failed = failed.or(error);
    }
    Ok((models, failed))
}

impl Job {
    fn open(options: &Options, index: u64, model: Option<Model>) -> Result<Job> {
        let blocks = options.bytes / BLOCK as u64 / options.jobs;
        let count = usize::try_from(blocks)?;
        let seed = options
            .seed
            .wrapping_mul(0x9e37_79b9)
            .wrapping_add(index + 1);
        Ok(Job {
            file: Some(open_direct(&options.path)?),
            first: blocks * index,
            seed,
            random: Random(seed | 1),
            model: model.unwrap_or(Model {
                acked: vec![0; count],
                issued: vec![0; count],
            }),
            buffer: Aligned::new(),
        })
    }

    fn blocks(&self) -> u64 {
        self.model.acked.len() as u64
    }

    fn run(&mut self, options: &Options) -> Result<()> {
        let started = Instant::now();
        let mut at = 0;
        while at < self.blocks() {
            let count = BLOCKS_MAX_PER_OP.min(self.blocks() - at);
            self.write(at, count)?;
            at += count;
        }
        let is_over = |done: u64| match options.seconds {
            Some(limit) => started.elapsed() >= Duration::from_secs(limit),
            None => done >= options.ops,
        };
        let mut done = 0;
        while !is_over(done) {
            self.step()?;
            done += 1;
        }
        let Some(file) = &self.file else {
            return Ok(());
        };
        file.sync_data().context("flush")?;
        self.verify_all()
    }

    /// One random operation: mostly writes, reads that are verified, now and then a flush.
    fn step(&mut self) -> Result<()> {
        let count = (1 + self.random.below(BLOCKS_MAX_PER_OP)).min(self.blocks());
        let at = self.random.below(self.blocks() - count + 1);
        match self.random.below(20) {
            0 => match &self.file {
                Some(file) => file.sync_data().context("flush"),
                None => Ok(()),
            },
            1..=6 => self.verify(at, count),
            _ => self.write(at, count),
        }
    }

    fn check(&mut self, options: &Options) -> Result<()> {
        if options.state.is_none() {
            let file = self.file.take();
            self.run(options)?;
            self.file = file;
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

    fn write(&mut self, at: u64, count: u64) -> Result<()> {
        let range = index(at)..index(at + count);
        for block in range.clone() {
            self.model.issued[block] += 1;
        }
        if let Some(file) = &self.file {
            let data = self.buffer.slice(index(count) * BLOCK);
            for (block, bytes) in range.clone().zip(data.chunks_exact_mut(BLOCK)) {
                fill(
                    bytes,
                    self.seed,
                    self.first + block as u64,
                    self.model.issued[block],
                );
            }
            let offset = (self.first + at) * BLOCK as u64;
            file.write_all_at(data, offset)
                .with_context(|| format!("write of {count} blocks at block {}", self.first + at))?;
        }
        for block in range {
            self.model.acked[block] = self.model.issued[block];
        }
        Ok(())
    }

    fn verify(&mut self, at: u64, count: u64) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let data = self.buffer.slice(index(count) * BLOCK);
        file.read_exact_at(data, (self.first + at) * BLOCK as u64)
            .with_context(|| format!("read of {count} blocks at block {}", self.first + at))?;
        for (block, bytes) in (index(at)..).zip(data.chunks_exact(BLOCK)) {
            let place = self.first + block as u64;
            let version = version_of(bytes, self.seed, place)
                .with_context(|| format!("block {place} of {}", self.first + at))?;
            let (acked, issued) = (self.model.acked[block], self.model.issued[block]);
            ensure!(
                (acked..=issued).contains(&version),
                "block {place} holds version {version}, expected {acked} to {issued}"
            );
        }
        Ok(())
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a block number fits the address space of a 64-bit machine")
}

fn open_direct(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Writes the one content that this seed, place and version have.
fn fill(bytes: &mut [u8], seed: u64, place: u64, version: u64) {
    let mut random = Random((seed ^ place.rotate_left(20) ^ version.rotate_left(40)) | 1);
    let header = [MAGIC, seed, place, version];
    let mut words = bytes.chunks_exact_mut(8);
    for value in header {
        if let Some(word) = words.next() {
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    for word in words {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

/// The version of a block, 0 for all zeroes; an error when it is anything else than this run wrote here.
fn version_of(bytes: &[u8], seed: u64, place: u64) -> Result<u64> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
        u64::from_le_bytes(word)
    };
    ensure!(
        word(0) == MAGIC && word(1) == seed && word(2) == place,
        "foreign content: magic {:x}, seed {:x} (ours {seed:x}), place {}",
        word(0),
        word(1),
        word(2)
    );
    let version = word(3);
    let mut expected = vec![0; BLOCK];
    fill(&mut expected, seed, place, version);
    let differs = bytes
        .iter()
        .zip(&expected)
        .position(|(found, wanted)| found != wanted);
    ensure!(
        differs.is_none(),
        "torn: version {version} up to byte {differs:?}"
    );
    Ok(version)
}

/// xorshift64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Memory for direct I/O: aligned to a page by starting later in a larger vector.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Aligned {
        let memory = vec![0; BLOCK * (index(BLOCKS_MAX_PER_OP) + 1)];
        let start = memory.as_ptr().align_offset(BLOCK);
        Aligned { memory, start }
    }

    fn slice(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + length]
    }
}

impl Options {
    fn parse(args: &[String]) -> Result<Options> {
        let (path, rest) = args.split_first().context("which device or file?")?;
        let path = PathBuf::from(path);
        let mut options = Options {
            path,
            bytes: 0,
            seed: 0,
            ops: 0,
            seconds: None,
            jobs: 1,
            state: None,
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
                "--seconds" => options.seconds = Some(value.parse()?),
                "--jobs" => options.jobs = value.parse()?,
                "--state" => options.state = Some(PathBuf::from(value)),
                other => bail!("unknown argument {other:?}"),
            }
        }
        ensure!(options.jobs > 0, "--jobs is at least 1");
        ensure!(
            options.bytes >= options.jobs * BLOCK as u64,
            "--bytes must give each job a block"
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
mod tests {
    use super::*;
    use crate::shell::TempDir;

    fn options(dir: &TempDir, ops: u64) -> Options {
        Options {
            path: dir.path().join("disk"),
            bytes: 1 << 20,
            seed: 7,
            ops,
            seconds: None,
            jobs: 2,
            state: None,
        }
    }

    fn first_error(options: &Options, work: Work) -> Option<String> {
        let (_, error) = in_threads(options, work).unwrap();
        error.map(|error| format!("{error:#}"))
    }

    #[test]
    fn a_run_verifies_again_later_and_a_changed_bit_is_found() {
        // Folders for temporary files may not know O_DIRECT; the build folder is on a real disk.
        let dir = TempDir::below(&crate::shell::root().join("target"), "blocks").unwrap();
        let options = options(&dir, 50);
        File::create(&options.path)
            .unwrap()
            .set_len(options.bytes)
            .unwrap();
        assert_eq!(first_error(&options, Work::Run), None);
        assert_eq!(first_error(&options, Work::Check), None);

        let file = OpenOptions::new().write(true).open(&options.path).unwrap();
        file.write_all_at(&[0xff], 5 * 4096 + 100).unwrap();
        assert!(first_error(&options, Work::Check).unwrap().contains("torn"));
        file.write_all_at(&[0; 4096], 5 * 4096).unwrap();
        assert!(
            first_error(&options, Work::Check)
                .unwrap()
                .contains("holds version 0")
        );
    }
}
