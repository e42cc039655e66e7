//! Becoming the owner of an assembled volume (spec A7, A8): what the last owner left unfinished, then a generation of our
//! own in the labels of all who serve, then the commit.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::assembly::AssemblyError;
use super::env::{NexusEnv, Parts};
use super::fan_out::{Failure, Operation, Outcome, either};
use super::mutant::Mutant;
use super::nexus::Inner;
use super::slots::SlotSet;
use super::state::{ChildEvent, ChildState, FaultReason};
use super::table::{has_outsiders, left, own_label, record_of, sets};
use super::witness::{Witness, WitnessError, WitnessPosition, WitnessRecord};
use crate::io::{Clock, IoError};
use crate::replica::{BitmapKind, Label, MemberState};

/// Pause before the witness is tried again.
const COMMIT_RETRY_PAUSE: Duration = Duration::from_millis(200);

impl<E: NexusEnv> Inner<E> {
    /// A7 after an unclean stop: U is every chunk of the regions in which some member may hold unflushed writes.
    pub(super) fn load_unresolved(&self) {
        if self.active.get().len() < 2 {
            return;
        }
        let mut unresolved = self.unresolved.borrow_mut();
        for range in self.marked(self.active.get(), &[BitmapKind::Intent]) {
            unresolved.insert(range.start..range.end.min(self.size.get()));
        }
    }

    /// A8: the new generation into the labels of A' and of those that are being rebuilt, then the commit. A member that
    /// fails is left out (F5).
    pub(super) async fn take_over(
        self: &Rc<Self>,
        expected: Option<WitnessPosition>,
        keep_clean: bool,
    ) -> Result<(), AssemblyError> {
        let brought = self.committed_writers.get();
        // Until the table that it joined by is committed, a member that is being rebuilt may lack writes that were
        // acknowledged without it; they are in `missed`.
        let joined = expected.is_some_and(|e| e.generation_id == self.table.borrow().generation_id);
        let unfinished_in = if joined {
            &[BitmapKind::Intent][..]
        } else {
            &[BitmapKind::Intent, BitmapKind::Missed]
        };
        let mut failed = SlotSet::EMPTY;
        // Who hangs is left out of the table that is written here (F5); nobody commits another one meanwhile.
        self.fault_task.set(true);
        loop {
            if self.active.get().is_within(failed) {
                return Err(AssemblyError::Failed(self.failures(failed)));
            }
            let leaving = self.members() - (brought - failed);
            let committed = self.committed.borrow().generation_id;
            let mut table = self.next_table(leaving, &|table| {
                let generation = table.generation;
                for slot in leaving.iter() {
                    let member = &mut table.members[slot];
                    if member.state == MemberState::Rebuilding {
                        *member = left(*member, generation, committed);
                    }
                }
            });
            table.flags.clean = keep_clean;
            self.table.replace(table.clone());
            let (readers, writers) = sets(&table);
            let merge = has_outsiders(&table) && !self.parts.breaks(Mutant::IntentNotMerged);
            let unfinished = self.marked(readers, unfinished_in);
            let operation = |slot| {
                let label = table.clone();
                (
                    slot,
                    self.open_label(slot, label, merge, unfinished.clone()),
                )
            };
            let outcome = self
                .open_labels(writers.iter().map(operation).collect())
                .await;
            for (slot, failure) in outcome.failures(self.writers()) {
                self.children[slot].apply(ChildEvent::Failed(failure.reason()));
            }
            failed = failed | self.faulted();
            if outcome.done - failed == writers {
                let record = record_of(&table);
                let timeout = self.spec.borrow().policy.timeouts.commit;
                let commit = self.parts.commit_within(timeout, expected, &record);
                commit.await.map_err(|error| match error {
                    WitnessError::Conflict { .. } => AssemblyError::LostOwnership(error),
                    error => AssemblyError::Witness(error),
                })?;
                self.committed.replace(record);
                self.adopt(&table, failed, (readers, writers));
                self.fault_task.set(false);
                self.ensure_committed();
                return Ok(());
            }
        }
    }

