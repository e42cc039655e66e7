//! The nexus itself: its state, its face as a block device, and who may send requests when.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::child::Child;
use super::chunk_set::ChunkSet;
use super::env::{NexusEnv, NexusSpec, Parts, Policy};
use super::intent::Intent;
use super::race::Races;
use super::range_lock::RangeLock;
use super::rebuild::Job;
use super::repair::Repairs;
use super::scrub::Scrubbing;
use super::signal::Signal;
use super::slots::{SLOTS_MAX, SlotSet};
use super::state::{ChildEvent, ChildState, FaultReason};
use super::status::{ChildStatus, NexusStatus, RebuildTotals};
use super::watch::Watch;
use super::witness::WitnessRecord;
use super::write::Work;
use crate::io::{Alignment, BlockDevice, Clock, IoBuffer, IoError, Spawn, ZeroOptions};
use crate::model::{VolumeId, VolumeName};
use crate::replica::Label;

/// A volume mirrored over its children. Clones are the same nexus; it belongs to one reactor.
///
/// A request of a mirrored volume runs to its end even when its future is dropped: that abandons the answer, nothing
/// else. One of a volume with a single member runs in its caller, who must not drop it: frontends make each request a
/// task. If it happens all the same, the disk still does what it was asked, unseen, and the volume takes no further
/// member until it was assembled again, which waits for the disk (spec A1, B0).
pub struct Nexus<E: NexusEnv> {
    pub(super) inner: Rc<Inner<E>>,
}

pub(super) struct Inner<E: NexusEnv> {
    pub(super) parts: Parts<E>,
    pub(super) spec: RefCell<NexusSpec>,
    /// All 16 slots of the table, vacant ones included.
    pub(super) children: Box<[Child<E::Disk>; SLOTS_MAX]>,
    /// Candidates that are not in the table.
    pub(super) spares: RefCell<Vec<ChildStatus>>,
    /// Size in bytes.
    pub(super) size: Cell<u64>,
    pub(super) alignment: Alignment,
    /// No locks, no copies, no bitmaps: only while the committed table has exactly one member (spec R8).
    pub(super) single: Cell<bool>,
    /// A change of data was given up on while it was alone with its disk: nobody knows when that ends.
    pub(super) abandoned: Cell<bool>,
    /// New requests wait, because the way they are served is about to change (spec B0).
    pub(super) paused: Cell<bool>,
    /// The newest table that was built, committed or only attempted, as the label that carries it.
    pub(super) table: RefCell<Label>,
    /// The committed table: what the witness holds.
    pub(super) committed: RefCell<WitnessRecord>,
    /// The active set of the committed table.
    pub(super) active: Cell<SlotSet>,
    /// W of the committed table: the active set and the members that are being rebuilt. All of them have every
    /// acknowledged write.
    pub(super) committed_writers: Cell<SlotSet>,
    /// Since when the committed table has members that get no writes any more, if it has.
    pub(super) uncommitted: Cell<Option<Duration>>,
    /// Regions that may hold writes which are not proven flushed (spec W9).
    pub(super) intent: Intent,
    pub(super) locks: RangeLock,
    /// U of the specification.
    pub(super) unresolved: RefCell<ChunkSet>,
    pub(super) mode: Cell<Mode>,
    /// Acknowledged writes may be gone; writes and flushes fail until the frontends re-attach (spec F2).
    pub(super) lost_unflushed: Cell<bool>,
    /// Requests taken in and not yet answered.
    pub(super) running: Cell<usize>,
    /// How many requests were taken in so far.
    pub(super) requests: Cell<u64>,
    /// The rebuild under way: one at most (spec B9).
    pub(super) rebuild: RefCell<Option<Rc<Job<E::Disk>>>>,
    /// Those that have ended.
    pub(super) rebuilt: Cell<RebuildTotals>,
    /// Whether somebody changes the table or the labels.
    pub(super) table_busy: Cell<bool>,
    /// Whether somebody changes who the members are, or how large the volume is.
    pub(super) reshaping: Cell<bool>,
    /// Whether the task that commits faults is under way.
    pub(super) fault_task: Cell<bool>,
    pub(super) resolve_task: Cell<bool>,
    pub(super) races: Races,
    pub(super) repairs: Repairs,
    pub(super) scrubbing: Scrubbing,
    pub(super) watch: Rc<Watch>,
    pub(super) signal: Signal,
}

