//! What the clients saw, and whether a disk that keeps the guarantees could have shown it to them.
//!
//! Every write has a tag that no other write has, so a read tells which write it saw. Per logical block (LB) the
//! checker knows all writes and, for each value, its *zone*: from the earliest end to the latest start of the
//! operations that wrote or read it. A history is linearizable exactly if no two forward zones overlap and no backward
//! zone lies within a forward one (Gibbons and Korach, 1997). Zones go on across a killed daemon (G3, G5); a power cut
//! begins anew, with the values that G4 allows as candidates for the first one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::io::sim::Sim;

/// Identifies a write. Zero is what a new volume is full of.
pub(in crate::nexus) type Tag = u64;

/// What happened to one volume so far.
pub(in crate::nexus) struct History {
    sim: Sim,
    block: usize,
    /// The blocks that are written, in order, and the place of each island's first one among them. All others are
    /// zeroes for ever.
    islands: Vec<(Range<u64>, usize)>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    writes: BTreeMap<Tag, Write>,
    /// Reads under way, by their start.
    reads: BTreeMap<u64, Range<u64>>,
    blocks: Vec<Block>,
    epoch_start: u64,
    /// The latest start of a flush that succeeded in this epoch.
    flushed: u64,
    violation: Option<String>,
}

#[derive(Clone, Debug)]
struct Write {
    blocks: Range<u64>,
    submitted: u64,
    /// When it was answered, or its process died.
    finished: Option<u64>,
    acked: bool,
    fua: bool,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// What it may hold at the start of the epoch.
    base: Vec<Tag>,
    /// Writes of this epoch.
    writes: Vec<Tag>,
    zones: BTreeMap<Tag, Zone>,
    /// When a read of the value first ended.
    first_read: BTreeMap<Tag, u64>,
    /// The write that zeroed it last; an earlier one can't be seen any more, so zeroes have a tag too.
    zeroed_by: Tag,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    end_min: u64,
    start_max: u64,
}

impl Zone {
    /// Whether no order of the two values' operations fits both. One formula serves forward and backward zones.
    const fn conflicts(self, other: Self) -> bool {
        self.end_min < other.start_max && other.end_min < self.start_max
    }
}

impl History {
    pub(in crate::nexus) fn new(sim: &Sim, islands: &[Range<u64>], block: u32) -> Self {
        let history = Self {
            sim: sim.clone(),
            block: block as usize,
            islands: Vec::new(),
            state: RefCell::default(),
        };
        islands.iter().fold(history, |mut history, island| {
            history.add_island(island.clone());
            history
        })
    }

    /// More blocks that will be written; zeroes until then.
    pub(in crate::nexus) fn add_island(&mut self, blocks: Range<u64>) {
        let fresh = Block {
            base: vec![0],
            ..Block::default()
        };
        let state = self.state.get_mut();
        self.islands.push((blocks.clone(), state.blocks.len()));
        state.blocks.extend(blocks.map(|_| fresh.clone()));
    }

    fn place(&self, block: u64) -> Option<usize> {
        let island = self
            .islands
            .iter()
            .find(|(blocks, _)| blocks.contains(&block));
        island.map(|(blocks, first)| first + index(block - blocks.start))
    }

    /// The blocks of a range that are on an island, and their places.
    fn places(&self, range: &Range<u64>) -> Vec<(u64, usize)> {
        let on_island = |(blocks, first): &(Range<u64>, usize)| {
            let (start, end) = (range.start.max(blocks.start), range.end.min(blocks.end));
            let (origin, first) = (blocks.start, *first);
            (start..end).map(move |block| (block, first + index(block - origin)))
        };
        self.islands.iter().flat_map(on_island).collect()
    }

    /// What was found to be wrong first, if anything.
    pub(in crate::nexus) fn violation(&self) -> Option<String> {
        self.state.borrow().violation.clone()
    }

    pub(in crate::nexus) fn note(&self, event: impl FnOnce() -> String) {
        self.sim.note(event);
    }

    pub(in crate::nexus) fn fail(&self, what: impl FnOnce() -> String) {
        let mut state = self.state.borrow_mut();
        if state.violation.is_none() {
            let what = format!("at {}: {}", self.sim.tick(), what());
            self.sim.note(|| format!("VIOLATION {what}"));
            state.violation = Some(what);
        }
    }

    /// The bytes of one block with this tag.
    pub(in crate::nexus) fn content(&self, tag: Tag, block: u64) -> Vec<u8> {
        let word = if tag == 0 { 0 } else { (tag << 16) | block };
        word.to_le_bytes().repeat(self.block / 8)
    }

