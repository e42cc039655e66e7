//! Bringing a member back into the active set (spec section 7): it joins the write set, gets what it lacks, and turns
//! in sync by a committed table. The copying itself is in `rebuild_copy`.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::chunk_set::ChunkSet;
use super::env::NexusEnv;
use super::fan_out::{Failure, Operation, either};
use super::member::catch_up;
use super::mutant::Mutant;
use super::nexus::{Inner, Mode, Nexus, nap};
use super::rebuild_plan::{CopyPlan, RebuildKind, plan};
use super::state::{ChildEvent, ChildState, FaultReason};
use super::status::{RebuildProgress, RebuildTotals};
use super::table::Uncommitted;
use super::throttle::Rate;
use super::write::Verdict;
use crate::io::{Clock, IoError, Spawn};
use crate::model::ReplicaId;
use crate::replica::{BitmapKind, Label, MemberState, Replica};
use crate::units::Bytes;

/// Why a member is not in sync yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// The table has no such member.
    #[error("replica {0} is not a member of the volume")]
    NotMember(ReplicaId),
    /// It is not open here.
    #[error("replica {0} is not here: it must be brought back first")]
    NotHere(ReplicaId),
    /// There is nothing to do.
    #[error("replica {0} is in sync")]
    InSync(ReplicaId),
    /// One rebuild per volume (spec B9).
    #[error("another rebuild of the volume is under way")]
    Busy,
    /// No copy that is in sync can read this place (spec B6). They are kept, and so is what was copied.
    #[error("no copy in sync can be read at byte {offset} of the volume")]
    Source {
        /// Of the first block that can't be read.
        offset: u64,
    },
    /// The target failed, or was taken out; it is stale again.
    #[error("the target failed: {0}")]
    Target(FaultReason),
    /// The volume stopped first, or another owner has it. What was copied is kept.
    #[error("the volume stopped first")]
    Stopped,
}

/// What a finished rebuild did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuildReport {
    /// Which regions had to be copied.
    pub kind: RebuildKind,
    /// Why those.
    pub reason: String,
    /// Bytes copied, zeroes included.
    pub copied_bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

impl fmt::Display for RebuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bytes) = (self.kind, Bytes(self.copied_bytes));
        let millis = self.duration.as_millis();
        write!(f, "{kind}: {bytes} in {millis} ms; {}", self.reason)
    }
}

/// One rebuild.
pub(super) struct Job<D> {
    pub(super) slot: usize,
    pub(super) target: Rc<Replica<D>>,
    plan: CopyPlan,
    /// What is not copied yet.
    pub(super) todo: RefCell<ChunkSet>,
    total: Cell<u64>,
    pub(super) copied: Cell<u64>,
    pub(super) rate: Cell<Rate>,
    /// Copies under way.
    pub(super) copying: Cell<u32>,
    /// How long the last copy took.
    pub(super) last_copy: Cell<Duration>,
    /// Why no more copies are started.
    pub(super) failed: RefCell<Option<RebuildError>>,
}

impl From<Uncommitted> for RebuildError {
    fn from(error: Uncommitted) -> Self {
        match error {
            Uncommitted::Interrupted => Self::Stopped,
            Uncommitted::Refused => Self::Target(FaultReason::Label(IoError::EINVAL)),
        }
    }
}

impl<D> Job<D> {
    pub(super) fn progress(&self, now: Duration) -> RebuildProgress {
        RebuildProgress {
            kind: self.plan.kind,
            reason: self.plan.reason.clone(),
            total_bytes: self.total.get(),
            remaining_bytes: self.todo.borrow().bytes(),
            copied_bytes: self.copied.get(),
            bytes_per_second: self.rate.get().bytes_per_second(now),
        }
    }
}

impl<E: NexusEnv> Nexus<E> {
    /// Rebuilds a member that is here and not in sync: B1 to B9. Returns when it is in sync. Goes on when the caller gives
    /// up. Whatever interrupts it, what was copied before the last checkpoint is not copied again (spec B5).
    ///
    /// # Errors
    /// [`RebuildError`]; it may be tried again.
    pub async fn rebuild(&self, replica: ReplicaId) -> Result<RebuildReport, RebuildError> {
        let job = self.inner.begin_rebuild(replica)?;
        let (answer, answered) = oneshot::channel();
        let inner = Rc::clone(&self.inner);
        self.inner.parts.spawn.spawn(async move {
            let result = inner.run_rebuild(&job).await;
            inner.count_rebuild(&job, &result);
            inner.rebuild.replace(None);
            inner.touch();
            // The caller may have given up; then nobody wants to know.
            let _ = answer.send(result);
        });
        answered.await.unwrap_or(Err(RebuildError::Stopped))
    }
}

