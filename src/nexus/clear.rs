//! Clearing intent bits of regions whose writes are flushed everywhere (spec W9), in the background and on a clean stop.
//!
//! The task exists only while bits are set: an idle volume has no timer.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::env::NexusEnv;
use super::fan_out::{Failure, Operation, either};
use super::intent::{Intent, Region};
use super::mutant::Mutant;
use super::nexus::{Inner, Mode};
use crate::io::{Clock, Spawn};
use crate::replica::BitmapKind;

/// How often it is looked what can be cleared.
const TICK: Duration = Duration::from_secs(1);
/// A region is left alone when it was not written between so many looks: for 5 s at least.
const IDLE_TICKS: usize = 6;
/// Fewest looks between two flushes of our own.
const FLUSH_TICKS: u32 = 5;
/// Of the bits that the last owner left, one in so many is cleared at once as their regions are resolved, and one at least.
const INHERITED_BATCH: u64 = 256;

impl<E: NexusEnv> Inner<E> {
    /// Starts the task unless it runs or has nothing to do.
    pub(super) fn ensure_clearing(self: &Rc<Self>) {
        let serves = self.mode.get() == Mode::Serving && !self.single.get();
        if serves && self.has_intent() && !self.intent.task.replace(true) {
            self.parts.spawn.spawn(Rc::clone(self).clear_lazily());
        }
    }

    fn has_intent(&self) -> bool {
        let known = self.intent.len() > 0 || !self.intent.found.borrow().is_empty();
        known || self.intent_regions() > 0
    }

    async fn clear_lazily(self: Rc<Self>) {
        let clock = &self.parts.clock;
        let mut marks = VecDeque::with_capacity(IDLE_TICKS + 1);
        let mut idle_since = None;
        let mut since_flush = FLUSH_TICKS;
        let mut next_look = clock.now() + TICK;
        let mut resolved_before = 0;
        loop {
            let serves = || self.mode.get() == Mode::Serving && !self.single.get();
            // Bits that the last owner left are cleared while their regions are resolved, a few at a time: else they pile
            // up over lives that are too short to resolve all of them, since each begins anew.
            let found = self.intent.found_len();
            let enough = resolved_before + (found / INHERITED_BATCH).max(1);
            let resolved = || found > 0 && self.intent.resolved.get() >= enough;
            let woken = || self.intent.room.is_wanted() || resolved() || !serves();
            let rest = next_look.saturating_sub(clock.now());
            either(clock.sleep(rest), self.signal.until(woken)).await;
            if !serves() {
                break;
            }
            resolved_before = self.intent.resolved.get();
            let crowded = self.intent.room.pass_begins();
            if clock.now() >= next_look {
                next_look = clock.now() + TICK;
                since_flush += 1;
                self.intent.room.look();
                marks.push_back(self.intent.now());
                if marks.len() > IDLE_TICKS {
                    idle_since = marks.pop_front();
                }
            }
            // Requests that a pause waits for may be waiting for room.
            if !self.paused.get() || self.running.get() > 0 {
                let running = self.enter();
                self.find_bits();
                let wanted = if crowded {
                    self.least_recent()
                } else {
                    self.idle(idle_since)
                };
                let may_flush = crowded || since_flush >= FLUSH_TICKS;
                let unflushed = self.parts.breaks(Mutant::IntentClearedUnflushed);
                if may_flush && !unflushed && !self.are_proven(&wanted) {
                    since_flush = 0;
                    // A failure faults the member; what is not proven stays set.
                    let _ = Rc::clone(&self).flush().await;
                }
                // A bit that comes back with a power cut costs the resolving of its region; while that goes on anyhow,
                // nobody waits for the disk.
                let fua = !crowded && self.unresolved.borrow().is_empty();
                let changed = self.unset(&wanted);
                // The next write of a page takes along what is cleared in memory, so nobody waits for this one.
                self.intent.room.pass_ended(&self.signal);
                if changed {
                    self.write_back_everywhere(fua).await;
                }
                drop(running);
            } else {
                self.intent.room.pass_ended(&self.signal);
            }
            if !self.has_intent() {
                break;
            }
        }
        // No await since the last look: whoever writes from here on starts a new task.
        self.intent.task.set(false);
        self.signal.notify();
    }