    /// The tag that a block carries.
    fn decode(&self, state: &State, block: u64, bytes: &[u8]) -> Result<Tag, String> {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[..8]);
        let word = u64::from_le_bytes(word);
        if bytes[8..] != bytes[..bytes.len() - 8] {
            return Err(format!("G4: block {block} is a mix of writes"));
        }
        if word == 0 {
            return Ok(self
                .place(block)
                .map_or(0, |place| state.blocks[place].zeroed_by));
        }
        let tag = word >> 16;
        let known = state
            .writes
            .get(&tag)
            .is_some_and(|w| w.blocks.contains(&block));
        if word & 0xffff != block || !known {
            return Err(format!(
                "G12: block {block} holds {word:#x}, which nobody wrote there"
            ));
        }
        Ok(tag)
    }

    /// A write is about to be submitted. A zeroing is refused while a block may still show older zeroes.
    pub(in crate::nexus) fn begin_write(
        &self,
        blocks: Range<u64>,
        fua: bool,
        zeroes: bool,
    ) -> Option<Tag> {
        let submitted = self.sim.tick();
        let tag = submitted;
        let mut state = self.state.borrow_mut();
        let places = self.places(&blocks);
        let shows_zeroes =
            |place: usize| allowed(&state, place).contains(&state.blocks[place].zeroed_by);
        // A read under way may show older zeroes than the disks do.
        let is_read =
            |reading: &Range<u64>| reading.start < blocks.end && blocks.start < reading.end;
        let is_ambiguous = places.iter().any(|(_, place)| shows_zeroes(*place))
            || state.reads.values().any(is_read);
        if zeroes && is_ambiguous {
            return None;
        }
        for (_, place) in &places {
            let block = &mut state.blocks[*place];
            block.writes.push(tag);
            if zeroes {
                block.zeroed_by = tag;
            }
        }
        let write = Write {
            blocks,
            submitted,
            finished: None,
            acked: false,
            fua,
        };
        state.writes.insert(tag, write);
        Some(tag)
    }

    /// A write was answered.
    pub(in crate::nexus) fn end_write(&self, tag: Tag, acked: bool) {
        let now = self.sim.tick();
        let mut state = self.state.borrow_mut();
        let write = state.writes.get_mut(&tag).expect("it was begun");
        write.finished = Some(now);
        write.acked = acked;
        let (blocks, submitted) = (write.blocks.clone(), write.submitted);
        for (block, place) in self.places(&blocks) {
            // A failed write that nobody has seen may not have happened at all.
            if acked || state.blocks[place].zones.contains_key(&tag) {
                self.widen(&mut state, (block, place), tag, (submitted, now));
            }
        }
    }

    /// A read is about to be submitted; the answer is when that was.
    pub(in crate::nexus) fn begin_read(&self, blocks: Range<u64>) -> u64 {
        let started = self.sim.tick();
        self.state.borrow_mut().reads.insert(started, blocks);
        started
    }

    /// A read failed.
    pub(in crate::nexus) fn read_failed(&self, started: u64) {
        self.state.borrow_mut().reads.remove(&started);
    }

    /// A read was answered: `started` is when it was submitted.
    pub(in crate::nexus) fn read(&self, first: u64, bytes: &[u8], started: u64) {
        let now = self.sim.tick();
        let mut state = self.state.borrow_mut();
        state.reads.remove(&started);
        for (block, bytes) in (first..).zip(bytes.chunks(self.block)) {
            match (self.decode(&state, block, bytes), self.place(block)) {
                (Ok(tag), Some(place)) => {
                    self.saw(&mut state, (block, place), tag, (started, now));
                }
                (Ok(_), None) => {}
                (Err(what), _) => self.found(&mut state, now, &what),
            }
        }
    }

    fn saw(
        &self,
        state: &mut State,
        (block, place): (u64, usize),
        tag: Tag,
        (started, now): (u64, u64),
    ) {
        let is_new = state.blocks[place].writes.contains(&tag);
        if !is_new && !state.blocks[place].base.contains(&tag) {
            let base = state.blocks[place].base.clone();
            let what = format!(
                "G4, G6: block {block} reads as write {tag}, but at the last power cut only {base:?} were possible"
            );
            return self.found(state, now, &what);
        }
        let (written, ended) = match state.writes.get(&tag) {
            Some(write) if is_new => (write.submitted, write.finished.unwrap_or(u64::MAX)),
            _ => (0, state.epoch_start),
        };
        if written > now {
            self.found(state, now, "G3: a read saw a write of the future");
        }
        self.widen(state, (block, place), tag, (written, ended));
        self.widen(state, (block, place), tag, (started, now));
        state.blocks[place].first_read.entry(tag).or_insert(now);
    }

    /// Adds an operation to a value's zone, and compares it with the others.
    fn widen(
        &self,
        state: &mut State,
        (block, place): (u64, usize),
        tag: Tag,
        (start, end): (u64, u64),
    ) {
        let zones = &mut state.blocks[place].zones;
        let zone = zones.entry(tag).or_insert(Zone {
            end_min: u64::MAX,
            start_max: 0,
        });
        zone.end_min = zone.end_min.min(end);
        zone.start_max = zone.start_max.max(start);
        let zone = *zone;
        let clash = zones
            .iter()
            .find(|(other, z)| **other != tag && zone.conflicts(**z))
            .map(|(other, z)| (*other, *z));
        if let Some((other, other_zone)) = clash {
            let what = format!(
                "G3, G5: block {block}: writes {tag} {zone:?} and {other} {other_zone:?} do not fit one order"
            );
            self.found(state, self.sim.tick(), &what);
        }
    }

    /// A flush that started at `started` succeeded.
    pub(in crate::nexus) fn flushed(&self, started: u64) {
        let mut state = self.state.borrow_mut();
        state.flushed = state.flushed.max(started);
    }

    /// The process died: what it did not answer ended now.
    pub(in crate::nexus) fn killed(&self) {
        let now = self.sim.tick();
        let mut state = self.state.borrow_mut();
        state.reads.clear();
        for write in state.writes.values_mut() {
            write.finished.get_or_insert(now);
        }
    }

    /// The power was cut, after the process died.
    pub(in crate::nexus) fn power_lost(&self) {
        let mut state = self.state.borrow_mut();
        let allowed: Vec<Vec<Tag>> = (0..state.blocks.len())
            .map(|place| allowed(&state, place))
            .collect();
        for (block, base) in state.blocks.iter_mut().zip(allowed) {
            *block = Block {
                base,
                zeroed_by: block.zeroed_by,
                ..Block::default()
            };
        }
        state.epoch_start = self.sim.tick();
        state.flushed = 0;
    }

    /// G1, at the moment of the acknowledgement: a member must hold this write, or one that is concurrent with it or
    /// newer.
    pub(in crate::nexus) fn check_member(&self, tag: Tag, block: u64, bytes: &[u8], who: usize) {
        let state = self.state.borrow();
        let write = &state.writes[&tag];
        let found = self.decode(&state, block, bytes);
        let is_ever_zero = self.place(block).is_none();
        let fits = found.as_ref().is_ok_and(|found| {
            is_ever_zero
                || *found == tag
                || state
                    .writes
                    .get(found)
                    .is_some_and(|other| other.finished.is_none_or(|end| end > write.submitted))
        });
        let submitted = write.submitted;
        drop(state);
        if !fits {
            self.fail(|| {
                format!(
                    "G1: write {tag} (from {submitted}) to block {block} was acked, but member {who} has {found:?}"
                )
            });
        }
    }

    /// G2, at the moment of an answer that promises durability: what a member would have after a power cut now.
    pub(in crate::nexus) fn check_durable(&self, block: u64, bytes: &[u8], who: usize) {
        let state = self.state.borrow();
        let found = self.decode(&state, block, bytes);
        let possible = match self.place(block) {
            Some(place) => allowed(&state, place),
            None => vec![0],
        };
        drop(state);
        if !found.as_ref().is_ok_and(|found| possible.contains(found)) {
            self.fail(|| {
                format!(
                    "G2: block {block} must be durable as one of {possible:?}, but member {who} has {found:?}"
                )
            });
        }
    }

    /// The blocks that are written.
    pub(in crate::nexus) fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.islands.iter().flat_map(|(blocks, _)| blocks.clone())
    }

    fn found(&self, state: &mut State, now: u64, what: &str) {
        if state.violation.is_none() {
            self.sim.note(|| format!("VIOLATION {what}"));
            state.violation = Some(format!("at {now}: {what}"));
        }
    }
}

/// G4: the values that a block may have after a power cut now.
fn allowed(state: &State, place: usize) -> Vec<Tag> {
    let block = &state.blocks[place];
    let observed = |tag: &Tag| {
        block
            .first_read
            .get(tag)
            .is_some_and(|at| *at < state.flushed)
    };
    let is_durable = |tag: &&Tag| {
        let write = &state.writes[*tag];
        let flushed = write.finished.is_some_and(|end| end < state.flushed);
        (write.acked && (write.fua || flushed)) || observed(tag)
    };
    let durable = block.writes.iter().filter(is_durable);
    let newest = durable.map(|tag| state.writes[tag].submitted).max();
    let fresh = block.writes.iter().filter(|tag| {
        let end = state.writes[*tag].finished.unwrap_or(u64::MAX);
        newest.is_none_or(|newest| newest < end)
    });
    let mut values: Vec<Tag> = fresh.copied().collect();
    if newest.is_none() {
        let fixed = block.base.iter().find(|tag| observed(tag));
        match fixed {
            Some(fixed) => values.push(*fixed),
            None => values.extend(&block.base),
        }
    }
    values
}

fn index(block: u64) -> usize {
    usize::try_from(block).expect("a simulated volume is small")
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of islands may have just one"
)]
mod tests;
