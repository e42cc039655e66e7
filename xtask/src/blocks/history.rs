//! What every block of a disk may hold, as its only client knows it: the judge of crash tests.
//!
//! A block's versions are numbered in the order in which they were submitted, one in flight at a time; version 0 is all
//! zeroes. The daemon may be killed and the power may go at any time; the history goes on. Rules of the nexus's
//! specification that it judges: G2 (what was flushed is there after a power cut), G3 (reads while nothing fails), G4 (what
//! a crash leaves) and G5 (what was read once is read again, until something newer is submitted).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Result, ensure};

use super::content::{BLOCK, fill, version_of};

/// Everything that is known of the disk.
#[derive(Debug)]
pub(crate) struct History {
    seed: u64,
    /// Blocks that were written at least once.
    blocks: BTreeMap<u64, Block>,
    /// Blocks that a power cut of all copies may change.
    unflushed: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
struct Block {
    newest: u64,
    writing: Option<u64>,
    /// What a read may find besides the version in flight.
    may: Vec<u64>,
    /// What may be found after a power cut of all copies: everything from the last durable version on.
    after_cut: Vec<u64>,
    /// Counts what happened here, so that a read knows whether it had the block to itself.
    stamp: u64,
    /// Whether it was written since the last power cut.
    is_written: bool,
    /// What was read since the last power cut, if nothing was written since.
    settled: Option<u64>,
    /// What was `settled` when the power went again.
    before_cut: Option<u64>,
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct Reading {
    first: u64,
    blocks: Vec<Expected>,
}

#[derive(Debug)]
struct Expected {
    stamp: u64,
    newest: u64,
    allowed: Vec<u64>,
}

/// A flush under way.
#[derive(Debug)]
pub(crate) struct Flushing(Vec<Proof>);

/// What the end of a flush will prove of one block: it holds one of `may`, or what came later.
#[derive(Debug)]
struct Proof {
    place: u64,
    newest: u64,
    writing: Option<u64>,
    may: Vec<u64>,
}

impl Reading {
    /// The first block that is read.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }
}

impl Block {
    const NEW: Block = Block {
        newest: 0,
        writing: None,
        may: Vec::new(),
        after_cut: Vec::new(),
        stamp: 0,
        is_written: false,
        settled: None,
        before_cut: None,
    };

    fn end_write(&mut self, acknowledged: bool) {
        let Some(version) = self.writing.take() else {
            return;
        };
        self.stamp += 1;
        if acknowledged {
            self.may = vec![version];
        } else if !self.may.contains(&version) {
            self.may.push(version);
        }
    }
}

impl History {
    pub(crate) fn new(seed: u64) -> History {
        History {
            seed,
            blocks: BTreeMap::new(),
            unflushed: BTreeSet::new(),
        }
    }