/// What the nexus does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Serves them.
    Serving,
    /// Finishes those it has.
    Stopping,
    /// Serves none: stopped.
    Stopped,
    /// Serves none: another owner has the volume (spec E4). Final.
    LostOwnership,
}

/// New requests wait until this is dropped.
pub(super) struct Paused<E: NexusEnv> {
    inner: Rc<Inner<E>>,
}

impl<E: NexusEnv> Drop for Paused<E> {
    fn drop(&mut self) {
        self.inner.paused.set(false);
        self.inner.signal.notify();
    }
}

/// The right to change who the members are and how large the volume is, until dropped: one at a time. Taken before all
/// range locks and before the table's lock, because the one waits for requests to end, and the other holds them up.
pub(super) struct Reshaping<E: NexusEnv> {
    inner: Rc<Inner<E>>,
}

impl<E: NexusEnv> Drop for Reshaping<E> {
    fn drop(&mut self) {
        self.inner.reshaping.set(false);
        self.inner.signal.notify();
    }
}

/// Counts a request as running until dropped.
pub(super) struct Running<E: NexusEnv> {
    inner: Rc<Inner<E>>,
}

type Request = Pin<Box<dyn Future<Output = Result<(), IoError>>>>;

/// A request under way. When it is dropped before its end, it becomes a task of its own: that abandons the answer only.
struct RunsOn<E: NexusEnv> {
    inner: Rc<Inner<E>>,
    request: Option<Request>,
}

impl<E: NexusEnv> Future for RunsOn<E> {
    type Output = Result<(), IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let request = self.request.as_mut();
        let request = request.expect("a future is not polled after it has answered");
        let answer = request.as_mut().poll(context);
        if answer.is_ready() {
            self.request = None;
        }
        answer
    }
}

impl<E: NexusEnv> Drop for RunsOn<E> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.inner.parts.spawn.spawn(async move {
                // Nobody wants to know any more.
                let _ = request.await;
            });
        }
    }
}

impl<E: NexusEnv> Nexus<E> {
    /// The volume's id.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.inner.spec.borrow().id
    }

    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> VolumeName {
        self.inner.spec.borrow().name.clone()
    }

    /// What people and the engine may know, as of now.
    #[must_use]
    pub fn status(&self) -> NexusStatus {
        self.inner.status()
    }

    /// Returns the version of the status once it differs from `seen`; start with 0.
    pub async fn changed(&self, seen: u64) -> u64 {
        let inner = &self.inner;
        inner.signal.until(|| inner.signal.news() != seen).await;
        inner.signal.news()
    }

    /// Changes what may be changed while the volume runs.
    pub fn configure(&self, policy: Policy) {
        self.inner.spec.borrow_mut().policy = policy;
        self.inner.touch();
    }

    /// To be called when every frontend has been re-attached: for the client that is a power loss, so writes that were
    /// acknowledged but never flushed may be gone, and requests are served again (spec F2).
    pub fn reattached(&self) {
        if self.inner.lost_unflushed.replace(false) {
            for (slot, child) in self.inner.children.iter().enumerate() {
                child.durability.forgive();
                if let ChildState::Failing(FaultReason::Flush(_) | FaultReason::Label(_)) =
                    child.state()
                {
                    // It may be idle: nothing else would ask it again (spec G9).
                    self.inner.succeeded(slot);
                }
            }
            self.inner.distrust();
            self.inner.touch();
        }
    }

    /// A request that goes on when the caller gives up.
    fn run<F>(&self, request: F) -> RunsOn<E>
    where
        F: Future<Output = Result<(), IoError>> + 'static,
    {
        RunsOn {
            inner: Rc::clone(&self.inner),
            request: Some(Box::pin(request)),
        }
    }

    async fn store(&self, work: Work, running: Running<E>) -> Result<(), IoError> {
        let inner = Rc::clone(&self.inner);
        // In the queue at once: requests for one place are served in the order of submission, also when the submitter of
        // the earlier one gives up (spec W3, W11).
        let turn = inner.locks.exclusive(work.range());
        self.run(async move {
            let result = inner.store(work, turn).await;
            drop(running);
            result
        })
        .await
    }
}

