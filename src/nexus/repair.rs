//! Read repair (spec R4): what one member can't read is written anew from another, under the range lock, and read back.
//! A member that needs this too often, or with which it fails, is faulted.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::chunk_set::CHUNK;
use super::env::NexusEnv;
use super::fan_out::{Failure, Operation, Outcome};
use super::nexus::Inner;
use super::slots::SlotSet;
use super::state::FaultReason;
use super::write::{Verdict, Work};
use crate::io::{Clock, IoBuffer, IoError, Spawn};
use crate::model::ReplicaId;

/// This many read errors of one member are corrected per [`WINDOW`]; the next one faults it.
pub(super) const CORRECTIONS_MAX: usize = 20;
/// How long a corrected read error counts.
pub(super) const WINDOW: Duration = Duration::from_secs(3600);

/// Read errors of a volume's members.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// What is being corrected, so that many reads of one bad place are one error.
    under_way: RefCell<Vec<(usize, Range<u64>)>>,
    records: RefCell<BTreeMap<ReplicaId, Record>>,
}

/// One member's read errors.
#[derive(Debug, Default)]
struct Record {
    /// Corrected ever since the volume was assembled.
    corrected: u64,
    /// When the newest ones were noticed; no more than [`CORRECTIONS_MAX`].
    recent: VecDeque<Duration>,
}

/// A range of one member that is being corrected, until dropped.
struct UnderWay<E: NexusEnv> {
    inner: Rc<Inner<E>>,
    slot: usize,
    range: Range<u64>,
}

/// The member is faulted, or there is nothing to correct it from, or the volume stops.
#[derive(Debug)]
struct NotCorrected;

impl Repairs {
    /// How many read errors of a member were corrected.
    pub(super) fn corrected(&self, replica: ReplicaId) -> u64 {
        let records = self.records.borrow();
        records.get(&replica).map_or(0, |record| record.corrected)
    }

    fn count(&self, replica: ReplicaId) {
        self.records
            .borrow_mut()
            .entry(replica)
            .or_default()
            .corrected += 1;
    }

    /// Notes an error; true when it is one too many. Then they are forgotten: if the member comes back, it was rebuilt.
    fn is_too_many(&self, replica: ReplicaId, now: Duration) -> bool {
        let mut records = self.records.borrow_mut();
        let recent = &mut records.entry(replica).or_default().recent;
        while recent.front().is_some_and(|at| *at + WINDOW <= now) {
            recent.pop_front();
        }
        let too_many = recent.len() >= CORRECTIONS_MAX;
        if too_many {
            recent.clear();
        } else {
            recent.push_back(now);
        }
        too_many
    }

    /// False when an overlapping range of the member is being corrected already.
    fn begin(&self, slot: usize, range: &Range<u64>) -> bool {
        let mut under_way = self.under_way.borrow_mut();
        let overlaps = |(other, its): &(usize, Range<u64>)| {
            *other == slot && its.start < range.end && range.start < its.end
        };
        let is_new = !under_way.iter().any(overlaps);
        if is_new {
            under_way.push((slot, range.clone()));
        }
        is_new
    }
}

impl<E: NexusEnv> Drop for UnderWay<E> {
    fn drop(&mut self) {
        let mut under_way = self.inner.repairs.under_way.borrow_mut();
        under_way.retain(|(slot, range)| (*slot, range) != (self.slot, &self.range));
    }
}

/// Whether writing the data anew may help: the medium failed, not the whole device, and the file has not shrunk.
pub(super) fn is_correctable(error: IoError) -> bool {
    let gone = matches!(
        error,
        IoError::Stopped | IoError::Os(libc::ENODEV | libc::ENXIO)
    );
    let verdict = Verdict::of(Failure::Read(error));
    !gone && matches!(verdict, Verdict::Child(FaultReason::Read(_)))
}

impl<E: NexusEnv> Inner<E> {
    /// A member could not read what another one could: it is corrected in the background, or faulted. Its reader may
    /// hold the range lock.
    pub(super) fn read_failed(self: &Rc<Self>, slot: usize, range: Range<u64>, error: IoError) {
        let Verdict::Child(reason) = Verdict::of(Failure::Read(error)) else {
            return;
        };
        let replica = self.children[slot].replica_id();
        let Some(replica) = replica.filter(|_| self.usable().contains(slot)) else {
            return;
        };
        if !is_correctable(error) {
            self.fault(slot, reason);
        } else if self.repairs.begin(slot, &range) {
            let inner = Rc::clone(self);
            let under_way = UnderWay { inner, slot, range };
            if self.repairs.is_too_many(replica, self.parts.clock.now()) {
                self.fault(slot, FaultReason::ReadErrors);
                return;
            }
            self.parts.spawn.spawn(async move {
                if under_way.run().await.is_ok() {
                    under_way.inner.repairs.count(replica);
                    under_way.inner.touch();
                }
            });
        }
    }