    /// The blocks that were ever written, in order.
    pub(crate) fn written(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// Blocks of which nobody knows the version, because a crash or an error came between.
    pub(crate) fn doubtful(&self) -> impl Iterator<Item = u64> {
        let doubtful = self.blocks.iter().filter(|(_, block)| block.may.len() > 1);
        doubtful.map(|(place, _)| *place)
    }

    /// Whether no write is in flight to any of these blocks.
    pub(crate) fn is_idle(&self, range: Range<u64>) -> bool {
        let mut blocks = self.blocks.range(range);
        blocks.all(|(_, block)| block.writing.is_none())
    }

    /// A write of the next version of these blocks is about to be submitted; puts their contents into `data`.
    pub(crate) fn start_write(&mut self, range: Range<u64>, data: &mut [u8]) {
        for (place, bytes) in range.zip(data.chunks_exact_mut(BLOCK)) {
            let block = self.blocks.entry(place).or_insert_with(|| Block {
                may: vec![0],
                after_cut: vec![0],
                ..Block::NEW
            });
            assert!(block.writing.is_none(), "writes to one block take turns");
            block.newest += 1;
            block.stamp += 1;
            block.writing = Some(block.newest);
            block.after_cut.push(block.newest);
            block.is_written = true;
            (block.settled, block.before_cut) = (None, None);
            self.unflushed.insert(place);
            fill(bytes, self.seed, place, block.newest);
        }
    }

    /// A write was answered: with success, or with an error that leaves old or new (spec G10).
    pub(crate) fn end_write(&mut self, range: Range<u64>, acknowledged: bool) {
        for (_, block) in self.blocks.range_mut(range) {
            block.end_write(acknowledged);
        }
    }

    /// A read is about to be submitted.
    pub(crate) fn start_read(&self, range: Range<u64>) -> Reading {
        let first = range.start;
        let expected = |place| match self.blocks.get(&place) {
            Some(block) => Expected {
                stamp: block.stamp,
                newest: block.newest,
                allowed: block.may.iter().copied().chain(block.writing).collect(),
            },
            None => Expected {
                stamp: 0,
                newest: 0,
                allowed: vec![0],
            },
        };
        Reading {
            first,
            blocks: range.map(expected).collect(),
        }
    }

    /// A read was answered with `data`; fails when it is none of what it may be, and learns from it what later reads must
    /// find (spec G5).
    pub(crate) fn end_read(&mut self, reading: Reading, data: &[u8]) -> Result<()> {
        let places = reading.first..;
        for ((place, expected), bytes) in places.zip(reading.blocks).zip(data.chunks_exact(BLOCK)) {
            let found = version_of(bytes, self.seed, place)?;
            let newer = found > expected.newest
                && self.blocks.get(&place).is_some_and(|b| found <= b.newest);
            ensure!(
                newer || expected.allowed.contains(&found),
                "block {place} holds version {found}, expected one of {:?}{}",
                expected.allowed,
                self.told(place)
            );
            let Some(block) = self.blocks.get_mut(&place) else {
                continue;
            };
            if let Some(before) = block.before_cut.take() {
                ensure!(
                    before == found,
                    "block {place} held version {before} after one power cut and version {found} after the next"
                );
            }
            // If something else happened to the block meanwhile, what was read may be the past already.
            if block.stamp == expected.stamp {
                block.stamp += u64::from(block.may != [found]);
                block.may = vec![found];
                block.settled = (!block.is_written).then_some(found);
            }
        }
        Ok(())
    }

    fn told(&self, place: u64) -> String {
        self.blocks.get(&place).map_or_else(String::new, |block| {
            format!(
                " (newest {}, in flight {:?}, possible now {:?}, after a power cut {:?})",
                block.newest, block.writing, block.may, block.after_cut
            )
        })
    }

    /// A flush is about to be submitted. There is one at a time.
    pub(crate) fn start_flush(&self) -> Flushing {
        let blocks = self.unflushed.iter().filter_map(|place| {
            let block = self.blocks.get(place)?;
            Some(Proof {
                place: *place,
                newest: block.newest,
                writing: block.writing,
                may: block.may.clone(),
            })
        });
        Flushing(blocks.collect())
    }

    /// A flush was answered with success: what was acknowledged, or read, before it was submitted is durable (spec G2).
    pub(crate) fn end_flush(&mut self, flushing: Flushing) {
        for proof in flushing.0 {
            let Some(block) = self.blocks.get_mut(&proof.place) else {
                continue;
            };
            block.after_cut.retain(|version| {
                proof.may.contains(version)
                    || *version > proof.newest
                    || Some(*version) == proof.writing
            });
            if block.after_cut.len() == 1 {
                self.unflushed.remove(&proof.place);
            }
        }
    }

    /// The daemon was killed: what was in flight may have happened or not, and everything acknowledged is there (the
    /// kernel had it).
    pub(crate) fn killed(&mut self) {
        for block in self.blocks.values_mut() {
            block.end_write(false);
            block.stamp += 1;
        }
    }

    /// All copies lost their power: any version may be there from the last durable one on.
    pub(crate) fn power_cut(&mut self) {
        self.killed();
        for place in &self.unflushed {
            if let Some(block) = self.blocks.get_mut(place) {
                block.may.clone_from(&block.after_cut);
                block.before_cut = block.settled.take();
                block.is_written = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 5;

    fn contents(version: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        if version > 0 {
            fill(&mut bytes, SEED, 7, version);
        }
        bytes
    }

    fn write(history: &mut History, acknowledged: bool) {
        history.start_write(7..8, &mut vec![0; BLOCK]);
        history.end_write(7..8, acknowledged);
    }

    fn finds(history: &mut History, version: u64) -> bool {
        let reading = history.start_read(7..8);
        history.end_read(reading, &contents(version)).is_ok()
    }

    fn flush(history: &mut History) {
        let flushing = history.start_flush();
        history.end_flush(flushing);
    }

    /// Whether each version may be found in a state, each asked by itself.
    fn check(make: impl Fn(&mut History), expected: &[(u64, bool)]) {
        for (version, is_allowed) in expected {
            let mut history = History::new(SEED);
            make(&mut history);
            assert_eq!(
                finds(&mut history, *version),
                *is_allowed,
                "version {version}"
            );
        }
    }

    #[test]
    fn an_acknowledged_write_is_found_also_after_a_kill() {
        let acknowledged = |history: &mut History| {
            write(history, true);
            write(history, true);
        };
        check(
            acknowledged,
            &[(0, false), (1, false), (2, true), (3, false)],
        );
        let killed = |history: &mut History| {
            acknowledged(history);
            history.killed();
        };
        check(killed, &[(1, false), (2, true)]);
    }

    #[test]
    fn a_write_in_flight_at_a_kill_is_there_or_not_and_stays_as_it_was_read_first() {
        let killed = |history: &mut History| {
            write(history, true);
            history.start_write(7..8, &mut vec![0; BLOCK]);
            history.killed();
        };
        check(killed, &[(0, false), (1, true), (2, true)]);
        let read = |version| {
            move |history: &mut History| {
                killed(history);
                assert!(finds(history, version));
                history.killed();
            }
        };
        check(read(1), &[(1, true), (2, false)]);
        check(read(2), &[(1, false), (2, true)]);
    }

    #[test]
    fn after_a_power_cut_nothing_is_older_than_what_was_flushed() {
        let cut = |history: &mut History| {
            write(history, true);
            write(history, true);
            flush(history);
            write(history, true);
            history.power_cut();
        };
        check(cut, &[(0, false), (1, false), (2, true), (3, true)]);
        let flushed = |history: &mut History| {
            cut(history);
            assert!(finds(history, 2));
            flush(history);
            history.power_cut();
        };
        check(flushed, &[(2, true), (3, false)]);
    }

    #[test]
    fn a_flush_proves_nothing_about_writes_that_were_answered_after_it_was_submitted() {
        let late = |history: &mut History| {
            write(history, true);
            history.start_write(7..8, &mut vec![0; BLOCK]);
            let flushing = history.start_flush();
            history.end_write(7..8, true);
            history.end_flush(flushing);
        };
        check(late, &[(1, false), (2, true)]);
        let cut = |history: &mut History| {
            late(history);
            history.power_cut();
        };
        check(cut, &[(0, false), (1, true), (2, true)]);
    }

    #[test]
    fn reads_beside_a_write_find_old_or_new_and_never_go_back() {
        let mut history = History::new(SEED);
        write(&mut history, true);
        history.start_write(7..8, &mut vec![0; BLOCK]);
        let (slow, fast) = (history.start_read(7..8), history.start_read(7..8));
        history.end_read(fast, &contents(2)).unwrap();
        history.end_read(slow, &contents(1)).unwrap();
        assert!(!finds(&mut history, 1));
        assert!(finds(&mut history, 2));
    }

    #[test]
    fn what_was_read_after_a_power_cut_is_not_changed_by_the_next() {
        let cut_twice = |history: &mut History| {
            write(history, true);
            history.power_cut();
            assert!(finds(history, 0));
            history.power_cut();
        };
        check(cut_twice, &[(0, true), (1, false)]);
    }
}
