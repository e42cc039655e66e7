//! Changing the membership table: the next generation into the labels of all of its writers, then to the witness
//! (spec F3 to F7). Every change goes this way: a fault, a member that comes or goes, the end of a rebuild, growth.

use std::rc::Rc;
use std::time::Duration;

use super::env::NexusEnv;
use super::fan_out::{Failure, Operation};
use super::mutant::Mutant;
use super::nexus::{Inner, Mode, nap};
use super::slots::SlotSet;
use super::state::{ChildEvent, ChildState, FaultReason};
use super::witness::{Witness, WitnessError, WitnessMember, WitnessRecord};
use crate::io::Clock;
use crate::model::GenerationId;
use crate::replica::label::ANCESTORS_MAX;
use crate::replica::{Ancestors, Flags, Label, Member, MemberState};

/// First pause before labels or the witness are tried again; doubled each time.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why a table was not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uncommitted {
    /// The nexus stops, or has lost its volume.
    Interrupted,
    /// A member's label can't hold the table: nothing was written.
    Refused,
}

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

impl<E: NexusEnv> Inner<E> {
    /// Waits for the right to change the table.
    pub(super) async fn lock_table(self: &Rc<Self>) -> TableLock<E> {
        self.signal.until(|| !self.table_busy.replace(true)).await;
        let inner = Rc::clone(self);
        TableLock { inner }
    }

    /// F3 to F7, until every faulted member is out of the committed table. One at a time.
    pub(super) async fn commit_faults(self: Rc<Self>) {
        let lock = self.lock_table().await;
        while !self.faulted().is_empty() {
            if self.change_table(&lock, &|_| {}).await.is_err() {
                break;
            }
        }
        // No await since the last look: whoever is faulted from here on starts a new task.
        self.fault_task.set(false);
    }

    /// Members of the table in memory that are out of use and not out of the committed table.
    pub(super) fn faulted(&self) -> SlotSet {
        let faulted = |slot: &usize| matches!(self.children[*slot].state(), ChildState::Faulted(_));
        self.members().iter().filter(faulted).collect()
    }

    /// Commits the table after `change`, and without the members that are faulted by then. `change` may be applied more
    /// than once: when a member fails on the way, it starts over without it (spec F5), and this attempt's id stays among
    /// the ancestors.
    ///
    /// # Errors
    /// [`Uncommitted::Interrupted`] when the volume stops or is lost first; the change may or may not be in some labels.
    /// [`Uncommitted::Refused`] when `change` makes no sense.
    pub(super) async fn change_table(
        self: &Rc<Self>,
        _: &TableLock<E>,
        change: &dyn Fn(&mut Label),
    ) -> Result<(), Uncommitted> {
        loop {
            let leaving = self.faulted();
            let table = self.next_table(leaving, change);
            let (readers, writers) = sets(&table);
            assert!(!readers.is_empty(), "G7: the last copy never leaves");
            if !self.is_writable(writers, &table) {
                return Err(Uncommitted::Refused);
            }
            self.table.replace(table.clone());
            if !self.write_labels(writers, &table).await? {
                continue;
            }
            let record = record_of(&table);
            self.commit(&record).await?;
            self.committed.replace(record);
            self.adopt(&table, leaving, (readers, writers));
            return Ok(());
        }
    }

    /// Whether every writer's label can hold the table. One that can't would be tried for ever on the last copy.
    fn is_writable(&self, writers: SlotSet, table: &Label) -> bool {
        let fits = |slot: usize| {
            let replica = self.children[slot].replica();
            replica.is_err()
                || replica.is_ok_and(|r| r.accepts(&own_label(&r.label(), table.clone())))
        };
        writers.iter().all(fits)
    }

    /// What a commit changes in memory.
    pub(super) fn adopt(
        self: &Rc<Self>,
        table: &Label,
        leaving: SlotSet,
        (readers, writers): (SlotSet, SlotSet),
    ) {
        self.active.set(readers);
        self.committed_writers.set(writers);
        for slot in readers.iter() {
            if self.children[slot].state() == ChildState::Rebuilding {
                self.children[slot].apply(ChildEvent::Synced);
            }
        }
        for slot in leaving.iter() {
            let child = &self.children[slot];
            let (since, busy) = (table.members[slot].since_gen, child.is_busy());
            child.apply(ChildEvent::Committed { since, busy });
            if !busy {
                // To come back it is opened and locked anew (spec A1, E6).
                child.release();
            }
        }
        // Who was faulted meanwhile is out by the next commit.
        let is_due = !self.faulted().is_empty();
        self.uncommitted.set(is_due.then(|| self.parts.clock.now()));
        if writers.len() == 1 {
            // A single copy can't differ from others.
            self.unresolved.borrow_mut().clear();
        }
        self.intent.regrid(table.region_shift);
        // A member may have come with bits that are set.
        self.ensure_clearing();
        // F7: releases the acknowledgements that wait for the commit.
        self.touch();
    }

