//! Which regions may hold writes that are not proven flushed on every writer: set before data is written, cleared
//! lazily (spec W4, W9).
//!
//! A region's bit may be cleared once a flush that was submitted after the region's last write has completed on all of
//! W. [`Intent`] counts flushes for that: a write that ends notes the number of the next one. No clock is read for it;
//! how long a region was left alone is told by the clearing task, which exists only while bits are set.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::env::NexusEnv;
use super::fan_out::Failure;
use super::mutant::Mutant;
use super::nexus::Inner;
use super::room::Room;
use crate::replica::{BitmapKind, Replica};

/// Regions that are marked ahead of a sequential stream with one page write.
const AHEAD: u64 = 4;
/// Most regions that are marked and that nobody has written: after a crash they are resolved for nothing.
const AHEAD_MAX: u64 = 12;
/// Sequential streams that are recognised at a time.
const STREAMS: usize = 8;

/// What is known about regions whose intent bit is set.
#[derive(Debug)]
pub(super) struct Intent {
    region_shift: Cell<u32>,
    /// Regions written, or marked ahead of a stream, since their bit was last cleared.
    pub(super) regions: RefCell<BTreeMap<u64, Region>>,
    /// Regions whose bit was found set: nothing is known about the writes behind it.
    pub(super) found: RefCell<Vec<Range<u64>>>,
    /// The flush that proves those.
    pub(super) found_needs: Cell<u64>,
    /// Flushes of all writers that were submitted.
    submitted: Cell<u64>,
    /// The newest of them that completed on all of W.
    proven: Cell<u64>,
    /// Counts writes.
    uses: Cell<u64>,
    /// Where the writes of the streams ended.
    streams: Cell<[u64; STREAMS]>,
    next_stream: Cell<usize>,
    /// Regions marked ahead of a stream that it has not reached.
    ahead: Cell<u64>,
    /// Whether the task that clears is under way.
    pub(super) task: Cell<bool>,
    /// Who waits for room, and who makes it.
    pub(super) room: Room,
    /// Bytes that had to be resolved when the volume was assembled.
    pub(super) resolved_bytes: Cell<u64>,
    /// Regions of which the last chunk was resolved since then.
    pub(super) resolved: Cell<u64>,
}

/// A region whose intent bit is set, or about to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    /// Writes in flight.
    pub(super) writing: u32,
    /// The flush that proves all writes so far; 0 when there was none.
    pub(super) needs: u64,
    /// The value of [`Intent::uses`] at the last write.
    pub(super) used: u64,
}

/// Writes to a range are in flight until this is dropped: their regions keep their bits.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    intent: &'a Intent,
    region_shift: u32,
    regions: Range<u64>,
    marks: Marks,
}

/// The bytes whose regions have to be marked for a write.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    bytes: Range<u64>,
    /// Bytes to mark along with them, because a stream will need them soon.
    ahead: Range<u64>,
}

impl Intent {
    pub(super) fn new(region_shift: u32) -> Self {
        Self {
            region_shift: Cell::new(region_shift),
            regions: RefCell::default(),
            found: RefCell::default(),
            found_needs: Cell::new(1),
            submitted: Cell::new(0),
            proven: Cell::new(0),
            uses: Cell::new(0),
            streams: Cell::default(),
            next_stream: Cell::new(0),
            ahead: Cell::new(0),
            task: Cell::new(false),
            room: Room::default(),
            resolved_bytes: Cell::new(0),
            resolved: Cell::new(0),
        }
    }

    /// Base-2 logarithm of a region's size in the committed table.
    pub(super) fn region_shift(&self) -> u32 {
        self.region_shift.get()
    }

    /// The regions that a range of bytes touches.
    pub(super) fn regions(&self, bytes: &Range<u64>) -> Range<u64> {
        let shift = self.region_shift.get();
        bytes.start >> shift..bytes.end.div_ceil(1 << shift)
    }

    /// The bytes of these regions; the volume may end before.
    pub(super) fn bytes(&self, regions: &Range<u64>) -> Range<u64> {
        let shift = self.region_shift.get();
        regions.start << shift..regions.end << shift
    }