    /// Corrects what can't be read of a piece of at most a chunk.
    async fn correct(self: &Rc<Self>, slot: usize, piece: Range<u64>) -> Result<(), NotCorrected> {
        // Not while the way that requests are served changes: on the fast path nobody takes locks (spec R8).
        let _running = self.admit().await.map_err(|_| NotCorrected)?;
        let lock = self.locks.exclusive(piece.clone()).await;
        let is_mirrored = !self.single.get() && self.check_writable().is_ok();
        if !is_mirrored || !self.usable().contains(slot) {
            return Err(NotCorrected);
        }
        if self.unresolved.borrow().first_in(&piece).is_some() {
            // Which copy is the good one is decided by resolving, and that corrects what it can't read.
            drop(lock);
            return self
                .resolve_range(piece, None)
                .await
                .map_err(|_| NotCorrected);
        }
        let len = usize::try_from(piece.end - piece.start).expect("a piece is at most a chunk");
        let buffer = self.parts.buffers.get(len);
        let read = self.read_on(slot, piece.start, buffer);
        let outcome = self.fan_out(vec![(slot, read)]).await;
        match outcome.failed[slot] {
            // Another piece of the request, or an error that went by itself.
            None if outcome.done.contains(slot) => return Ok(()),
            Some(failure) if is_correctable(failure.error()) => {}
            Some(failure) => {
                if let Verdict::Child(reason) = Verdict::of(failure) {
                    self.fault(slot, reason);
                }
                return Err(NotCorrected);
            }
            None => return Err(NotCorrected),
        }
        let own = SlotSet::one(slot);
        let others = self.read_any_but(own, piece.start, len).await;
        // Spec G7: without another copy the member stays as it is.
        let (_, good) = others.map_err(|_| NotCorrected)?;
        let whole = std::iter::once(0..len).collect();
        let rewrite = self.rewrite(slot, piece.start, good, whole);
        let outcome = self.fan_out(vec![(slot, rewrite)]).await;
        self.blame_failed_writes(&outcome, own, piece).await;
        let is_done = outcome.done.contains(slot);
        is_done.then_some(()).ok_or(NotCorrected)
    }

    /// Faults those of the `wrong` members that could not be corrected. They leave without what the others have here,
    /// which is noted as for a write (spec W7).
    pub(super) async fn blame_failed_writes(
        self: &Rc<Self>,
        outcome: &Outcome,
        wrong: SlotSet,
        range: Range<u64>,
    ) {
        for (slot, failure) in outcome.failures(self.writers()) {
            match Verdict::of(failure) {
                Verdict::Child(reason) => self.fault(slot, reason),
                Verdict::Full => self.fault(slot, FaultReason::NoSpace),
                Verdict::Request => {}
            }
        }
        if !wrong.is_within(outcome.done) {
            self.note_missed(self.writers(), range).await;
        }
    }

    /// Writes `runs` of `data`, which belongs at `start`, to one member, durably, and reads them back. Bits first, as for
    /// every data write (spec W4).
    pub(super) fn rewrite(
        self: &Rc<Self>,
        slot: usize,
        start: u64,
        data: IoBuffer,
        runs: Vec<Range<usize>>,
    ) -> Operation {
        let inner = Rc::clone(self);
        let note_missed = self.notes_missed();
        Box::pin(async move {
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Data)?;
            let writing = inner.writing(&(start..start + data.len() as u64));
            let marks = writing.marks();
            inner.mark(slot, &replica, &marks, note_missed).await?;
            for run in runs {
                let (offset, data) = (start + run.start as u64, data.slice(run.start, run.len()));
                let found = inner.parts.buffers.get(data.len());
                let expected = data.clone();
                // Durable: else a power cut could bring the bad data back, while intent allows any copy to win.
                let fua = true;
                let work = Work::Write { offset, data, fua };
                let written = inner.perform(slot, &work, &replica).await;
                written.map_err(Failure::Data)?;
                let read = inner.retrying(|| replica.read(offset, &found)).await;
                read.map_err(Failure::Read)?;
                if found.to_vec() != expected.to_vec() {
                    return Err(Failure::Read(IoError::EIO));
                }
            }
            Ok(())
        })
    }
}

impl<E: NexusEnv> UnderWay<E> {
    async fn run(&self) -> Result<(), NotCorrected> {
        let mut next = self.range.start;
        while next < self.range.end {
            let end = ((next / CHUNK + 1) * CHUNK).min(self.range.end);
            self.inner.correct(self.slot, next..end).await?;
            next = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_errors_an_hour_are_corrected_and_one_more_is_too_many() {
        let repairs = Repairs::default();
        let replica = ReplicaId::from_uuid(uuid::Uuid::from_u128(1));
        let at = |minutes: u64| Duration::from_secs(60 * minutes);
        for minute in 0..20 {
            assert!(!repairs.is_too_many(replica, at(minute)), "R4: {minute}");
        }
        // The first one is an hour old and does not count any more; the second still does.
        assert!(!repairs.is_too_many(replica, at(60)));
        assert!(repairs.is_too_many(replica, at(60)));
        assert!(!repairs.is_too_many(replica, at(60)), "it starts anew");
    }

    #[test]
    fn many_reads_of_one_bad_place_are_one_error() {
        let repairs = Repairs::default();
        assert!(repairs.begin(1, &(0..4096)));
        assert!(!repairs.begin(1, &(0..65536)));
        assert!(repairs.begin(1, &(4096..8192)));
        assert!(repairs.begin(0, &(0..4096)));
    }

    #[test]
    fn only_errors_of_the_medium_are_corrected() {
        for errno in [libc::EIO, libc::EREMOTEIO, libc::ENODATA, libc::EILSEQ] {
            assert!(is_correctable(IoError::Os(errno)), "R4: {errno}");
        }
        for errno in [libc::ENODEV, libc::ENXIO, libc::EAGAIN, libc::EFAULT] {
            assert!(!is_correctable(IoError::Os(errno)), "{errno}");
        }
        assert!(
            !is_correctable(IoError::Short),
            "never for a truncated file"
        );
        assert!(!is_correctable(IoError::Stopped));
    }
}
