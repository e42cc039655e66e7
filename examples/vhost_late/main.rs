//! `vhost_late run SOCKET SEED | probe SOCKET HTTP FILE LIMIT_MS [emulated]`: what a guest would notice of a disk that answers late.
//!
//! A native front end over vhost-user that keeps many requests in flight and does one command per line of its input. Every
//! buffer whose request was answered is filled with a pattern at once and never used again: whatever lands in it later was
//! not allowed to. A block says in which version it was written, as those of `xtask blocks` do. `probe` measures, until a
//! file appears, how long the status page and another volume take to answer. Both deduct what `control` finds the machine
//! itself to be late by.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program for tests talks to its script"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the bans keep the daemon deterministic; this waits for a real one in real time"
)]

#[path = "../../xtask/src/blocks/content.rs"]
#[allow(dead_code, reason = "random choices are for the other program")]
mod content;
mod control;
mod link;
mod probe;

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use content::{BLOCK, Random, fill, version_of};
use control::{Control, Habit, Span};
use link::{Link, Place};

/// Blocks of the volume that are used: 16 MiB.
const BLOCKS: u64 = 4096;
/// Requests of each sort in a burst.
const BURST: usize = 32;
/// Requests in flight while all blocks are written or read.
const STREAM: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);
/// How much longer is waited for answers that are too late already.
const LATE_MAX: Duration = Duration::from_secs(15);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["run", socket, seed] => run(Path::new(socket), seed),
        ["probe", socket, http, file, limit] => {
            let file = Path::new(file);
            probe::run(Path::new(socket), http, file, limit, Habit::Works)
        }
        ["probe", socket, http, file, limit, "emulated"] => {
            let file = Path::new(file);
            probe::run(Path::new(socket), http, file, limit, Habit::Sleeps)
        }
        _ => Err(anyhow::anyhow!(
            "vhost_late run SOCKET SEED | probe SOCKET HTTP FILE LIMIT_MS [emulated]"
        )),
    };
    if let Err(error) = done {
        eprintln!("vhost_late: {error:#}");
        std::process::exit(1);
    }
}