    /// Regions that were not written since the mark `since`.
    fn idle(&self, since: Option<u64>) -> Vec<u64> {
        let known = self.intent.regions.borrow();
        let is_idle = |region: &Region| since.is_some_and(|since| region.used <= since);
        let idle = known.iter().filter(|(_, region)| is_idle(region));
        idle.map(|(region, _)| *region).collect()
    }

    /// Whether no flush is needed to clear these, and those that were found.
    fn are_proven(&self, regions: &[u64]) -> bool {
        let known = self.intent.regions.borrow();
        let needs = |region: &u64| known.get(region).map_or(0, |known| known.needs);
        let found = self.intent.found.borrow();
        regions
            .iter()
            .all(|region| self.intent.is_proven(needs(region)))
            && (found.is_empty() || self.intent.is_proven(self.intent.found_needs.get()))
    }

    /// The bits that the last owner left, of regions that nobody has written since. `flush` was submitted before each
    /// member was flushed for the new label (spec A8), and nobody but the last owner, who is gone (A1), wrote before that:
    /// so it proves what is behind them, and they may be cleared once they are resolved (spec W9).
    pub(super) fn inherit_bits(self: &Rc<Self>, flush: u64) {
        self.find_bits();
        self.intent.found_needs.set(flush);
        self.intent.proved(flush);
        self.ensure_clearing();
    }

    /// Whether a bit stands for the same bytes on all writers and in memory. Not so while a growth that changes that is being
    /// committed: what is known of a region then says nothing about the bit with its number (spec section 10, W9).
    fn is_on_one_grid(&self) -> bool {
        let shift = self.intent.region_shift();
        let replicas = self.writers().iter();
        let mut replicas = replicas.filter_map(|slot| self.children[slot].replica().ok());
        replicas.all(|replica| replica.region_shift() == shift)
    }

    /// Looks for bits that nobody set here: those left by the last owner, and those that a member brought with it. Who
    /// wrote there is unknown, so a flush from now on has to prove them.
    fn find_bits(&self) {
        if !self.is_on_one_grid() {
            return;
        }
        let mut found = self.intent.found.borrow_mut();
        let known = self.intent.regions.borrow();
        let tracked = length(&found) + self.intent.len();
        if self.intent_regions() <= tracked {
            return;
        }
        let replicas = self.writers().iter();
        let replicas = replicas.filter_map(|slot| self.children[slot].replica().ok());
        let mut runs: Vec<Range<u64>> = replicas
            .flat_map(|replica| replica.set_regions(BitmapKind::Intent))
            .collect();
        runs.sort_unstable_by_key(|run| run.start);
        found.clear();
        let mut next = 0;
        for run in runs {
            let mut at = run.start.max(next);
            next = next.max(run.end);
            let tracked = known.range(at..next.max(at)).map(|(region, _)| *region);
            for region in tracked {
                push(&mut found, at..region);
                at = region + 1;
            }
            push(&mut found, at..next);
        }
        self.intent.found_needs.set(self.intent.next_flush());
    }

    /// Clears in memory those of the regions that may be cleared, and whatever was found and may be. True when there was
    /// one. Nothing is waited for between the decision and the change, so no write begins in between.
    fn unset(&self, wanted: &[u64]) -> bool {
        if self.mode.get() != Mode::Serving || !self.is_on_one_grid() {
            return false;
        }
        let clearable = |region: &u64| {
            let known = self.intent.regions.borrow().get(region).copied();
            known.is_some_and(|known| self.is_clearable(*region, known))
        };
        let mut cleared: Vec<Range<u64>> = Vec::new();
        for region in wanted.iter().copied().filter(|region| clearable(region)) {
            self.intent.forget(region);
            push(&mut cleared, region..region + 1);
        }
        self.take_found(&mut cleared);
        for slot in self.writers().iter() {
            if let Ok(replica) = self.children[slot].replica() {
                let unset = |run: &Range<u64>| replica.unset(BitmapKind::Intent, run.clone());
                cleared.iter().for_each(unset);
            }
        }
        !cleared.is_empty()
    }

    /// Brings cleared bits to the disks of all members.
    async fn write_back_everywhere(self: &Rc<Self>, fua: bool) {
        let operation = |slot| (slot, self.write_back(slot, fua));
        let operations = self.writers().iter().map(operation).collect();
        let outcome = self.fan_out(operations).await;
        for (slot, failure) in outcome.failures(self.writers()) {
            self.fault(slot, failure.reason());
        }
    }

