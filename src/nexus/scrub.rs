//! Scrubbing: reading everything on every member, comparing, and repairing what can be repaired (spec section 10).
//!
//! A few chunks at a time, each under its own range lock: writes wait for the chunk that is being looked at, reads only for
//! one that seems to differ. The findings are block by block: with three members or more, what most of them have is
//! right. Of two that differ nobody knows which one is right, so they are only reported, unless the caller names the one
//! to trust.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::chunk_set::CHUNK;
use super::env::NexusEnv;
use super::nexus::{Inner, Mode, Nexus, nap};
use super::slots::SlotSet;
use super::vote::vote;
use crate::io::{Clock, IoBuffer, IoError, Spawn};
use crate::model::ReplicaId;

/// Chunks that are looked at at the same time.
const LANES: usize = 4;
/// Pause of a lane after each chunk while requests are running: they come first.
const THROTTLE: Duration = Duration::from_millis(4);
/// The most chunks that a report names.
const FOUND_MAX: usize = 1000;
/// How often progress is announced.
const ANNOUNCE: Duration = Duration::from_secs(1);

/// What to scrub, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubRequest {
    /// The replica that is right wherever no majority says so. Without one such places are only reported.
    pub repair_from: Option<ReplicaId>,
    /// The most that is read of each member, bytes per second; 0 for as much as it can.
    pub bandwidth: u64,
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Bytes of the volume to look at.
    pub total_bytes: u64,
    /// Bytes of the volume that were looked at.
    pub done_bytes: u64,
}

/// What scrubs found, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubTotals {
    /// Bytes of the volume that were looked at.
    pub scrubbed_bytes: u64,
    /// Chunks (64 KiB) in which members differed.
    pub mismatches: u64,
    /// Those of them that are equal now.
    pub repaired: u64,
    /// Those of them that are not: nobody knows which copy is right.
    pub unrepairable: u64,
    /// Chunks that no member can read.
    pub unreadable: u64,
    /// Chunks that were left out, because they could not be made equal first after a crash (spec R2).
    pub skipped: u64,
}

/// What one scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// The numbers.
    pub totals: ScrubTotals,
    /// The most members that were compared. One: there was nothing to compare with, so that only what can't be read was
    /// found.
    pub compared: usize,
    /// The chunks with findings in address order, 1000 at most; the numbers count all.
    pub found: Vec<FoundChunk>,
}

/// A chunk with a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundChunk {
    /// Where it is in the volume, bytes.
    pub offset: u64,
    /// Its length in bytes: 64 KiB, or less at the volume's end.
    pub len: u64,
    /// What it is.
    pub finding: ChunkFinding,
    /// The replicas that were wrong; if nobody knows, all that differ.
    pub replicas: Vec<ReplicaId>,
}

/// What is the matter with a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChunkFinding {
    /// Members differed; they are equal now.
    Repaired,
    /// Members differ, and nobody knows which one is right.
    Differs,
    /// No member can read it.
    Unreadable,
    /// It could not be made equal after a crash, so that there is nothing to compare yet.
    Skipped,
}

/// Why there was no scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrubError {
    /// There is one already.
    #[error("the volume is being scrubbed already")]
    Busy,
    /// The volume stops, or has stopped.
    #[error("the volume stopped before the scrub had ended")]
    Stopped,
    /// Only an in-sync replica can be repaired from.
    #[error("replica {0} is not in sync: repair from one that is")]
    NotInSync(ReplicaId),
}

/// A nexus' scrubs.
#[derive(Debug, Default)]
pub(super) struct Scrubbing {
    progress: Cell<Option<ScrubProgress>>,
    /// Chunks under way.
    chunks: Cell<usize>,
    last: RefCell<Option<Arc<ScrubReport>>>,
    totals: Cell<ScrubTotals>,
}

/// One scrub.
struct Scrub {
    request: ScrubRequest,
    next: Cell<u64>,
    /// When the next chunk may be read.
    pace: Cell<Duration>,
    announced: Cell<Duration>,
    lanes: Cell<usize>,
    stopped: Cell<bool>,
    report: RefCell<ScrubReport>,
}

