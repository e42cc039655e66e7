//! Data path, hop 3 of 5: reads: lock the range, make it equal where it may not be, ask one child (spec section 4).

use std::ops::Range;
use std::rc::Rc;

use super::env::NexusEnv;
use super::fan_out::{Failure, Operation};
use super::mutant::Mutant;
use super::nexus::{Inner, Mode};
use super::race::Race;
use super::slots::SlotSet;
use super::state::{ChildState, FaultReason};
use super::timing::Timed;
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
        let mut since = None;
        loop {
            if self.mode.get() == Mode::LostOwnership {
                return Err(IoError::EIO);
            }
            let lock = if self.parts.breaks(Mutant::NoReadLock) {
                None
            } else {
                let (lock, waited) = self.timed(self.locks.shared(range.clone())).await;
                since = since.or(waited);
                Some(lock)
            };
            let unresolved = self.unresolved.borrow().first_in(&range);
            if unresolved.is_none() || self.parts.breaks(Mutant::NoResolve) {
                let (_, data) = self.read_any(range.start, buffer.len()).await?;
                buffer.copy_from(&data);
                return Ok(());
            }
            drop(lock);
            self.resolve_now(range.clone(), since).await?;
        }
    }

    /// Reads from one member, then from the others, and tells which one had it. What went wrong on the way is put right
    /// in the background (spec R4). Somebody holds the range lock.
    ///
    /// # Errors
    /// `EIO` when no member has the data; then nobody is faulted.
    pub(super) async fn read_any(
        self: &Rc<Self>,
        offset: u64,
        len: usize,
    ) -> Result<(SlotSet, IoBuffer), IoError> {
        self.read_any_but(SlotSet::EMPTY, offset, len).await
    }

    /// The same without asking some of the members.
    pub(super) async fn read_any_but(
        self: &Rc<Self>,
        but: SlotSet,
        offset: u64,
        len: usize,
    ) -> Result<(SlotSet, IoBuffer), IoError> {
        let mut race = Race::new(Rc::clone(self), offset..offset + len as u64, but);
        let answer = race.run().await;
        match &answer {
            Ok(Some((slot, _))) => {
                self.succeeded_reading(*slot);
                race.blame();
            }
            Ok(None) if self.usable().len() == 1 => {
                let failed = race.sole_failure();
                if let Some((slot, reason)) = failed.filter(|(s, _)| self.usable().contains(*s)) {
                    self.failed_as_last(slot, reason);
                }
            }
            Ok(None) | Err(_) => {}
        }
        race.end();
        let (slot, data) = answer?.ok_or(IoError::EIO)?;
        Ok((SlotSet::one(slot), data))
    }

    /// A read of one member that may be abandoned: it holds what it needs until the answer is in (spec F1, R5, R7).
    pub(super) fn read_on(
        self: &Rc<Self>,
        slot: usize,
        offset: u64,
        buffer: IoBuffer,
    ) -> Operation {
        let inner = Rc::clone(self);
        Box::pin(async move {
            let child = &inner.children[slot];
            let replica = child.replica().map_err(Failure::Read)?;
            let _hold = child.hold(&inner.signal);
            let clock = &inner.parts.clock;
            let began = child.timing.begin(clock);
            let result = inner.retrying(|| replica.read(offset, &buffer)).await;
            child.timing.end(Timed::Read, began, clock);
            result.map_err(Failure::Read)
        })
    }

    /// Notes that a read succeeded: that says nothing about writes and flushes.
    pub(super) fn succeeded_reading(&self, slot: usize) {
        if let ChildState::Failing(FaultReason::Read(_)) = self.children[slot].state() {
            self.succeeded(slot);
        }
    }

    /// Spec R1: a member of the committed active set; healthy before failing, answering before silent, then the least
    /// busy one, then sticky by place so that sequential reads stay together.
    pub(super) fn choose(&self, offset: u64, tried: SlotSet) -> Option<usize> {
        let usable = self.usable();
        let count = usable.len() as u64;
        let rank = |(place, slot): &(usize, usize)| {
            let child = &self.children[*slot];
            let failing = matches!(child.state(), ChildState::Failing(_));
            let silent = self.races.is_overdue(*slot);
            let turn = ((offset >> STICKY_SHIFT) + *place as u64) % count;
            (failing, silent, child.inflight(), turn)
        };
        let candidates = usable.iter().enumerate();
        let candidates = candidates.filter(|(_, slot)| !tried.contains(*slot));
        candidates.min_by_key(rank).map(|(_, slot)| slot)
    }
}