    /// The bytes that are marked in these bitmaps of any of these members.
    pub(super) fn marked(&self, members: SlotSet, kinds: &[BitmapKind]) -> Vec<Range<u64>> {
        let here = |slot: usize| self.children[slot].replica().ok();
        let mut ranges = Vec::new();
        for replica in members.iter().filter_map(here) {
            let shift = replica.region_shift();
            let runs = kinds.iter().flat_map(|kind| replica.set_regions(*kind));
            ranges.extend(runs.map(|run| run.start << shift..run.end << shift));
        }
        ranges
    }

    fn failures(&self, failed: SlotSet) -> String {
        let reason = |slot: usize| {
            let child = &self.children[slot];
            let reason = child.state().reason().map(|reason| reason.to_string());
            let own = child.replica_id().map(|id| id.to_string());
            let own = own.unwrap_or_default();
            format!("{own}: {}", reason.unwrap_or_default())
        };
        failed.iter().map(reason).collect::<Vec<_>>().join("; ")
    }

    /// Opens members for writing. One that hangs is left behind while another one answers; when none does, all have failed,
    /// and the start is tried anew with opening them (A8).
    async fn open_labels(self: &Rc<Self>, operations: Vec<(usize, Operation)>) -> Outcome {
        let mut outcome = Outcome::default();
        let opened = async { outcome = self.fan_out(operations).await };
        let given_up = async {
            self.signal.until(|| self.nobody_answers()).await;
            let reason = FaultReason::Hung(self.spec.borrow().policy.timeouts.io);
            for slot in self.usable().iter() {
                self.leaves(slot, reason);
            }
            std::future::pending().await
        };
        either(given_up, opened).await;
        outcome
    }

    /// Opens one member for writing: damaged bitmap pages, `missed` when somebody was left behind, the label. One that is
    /// being rebuilt adds to its list what the last owner may have left `unfinished` anywhere.
    fn open_label(
        self: &Rc<Self>,
        slot: usize,
        table: Label,
        merge: bool,
        unfinished: Vec<Range<u64>>,
    ) -> Operation {
        let inner = Rc::clone(self);
        Box::pin(async move {
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Label)?;
            // Spec F1: nothing more is done to one that was left behind meanwhile.
            let go_on = |result: Result<(), IoError>| match result {
                Ok(()) if !inner.writers().contains(slot) => Err(Failure::Label(IoError::Stopped)),
                result => result.map_err(Failure::Label),
            };
            // The label and the bits that were read may be in the disk's cache only, left by a daemon that was killed.
            // Before the other label slot is overwritten (L1), or a bit is relied on (W4), they must be durable.
            go_on(replica.flush().await)?;
            go_on(replica.rewrite_bad_pages().await)?;
            let is_target = child.state() == ChildState::Rebuilding;
            if merge || is_target {
                go_on(replica.merge_intent_into_missed().await)?;
            }
            for range in unfinished.into_iter().filter(|_| is_target) {
                let end = range.end.min(replica.data_len());
                if range.start < end {
                    let regions = replica.regions(range.start, end - range.start);
                    go_on(replica.set_durable(BitmapKind::Missed, regions).await)?;
                }
            }
            if replica.data_len() < table.data_len {
                // A growth that was cut short.
                go_on(replica.grow(table.data_len).await)?;
            }
            let label = own_label(&replica.label(), table);
            replica.write_label(&label).await.map_err(Failure::Label)
        })
    }
}

impl<E: NexusEnv> Parts<E> {
    /// A compare-and-swap at the witness, tried again while the witness can't be reached, up to `timeout`.
    pub(super) async fn commit_within(
        &self,
        timeout: Duration,
        expected: Option<WitnessPosition>,
        record: &WitnessRecord,
    ) -> Result<(), WitnessError> {
        let deadline = self.clock.now() + timeout;
        loop {
            match self.witness.commit(expected, record).await {
                Ok(()) => return Ok(()),
                Err(error @ WitnessError::Conflict { .. }) => return Err(error),
                Err(error) if self.clock.now() >= deadline => return Err(error),
                Err(_) => self.clock.sleep(COMMIT_RETRY_PAUSE).await,
            }
        }
    }
}