/// A finding, and the members that are wrong.
type Found = (ChunkFinding, SlotSet);

/// What the members have of a chunk.
#[derive(Default)]
pub(super) struct Copies {
    slots: Vec<usize>,
    data: Vec<Vec<u8>>,
    /// Who could not read it.
    failed: Vec<(usize, IoError)>,
}

impl Scrubbing {
    pub(super) fn is_running(&self) -> bool {
        self.progress.get().is_some()
    }

    pub(super) fn progress(&self) -> Option<ScrubProgress> {
        self.progress.get()
    }

    pub(super) fn last(&self) -> Option<Arc<ScrubReport>> {
        self.last.borrow().clone()
    }

    pub(super) fn totals(&self) -> ScrubTotals {
        self.totals.get()
    }
}

impl ScrubTotals {
    fn count(&mut self, len: u64, found: Option<ChunkFinding>) {
        self.scrubbed_bytes += len;
        match found {
            None => {}
            Some(ChunkFinding::Repaired) => {
                self.mismatches += 1;
                self.repaired += 1;
            }
            Some(ChunkFinding::Differs) => {
                self.mismatches += 1;
                self.unrepairable += 1;
            }
            Some(ChunkFinding::Unreadable) => self.unreadable += 1,
            Some(ChunkFinding::Skipped) => self.skipped += 1,
        }
    }
}

impl<E: NexusEnv> Nexus<E> {
    /// Reads all of the volume on every in-sync member, compares, and repairs what the request and a majority allow.
    /// Yields to requests; one at a time; ended by [`Nexus::stop`]. Goes on when the caller gives up:
    /// [`Nexus::status`] tells how far it is, and in the end what it found.
    ///
    /// With a single member nothing can be compared: it finds what can't be read.
    ///
    /// # Errors
    /// [`ScrubError`].
    pub async fn scrub(&self, request: ScrubRequest) -> Result<ScrubReport, ScrubError> {
        let inner = Rc::clone(&self.inner);
        if inner.mode.get() != Mode::Serving {
            return Err(ScrubError::Stopped);
        }
        if let Some(replica) = request.repair_from
            && inner.readable_slot_of(replica).is_none()
        {
            return Err(ScrubError::NotInSync(replica));
        }
        if inner.scrubbing.is_running() {
            return Err(ScrubError::Busy);
        }
        let progress = ScrubProgress {
            total_bytes: inner.size.get(),
            done_bytes: 0,
        };
        inner.scrubbing.progress.set(Some(progress));
        inner.touch();
        let (answer, answered) = oneshot::channel();
        self.inner.parts.spawn.spawn(async move {
            let result = scrub_all(&inner, request).await;
            // The caller may have given up; then nobody wants to know.
            let _ = answer.send(result);
        });
        answered.await.unwrap_or(Err(ScrubError::Stopped))
    }
}

async fn scrub_all<E: NexusEnv>(
    inner: &Rc<Inner<E>>,
    request: ScrubRequest,
) -> Result<ScrubReport, ScrubError> {
    let scrub = Rc::new(Scrub {
        request,
        next: Cell::new(0),
        pace: Cell::default(),
        announced: Cell::default(),
        lanes: Cell::new(LANES),
        stopped: Cell::new(false),
        report: RefCell::default(),
    });
    for _ in 0..LANES {
        let lane = Rc::clone(inner).scrub_lane(Rc::clone(&scrub));
        inner.parts.spawn.spawn(lane);
    }
    inner.signal.until(|| scrub.lanes.get() == 0).await;
    inner.scrubbing.progress.set(None);
    let result = if scrub.stopped.get() {
        Err(ScrubError::Stopped)
    } else {
        let mut report = scrub.report.take();
        report.found.sort_by_key(|found| found.offset);
        report.found.truncate(FOUND_MAX);
        let last = Arc::new(report.clone());
        inner.scrubbing.last.replace(Some(last));
        Ok(report)
    };
    inner.touch();
    result
}

impl<E: NexusEnv> Inner<E> {
    /// Where an in-sync replica is.
    fn readable_slot_of(&self, replica: ReplicaId) -> Option<usize> {
        let slot = self.slot_of(replica);
        slot.filter(|slot| self.usable().contains(*slot))
    }