    /// Spec W9.
    fn is_clearable(&self, region: u64, known: Region) -> bool {
        let flushed =
            self.intent.is_proven(known.needs) || self.parts.breaks(Mutant::IntentClearedUnflushed);
        let is_noted = known.is_ahead() || self.is_noted(region..region + 1);
        known.writing == 0 && flushed && is_noted && !self.is_unresolved(&(region..region + 1))
    }

    /// Whether it is on record on all of A that members outside of W lack these regions, if there are any such members.
    fn is_noted(&self, regions: Range<u64>) -> bool {
        let noted = |slot: usize| {
            let replica = self.children[slot].replica();
            replica.is_ok_and(|replica| replica.is_durable(BitmapKind::Missed, regions.clone()))
        };
        self.is_complete() || self.active.get().iter().all(noted)
    }

    pub(super) fn is_unresolved(&self, regions: &Range<u64>) -> bool {
        self.first_unresolved(regions).is_some()
    }

    /// The first of the regions that has a chunk in U.
    fn first_unresolved(&self, regions: &Range<u64>) -> Option<u64> {
        let bytes = self.intent.bytes(regions);
        let bytes = bytes.start..bytes.end.min(self.size.get());
        let chunk = self.unresolved.borrow().first_in(&bytes)?;
        Some(self.intent.regions(&chunk).start.max(regions.start))
    }

    /// Moves what was found and may be cleared to `cleared`. A region that was written since is known better now.
    fn take_found(&self, cleared: &mut Vec<Range<u64>>) {
        if !self.intent.is_proven(self.intent.found_needs.get()) {
            return;
        }
        let known = self.intent.regions.borrow();
        let mut kept = Vec::new();
        for run in self.intent.found.take() {
            let mut at = run.start;
            while at < run.end {
                let written = known.range(at..run.end).next().map(|(region, _)| *region);
                let unresolved = self.first_unresolved(&(at..run.end));
                let end = written
                    .unwrap_or(run.end)
                    .min(unresolved.unwrap_or(run.end));
                let clear = at..end;
                if self.is_noted(clear.clone()) {
                    push(cleared, clear);
                } else {
                    push(&mut kept, clear);
                }
                if unresolved == Some(end) && written != Some(end) {
                    push(&mut kept, end..end + 1);
                }
                at = end + 1;
            }
        }
        self.intent.found.replace(kept);
    }

    /// Brings cleared bits to one member's disk.
    fn write_back(self: &Rc<Self>, slot: usize, fua: bool) -> Operation {
        let inner = Rc::clone(self);
        Box::pin(async move {
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Label)?;
            let durable = child.durability.write(&inner.signal);
            let write = || replica.write_back(BitmapKind::Intent, fua);
            let result = inner.retrying(write).await;
            durable.ended(result);
            result.map_err(Failure::Label)
        })
    }

    /// A10: everything was flushed on every writer and nothing is unresolved: no bit is needed on this member any more,
    /// once it is on record what absent members lack.
    pub(super) fn clear_all(self: &Rc<Self>, slot: usize) -> Operation {
        let inner = Rc::clone(self);
        Box::pin(async move {
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Label)?;
            if !inner.is_complete() {
                let merged = replica.merge_intent_into_missed().await;
                merged.map_err(Failure::Label)?;
            }
            for run in replica.set_regions(BitmapKind::Intent) {
                replica.unset(BitmapKind::Intent, run);
            }
            inner.write_back(slot, false).await
        })
    }

    /// What is not proven flushed may be gone from some members: the regions have to be made equal.
    pub(super) fn distrust(self: &Rc<Self>) {
        if self.committed_writers.get().len() < 2 {
            return;
        }
        self.find_bits();
        let known: Vec<u64> = self.intent.regions.borrow().keys().copied().collect();
        let found = self.intent.found.borrow();
        let known = known.into_iter().map(|region| region..region + 1);
        for regions in known.chain(found.iter().cloned()) {
            let bytes = self.intent.bytes(&regions);
            let bytes = bytes.start..bytes.end.min(self.size.get());
            self.unresolved.borrow_mut().insert(bytes);
        }
        self.ensure_resolving();
    }
}

impl Intent {
    /// How many regions are known to have a bit that nobody set here.
    fn found_len(&self) -> u64 {
        length(&self.found.borrow())
    }
}

fn length(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum()
}

/// Adds a run behind the others, joined with the last one if they touch.
fn push(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    if run.is_empty() {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}
