//! What the client does: reads of what is in doubt, then random writes, reads and flushes, many at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::blocks::history::{Flushing, History, Reading};
use crate::blocks::{BLOCK, Random, index};
use crate::link::{DEPTH, Link, Memory, SLOT, Verb};

/// Blocks that one request moves at most.
const COUNT_MAX: u64 = (SLOT / BLOCK) as u64;
/// The unit of the daemon's bitmaps, in blocks.
const REGION: u64 = (1 << 20) / BLOCK as u64;
/// The regions that are written at one time; they move on every so many writes.
const WINDOW: u64 = 8;
const WRITES_A_MOVE: u64 = 64;
/// Writes of a sequential stream.
const STREAM: u64 = 24;
/// Reads of what was written lately, after a connection, at most.
const VERIFY_MAX: usize = 96;
/// How many connections long a block that was once in doubt is read again.
const SUSPECT_FOR: usize = 3;
/// For how long a written region may be unresolved after a crash.
const RECENT: Duration = Duration::from_secs(30);

/// The client's work and memory.
pub(crate) struct Load {
    /// Whether I/O errors may be answered, since the power is going.
    pub(crate) takes_errors: bool,
    history: History,
    random: Random,
    blocks: u64,
    window: u64,
    stream: Range<u64>,
    slots: [Option<Request>; DEPTH],
    is_flushing: bool,
    /// Whether it does nothing by itself after the verification.
    pub(crate) is_quiet: bool,
    phase: Phase,
    /// Blocks to write, each by itself.
    to_poke: VecDeque<u64>,
    /// Ranges to read before anything else.
    to_verify: VecDeque<Range<u64>>,
    /// Written since it was last read by a verification.
    lately: BTreeSet<u64>,
    suspects: VecDeque<BTreeSet<u64>>,
    /// When each region was last written.
    regions: BTreeMap<u64, Instant>,
    count: Count,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Verifying,
    Mixing,
    /// Nothing, but for blocks to poke.
    Quiet,
    /// Until nothing is in flight; then a flush.
    Draining,
    Flushing,
    /// Everything that was ever written.
    Reading,
    Drained,
}

enum Request {
    Read(Reading, u64),
    Write(Range<u64>),
    Flush(Flushing),
}

#[derive(Default)]
struct Count {
    writes: u64,
    reads: u64,
    flushes: u64,
    errors: u64,
}

impl Load {
    pub(crate) fn new(seed: u64, mebibytes: u64) -> Load {
        Load {
            takes_errors: false,
            history: History::new(seed),
            random: Random::new(seed),
            blocks: mebibytes * REGION,
            window: 0,
            stream: 0..0,
            slots: [const { None }; DEPTH],
            is_flushing: false,
            is_quiet: false,
            to_poke: VecDeque::new(),
            phase: Phase::Drained,
            to_verify: VecDeque::new(),
            lately: BTreeSet::new(),
            suspects: VecDeque::new(),
            regions: BTreeMap::new(),
            count: Count::default(),
        }
    }

    /// A connection is there: plans what to read first.
    pub(crate) fn begin(&mut self) {
        self.takes_errors = false;
        self.phase = Phase::Verifying;
        self.suspects.push_front(self.history.doubtful().collect());
        self.suspects.truncate(SUSPECT_FOR);
        let doubtful: BTreeSet<u64> = self.suspects.iter().flatten().copied().collect();
        self.to_verify = runs(doubtful.iter().copied()).collect();
        let mut lately: Vec<Range<u64>> = runs(self.lately.iter().copied()).collect();
        while lately.len() > VERIFY_MAX {
            let some = self.random.below(lately.len() as u64);
            lately.swap_remove(index(some));
        }
        self.to_verify.extend(lately);
        self.lately.clear();
    }

    /// The daemon is gone, and the power of all copies with it or not.
    pub(crate) fn end(&mut self, is_power_cut: bool) {
        self.slots = [const { None }; DEPTH];
        self.is_flushing = false;
        self.stream = 0..0;
        self.count = Count::default();
        match is_power_cut {
            true => self.history.power_cut(),
            false => self.history.killed(),
        }
    }

    pub(crate) fn drain(&mut self) {
        self.phase = Phase::Draining;
        self.to_verify.clear();
    }

    /// Writes one block again in each region that has any.
    pub(crate) fn poke(&mut self) {
        let mut one_each: BTreeMap<u64, u64> = BTreeMap::new();
        for place in self.history.written() {
            one_each.insert(place / REGION, place);
        }
        self.to_poke = one_each.into_values().collect();
    }

    pub(crate) fn has_poked(&self) -> bool {
        self.to_poke.is_empty() && self.slots.iter().all(Option::is_none)
    }

    pub(crate) fn has_verified(&self) -> bool {
        self.phase != Phase::Verifying
    }

    pub(crate) fn has_drained(&self) -> bool {
        self.phase == Phase::Drained
    }

    /// An event with what happened since the connection began.
    pub(crate) fn figures(&self, event: &str) -> Value {
        let is_recent = |at: &&Instant| at.elapsed() <= RECENT;
        let in_flight = self.slots.iter().flatten();
        json!({
            "event": event,
            "writes": self.count.writes,
            "reads": self.count.reads,
            "flushes": self.count.flushes,
            "errors": self.count.errors,
            "inFlight": in_flight.count(),
            "doubtful": self.history.doubtful().count(),
            "blocks": self.history.written().count(),
            "regions": self.regions.keys().collect::<Vec<_>>(),
            "recentRegions": self.regions.values().filter(is_recent).count(),
        })
    }