    /// Takes chunk after chunk until none is left.
    async fn scrub_lane(self: Rc<Self>, scrub: Rc<Scrub>) {
        loop {
            let start = scrub.next.get();
            // A volume that grew meanwhile is scrubbed to its new end.
            let end = (start + CHUNK).min(self.size.get());
            if start >= end {
                break;
            }
            scrub.next.set(end);
            self.keep_pace(&scrub, end - start).await;
            let Ok(running) = self.admit().await else {
                scrub.stopped.set(true);
                break;
            };
            let chunks = &self.scrubbing.chunks;
            chunks.set(chunks.get() + 1);
            let found = self.scrub_chunk(&scrub, start..end).await;
            self.note_chunk(&scrub, start..end, found);
            chunks.set(chunks.get() - 1);
            drop(running);
            if self.running.get() > chunks.get() {
                nap(&self, THROTTLE).await;
            }
        }
        scrub.lanes.set(scrub.lanes.get() - 1);
        self.signal.notify();
    }

    /// Waits until so many bytes may be read within the bandwidth.
    async fn keep_pace(&self, scrub: &Scrub, len: u64) {
        let nanoseconds = (len * 1_000_000_000).checked_div(scrub.request.bandwidth);
        let Some(nanoseconds) = nanoseconds else {
            return;
        };
        let now = self.parts.clock.now();
        let turn = scrub.pace.get().max(now);
        scrub.pace.set(turn + Duration::from_nanos(nanoseconds));
        if turn > now {
            nap(self, turn - now).await;
        }
    }

    fn note_chunk(&self, scrub: &Scrub, chunk: Range<u64>, found: Option<Found>) {
        let len = chunk.end - chunk.start;
        let finding = found.map(|(finding, _)| finding);
        let mut report = scrub.report.borrow_mut();
        report.totals.count(len, finding);
        let mut totals = self.scrubbing.totals.get();
        totals.count(len, finding);
        self.scrubbing.totals.set(totals);
        // A few more than are reported, since lanes may overtake each other.
        if let Some((finding, slots)) = found
            && report.found.len() < FOUND_MAX + LANES
        {
            let replicas = slots.iter().filter_map(|s| self.children[s].replica_id());
            report.found.push(FoundChunk {
                offset: chunk.start,
                len,
                finding,
                replicas: replicas.collect(),
            });
        }
        let progress = ScrubProgress {
            total_bytes: self.size.get(),
            done_bytes: report.totals.scrubbed_bytes,
        };
        self.scrubbing.progress.set(Some(progress));
        let now = self.parts.clock.now();
        if found.is_some() || now >= scrub.announced.get() + ANNOUNCE {
            scrub.announced.set(now);
            self.touch();
        }
    }

    /// What is the matter with one chunk, if anything, after what could be done about it.
    async fn scrub_chunk(self: &Rc<Self>, scrub: &Scrub, chunk: Range<u64>) -> Option<Found> {
        if self.single.get() {
            return self.read_through(scrub, chunk).await;
        }
        // Chunks in U differ for a reason, and are made equal first.
        if self.resolve_range(chunk.clone(), None).await.is_err() {
            return Some((ChunkFinding::Skipped, SlotSet::EMPTY));
        }
        let mut lock = self.locks.shared(chunk.clone()).await;
        let mut copies = self.read_all(&chunk).await;
        if !copies.are_equal() {
            // A second look, and from here on alone: what went wrong may have been the way from the disk.
            drop(lock);
            lock = self.locks.exclusive(chunk.clone()).await;
            copies = self.read_all(&chunk).await;
        }
        if self.unresolved.borrow().first_in(&chunk).is_some() {
            return Some((ChunkFinding::Skipped, SlotSet::EMPTY));
        }
        let _lock = lock;
        let compared = copies.slots.len();
        {
            let mut report = scrub.report.borrow_mut();
            report.compared = report.compared.max(compared);
        }
        if copies.slots.is_empty() {
            let everybody = copies.failed.iter().map(|(slot, _)| *slot).collect();
            return Some((ChunkFinding::Unreadable, everybody));
        }
        for (slot, error) in &copies.failed {
            // Waits for this chunk's lock.
            self.read_failed(*slot, chunk.clone(), *error);
        }
        if copies.are_equal() {
            return None;
        }
        Some(self.mend(scrub, chunk, &copies).await)
    }