impl<E: NexusEnv> Inner<E> {
    /// The decision what to copy, before anything is written.
    fn begin_rebuild(&self, replica: ReplicaId) -> Result<Rc<Job<E::Disk>>, RebuildError> {
        if self.mode.get() != Mode::Serving {
            return Err(RebuildError::Stopped);
        }
        if self.rebuild.borrow().is_some() {
            return Err(RebuildError::Busy);
        }
        let slot = self
            .slot_of(replica)
            .ok_or(RebuildError::NotMember(replica))?;
        let child = &self.children[slot];
        let admitted = match child.state() {
            ChildState::Stale { .. } | ChildState::Blank => false,
            ChildState::Rebuilding => self.committed_writers.get().contains(slot),
            ChildState::InSync | ChildState::Failing(_) => {
                return Err(RebuildError::InSync(replica));
            }
            ChildState::Faulted(_) | ChildState::Draining { .. } | ChildState::Vacant => {
                return Err(RebuildError::NotHere(replica));
            }
        };
        let target = child
            .replica()
            .map_err(|_| RebuildError::NotHere(replica))?;
        if !admitted && child.is_busy() {
            // What an earlier attempt still does to it would come after what this one does.
            let reason = FaultReason::Hung(self.spec.borrow().policy.timeouts.io);
            return Err(RebuildError::Target(reason));
        }
        let job = Rc::new(Job {
            slot,
            plan: plan(&self.table.borrow(), slot, &target.label(), admitted),
            target,
            todo: RefCell::new(ChunkSet::new(self.size.get())),
            total: Cell::new(0),
            copied: Cell::new(0),
            rate: Cell::new(Rate::new(self.parts.clock.now())),
            copying: Cell::new(0),
            last_copy: Cell::new(Duration::ZERO),
            failed: RefCell::new(None),
        });
        self.rebuild.replace(Some(Rc::clone(&job)));
        Ok(job)
    }

    async fn run_rebuild(
        self: &Rc<Self>,
        job: &Rc<Job<E::Disk>>,
    ) -> Result<RebuildReport, RebuildError> {
        let started = self.parts.clock.now();
        if job.plan.kind != RebuildKind::Resumed {
            let prepared = self.prepare(job).await;
            prepared.inspect_err(|_| self.let_go(job))?;
            self.join(job).await?;
        }
        self.load_todo(job);
        self.touch();
        let copied = self.copy_all(job).await;
        if self.mode.get() == Mode::Stopping {
            // Bounded by one flush, and it saves the next start the work (spec A10, B5).
            self.checkpoint(job).await?;
        }
        copied?;
        self.finish(job).await?;
        let now = self.parts.clock.now();
        Ok(RebuildReport {
            kind: job.plan.kind,
            reason: job.plan.reason.clone(),
            copied_bytes: job.copied.get(),
            duration: now.saturating_sub(started),
        })
    }

    fn count_rebuild(&self, job: &Job<E::Disk>, result: &Result<RebuildReport, RebuildError>) {
        let mut totals = self.rebuilt.get();
        totals.copied_bytes += job.copied.get();
        match result {
            Ok(_) => totals.finished += 1,
            Err(RebuildError::Stopped) => {}
            Err(_) => totals.failed += 1,
        }
        self.rebuilt.set(totals);
    }

    /// The rebuilds since the volume was assembled, the one under way included.
    pub(super) fn rebuild_totals(&self) -> RebuildTotals {
        let now = self.rebuild.borrow();
        let now = now.as_ref().map_or(0, |job| job.copied.get());
        let totals = self.rebuilt.get();
        RebuildTotals {
            copied_bytes: totals.copied_bytes + now,
            ..totals
        }
    }

    /// While nothing is forwarded yet: the target catches up with the volume's size, and what its own `intent` says
    /// becomes part of its list of what to copy. A target that hangs is not waited for longer than the I/O timeout.
    async fn prepare(self: &Rc<Self>, job: &Rc<Job<E::Disk>>) -> Result<(), RebuildError> {
        let (inner, own) = (Rc::clone(self), Rc::clone(job));
        let (answer, answered) = oneshot::channel();
        self.parts.spawn.spawn(async move {
            let _hold = inner.children[own.slot].hold(&inner.signal);
            let prepared = inner.prepare_target(&own).await;
            // The rebuild may have stopped waiting.
            let _ = answer.send(prepared);
        });
        let mut result = Err(RebuildError::Target(FaultReason::TimedOut(IoError::EIO)));
        let done = async {
            result = answered.await.unwrap_or(Err(RebuildError::Stopped));
        };
        let patience = self.spec.borrow().policy.timeouts.io;
        let in_time = either(nap(self, patience), done).await;
        if !in_time && self.mode.get() != Mode::Serving {
            return Err(RebuildError::Stopped);
        }
        result
    }