    /// Submits as much as there is room for.
    pub(crate) fn submit(&mut self, link: &mut Link, memory: &mut Memory) -> Result<()> {
        self.next_phase();
        let mut submitted = false;
        for slot in 0..DEPTH {
            if self.slots[slot].is_some() {
                continue;
            }
            let Some(request) = self.next(slot, memory) else {
                break;
            };
            let (verb, place) = match &request {
                Request::Read(reading, count) => {
                    (Verb::Read, reading.first()..reading.first() + count)
                }
                Request::Write(range) => (Verb::Write, range.clone()),
                Request::Flush(_) => (Verb::Flush, 0..0),
            };
            let length = index(place.end - place.start) * BLOCK;
            let offset = place.start * BLOCK as u64;
            link.submit(memory, (slot, verb), (offset, length))?;
            self.slots[slot] = Some(request);
            submitted = true;
        }
        if submitted { link.kick() } else { Ok(()) }
    }

    fn next_phase(&mut self) {
        let is_idle = self.slots.iter().all(Option::is_none);
        let has_read = is_idle && self.to_verify.is_empty();
        self.phase = match self.phase {
            Phase::Verifying if has_read && self.is_quiet => Phase::Quiet,
            Phase::Verifying if has_read => Phase::Mixing,
            Phase::Draining if is_idle => Phase::Flushing,
            Phase::Reading if has_read => Phase::Drained,
            same => same,
        };
    }

    fn next(&mut self, slot: usize, memory: &mut Memory) -> Option<Request> {
        match self.phase {
            Phase::Verifying | Phase::Reading => {
                let range = self.to_verify.pop_front()?;
                Some(self.read(range))
            }
            Phase::Mixing => Some(self.any(slot, memory)),
            Phase::Quiet => {
                let place = self.to_poke.pop_front()?;
                Some(self.write(place..place + 1, (slot, memory)))
            }
            Phase::Flushing if !self.is_flushing => Some(self.flush()),
            Phase::Flushing | Phase::Draining | Phase::Drained => None,
        }
    }

    /// Mostly writes, reads of the same places and of any that was written, now and then a flush.
    fn any(&mut self, slot: usize, memory: &mut Memory) -> Request {
        match self.random.below(100) {
            0..=2 if !self.is_flushing => self.flush(),
            0..=4 if self.stream.is_empty() => {
                let first = self.window * REGION + self.random.below(REGION);
                let end = (first + STREAM * COUNT_MAX).min(self.blocks);
                self.stream = first..end;
                self.write_or_read(slot, memory)
            }
            5..=30 => {
                let range = self.somewhere();
                self.read(range)
            }
            _ => self.write_or_read(slot, memory),
        }
    }

    fn write_or_read(&mut self, slot: usize, memory: &mut Memory) -> Request {
        let range = if !self.stream.is_empty() && self.random.below(2) == 0 {
            let end = (self.stream.start + COUNT_MAX).min(self.stream.end);
            let range = self.stream.start..end;
            self.stream.start = end;
            range
        } else {
            self.somewhere()
        };
        if !self.history.is_idle(range.clone()) {
            return self.read(range);
        }
        self.write(range, (slot, memory))
    }

    fn write(&mut self, range: Range<u64>, (slot, memory): (usize, &mut Memory)) -> Request {
        let length = index(range.end - range.start) * BLOCK;
        self.history
            .start_write(range.clone(), memory.buffer(slot, length));
        self.lately.extend(range.clone());
        let now = Instant::now();
        for region in range.start / REGION..=(range.end - 1) / REGION {
            self.regions.insert(region, now);
        }
        self.count.writes += 1;
        if self.count.writes.is_multiple_of(WRITES_A_MOVE) {
            let last = self.blocks / REGION - WINDOW;
            self.window = match self.random.below(8) {
                0 => self.random.below(last + 1),
                _ => (self.window + 1) % (last + 1),
            };
        }
        Request::Write(range)
    }

    /// A few blocks in the window.
    fn somewhere(&mut self) -> Range<u64> {
        let count = 1 + self.random.below(COUNT_MAX);
        let first = self.window * REGION + self.random.below(WINDOW * REGION - count + 1);
        first..first + count
    }

    fn read(&mut self, range: Range<u64>) -> Request {
        self.count.reads += 1;
        let count = range.end - range.start;
        Request::Read(self.history.start_read(range), count)
    }

    fn flush(&mut self) -> Request {
        self.is_flushing = true;
        Request::Flush(self.history.start_flush())
    }

    /// Takes the answers, each of which must be right.
    pub(crate) fn reap(&mut self, link: &mut Link, memory: &mut Memory) -> Result<()> {
        for (slot, succeeded) in link.answered() {
            let request = self.slots[slot].take();
            let request = request.context("an answer to no request")?;
            ensure!(
                succeeded || self.takes_errors,
                "the device answered with an error"
            );
            self.count.errors += u64::from(!succeeded);
            match request {
                Request::Write(range) => self.history.end_write(range, succeeded),
                Request::Read(reading, count) => {
                    let length = index(count) * BLOCK;
                    if succeeded {
                        let data = memory.buffer(slot, length);
                        self.history.end_read(reading, data)?;
                    }
                }
                Request::Flush(flushing) => {
                    self.is_flushing = false;
                    if succeeded {
                        self.count.flushes += 1;
                        self.history.end_flush(flushing);
                    }
                    if self.phase == Phase::Flushing {
                        self.phase = Phase::Reading;
                        self.to_verify = runs(self.history.written()).collect();
                    }
                }
            }
        }
        self.next_phase();
        Ok(())
    }
}

/// Neighbours together, as many as a request takes.
fn runs(places: impl Iterator<Item = u64>) -> impl Iterator<Item = Range<u64>> {
    let mut places = places.peekable();
    std::iter::from_fn(move || {
        let first = places.next()?;
        let mut end = first + 1;
        while end - first < COUNT_MAX && places.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(first..end)
    })
}