    /// A single copy can only be read. Requests take no locks then (spec R8).
    async fn read_through(self: &Rc<Self>, scrub: &Scrub, chunk: Range<u64>) -> Option<Found> {
        let copies = self.read_all(&chunk).await;
        let mut report = scrub.report.borrow_mut();
        report.compared = report.compared.max(1);
        let failed: SlotSet = copies.failed.iter().map(|(slot, _)| *slot).collect();
        (!failed.is_empty()).then_some((ChunkFinding::Unreadable, failed))
    }

    /// What every in-sync member has.
    pub(super) async fn read_all(self: &Rc<Self>, chunk: &Range<u64>) -> Copies {
        let len = usize::try_from(chunk.end - chunk.start).expect("what is compared fits memory");
        let read = |slot| {
            let buffer = self.parts.buffers.get(len);
            let read = self.read_on(slot, chunk.start, buffer.clone());
            ((slot, buffer), (slot, read))
        };
        let (buffers, reads): (Vec<(usize, IoBuffer)>, Vec<_>) =
            self.usable().iter().map(read).unzip();
        let outcome = self.fan_out(reads).await;
        let mut copies = Copies::default();
        for (slot, buffer) in buffers {
            if outcome.done.contains(slot) {
                copies.slots.push(slot);
                copies.data.push(buffer.to_vec());
            } else if let Some(failure) = outcome.failed[slot] {
                copies.failed.push((slot, failure.error()));
            }
        }
        copies
    }

    /// Makes copies equal that differ, as far as it is known which one is right. Somebody holds the range lock.
    async fn mend(self: &Rc<Self>, scrub: &Scrub, chunk: Range<u64>, copies: &Copies) -> Found {
        let block = self.alignment.offset as usize;
        let voters = copies.slots.len() + copies.failed.len();
        let trusted = scrub.request.repair_from;
        let trusted = trusted.and_then(|replica| self.readable_slot_of(replica));
        let trusted = copies.slots.iter().position(|slot| Some(*slot) == trusted);
        let verdict = vote(&copies.data, block, voters, trusted);
        let places = || copies.slots.iter().copied().zip(&verdict.wrong);
        let wrong: SlotSet = places()
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(slot, _)| slot)
            .collect();
        let everybody: SlotSet = copies.slots.iter().copied().collect();
        if self.check_writable().is_err() {
            return (ChunkFinding::Differs, everybody);
        }
        let right = self.parts.buffers.copy_of(&verdict.right);
        let rewrite = |slot: usize, runs: &[Range<usize>]| {
            let operation = self.rewrite(slot, chunk.start, right.clone(), runs.to_vec());
            (slot, operation)
        };
        let mut operations: Vec<_> = places()
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(slot, runs)| rewrite(slot, runs))
            .collect();
        // Who is being rebuilt may have had this chunk from one that was wrong.
        let all = verdict.wrong.concat();
        let targets = (self.writers() - self.usable()).iter();
        operations.extend(
            targets
                .filter(|_| !all.is_empty())
                .map(|slot| rewrite(slot, &all)),
        );
        let concerned = operations.iter().map(|(slot, _)| *slot).collect();
        let outcome = self.fan_out(operations).await;
        self.blame_failed_writes(&outcome, concerned, chunk).await;
        if verdict.is_disputed {
            (ChunkFinding::Differs, everybody)
        } else if wrong.is_within(outcome.done) {
            (ChunkFinding::Repaired, wrong)
        } else {
            (ChunkFinding::Differs, wrong)
        }
    }
}

impl Copies {
    /// The copies that can be read.
    pub(super) fn data(&self) -> &[Vec<u8>] {
        &self.data
    }

    fn are_equal(&self) -> bool {
        self.data.iter().all(|copy| *copy == self.data[0])
    }
}