    /// A target that fails before it gets writes never is `Faulted`. It is opened and locked anew all the same (spec A1,
    /// E6): its device may be gone, and the file that is open would fail for ever (G9). Not while it hangs.
    fn let_go(&self, job: &Job<E::Disk>) {
        let child = &self.children[job.slot];
        if !child.state().is_written() && !child.is_busy() && self.is_here(job) {
            child.release();
            self.touch();
        }
    }

    async fn prepare_target(&self, job: &Job<E::Disk>) -> Result<(), RebuildError> {
        let failed = |error| RebuildError::Target(FaultReason::Label(error));
        let (target, kind) = (&job.target, job.plan.kind);
        // What was read may be in the disk's cache only, left by a daemon that was killed.
        let flushed = target.flush().await;
        // If that fails, no later flush of this open file is believed (spec W10).
        let durability = &self.children[job.slot].durability;
        durability.write(&self.signal).ended(flushed);
        flushed.map_err(failed)?;
        // Both of the committed table: a growth may be under way.
        let (len, shift) = (self.size.get(), self.intent.region_shift());
        catch_up(target, len, shift).await.map_err(failed)?;
        target.rewrite_bad_pages().await.map_err(failed)?;
        let all = 0..target.label().regions();
        let listed = if kind == RebuildKind::Full {
            target.set_durable(BitmapKind::Missed, all.clone()).await
        } else if self.parts.breaks(Mutant::OwnBitsForgotten) {
            target.clear(BitmapKind::Missed, all.clone()).await
        } else {
            target.merge_intent_into_missed().await
        };
        listed.map_err(failed)?;
        let cleared = target.clear(BitmapKind::Intent, all).await;
        cleared.map_err(failed)
    }

    /// B1 and B2: from now on the target gets every write. Only then is it looked up what it lacks; that is made its own
    /// list, durably, before the table says that it is being rebuilt.
    async fn join(self: &Rc<Self>, job: &Rc<Job<E::Disk>>) -> Result<(), RebuildError> {
        let child = &self.children[job.slot];
        let lock = self.lock_table().await;
        let is_out = matches!(child.state(), ChildState::Stale { .. } | ChildState::Blank);
        if !is_out || !self.is_here(job) || self.mode.get() != Mode::Serving {
            return Err(self.target_failure(job));
        }
        if job.target.data_len() != self.size.get() {
            // The volume grew just now; its file must do so, too.
            return Err(RebuildError::Busy);
        }
        child.apply(ChildEvent::Joined);
        self.touch();
        // Not under the lock: a request that is waited for may wait for a fault's commit.
        drop(lock);
        self.locks.barrier().await;
        self.inherit(job).await?;
        let lock = self.lock_table().await;
        self.check_target(job)?;
        let slot = job.slot;
        let own = job.target.label();
        let change = |table: &mut Label| {
            // I3, E1: after a forced start the volume counts from less than the copies that were not chosen.
            table.generation = table.generation.max(own.generation.saturating_add(1));
            table.epoch = table.epoch.max(own.epoch);
            table.rebuild_from_gen = table.generation;
            table.members[slot].state = MemberState::Rebuilding;
        };
        let changed = self.change_table(&lock, &change).await;
        if changed == Err(Uncommitted::Refused) {
            // It gets every write already, and must not stay so.
            self.fault(slot, FaultReason::Label(IoError::EINVAL));
        }
        changed?;
        self.check_target(job)
    }

    /// What the list on the target says, as chunks.
    fn load_todo(&self, job: &Job<E::Disk>) {
        let shift = job.target.region_shift();
        let size = self.size.get();
        let mut todo = job.todo.borrow_mut();
        // The volume may have grown since the rebuild was asked for.
        *todo = ChunkSet::new(size);
        for run in job.target.set_regions(BitmapKind::Missed) {
            todo.insert(run.start << shift..(run.end << shift).min(size));
        }
        job.total.set(todo.bytes());
    }

    /// B7: everything is copied. It becomes durable, then the table says so.
    async fn finish(self: &Rc<Self>, job: &Rc<Job<E::Disk>>) -> Result<(), RebuildError> {
        self.checkpoint(job).await?;
        let lock = self.lock_table().await;
        self.check_target(job)?;
        if !self.is_complete() {
            // One bitmap is the target's list of what it lacks, and from now on its record of what others lack: without
            // this, losing the source later would lose that record.
            self.inherit(job).await?;
        }
        let slot = job.slot;
        let change = |table: &mut Label| {
            let member = &mut table.members[slot];
            if member.state == MemberState::Rebuilding {
                member.state = MemberState::InSync;
            }
        };
        self.change_table(&lock, &change).await?;
        if !self.active.get().contains(slot) {
            return Err(self.target_failure(job));
        }
        drop(lock);
        self.forget_missed().await;
        Ok(())
    }

