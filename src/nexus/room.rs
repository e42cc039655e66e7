//! Room for more marked regions: no more than `intent_max` of them stay set (spec W9).
//!
//! The clearing task makes room in passes: a flush, then a part of the regions that were not written for the longest time
//! are cleared. A write that comes upon a full volume waits for a pass. From then on, for as long as that goes on, passes
//! begin before the volume is full, so that others do not wait.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use super::env::NexusEnv;
use super::intent::Writing;
use super::nexus::Inner;
use super::signal::Signal;
use crate::replica::BitmapKind;

/// Of the regions that may be set, one in so many is cleared by a pass.
const BATCH: u64 = 8;

/// Who waits for room, and who makes it.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Somebody wants it.
    wanted: Cell<bool>,
    /// A write had to wait for it since the clearing task last looked at the clock.
    scarce: Cell<bool>,
    /// Passes that have ended.
    passes: Cell<u64>,
    /// Whether one is under way.
    is_passing: Cell<bool>,
}

impl Room {
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.get()
    }

    /// A pass begins; true when somebody wants room.
    pub(super) fn pass_begins(&self) -> bool {
        self.is_passing.set(true);
        self.wanted.replace(false)
    }

    /// What the pass could clear is cleared in memory.
    pub(super) fn pass_ended(&self, signal: &Signal) {
        self.is_passing.set(false);
        self.passes.set(self.passes.get() + 1);
        signal.notify();
    }

    /// Some time has passed: it may be that what is written fits now.
    pub(super) fn look(&self) {
        self.scarce.set(false);
    }

    fn ask(&self, signal: &Signal) {
        if !self.wanted.replace(true) && !self.is_passing.get() {
            signal.notify();
        }
    }

    /// How many regions may be set before room is made.
    fn full_at(&self, limit: u64) -> u64 {
        if self.scarce.get() {
            limit - limit / BATCH
        } else {
            limit
        }
    }
}

impl<E: NexusEnv> Inner<E> {
    /// As [`Inner::writing`], for a client's write: regions are marked ahead of a stream, and when too many are set,
    /// older ones are waited for to be cleared (spec W9). The bound is soft: a write goes on when nothing can be.
    pub(super) async fn writing_when_room(self: &Rc<Self>, bytes: &Range<u64>) -> Writing<'_> {
        let limit = self.spec.borrow().policy.intent_max;
        let writing = self.begin_write(bytes, limit.saturating_sub(self.intent.len()));
        let room = &self.intent.room;
        let marked = self.intent.len();
        if marked > limit && !self.is_marked(bytes) {
            // A pass that is under way has chosen already; the next one follows at once.
            let own = room.passes.get() + 1 + u64::from(room.is_passing.get());
            room.scarce.set(true);
            room.ask(&self.signal);
            let settled = || self.intent.len() <= limit || room.passes.get() >= own;
            self.signal
                .until(|| settled() || !self.intent.task.get())
                .await;
        } else if marked > room.full_at(limit) && !room.is_passing.get() {
            room.ask(&self.signal);
        }
        writing
    }

    /// Whether a write there needs no bit that is not on disk already.
    fn is_marked(&self, bytes: &Range<u64>) -> bool {
        let is_durable = |slot: usize| {
            let replica = self.children[slot].replica();
            replica.is_ok_and(|replica| {
                let regions = replica.regions(bytes.start, bytes.end - bytes.start);
                replica.is_durable(BitmapKind::Intent, regions)
            })
        };
        self.writers().iter().all(is_durable)
    }

    /// Regions to clear when too many are set: those that were not written for the longest time.
    pub(super) fn least_recent(&self) -> Vec<u64> {
        let limit = self.spec.borrow().policy.intent_max;
        let full_at = self.intent.room.full_at(limit);
        let marked = self.intent.len();
        if marked <= full_at {
            return Vec::new();
        }
        let count = marked - full_at + 2 * (limit / BATCH);
        let known = self.intent.regions.borrow();
        let quiet = known.iter().filter(|(_, region)| region.writing == 0);
        let mut quiet: Vec<(u64, u64)> = quiet.map(|(at, region)| (region.used, *at)).collect();
        let count = usize::try_from(count).map_or(quiet.len(), |count| count.min(quiet.len()));
        if count < quiet.len() {
            quiet.select_nth_unstable(count);
            quiet.truncate(count);
        }
        quiet.into_iter().map(|(_, region)| region).collect()
    }
}