    /// A bit stands for `1 << region_shift` bytes from now on. If that is more than before, every bit is set (spec
    /// section 10).
    pub(super) fn regrid(&self, region_shift: u32) {
        if self.region_shift.replace(region_shift) != region_shift {
            self.regions.borrow_mut().clear();
            self.found.borrow_mut().clear();
            self.ahead.set(0);
        }
    }

    /// How many regions were written or marked ahead.
    pub(super) fn len(&self) -> u64 {
        self.regions.borrow().len() as u64
    }

    /// A write begins: until it ends, the bits of its regions stay. `size` is the volume's; `room` says how many regions
    /// may be marked ahead of it.
    fn begin(&self, bytes: &Range<u64>, size: u64, room: u64) -> Writing<'_> {
        let regions = self.regions(bytes);
        let used = self.uses.get() + 1;
        self.uses.set(used);
        let continues = room > 0 && self.continues_stream(bytes);
        let mut is_new = false;
        let mut known = self.regions.borrow_mut();
        for region in regions.clone() {
            match known.get_mut(&region) {
                Some(known) => {
                    if known.is_ahead() {
                        self.ahead.set(self.ahead.get() - 1);
                    }
                    known.writing += 1;
                    known.used = used;
                }
                None => {
                    is_new = true;
                    let (writing, needs) = (1, 0);
                    let new = Region {
                        writing,
                        needs,
                        used,
                    };
                    known.insert(region, new);
                }
            }
        }
        let mut ahead = regions.end..regions.end;
        if continues && is_new {
            let last = self.regions(&(0..size)).end;
            let room = room.min(AHEAD_MAX.saturating_sub(self.ahead.get()));
            let wanted = (ahead.start + AHEAD.min(room)).min(last);
            while ahead.end < wanted && !known.contains_key(&ahead.end) {
                let (writing, needs) = (0, 0);
                let marked = Region {
                    writing,
                    needs,
                    used,
                };
                known.insert(ahead.end, marked);
                ahead.end += 1;
            }
            self.ahead.set(self.ahead.get() + (ahead.end - ahead.start));
        }
        let ahead = self.bytes(&ahead);
        Writing {
            intent: self,
            region_shift: self.region_shift.get(),
            regions,
            marks: Marks {
                bytes: bytes.clone(),
                ahead: ahead.start.min(size)..ahead.end.min(size),
            },
        }
    }

    /// Whether a write begins where one of the last ones ended.
    fn continues_stream(&self, bytes: &Range<u64>) -> bool {
        let mut streams = self.streams.get();
        let found = streams.iter().position(|end| *end == bytes.start);
        let place = found.unwrap_or_else(|| {
            let place = self.next_stream.get();
            self.next_stream.set((place + 1) % STREAMS);
            place
        });
        streams[place] = bytes.end;
        self.streams.set(streams);
        found.is_some() && bytes.start > 0
    }

    /// A flush of all writers is about to be submitted: its number. What was written before it counts as flushed once it
    /// is [`Intent::proved`].
    pub(super) fn flush_begins(&self) -> u64 {
        let number = self.submitted.get() + 1;
        self.submitted.set(number);
        number
    }

    /// The flush completed on every member of committed W.
    pub(super) fn proved(&self, flush: u64) {
        self.proven.set(self.proven.get().max(flush));
    }

    /// The flush that is submitted next.
    pub(super) fn next_flush(&self) -> u64 {
        self.submitted.get() + 1
    }

    /// Whether the flush with this number has completed on all of W.
    pub(super) fn is_proven(&self, flush: u64) -> bool {
        flush <= self.proven.get()
    }

    /// A mark: what was used after it is used later than what was used before.
    pub(super) fn now(&self) -> u64 {
        self.uses.get()
    }

    /// Forgets a region whose bit is cleared.
    pub(super) fn forget(&self, region: u64) {
        let gone = self.regions.borrow_mut().remove(&region);
        if gone.is_some_and(Region::is_ahead) {
            self.ahead.set(self.ahead.get() - 1);
        }
    }
}

