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
    /// A write waits for room.
    pub(super) crowded: Cell<bool>,
    /// Attempts to make room that have ended.
    pub(super) passes: Cell<u64>,
    /// Whether one is under way.
    pub(super) is_passing: Cell<bool>,
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
            crowded: Cell::new(false),
            passes: Cell::new(0),
            is_passing: Cell::new(false),
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

    fn begin_write(self: &Rc<Self>, bytes: &Range<u64>, room: u64) -> Writing<'_> {
        let writing = self.intent.begin(bytes, self.size.get(), room);
        if !self.intent.task.get() {
            self.ensure_clearing();
        }
        writing
    }

    /// As [`Inner::writing`], for a client's write: regions are marked ahead of a stream, and when too many are set,
    /// older ones are waited for to be cleared (spec W9). The bound is soft: a write goes on when nothing can be.
    pub(super) async fn writing_when_room(self: &Rc<Self>, bytes: &Range<u64>) -> Writing<'_> {
        let limit = self.spec.borrow().policy.intent_max;
        let room = limit.saturating_sub(self.intent.len());
        let writing = self.begin_write(bytes, room);
        if self.intent.len() > limit {
            // A pass that is under way has chosen already; the next one follows at once.
            let own = self.intent.passes.get() + 1 + u64::from(self.intent.is_passing.get());
            self.intent.crowded.set(true);
            self.signal.notify();
            let settled = || self.intent.len() <= limit || self.intent.passes.get() >= own;
            self.signal
                .until(|| settled() || !self.intent.task.get())
                .await;
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHIFT: u32 = 20;
    const SIZE: u64 = 40 << SHIFT;

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u64),
        End(usize),
        Submit,
        Complete(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6_u64).prop_map(Step::Begin),
            (0..4_usize).prop_map(Step::End),
            Just(Step::Submit),
            (0..3_usize).prop_map(Step::Complete),
        ]
    }

    proptest! {
        /// W9 against a model that remembers every write: whoever counts as proven was covered by a completed flush.
        #[test]
        fn a_region_is_proven_only_by_a_flush_submitted_after_its_last_write(
            steps in proptest::collection::vec(step(), 1..60),
        ) {
            let intent = Intent::new(SHIFT);
            let mut writing: Vec<(u64, Writing<'_>)> = Vec::new();
            // Of each flush under way, the writes that it covers; of each region, the writes that none has covered.
            let mut flushes: Vec<(u64, Vec<u64>)> = Vec::new();
            let mut unproven = vec![Vec::new(); 6];
            let mut ended = 0;
            for step in steps {
                match step {
                    Step::Begin(region) => {
                        let bytes = (region << SHIFT) + 4096..(region << SHIFT) + 8192;
                        writing.push((region, intent.begin(&bytes, SIZE, 100)));
                    }
                    Step::End(which) if which < writing.len() => {
                        let (region, guard) = writing.swap_remove(which);
                        drop(guard);
                        ended += 1;
                        unproven[usize::try_from(region).unwrap()].push(ended);
                    }
                    Step::Submit => {
                        let covered = unproven.iter().flatten().copied().collect();
                        flushes.push((intent.flush_begins(), covered));
                    }
                    Step::Complete(which) if which < flushes.len() => {
                        let (number, covered) = flushes.swap_remove(which);
                        intent.proved(number);
                        for writes in &mut unproven {
                            writes.retain(|write| !covered.contains(write));
                        }
                    }
                    Step::End(_) | Step::Complete(_) => {}
                }
                for (region, known) in intent.regions.borrow().iter() {
                    let clear = known.writing == 0 && intent.is_proven(known.needs);
                    let busy = writing.iter().any(|(at, _)| at == region);
                    let unproven = &unproven[usize::try_from(*region).unwrap()];
                    prop_assert!(!clear || (!busy && unproven.is_empty()));
                }
            }
        }

        /// Show 3: what is marked and was not written stays below the bound, however many streams there are.
        #[test]
        fn few_regions_are_marked_ahead(
            starts in proptest::collection::vec(0..30_u64, 1..12),
            forgotten in proptest::collection::vec(0..40_u64, 0..20),
        ) {
            let intent = Intent::new(SHIFT);
            let quarter = 1 << (SHIFT - 2);
            for at in 0..24 {
                for start in &starts {
                    let begin = ((start << SHIFT) + at * quarter).min(SIZE - quarter);
                    drop(intent.begin(&(begin..begin + quarter), SIZE, 100));
                }
                for region in &forgotten {
                    intent.forget(*region);
                }
                let known = intent.regions.borrow();
                let ahead = known.values().filter(|region| region.is_ahead()).count() as u64;
                prop_assert_eq!(ahead, intent.ahead.get());
                prop_assert!(ahead <= AHEAD_MAX);
                prop_assert!(known.keys().all(|region| *region < SIZE >> SHIFT));
            }
        }
    }

    #[test]
    fn a_stream_is_marked_ahead_once_it_is_recognised() {
        let intent = Intent::new(SHIFT);
        let mib = 1 << SHIFT;
        let begin = |from: u64, until: u64| intent.begin(&(from..until), SIZE, 100).marks().ahead;
        assert!(begin(0, mib).is_empty(), "one write is no stream");
        assert_eq!(begin(mib, 2 * mib), 2 * mib..6 * mib);
        assert!(begin(2 * mib, 3 * mib).is_empty(), "marked already");
        assert!(begin(38 * mib, 39 * mib).is_empty());
        assert!(begin(39 * mib, 40 * mib).is_empty(), "the volume ends");
    }
}