/// One command a line, one line of answer each.
fn run(socket: &Path, seed: &str) -> Result<()> {
    let mut client = Client::new(socket, seed.parse()?)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match client.command(&line) {
            Ok(said) => println!("ok {said}"),
            Err(error) => println!("FAILED {line}: {error:#}"),
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Write { block: u64, version: u64 },
    Read { block: u64 },
    Flush,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
struct Request {
    work: Work,
    place: Place,
    started: Instant,
}

struct Client<'a> {
    socket: &'a Path,
    seed: u64,
    random: Random,
    link: Link,
    flying: BTreeMap<u64, Request>,
    next: u64,
    /// Versions that may be read: acknowledged, and issued last.
    acked: Vec<u64>,
    issued: Vec<u64>,
    /// Blocks of the last burst's writes.
    burst: Vec<u64>,
    /// Answered buffers with the number that their pattern is made from.
    retired: Vec<(Place, u64)>,
}

impl<'a> Client<'a> {
    fn new(socket: &'a Path, seed: u64) -> Result<Self> {
        let blocks = usize::try_from(BLOCKS)?;
        Ok(Self {
            socket,
            seed,
            random: Random::new(seed),
            link: Link::new(socket)?,
            flying: BTreeMap::new(),
            next: 0,
            acked: vec![0; blocks],
            issued: vec![0; blocks],
            burst: Vec::new(),
            retired: Vec::new(),
        })
    }

    fn command(&mut self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        let mut millis = |default: u64| -> Result<Duration> {
            let number = words.next().map(str::parse).transpose()?;
            Ok(Duration::from_millis(number.unwrap_or(default)))
        };
        match command {
            "fill" => self.stream(true),
            "verify" => self.stream(false),
            "burst" => self.burst(),
            "overwrite" => self.overwrite(),
            "answers" => self.answers(millis(0)?, millis(60_000)?),
            "silence" => self.silence(millis(60_000)?),
            "patterns" => self.patterns(),
            "connect" => self.connect(),
            other => bail!("there is no command {other:?}"),
        }
    }

    /// A new connection, to a daemon that knows nothing of the requests on the old one. Buffers of those are given up, not
    /// checked: nobody said that they may be used.
    fn connect(&mut self) -> Result<String> {
        self.link = Link::new(self.socket)?;
        let lost = self.flying.len();
        self.flying.clear();
        Ok(format!("connected, {lost} requests were never answered"))
    }

    fn submit(&mut self, work: Work) -> Result<()> {
        let place = self.link.place()?;
        let id = self.next;
        self.next += 1;
        match work {
            Work::Write { block, version } => {
                fill(self.link.bytes(place), self.seed, block, version);
                self.link.write(block * BLOCK as u64, place, id)?;
            }
            Work::Read { block } => self.link.read(block * BLOCK as u64, place, id)?,
            Work::Flush => self.link.flush(id)?,
        }
        let request = Request {
            work,
            place,
            started: Instant::now(),
        };
        self.flying.insert(id, request);
        Ok(())
    }

    fn write(&mut self, block: u64) -> Result<()> {
        let version = &mut self.issued[index(block)];
        *version += 1;
        let version = *version;
        self.submit(Work::Write { block, version })
    }

    /// Takes what is answered; waits for something until `deadline`. Answers when each of them was started, and answered.
    fn reap(&mut self, deadline: Instant) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for (id, error) in self.link.completed(deadline)? {
            let request = self
                .flying
                .remove(&id)
                .context("an answer to no request, or a second one")?;
            ensure!(
                error == 0,
                "{:?} was answered with error {}",
                request.work,
                -error
            );
            spans.push((request.started, Instant::now()));
            self.answered(request)?;
            self.retire(request.place, id);
        }
        Ok(spans)
    }

    fn answered(&mut self, request: Request) -> Result<()> {
        match request.work {
            Work::Write { block, version } => {
                let acked = &mut self.acked[index(block)];
                *acked = (*acked).max(version);
            }
            Work::Read { block } => {
                let found = version_of(self.link.bytes(request.place), self.seed, block)?;
                let (least, most) = (self.acked[index(block)], self.issued[index(block)]);
                ensure!(
                    (least..=most).contains(&found),
                    "block {block} holds version {found}, expected {least} to {most}"
                );
            }
            Work::Flush => {}
        }
        Ok(())
    }

    /// From now on nobody may write here.
    fn retire(&mut self, place: Place, number: u64) {
        pattern(self.link.bytes(place), number);
        self.retired.push((place, number));
    }

    /// Every block once, many at a time; after writes a flush.
    fn stream(&mut self, writes: bool) -> Result<String> {
        ensure!(self.flying.is_empty(), "requests are in flight");
        for block in 0..BLOCKS {
            while self.flying.len() >= STREAM {
                self.reap(Instant::now() + PATIENCE)?;
            }
            match writes {
                true => self.write(block)?,
                false => self.submit(Work::Read { block })?,
            }
        }
        self.drain(Instant::now() + PATIENCE)?;
        if writes {
            self.submit(Work::Flush)?;
            self.drain(Instant::now() + PATIENCE)?;
        }
        Ok(format!("{BLOCKS} blocks"))
    }

    fn drain(&mut self, deadline: Instant) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        while !self.flying.is_empty() {
            ensure!(
                Instant::now() < deadline,
                "{} requests are not answered, {} of them writes",
                self.flying.len(),
                self.writes_flying()
            );
            spans.extend(self.reap(deadline)?);
        }
        Ok(spans)
    }

    fn writes_flying(&self) -> usize {
        let works = self.flying.values().map(|request| request.work);
        works
            .filter(|work| matches!(work, Work::Write { .. }))
            .count()
    }

    /// Writes and reads at once, of different blocks, not waited for.
    fn burst(&mut self) -> Result<String> {
        let mut blocks: Vec<u64> = Vec::new();
        while blocks.len() < 2 * BURST {
            let block = self.random.below(BLOCKS);
            if !blocks.contains(&block) {
                blocks.push(block);
            }
        }
        let (writes, reads) = blocks.split_at(BURST);
        for (write, read) in writes.iter().zip(reads) {
            self.write(*write)?;
            self.submit(Work::Read { block: *read })?;
        }
        self.link.kick()?;
        self.burst = writes.to_vec();
        Ok(format!("{BURST} writes and {BURST} reads"))
    }

    /// The blocks of the last burst's writes, once more, not waited for.
    fn overwrite(&mut self) -> Result<String> {
        for block in self.burst.clone() {
            self.write(block)?;
        }
        self.link.kick()?;
        Ok(format!("{} writes", self.burst.len()))
    }

    /// Everything is answered within `wait` and `spare` of its start; the machine's own lateness after `wait` is not held
    /// against it, since what goes on before that waits for the clock alone.
    fn answers(&mut self, wait: Duration, spare: Duration) -> Result<String> {
        let count = self.flying.len();
        let first = self.flying.values().map(|request| request.started).min();
        let deadline = first.unwrap_or_else(Instant::now) + wait + spare;
        let control = Control::start(Habit::Sleeps)?;
        // Some time more, so that by how much it is too late can be said.
        let spans = self.drain(deadline + LATE_MAX);
        let (stalls, spans) = (control.stop()?, spans?);
        let slowest = spans.iter().map(|(from, until)| *until - *from).max();
        let slowest_fair = spans
            .iter()
            .map(|(from, until)| (*until - *from) - stalls.within(*from + wait, *until))
            .max()
            .unwrap_or_default();
        let said = format!(
            "{count} answers, the slowest after {} ms, {} ms without the machine's lateness (at worst {} ms)",
            slowest.unwrap_or_default().as_millis(),
            slowest_fair.as_millis(),
            stalls.worst().as_millis()
        );
        ensure!(
            slowest_fair <= wait + spare,
            "{said}; at most {} ms were allowed",
            (wait + spare).as_millis()
        );
        Ok(said)
    }

    /// No write is answered for so long, and no read that is not yet.
    fn silence(&mut self, time: Duration) -> Result<String> {
        let before = self.flying.len();
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.reap(end)?;
            let now = self.flying.len();
            ensure!(now == before, "{} of {before} were answered", before - now);
        }
        Ok(format!("{before} requests wait"))
    }

    /// Nothing landed where it was no longer allowed to.
    fn patterns(&mut self) -> Result<String> {
        let mut wanted = [0; BLOCK];
        for (place, number) in &self.retired {
            pattern(&mut wanted, *number);
            let found = self.link.bytes(*place);
            let changed = found.iter().zip(&wanted).position(|(a, b)| a != b);
            if let Some(at) = changed {
                bail!("the buffer of request {number} changed at byte {at} after its answer");
            }
        }
        Ok(format!(
            "{} answered buffers are untouched",
            self.retired.len()
        ))
    }
}

/// What nobody would write by mistake.
fn pattern(bytes: &mut [u8], number: u64) {
    for (at, word) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        let value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(!at);
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn index(block: u64) -> usize {
    usize::try_from(block).expect("a block's number fits the address space of a 64-bit machine")
}
