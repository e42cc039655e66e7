//! When a child fails: out of the sets in memory at once, then out of the committed table (spec section 5).

use std::rc::Rc;

use super::env::NexusEnv;
use super::fan_out::Failure;
use super::nexus::{Inner, Mode, Nexus};
use super::slots::SlotSet;
use super::state::{ChildEvent, FaultReason};
use super::table::record_of;
use crate::io::{Clock, IoError, Spawn};
use crate::model::{ReplicaId, VolumeName};

impl<E: NexusEnv> Nexus<E> {
    /// How long the file of a replica that takes writes has to be, by its label. A file grows before its label does: one
    /// that is found to be shorter *after* this was asked was cut.
    pub fn file_len(&self, replica: ReplicaId) -> Option<u64> {
        let inner = &self.inner;
        let mut writers = inner.writers().iter().map(|slot| &inner.children[slot]);
        let child = writers.find(|child| child.replica_id() == Some(replica))?;
        let label = child.replica().ok()?.label().file_len();
        Some(label)
    }

    /// Tells the nexus that a replica's file is shorter than [`Nexus::file_len`] said. It is faulted before a write can
    /// make it grow again (spec section 5: checked at open, at each short read and every 10 s).
    pub fn report_truncated(&self, replica: ReplicaId) {
        let inner = &self.inner;
        for slot in inner.writers().iter() {
            if inner.children[slot].replica_id() == Some(replica) {
                inner.fault(slot, FaultReason::Truncated);
            }
        }
    }

    /// Writes another name into the labels of all in-sync members and into the witness. The generation stays: who is in
    /// sync does not change. Members that are not in sync keep the old name; the volume's id is what identifies them.
    ///
    /// # Errors
    /// `EIO` when no label or not the witness could be written; it may be tried again.
    pub async fn rename(&self, name: VolumeName) -> Result<(), IoError> {
        let inner = Rc::clone(&self.inner);
        let _lock = inner.lock_table().await;
        if inner.mode.get() != Mode::Serving {
            return Err(IoError::Stopped);
        }
        inner.table.borrow_mut().name = name.clone();
        let table = inner.table.borrow().clone();
        let operation = |slot| (slot, inner.write_label(slot, table.clone(), false));
        // Not of one whose rebuild begins just now: its label is still that of the table in which it was a copy (B3).
        let members = inner.writers() & inner.committed_writers.get();
        let operations = members.iter().map(operation).collect();
        let outcome = inner.fan_out(operations).await;
        for (slot, failure) in outcome.failures(inner.writers()) {
            inner.fault(slot, failure.reason());
        }
        if (outcome.done & inner.usable()).is_empty() {
            return Err(IoError::EIO);
        }
        inner.spec.borrow_mut().name = name;
        let record = record_of(&table);
        let expected = inner.committed.borrow().position();
        let timeout = inner.spec.borrow().policy.timeouts.commit;
        let commit = inner.parts.commit_within(timeout, Some(expected), &record);
        let committed = commit.await;
        if let Err(error) = committed {
            inner.on_witness_error(&error);
            return Err(IoError::EIO);
        }
        inner.committed.replace(record);
        inner.touch();
        Ok(())
    }
}

impl<E: NexusEnv> Inner<E> {
    /// Spec F1: out of the read and write sets at once; the commit follows in the background. The last copy stays in
    /// (G7, F2).
    pub(super) fn fault(self: &Rc<Self>, slot: usize, reason: FaultReason) {
        let child = &self.children[slot];
        if child.state().is_usable() && !self.can_spare(slot) {
            self.failed_as_last(slot, reason);
        } else if self.leaves(slot, reason) {
            self.ensure_committed();
        }
    }

    /// Starts the task that commits faults, unless it runs or has nothing to do.
    pub(super) fn ensure_committed(self: &Rc<Self>) {
        if !self.faulted().is_empty() && !self.fault_task.replace(true) {
            self.parts.spawn.spawn(Rc::clone(self).commit_faults());
        }
    }

    /// F1 without the commit, which is the caller's. True when the member was in use.
    pub(super) fn leaves(&self, slot: usize, reason: FaultReason) -> bool {
        let changed = self.children[slot].apply(ChildEvent::Failed(reason));
        if changed {
            if self.uncommitted.get().is_none() {
                self.uncommitted.set(Some(self.parts.clock.now()));
            }
            self.touch();
        }
        changed
    }

    /// Whether a copy is left without this member. A copy in memory does not count, unless there are no others.
    pub(super) fn can_spare(&self, slot: usize) -> bool {
        self.suffice(self.usable() - SlotSet::one(slot))
    }

    /// Whether these members are enough to go on without the others (spec G7).
    pub(super) fn suffice(&self, others: SlotSet) -> bool {
        let counts = |slot: usize| !self.children[slot].is_volatile();
        let all_volatile = !self.active.get().iter().any(counts);
        !others.is_empty() && (all_volatile || others.iter().any(counts))
    }
}

impl Failure {
    /// What it says about a child whose label was being written.
    pub(super) const fn reason(self) -> FaultReason {
        match self {
            Self::Label(error) => FaultReason::Label(error),
            Self::Data(error) => FaultReason::Write(error),
            Self::Read(error) => FaultReason::Read(error),
            Self::Flush(error) => FaultReason::Flush(error),
        }
    }
}