impl<E: NexusEnv> Inner<E> {
    /// Takes a request in. Waits only while the nexus is paused.
    pub(super) async fn admit(self: &Rc<Self>) -> Result<Running<E>, IoError> {
        loop {
            match self.mode.get() {
                Mode::Serving => {}
                Mode::Stopping | Mode::Stopped => return Err(IoError::Stopped),
                Mode::LostOwnership => return Err(IoError::EIO),
            }
            if !self.paused.get() {
                return Ok(self.enter());
            }
            let go_on = || !self.paused.get() || self.mode.get() != Mode::Serving;
            self.signal.until(go_on).await;
        }
    }

    /// Waits for the right to change the volume's members or size.
    pub(super) async fn reshape(self: &Rc<Self>) -> Reshaping<E> {
        self.signal.until(|| !self.reshaping.replace(true)).await;
        let inner = Rc::clone(self);
        Reshaping { inner }
    }

    /// Holds new requests and waits for those under way. The holder of the table lock may call it if it has the right to
    /// [`Inner::reshape`] the volume, too.
    pub(super) async fn pause(self: &Rc<Self>) -> Paused<E> {
        assert!(!self.paused.replace(true), "B0: one pause at a time");
        let paused = Paused {
            inner: Rc::clone(self),
        };
        self.signal.until(|| self.running.get() == 0).await;
        paused
    }

    /// Counts a request, or work on behalf of one, as running.
    pub(super) fn enter(self: &Rc<Self>) -> Running<E> {
        self.running.set(self.running.get() + 1);
        self.requests.set(self.requests.get() + 1);
        let inner = Rc::clone(self);
        Running { inner }
    }

    /// Spec W1: rejects before any side effect.
    fn check(&self, offset: u64, len: u64) -> Result<Range<u64>, IoError> {
        let end = offset.checked_add(len).ok_or(IoError::EINVAL)?;
        let grid = u64::from(self.alignment.offset);
        let on_grid = offset.is_multiple_of(grid) && len.is_multiple_of(grid);
        if len == 0 || end > self.size.get() || !on_grid {
            return Err(IoError::EINVAL);
        }
        Ok(offset..end)
    }

    /// Whether writes and flushes may go on (spec F2, E4).
    pub(super) fn check_writable(&self) -> Result<(), IoError> {
        let owned = self.mode.get() != Mode::LostOwnership;
        if owned && !self.lost_unflushed.get() {
            Ok(())
        } else {
            Err(IoError::EIO)
        }
    }

    /// The members that requests go to: in the committed active set and not faulted in memory (spec R1, F1).
    pub(super) fn usable(&self) -> SlotSet {
        let active = self.active.get();
        let usable = |slot: &usize| self.children[*slot].state().is_usable();
        active.iter().filter(usable).collect()
    }

    /// W: the members that writes go to: the usable ones and those that are being rebuilt.
    pub(super) fn writers(&self) -> SlotSet {
        let rebuilding = |slot: &usize| self.children[*slot].state() == ChildState::Rebuilding;
        self.usable() | (0..SLOTS_MAX).filter(rebuilding).collect()
    }

    /// Slots with a member in them.
    pub(super) fn members(&self) -> SlotSet {
        let is_member = |slot: &usize| self.children[*slot].is_member();
        (0..SLOTS_MAX).filter(is_member).collect()
    }

    /// Whether every member of the table gets every write: nobody misses anything (spec W4).
    pub(super) fn is_complete(&self) -> bool {
        self.members() == self.writers() & self.committed_writers.get()
    }

