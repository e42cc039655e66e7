//! Data path, hop 3 of 5: writes, zeroes and flushes: lock the range, send to every child, decide (spec section 3).

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use super::env::NexusEnv;
use super::fan_out::{Failure, Operation, Outcome, either};
use super::intent::Marks;
use super::mutant::Mutant;
use super::nexus::{Inner, Mode};
use super::range_lock::Ticket;
use super::slots::SlotSet;
use super::state::FaultReason;
use super::timing::Timed;
use crate::io::{BlockDevice, Clock, IoBuffer, IoError, ZeroOptions};
use crate::replica::{Replica, ZERO_PIECE};

/// First pause before an operation that answered "try again" is tried again; doubled each time.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(200);

/// Something that changes data.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Write {
        offset: u64,
        data: IoBuffer,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        options: ZeroOptions,
    },
}

impl Work {
    pub(super) fn range(&self) -> Range<u64> {
        match self {
            Self::Write { offset, data, .. } => *offset..*offset + data.len() as u64,
            Self::Zero { offset, len, .. } => *offset..*offset + *len,
        }
    }

    const fn is_fua(&self) -> bool {
        match self {
            Self::Write { fua, .. } => *fua,
            Self::Zero { options, .. } => options.fua,
        }
    }

    /// What is asked of a child at once, from `start` on: a long zeroing in pieces, each of which has the I/O timeout to
    /// itself (spec G11).
    fn piece(&self, start: u64) -> Range<u64> {
        let end = self.range().end;
        match self {
            Self::Write { .. } => start..end,
            Self::Zero { .. } => {
                let next = (start / ZERO_PIECE + 1).saturating_mul(ZERO_PIECE);
                start..next.min(end)
            }
        }
    }

    /// Asks a child for a piece.
    async fn perform<D: BlockDevice>(
        &self,
        replica: &Replica<D>,
        piece: Range<u64>,
    ) -> Result<(), IoError> {
        match self {
            Self::Write { data, fua, .. } => replica.write(piece.start, data, *fua).await,
            Self::Zero { options, .. } => {
                let len = piece.end - piece.start;
                replica.write_zeroes(piece.start, len, *options).await
            }
        }
    }
}

/// What an error says about the child that it came from (spec section 5, table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The child is at fault.
    Child(FaultReason),
    /// The child's pool is full: its fault only if the others' are not.
    Full,
    /// The request, or we, are at fault.
    Request,
}

impl Verdict {
    pub(super) fn of(failure: Failure) -> Self {
        match failure {
            Failure::Label(error) => Self::Child(FaultReason::Label(error)),
            Failure::Flush(error) => Self::Child(FaultReason::Flush(error)),
            Failure::Data(IoError::Short) | Failure::Read(IoError::Short) => {
                Self::Child(FaultReason::Truncated)
            }
            Failure::Read(error) if error.is_transient() => {
                Self::Child(FaultReason::TimedOut(error))
            }
            Failure::Read(IoError::Os(libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP)) => {
                Self::Request
            }
            Failure::Read(error) => Self::Child(FaultReason::Read(error)),
            Failure::Data(error) if error.is_no_space() => Self::Full,
            Failure::Data(IoError::Os(libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP)) => {
                Self::Request
            }
            Failure::Data(error) if error.is_transient() => {
                Self::Child(FaultReason::TimedOut(error))
            }
            Failure::Data(error) => Self::Child(FaultReason::Write(error)),
        }
    }
}

/// Notes when dropped that what the disk was asked may end at any later time.
struct Unanswered<'a>(&'a Cell<bool>);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

impl<E: NexusEnv> Inner<E> {
    /// Spec W2: the payload is read once from memory that the client can change; all members get the private copy.
    pub(super) fn with_private_payload(&self, work: Work) -> Work {
        match work {
            Work::Write { offset, data, fua } if !self.parts.breaks(Mutant::NoPrivateCopy) => {
                let copy = self.parts.buffers.payload(data.len());
                copy.copy_from(&data);
                Work::Write {
                    offset,
                    data: copy,
                    fua,
                }
            }
            other => other,
        }
    }