impl Region {
    /// Whether it was only marked ahead of a stream.
    pub(super) const fn is_ahead(self) -> bool {
        self.needs == 0 && self.writing == 0
    }
}

impl Writing<'_> {
    pub(super) fn marks(&self) -> Marks {
        self.marks.clone()
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let needs = self.intent.next_flush();
        let used = self.intent.uses.get();
        if self.intent.region_shift.get() != self.region_shift {
            // Every bit was set meanwhile.
            return;
        }
        let mut known = self.intent.regions.borrow_mut();
        for region in self.regions.clone() {
            if let Some(region) = known.get_mut(&region) {
                region.writing -= 1;
                region.needs = needs;
                region.used = used;
            }
        }
    }
}

impl<E: NexusEnv> Inner<E> {
    /// To be held over every write of data, from before its bits are set ([`Inner::mark`]) until it has ended on every
    /// member (spec W9).
    pub(super) fn writing(self: &Rc<Self>, bytes: &Range<u64>) -> Writing<'_> {
        self.begin_write(bytes, 0)
    }

    /// As [`Inner::writing`], and up to `room` regions are marked ahead of a stream.
    pub(super) fn begin_write(self: &Rc<Self>, bytes: &Range<u64>, room: u64) -> Writing<'_> {
        let writing = self.intent.begin(bytes, self.size.get(), room);
        if !self.intent.task.get() {
            self.ensure_clearing();
        }
        writing
    }

    /// W4 on one member: the bits of a write are durable when this returns. Nothing is written when they are already.
    pub(super) async fn mark(
        &self,
        slot: usize,
        replica: &Replica<E::Disk>,
        marks: &Marks,
        note_missed: bool,
    ) -> Result<(), Failure> {
        let regions = replica.regions(marks.bytes.start, marks.bytes.end - marks.bytes.start);
        let is_set = |kind| replica.is_durable(kind, regions.clone());
        let intent = !is_set(BitmapKind::Intent) && !self.parts.breaks(Mutant::NoIntent);
        let missed = note_missed && !is_set(BitmapKind::Missed);
        if !intent && !missed {
            return Ok(());
        }
        #[cfg(any(test, feature = "mutants"))]
        if self.parts.breaks(Mutant::IntentNotDurable) {
            replica.forget_durability();
        }
        let durable = self.children[slot].durability.write(&self.signal);
        let set = async |kind, wanted: bool| {
            if wanted {
                let set = || replica.set_durable(kind, regions.clone());
                self.retrying(set).await
            } else {
                Ok(())
            }
        };
        if intent && !marks.ahead.is_empty() {
            let ahead = marks.ahead.end - marks.ahead.start;
            let ahead = replica.regions(marks.ahead.start, ahead);
            replica.set(BitmapKind::Intent, ahead);
        }
        let (intent, missed) = tokio::join!(
            set(BitmapKind::Intent, intent),
            set(BitmapKind::Missed, missed)
        );
        let result = intent.and(missed);
        durable.ended(result);
        result.map_err(Failure::Label)
    }

    /// Sets missed bits on one member, durably (spec W7).
    pub(super) async fn mark_missed(
        &self,
        slot: usize,
        replica: &Replica<E::Disk>,
        bytes: &Range<u64>,
    ) -> Result<(), Failure> {
        let regions = replica.regions(bytes.start, bytes.end - bytes.start);
        if replica.is_durable(BitmapKind::Missed, regions.clone()) {
            return Ok(());
        }
        let durable = self.children[slot].durability.write(&self.signal);
        let set = || replica.set_durable(BitmapKind::Missed, regions.clone());
        let result = self.retrying(set).await;
        durable.ended(result);
        result.map_err(Failure::Label)
    }

    /// How many regions a crash now would leave to be resolved.
    pub(super) fn intent_regions(&self) -> u64 {
        let count = |slot: usize| {
            let replica = self.children[slot].replica();
            replica.map_or(0, |replica| replica.set_count(BitmapKind::Intent))
        };
        self.writers().iter().map(count).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
