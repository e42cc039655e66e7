//! Data path, hop 3 of 5: reads: lock the range, make it equal where it may not be, ask one child (spec section 4).

use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use super::env::NexusEnv;
use super::fan_out::Failure;
use super::mutant::Mutant;
use super::nexus::{Inner, Mode};
use super::slots::SlotSet;
use super::state::{ChildState, FaultReason};
use super::write::Verdict;
use crate::io::{IoBuffer, IoError};

/// Reads of neighbouring data go to the same member: this many bytes before the next one takes over.
const STICKY_SHIFT: u32 = 20;

impl<E: NexusEnv> Inner<E> {
    /// A read while the committed table has exactly one member: straight from it (spec R8).
    pub(super) async fn read_single(&self, offset: u64, buffer: &IoBuffer) -> Result<(), IoError> {
        let slot = self.sole();
        let child = &self.children[slot];
        let replica = child.replica()?;
        let _hold = child.hold(&self.signal);
        let result = self.retrying(|| replica.read(offset, buffer)).await;
        match result {
            Ok(()) => {
                self.succeeded_reading(slot);
                Ok(())
            }
            Err(error) => Err(self.judge_single(Failure::Read(error))),
        }
    }

    /// A read of a mirrored volume: through private memory (spec R7), under the shared lock (R6), and only where the
    /// members are known to be equal (R2).
    pub(super) async fn read_mirrored(
        self: &Rc<Self>,
        range: Range<u64>,
        buffer: &IoBuffer,
    ) -> Result<(), IoError> {
        loop {
            if self.mode.get() == Mode::LostOwnership {
                return Err(IoError::EIO);
            }
            let lock = if self.parts.breaks(Mutant::NoReadLock) {
                None
            } else {
                Some(self.locks.shared(range.clone()).await)
            };
            let unresolved = self.unresolved.borrow().first_in(&range);
            if unresolved.is_none() || self.parts.breaks(Mutant::NoResolve) {
                let (_, data) = self.read_any(range.start, buffer.len()).await?;
                buffer.copy_from(&data);
                return Ok(());
            }
            drop(lock);
            self.resolve_now(range.clone()).await?;
        }
    }

    /// Reads from one member, then from the others, and tells which one had it. Those that failed although another had the data are faulted
    /// (spec R4, first part). Somebody holds the range lock.
    ///
    /// # Errors
    /// `EIO` when no member has the data; then nobody is faulted.
    pub(super) async fn read_any(
        self: &Rc<Self>,
        offset: u64,
        len: usize,
    ) -> Result<(SlotSet, IoBuffer), IoError> {
        let mut tried = SlotSet::EMPTY;
        let mut failed: Vec<(usize, FaultReason)> = Vec::new();
        while let Some(slot) = self.choose(offset, tried) {
            tried.insert(slot);
            // A fresh buffer for each try: an abandoned one still belongs to the kernel (spec R5, R7).
            let buffer = self.parts.buffers.get(len);
            match self.read_from(slot, offset, &buffer).await {
                Ok(true) => {
                    self.succeeded_reading(slot);
                    for (slot, reason) in failed {
                        self.fault(slot, reason);
                    }
                    return Ok((SlotSet::one(slot), buffer));
                }
                Ok(false) => {}
                Err(error) => match Verdict::of(Failure::Read(error)) {
                    Verdict::Child(reason) => failed.push((slot, reason)),
                    Verdict::Full | Verdict::Request => return Err(IoError::EIO),
                },
            }
        }
        if let (&[(slot, reason)], true) = (failed.as_slice(), self.usable().len() == 1)
            && self.usable().contains(slot)
        {
            self.failed_as_last(slot, reason);
        }
        Err(IoError::EIO)
    }

    /// Reads from one member; false when it was faulted meanwhile and the answer was not waited for.
    pub(super) async fn read_from(
        &self,
        slot: usize,
        offset: u64,
        buffer: &IoBuffer,
    ) -> Result<bool, IoError> {
        let child = &self.children[slot];
        let replica = child.replica()?;
        let _hold = child.hold(&self.signal);
        let mut read = pin!(self.retrying(|| replica.read(offset, buffer)));
        let mut listener = self.signal.listen();
        poll_fn(|context| {
            if let Poll::Ready(result) = read.as_mut().poll(context) {
                return Poll::Ready(result.map(|()| true));
            }
            if !self.usable().contains(slot) {
                return Poll::Ready(Ok(false));
            }
            listener.register(context);
            Poll::Pending
        })
        .await
    }

    /// Notes that a read succeeded: that says nothing about writes and flushes.
    fn succeeded_reading(&self, slot: usize) {
        if let ChildState::Failing(FaultReason::Read(_)) = self.children[slot].state() {
            self.succeeded(slot);
        }
    }

    /// Spec R1: a member of the committed active set; healthy before failing, then the least busy one, then sticky by
    /// place so that sequential reads stay together.
    fn choose(&self, offset: u64, tried: SlotSet) -> Option<usize> {
        let count = self.members().len() as u64;
        let rank = |slot: &usize| {
            let child = &self.children[*slot];
            let failing = matches!(child.state(), ChildState::Failing(_));
            let turn = ((offset >> STICKY_SHIFT) + *slot as u64) % count;
            (failing, child.inflight(), turn)
        };
        (self.usable() - tried).iter().min_by_key(rank)
    }
}