    /// B7: when everybody is in sync, nobody lacks anything. The committed table's `missed_base_gen` says so already.
    pub(super) async fn forget_missed(self: &Rc<Self>) {
        // Writes that were taken in before may still note that somebody lacks them.
        self.locks.barrier().await;
        let _lock = self.lock_table().await;
        if !self.is_healthy() || self.mode.get() != Mode::Serving {
            return;
        }
        let operation = |slot: usize| {
            let inner = Rc::clone(self);
            let operation: Operation = Box::pin(async move {
                let child = &inner.children[slot];
                let _hold = child.hold(&inner.signal);
                let replica = child.replica().map_err(Failure::Label)?;
                let all = 0..replica.label().regions();
                let cleared = replica.clear(BitmapKind::Missed, all).await;
                cleared.map_err(Failure::Label)
            });
            (slot, operation)
        };
        let recorded = |slot: &usize| {
            let replica = self.children[*slot].replica();
            replica.is_ok_and(|replica| replica.set_count(BitmapKind::Missed) > 0)
        };
        let operations = self.usable().iter().filter(recorded).map(operation);
        let outcome = self.fan_out(operations.collect()).await;
        for (slot, failure) in outcome.failures(self.usable()) {
            self.fault(slot, failure.reason());
        }
    }

    /// Adds to the target's `missed` bitmap, durably, what is marked in these bitmaps of the active set.
    async fn inherit(self: &Rc<Self>, job: &Rc<Job<E::Disk>>) -> Result<(), RebuildError> {
        let kinds = [BitmapKind::Missed, BitmapKind::Intent];
        let marked = self.marked(self.active.get(), &kinds);
        let target = Rc::clone(&job.target);
        let (shift, regions) = (target.region_shift(), target.label().regions());
        let runs = marked
            .into_iter()
            .map(|bytes| bytes.start >> shift..(bytes.end >> shift).min(regions));
        let runs: Vec<Range<u64>> = runs.collect();
        self.on_target(job, async move {
            runs.iter()
                .for_each(|run| target.set(BitmapKind::Missed, run.clone()));
            for run in runs {
                let listed = target.set_durable(BitmapKind::Missed, run).await;
                listed.map_err(Failure::Label)?;
            }
            Ok(())
        })
        .await
    }

    /// Does something to the target, and faults it when that fails (spec F1). Does not wait for a target that was faulted
    /// meanwhile.
    pub(super) async fn on_target(
        self: &Rc<Self>,
        job: &Rc<Job<E::Disk>>,
        operation: impl Future<Output = Result<(), Failure>> + 'static,
    ) -> Result<(), RebuildError> {
        self.check_target(job)?;
        let (inner, slot) = (Rc::clone(self), job.slot);
        let held: Operation = Box::pin(async move {
            let _hold = inner.children[slot].hold(&inner.signal);
            operation.await
        });
        let outcome = self.fan_out(vec![(slot, held)]).await;
        if outcome.done.contains(slot) {
            return self.check_target(job);
        }
        if let Some(failure) = outcome.failed[slot]
            && self.is_target(job)
        {
            match Verdict::of(failure) {
                Verdict::Child(reason) => self.fault(slot, reason),
                Verdict::Full => self.fault(slot, FaultReason::NoSpace),
                // Our bug, or a capability that the target lacks: its copy is not at fault (spec section 5, table).
                Verdict::Request => return Err(RebuildError::Target(failure.reason())),
            }
        }
        Err(self.target_failure(job))
    }

    /// Whether the rebuild may go on.
    ///
    /// # Errors
    /// What ended it.
    pub(super) fn check_target(&self, job: &Job<E::Disk>) -> Result<(), RebuildError> {
        if self.mode.get() == Mode::LostOwnership {
            return Err(RebuildError::Stopped);
        }
        if self.is_target(job) {
            Ok(())
        } else {
            Err(self.target_failure(job))
        }
    }

    /// Whether the target is the one that the rebuild was begun for, and gets every write.
    fn is_target(&self, job: &Job<E::Disk>) -> bool {
        self.children[job.slot].state() == ChildState::Rebuilding && self.is_here(job)
    }

    /// Whether the slot still has the replica that the rebuild was begun for. A removed member stays in its slot until
    /// its label is wiped.
    fn is_here(&self, job: &Job<E::Disk>) -> bool {
        let child = &self.children[job.slot];
        let is_it = |replica| Rc::ptr_eq(&replica, &job.target);
        child.is_member() && child.replica().is_ok_and(is_it)
    }

    fn target_failure(&self, job: &Job<E::Disk>) -> RebuildError {
        if self.mode.get() != Mode::Serving {
            return RebuildError::Stopped;
        }
        let reason = self.children[job.slot].state().reason();
        RebuildError::Target(reason.unwrap_or(FaultReason::Removed))
    }
}
