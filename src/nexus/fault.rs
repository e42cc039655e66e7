//! When a child fails: out of the sets in memory at once, then out of the committed table (spec section 5).

use std::rc::Rc;
use std::time::Duration;

use super::env::NexusEnv;
use super::fan_out::{Failure, Operation};
use super::nexus::{Inner, Mode, Nexus, nap};
use super::slots::SlotSet;
use super::state::{ChildEvent, ChildState, FaultReason};
use super::witness::{Witness, WitnessError, WitnessMember, WitnessRecord};
use crate::io::{Clock, IoError, Spawn};
use crate::model::{GenerationId, ReplicaId, VolumeName};
use crate::replica::label::ANCESTORS_MAX;
use crate::replica::{Ancestors, Label, MemberState};

/// First pause before labels or the witness are tried again; doubled each time.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The nexus stops, or has lost its volume, before the commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupted;

/// The right to change the table and the labels, one holder at a time.
pub(super) struct TableLock<E: NexusEnv> {
    inner: Rc<Inner<E>>,
}

impl<E: NexusEnv> Drop for TableLock<E> {
    fn drop(&mut self) {
        self.inner.table_busy.set(false);
        self.inner.signal.notify();
    }
}

impl<E: NexusEnv> Nexus<E> {
    /// Tells the nexus how long a replica's file is now. One that is shorter than its label says is faulted before a
    /// write can make it grow again (spec section 5: checked at open, at each short read and every 10 s).
    pub fn report_size(&self, replica: ReplicaId, bytes: u64) {
        let inner = &self.inner;
        for slot in inner.usable().iter() {
            let child = &inner.children[slot];
            let short = |needed: u64| bytes < needed;
            if child.replica_id == replica
                && child.replica().is_ok_and(|r| short(r.label().file_len()))
            {
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
        let outcome = inner
            .fan_out(inner.usable().iter().map(operation).collect())
            .await;
        for (slot, failure) in outcome.failures(inner.usable()) {
            inner.fault(slot, failure.reason());
        }
        if (outcome.done & inner.usable()).is_empty() {
            return Err(IoError::EIO);
        }
        inner.spec.borrow_mut().name = name;
        let record = inner.record_of(&table);
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
        } else if child.apply(ChildEvent::Failed(reason)) {
            self.touch();
            if !self.fault_task.replace(true) {
                self.parts.spawn.spawn(Rc::clone(self).commit_faults());
            }
        }
    }

    /// Whether a copy is left without this member. A copy in memory does not count, unless there are no others.
    fn can_spare(&self, slot: usize) -> bool {
        let others = self.usable() - SlotSet::one(slot);
        let counts = |slot: usize| !self.children[slot].volatile;
        let all_volatile = !self.active.get().iter().any(counts);
        !others.is_empty() && (all_volatile || others.iter().any(counts))
    }

    /// Waits for the right to change the table.
    pub(super) async fn lock_table(self: &Rc<Self>) -> TableLock<E> {
        self.signal.until(|| !self.table_busy.replace(true)).await;
        let inner = Rc::clone(self);
        TableLock { inner }
    }

    /// F3 to F7, until every faulted member is out of the committed table. One at a time.
    async fn commit_faults(self: Rc<Self>) {
        let _lock = self.lock_table().await;
        loop {
            let faulted =
                |slot: &usize| matches!(self.children[*slot].state(), ChildState::Faulted(_));
            let leaving: SlotSet = self.active.get().iter().filter(faulted).collect();
            if leaving.is_empty() || self.commit_without(leaving).await.is_err() {
                break;
            }
        }
        // No await since the last look: whoever is faulted from here on starts a new task.
        self.fault_task.set(false);
    }

    async fn commit_without(self: &Rc<Self>, leaving: SlotSet) -> Result<(), Interrupted> {
        let survivors = self.active.get() - leaving;
        assert!(!survivors.is_empty(), "G7: the last copy never leaves");
        let table = self.next_table(leaving);
        self.table.replace(table.clone());
        if !self.write_labels(survivors, &table).await? {
            // F5: one more has failed. Start over without it; this attempt's id stays among the ancestors.
            return Ok(());
        }
        let record = self.record_of(&table);
        self.commit(&record).await?;
        self.committed.replace(record);
        self.active.set(survivors);
        for slot in leaving.iter() {
            let child = &self.children[slot];
            let (since, busy) = (table.generation, child.is_busy());
            child.apply(ChildEvent::Committed { since, busy });
        }
        if survivors.len() == 1 {
            // A single copy can't differ from others.
            self.unresolved.borrow_mut().clear();
        }
        // F7: releases the acknowledgements that wait for the commit.
        self.touch();
        Ok(())
    }

    /// F3: the next table, in which the members that are `leaving` are stale.
    pub(super) fn next_table(&self, leaving: SlotSet) -> Label {
        let committed = self.committed.borrow().generation_id;
        let mut table = self.table.borrow().clone();
        advance(&mut table, committed, self.parts.generation_id());
        for slot in leaving.iter() {
            let member = &mut table.members[slot];
            member.state = MemberState::Stale;
            member.since_gen = table.generation;
            member.insync_id = committed;
        }
        self.sign(&mut table);
        table
    }

    /// Notes who wrote a label, and when.
    pub(super) fn sign(&self, label: &mut Label) {
        label.writer = self.parts.node;
        label.wall_ns = self.parts.clock.wall_ns();
    }

    /// F4: on every survivor `missed := missed OR intent`, then the label, both durable. False when a survivor was
    /// faulted meanwhile.
    async fn write_labels(
        self: &Rc<Self>,
        survivors: SlotSet,
        table: &Label,
    ) -> Result<bool, Interrupted> {
        let mut todo = survivors;
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let operation = |slot| (slot, self.write_label(slot, table.clone(), true));
            let outcome = self.fan_out(todo.iter().map(operation).collect()).await;
            for (slot, failure) in outcome.failures(self.usable()) {
                self.fault(slot, failure.reason());
            }
            if !survivors.is_within(self.usable()) {
                return Ok(false);
            }
            todo = todo - outcome.done;
            if todo.is_empty() {
                return Ok(true);
            }
            // The last copy: kept and tried again.
            self.go_on()?;
            nap(self, pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// The table, written as one member's label (spec L1, L3).
    pub(super) fn write_label(
        self: &Rc<Self>,
        slot: usize,
        table: Label,
        merge: bool,
    ) -> Operation {
        let inner = Rc::clone(self);
        Box::pin(async move {
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Label)?;
            let durable = child.durability.write(&inner.signal);
            let mut result = Ok(());
            if merge {
                result = replica.merge_intent_into_missed().await;
            }
            if result.is_ok() {
                let label = own_label(&replica.label(), table);
                result = replica.write_label(&label).await;
            }
            durable.ended(result);
            result.map_err(Failure::Label)
        })
    }

    /// F6: compare-and-swap at the witness, for as long as it takes.
    async fn commit(&self, record: &WitnessRecord) -> Result<(), Interrupted> {
        let expected = self.committed.borrow().position();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            self.go_on()?;
            match self.parts.witness.commit(Some(expected), record).await {
                Ok(()) => return Ok(()),
                Err(error) => self.on_witness_error(&error),
            }
            self.go_on()?;
            nap(self, pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// Spec E4: after a conflict, nothing is answered but `EIO`, and no label is written any more.
    fn on_witness_error(&self, error: &WitnessError) {
        if matches!(error, WitnessError::Conflict { .. }) {
            self.mode.set(Mode::LostOwnership);
            self.touch();
        }
    }

    /// Whether a commit is still wanted: a stop waits only for requests that wait for it.
    fn go_on(&self) -> Result<(), Interrupted> {
        match self.mode.get() {
            Mode::Serving => Ok(()),
            Mode::Stopping if self.running.get() > 0 => Ok(()),
            Mode::Stopping | Mode::Stopped | Mode::LostOwnership => Err(Interrupted),
        }
    }

    /// What the witness is to hold for this table.
    pub(super) fn record_of(&self, table: &Label) -> WitnessRecord {
        record_of(table)
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

/// Makes a table the next generation of itself. The committed table's id is kept among the ancestors whatever the
/// number of attempts since: it proves that the table descends from it (spec A4).
pub(super) fn advance(table: &mut Label, committed: GenerationId, id: GenerationId) {
    let before = table.generation_id;
    table.ancestors.push(before);
    if before != committed && !table.ancestors.contains(committed) {
        let newest: Vec<GenerationId> = table.ancestors.iter().take(ANCESTORS_MAX - 1).collect();
        table.ancestors = Ancestors::new(newest.into_iter().chain([committed]));
    }
    table.generation += 1;
    table.generation_id = id;
    table.flags.clean = false;
    for member in &mut table.members {
        if member.state == MemberState::InSync {
            member.insync_id = table.generation_id;
        }
    }
}

/// The table as the label of the replica that has the label `own` now.
pub(super) fn own_label(own: &Label, table: Label) -> Label {
    Label {
        slot_seq: own.slot_seq,
        compat: own.compat,
        ro_compat: own.ro_compat,
        replica: own.replica,
        pool: own.pool,
        own_slot: own.own_slot,
        ..table
    }
}

/// What the witness is to hold for a table.
pub(super) fn record_of(table: &Label) -> WitnessRecord {
    let member = |member: &crate::replica::Member| WitnessMember {
        replica: member.replica,
        in_sync: member.state == MemberState::InSync,
    };
    WitnessRecord {
        volume: table.volume,
        name: table.name.clone(),
        epoch: table.epoch,
        generation: table.generation,
        generation_id: table.generation_id,
        members: table.members.iter().map(member).collect(),
    }
}