    /// Whether every member of the table is in sync, as far as memory knows.
    pub(super) fn is_healthy(&self) -> bool {
        self.members() == self.usable()
    }

    /// The only member of a single-member table.
    pub(super) fn sole(&self) -> usize {
        let slot = self.active.get().iter().next();
        slot.expect("G7: the active set is never empty")
    }

    /// Notes that an operation on a child succeeded. A file that was truncated stays so until it is opened again.
    pub(super) fn succeeded(&self, slot: usize) {
        let failing = matches!(self.children[slot].state(), ChildState::Failing(_));
        if failing
            && !self.children[slot].is_truncated()
            && self.children[slot].apply(ChildEvent::Succeeded)
        {
            self.touch();
        }
    }

    /// Notes that the last copy failed; it stays (spec G7, F2).
    pub(super) fn failed_as_last(&self, slot: usize, reason: FaultReason) {
        let changed = self.children[slot].apply(ChildEvent::FailedAsLast(reason));
        // What the failed flush should have made durable may be gone, and no later flush would say so. A label or
        // bitmap write flushes too.
        let unflushed = matches!(reason, FaultReason::Flush(_) | FaultReason::Label(_));
        let lost = unflushed && !self.lost_unflushed.replace(true);
        if changed || lost {
            self.touch();
        }
    }

    /// Tells everybody that something changed.
    pub(super) fn touch(&self) {
        self.signal.tell();
    }
}

impl<E: NexusEnv> Drop for Running<E> {
    fn drop(&mut self) {
        let left = self.inner.running.get() - 1;
        self.inner.running.set(left);
        if left == 0 && (self.inner.mode.get() != Mode::Serving || self.inner.paused.get()) {
            self.inner.signal.notify();
        }
    }
}

impl<E: NexusEnv> BlockDevice for Nexus<E> {
    fn size(&self) -> u64 {
        self.inner.size.get()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        let range = self.inner.check(offset, buf.len() as u64)?;
        let _running = self.inner.admit().await?;
        if self.inner.single.get() {
            return self.inner.read_single(offset, buf).await;
        }
        self.inner.read_mirrored(range, buf).await
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        self.inner.check(offset, buf.len() as u64)?;
        let work = Work::Write {
            offset,
            data: buf.clone(),
            fua,
        };
        // Before anything is waited for: the client may change its memory any time (spec W2).
        let work = if self.inner.single.get() && !self.inner.paused.get() {
            work
        } else {
            self.inner.with_private_payload(work)
        };
        let running = self.inner.admit().await?;
        if self.inner.single.get() {
            return self.inner.store_single(&work).await;
        }
        self.store(work, running).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        self.inner.check(offset, len)?;
        let work = Work::Zero {
            offset,
            len,
            options,
        };
        let running = self.inner.admit().await?;
        if self.inner.single.get() {
            return self.inner.store_single(&work).await;
        }
        self.store(work, running).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        let running = self.inner.admit().await?;
        let inner = Rc::clone(&self.inner);
        // To its end even on the fast path: a flush that fails unseen would let the next one lie.
        self.run(async move {
            let result = inner.flush().await;
            drop(running);
            result
        })
        .await
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        self.grow_to(size).await
    }
}

impl<E: NexusEnv> Clone for Nexus<E> {
    fn clone(&self) -> Self {
        let inner = Rc::clone(&self.inner);
        Self { inner }
    }
}

impl<E: NexusEnv> fmt::Debug for Nexus<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nexus")
            .field("name", &self.name())
            .field("mode", &self.inner.mode.get())
            .finish_non_exhaustive()
    }
}

/// Sleeps, but no longer than the nexus is in the mode `while_in`.
pub(super) async fn nap<E: NexusEnv>(inner: &Inner<E>, duration: Duration) {
    let sleep = inner.parts.clock.sleep(duration);
    let mode = inner.mode.get();
    let changed = inner.signal.until(|| inner.mode.get() != mode);
    super::fan_out::either(sleep, changed).await;
}