    /// A write while the committed table has exactly one member: straight to it (spec R8).
    pub(super) async fn store_single(&self, work: &Work) -> Result<(), IoError> {
        self.check_writable()?;
        let slot = self.sole();
        let child = &self.children[slot];
        let replica = child.replica()?;
        let _hold = child.hold(&self.signal);
        let unanswered = Unanswered(&self.abandoned);
        let result = self.perform(slot, work, &replica).await;
        std::mem::forget(unanswered);
        match result {
            Ok(()) => {
                self.succeeded(slot);
                Ok(())
            }
            Err(error) => Err(self.judge_single(Failure::Data(error))),
        }
    }

    /// The answer when the only copy failed (spec F2, W8). `EFAULT` is passed on: the request's memory is the client's
    /// own here, and its frontend is the one to know that it has gone.
    pub(super) fn judge_single(&self, failure: Failure) -> IoError {
        match (Verdict::of(failure), failure) {
            (Verdict::Child(reason), _) => {
                self.failed_as_last(self.sole(), reason);
                IoError::EIO
            }
            (Verdict::Full, _) => IoError::ENOSPC,
            (
                Verdict::Request,
                Failure::Data(error @ IoError::Os(libc::EFAULT))
                | Failure::Read(error @ IoError::Os(libc::EFAULT)),
            ) => error,
            (Verdict::Request, _) => IoError::EIO,
        }
    }

    /// A write or zeroing of a mirrored volume, from W3 on: `turn` is its place in the queue for the range.
    pub(super) async fn store(
        self: Rc<Self>,
        work: Work,
        turn: impl Future<Output = Ticket>,
    ) -> Result<(), IoError> {
        let range = work.range();
        let (lock, since) = if self.parts.breaks(Mutant::NoWriteLock) {
            drop(turn);
            (None, None)
        } else {
            let (lock, since) = self.timed(turn).await;
            (Some(lock), since)
        };
        self.check_writable()?;
        let result = self.store_locked(&work, since).await;
        match &result {
            Ok(()) => self.unresolved.borrow_mut().remove_covered(&range),
            Err(_) => self.mark_unresolved(range),
        }
        drop(lock);
        result
    }

    /// Spec W8: after a failed write, members may differ.
    fn mark_unresolved(self: &Rc<Self>, range: Range<u64>) {
        if self.committed_writers.get().len() >= 2
            && !self.parts.breaks(Mutant::FailedWriteForgotten)
        {
            self.unresolved.borrow_mut().insert(range);
            self.ensure_resolving();
        }
    }

    async fn store_locked(
        self: &Rc<Self>,
        work: &Work,
        since: Option<Duration>,
    ) -> Result<(), IoError> {
        let range = work.range();
        // Held to the end: as long as members may differ, the bits stay (W9).
        let (writing, crowded) = self.timed(self.writing_when_room(&range)).await;
        let since = since.or(crowded);
        let note_missed = self.notes_missed();
        let operation = |slot| {
            let (work, marks) = (work.clone(), writing.marks());
            (slot, self.store_on(slot, work, marks, note_missed))
        };
        let operations = self.writers().iter().map(operation).collect();
        let outcome = self.fan_out(operations).await;
        self.settle(&outcome)?;
        // W7: this write may have been admitted before the fault, after F4 took its snapshot.
        let is_done = self.committed_writers.get().is_within(outcome.done);
        if !is_done {
            self.note_missed(outcome.done, range).await;
        }
        self.acknowledge(outcome.done, since).await
    }