    /// F3: the next table after `change`, in which the members that are `leaving` are stale.
    pub(super) fn next_table(&self, leaving: SlotSet, change: &dyn Fn(&mut Label)) -> Label {
        let committed = self.committed.borrow().generation_id;
        let mut table = self.table.borrow().clone();
        advance(&mut table, committed, self.parts.generation_id());
        change(&mut table);
        for slot in leaving.iter() {
            let generation = table.generation;
            let member = &mut table.members[slot];
            match member.state {
                MemberState::InSync => {
                    *member = left(*member, generation, committed);
                }
                // It had every write up to here, but for what is on its own list.
                MemberState::Rebuilding if self.committed_writers.get().contains(slot) => {
                    *member = left(*member, generation, committed);
                }
                // The table that it joined by was never committed: it left long ago.
                MemberState::Rebuilding => member.state = MemberState::Stale,
                MemberState::Stale | MemberState::Blank | MemberState::Removed => {}
            }
        }
        for (child, member) in self.children.iter().zip(&mut table.members) {
            // What was cut off reads as zeroes when the file has its length back: no record says so, and all of it has to
            // be copied (spec section 5, `Truncated`).
            let is_out = matches!(
                child.state(),
                ChildState::Faulted(_) | ChildState::Stale { .. }
            );
            if is_out && child.state().reason() == Some(FaultReason::Truncated) {
                member.insync_id = GenerationId::nil();
            }
        }
        for member in &mut table.members {
            if member.state == MemberState::InSync {
                member.since_gen = 0;
                member.insync_id = table.generation_id;
            }
        }
        let is_settled =
            |member: &Member| matches!(member.state, MemberState::InSync | MemberState::Removed);
        if table.members.iter().all(is_settled) {
            // B7: nobody lacks anything, so the record of it starts anew.
            table.missed_base_gen = table.generation;
        }
        self.sign(&mut table);
        table
    }

    /// Notes who wrote a label, and when.
    pub(super) fn sign(&self, label: &mut Label) {
        label.writer = self.parts.node;
        label.wall_ns = self.parts.clock.wall_ns();
    }

    /// F4: on every writer `missed := missed OR intent` if anybody is left out, then the label, both durable. False when
    /// one was faulted meanwhile.
    async fn write_labels(
        self: &Rc<Self>,
        writers: SlotSet,
        table: &Label,
    ) -> Result<bool, Uncommitted> {
        let merge = has_outsiders(table) && !self.parts.breaks(Mutant::IntentNotMerged);
        let mut todo = writers;
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let operation = |slot| (slot, self.write_label(slot, table.clone(), merge));
            let outcome = self.fan_out(todo.iter().map(operation).collect()).await;
            for (slot, failure) in outcome.failures(self.writers()) {
                self.fault(slot, failure.reason());
            }
            if !writers.is_within(self.writers()) {
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
                result = inner.retrying(|| replica.write_label(&label)).await;
            }
            durable.ended(result);
            result.map_err(Failure::Label)
        })
    }

    /// F6: compare-and-swap at the witness, for as long as it takes.
    async fn commit(&self, record: &WitnessRecord) -> Result<(), Uncommitted> {
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
    pub(super) fn on_witness_error(&self, error: &WitnessError) {
        if matches!(error, WitnessError::Conflict { .. }) {
            self.mode.set(Mode::LostOwnership);
            self.touch();
        }
    }

    /// Whether a commit is still wanted: a stop waits only for requests that wait for it.
    fn go_on(&self) -> Result<(), Uncommitted> {
        match self.mode.get() {
            Mode::Serving => Ok(()),
            Mode::Stopping if self.running.get() > 0 => Ok(()),
            Mode::Stopping | Mode::Stopped | Mode::LostOwnership => Err(Uncommitted::Interrupted),
        }
    }
}

/// The active set and the write set that a table names.
pub(super) fn sets(table: &Label) -> (SlotSet, SlotSet) {
    let slots = |wanted: &[MemberState]| -> SlotSet {
        let members = table.members.iter().enumerate();
        let chosen = members.filter(|(_, member)| wanted.contains(&member.state));
        chosen.map(|(slot, _)| slot).collect()
    };
    let readers = slots(&[MemberState::InSync]);
    (readers, readers | slots(&[MemberState::Rebuilding]))
}

/// A member that leaves the write set by this generation, after it had every write of the `committed` one.
pub(super) const fn left(member: Member, generation: u64, committed: GenerationId) -> Member {
    Member {
        state: MemberState::Stale,
        since_gen: generation,
        insync_id: committed,
        ..member
    }
}

/// Whether the table has members that don't get every write.
pub(super) fn has_outsiders(table: &Label) -> bool {
    let outside = |state| matches!(state, MemberState::Stale | MemberState::Blank);
    table.members.iter().any(|member| outside(member.state))
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
}

/// The table as the label of the replica that has the label `own` now.
pub(super) fn own_label(own: &Label, table: Label) -> Label {
    let rebuilding = table
        .members
        .get(own.own_slot)
        .is_some_and(|member| member.state == MemberState::Rebuilding);
    Label {
        flags: Flags {
            rebuilding,
            ..table.flags
        },
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