    /// W4 and W5 on one member: bits durable, then data.
    fn store_on(
        self: &Rc<Self>,
        slot: usize,
        work: Work,
        marks: Marks,
        note_missed: bool,
    ) -> Operation {
        let inner = Rc::clone(self);
        Box::pin(async move {
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Data)?;
            inner.mark(slot, &replica, &marks, note_missed).await?;
            let clock = &inner.parts.clock;
            let began = child.timing.begin(clock);
            let result = inner.perform(slot, &work, &replica).await;
            child.timing.end(Timed::Write, began, clock);
            result.map_err(Failure::Data)
        })
    }

    /// Data to one member.
    pub(super) async fn perform(
        &self,
        slot: usize,
        work: &Work,
        replica: &Replica<E::Disk>,
    ) -> Result<(), IoError> {
        let durability = &self.children[slot].durability;
        let durable = work.is_fua().then(|| durability.write(&self.signal));
        let Range { mut start, end } = work.range();
        let mut result = Ok(());
        while start < end && result.is_ok() {
            let piece = work.piece(start);
            start = piece.end;
            let attempt = || work.perform(replica, piece.clone());
            result = self.submitting(slot, attempt).await;
        }
        if let Some(durable) = durable {
            durable.ended(result);
        }
        result
    }

    /// Submits a change of data to a member, again and again while the answer is "try again". Nothing is submitted to a
    /// member that was faulted while the operation prepared or waited (spec F1), nor to a truncated file.
    pub(super) async fn submitting<F>(
        &self,
        slot: usize,
        mut attempt: impl FnMut() -> F,
    ) -> Result<(), IoError>
    where
        F: Future<Output = Result<(), IoError>>,
    {
        self.retrying(|| {
            let refused = if self.children[slot].is_truncated() {
                Some(IoError::Short)
            } else {
                (!self.writers().contains(slot)).then_some(IoError::Stopped)
            };
            let attempt = refused.is_none().then(&mut attempt);
            async move {
                match attempt {
                    Some(attempt) => attempt.await,
                    None => Err(refused.unwrap_or(IoError::Stopped)),
                }
            }
        })
        .await
    }

    /// Tries again while the answer is "try again", up to the I/O timeout (spec section 5, table).
    pub(super) async fn retrying<F>(&self, mut attempt: impl FnMut() -> F) -> Result<(), IoError>
    where
        F: Future<Output = Result<(), IoError>>,
    {
        let mut pause = RETRY_PAUSE_MIN;
        let mut waited = Duration::ZERO;
        loop {
            let result = attempt().await;
            let again = result.is_err_and(IoError::is_transient);
            if !again || waited >= self.spec.borrow().policy.timeouts.io {
                return result;
            }
            self.parts.clock.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// Faults the members that failed, unless all did (spec W8).
    ///
    /// # Errors
    /// What to answer when no member that is still in use has the write, or when the request itself is bad.
    pub(super) fn settle(self: &Rc<Self>, outcome: &Outcome) -> Result<(), IoError> {
        let usable = self.usable();
        for slot in (usable & outcome.done).iter() {
            self.succeeded(slot);
        }
        if (usable & outcome.done).is_empty() {
            let verdict = |(slot, failure)| (slot, Verdict::of(failure));
            let mut verdicts = outcome.failures(usable).map(verdict);
            if usable.len() == 1
                && let Some((slot, Verdict::Child(reason))) = verdicts.next()
            {
                self.failed_as_last(slot, reason);
                return Err(IoError::EIO);
            }
            let mut failures = outcome.failures(usable);
            let full = failures.all(|(_, failure)| Verdict::of(failure) == Verdict::Full);
            return Err(if full { IoError::ENOSPC } else { IoError::EIO });
        }
        let mut answer = Ok(());
        for (slot, failure) in outcome.failures(self.writers()) {
            match Verdict::of(failure) {
                Verdict::Child(reason) => self.fault(slot, reason),
                Verdict::Full => self.fault(slot, FaultReason::NoSpace),
                Verdict::Request => answer = Err(IoError::EIO),
            }
        }
        answer
    }

    /// Whether a write that begins now is missed by somebody, which the survivors note before its data (spec W4): also
    /// one that is faulted and still in the committed table (W7).
    pub(super) fn notes_missed(&self) -> bool {
        if self.parts.breaks(Mutant::OwnRegionsForgotten) {
            return self.members() != self.committed_writers.get();
        }
        !self.is_complete()
    }

    /// W7: makes it durable on the survivors that somebody lacks this range.
    pub(super) async fn note_missed(self: &Rc<Self>, survivors: SlotSet, range: Range<u64>) {
        if self.parts.breaks(Mutant::OwnRegionsForgotten) {
            return;
        }
        let operation = |slot: usize| {
            let (inner, range) = (Rc::clone(self), range.clone());
            let operation: Operation = Box::pin(async move {
                let child = &inner.children[slot];
                let _hold = child.hold(&inner.signal);
                let replica = child.replica().map_err(Failure::Label)?;
                inner.mark_missed(slot, &replica, &range).await
            });
            (slot, operation)
        };
        let targets = survivors & self.writers();
        let outcome = self.fan_out(targets.iter().map(operation).collect()).await;
        for (slot, failure) in outcome.failures(self.writers()) {
            if let Verdict::Child(reason) = Verdict::of(failure) {
                self.fault(slot, reason);
            }
        }
    }

    /// W6: waits until every member of the *committed* write set is among those that have `done` it. Members that
    /// are not must first leave by a commit (spec F7). `since` is when the request began to wait for other requests, if it
    /// had to: they may have waited for the same commit, and its time is not given twice (F6).
    ///
    /// # Errors
    /// `EIO` when that can't or does not happen in time; never an acknowledgement.
    pub(super) async fn acknowledge(
        &self,
        done: SlotSet,
        since: Option<Duration>,
    ) -> Result<(), IoError> {
        if self.committed_writers.get().is_within(done)
            || self.parts.breaks(Mutant::AckBeforeCommit)
        {
            return Ok(());
        }
        if self.parts.breaks(Mutant::AckAgainstRam) && self.writers().is_within(done) {
            return Ok(());
        }
        // A member that stays in use although it lacks the write will never leave. One that joined since is not waited
        // for: the commit that makes it a writer waits for this write (spec B2).
        let hopeless = || {
            let staying = self.writers() & self.committed_writers.get();
            !(staying - done).is_empty()
                || matches!(self.mode.get(), Mode::LostOwnership | Mode::Stopped)
        };
        let settled = self
            .signal
            .until(|| self.committed_writers.get().is_within(done) || hopeless());
        either(
            self.parts.clock.sleep(self.commit_time_left(since)),
            settled,
        )
        .await;
        if self.committed_writers.get().is_within(done) && self.mode.get() != Mode::LostOwnership {
            Ok(())
        } else {
            Err(IoError::EIO)
        }
    }

    /// How long a request that has waited `since` then may still wait for the commit that is due now (spec F6).
    fn commit_time_left(&self, since: Option<Duration>) -> Duration {
        let now = self.parts.clock.now();
        let due = self.uncommitted.get().unwrap_or(now);
        let begun = since.map_or(now, |since| since.max(due));
        let timeout = self.spec.borrow().policy.timeouts.commit;
        (begun + timeout).saturating_sub(now)
    }

    /// Waits, and tells since when if it had to. No clock is read for what is there at once.
    pub(super) async fn timed<T>(&self, awaited: impl Future<Output = T>) -> (T, Option<Duration>) {
        let mut awaited = pin!(awaited);
        let mut since = None;
        let answer = poll_fn(|context| {
            let polled = awaited.as_mut().poll(context);
            if polled.is_pending() && since.is_none() {
                since = Some(self.parts.clock.now());
            }
            polled
        });
        (answer.await, since)
    }
}
