//! A bitmap of regions: the image in memory, the pages on disk, and which bits are known to be durable.
//!
//! A page is overwritten in place. A torn or decayed page fails its CRC and counts as *all bits set*, which is always
//! safe, so pages need no second copy. At most one write per page is in flight, its image taken when it is submitted
//! (spec L7); callers that find it busy wait and share the next one (group commit).

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use super::layout::{
    INTENT_OFFSET, MISSED_OFFSET, PAGE_BITS_LEN, PAGE_SIZE, PAGES, REGIONS_PER_PAGE,
};
use super::page::{Bits, Page, all_set, contains, count, get, set};
use crate::io::gate::{Entered, Gate};
use crate::io::{BlockDevice, BufferPool, IoError, join_all};
use crate::model::VolumeId;

/// Bits of a page.
const PAGE_BITS: usize = PAGE_BITS_LEN * 8;

/// What a bit of the bitmap says about its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BitmapKind {
    /// It may hold a write that is not proven flushed on all of the active set.
    Intent = 0,
    /// Some member that is not `InSync` lacks writes of it.
    Missed = 1,
}

impl BitmapKind {
    /// Where its first page is, bytes.
    #[must_use]
    pub const fn offset(self) -> u64 {
        match self {
            Self::Intent => INTENT_OFFSET,
            Self::Missed => MISSED_OFFSET,
        }
    }
}

/// What every page of one bitmap has in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) volume: VolumeId,
    pub(super) kind: BitmapKind,
    /// Below 63, as [`super::Label::check`] makes sure.
    pub(super) region_shift: u32,
}

impl Identity {
    /// A page of this bitmap with every bit set, those past the last region included.
    pub(super) fn full_page(self, index: usize) -> Page {
        self.page(index, 1, Box::new([0xff; PAGE_BITS_LEN]))
    }

    /// A page of this bitmap with no bit set.
    pub(super) fn empty_page(self, index: usize) -> Page {
        self.page(index, 1, Box::new([0; PAGE_BITS_LEN]))
    }

    fn page(self, index: usize, seq: u64, bits: Box<Bits>) -> Page {
        Page {
            index: u16::try_from(index).expect("a bitmap has 33 pages"),
            kind: self.kind,
            region_shift: u8::try_from(self.region_shift).expect("a checked shift is below 63"),
            seq,
            volume: self.volume,
            bits,
        }
    }

    fn owns(self, page: &Page, index: usize) -> bool {
        usize::from(page.index) == index
            && page.kind == self.kind
            && u32::from(page.region_shift) == self.region_shift
            && page.volume == self.volume
    }
}

/// One bitmap of an open replica.
#[derive(Debug)]
pub(super) struct Bitmap {
    identity: Cell<Identity>,
    /// Regions of the data; bits past them are zero in memory and mean nothing on disk.
    regions: Cell<u64>,
    /// Only the pages that have regions.
    pages: RefCell<Vec<Rc<PageState>>>,
    /// A planted bug: pages are not written durably.
    #[cfg(any(test, feature = "mutants"))]
    pub(super) lax: Cell<bool>,
}

#[derive(Debug)]
struct PageState {
    /// What the bits should be.
    wanted: RefCell<Box<Bits>>,
    /// Bits that are set on disk, durably, whatever write is in flight.
    durable: RefCell<Box<Bits>>,
    /// How many bits are wanted.
    count: Cell<u64>,
    seq: Cell<u64>,
    /// Counts the changes of `wanted`.
    version: Cell<u64>,
    /// The version that was last written; while it is behind, the disk may hold something else than `wanted`.
    written: Cell<u64>,
    gate: Gate,
    /// Writes answered so far, and the error of the last one.
    outcome: Cell<(u64, Option<IoError>)>,
}

/// The part of a range of regions that lies in one page.
struct Part {
    page: usize,
    bits: Range<usize>,
}

impl Bitmap {
    /// Takes over the pages read from disk. What is not an intact page of this bitmap counts as all ones and is
    /// rewritten by the next write to it, or by [`Bitmap::rewrite`].
    pub(super) fn from_disk(identity: Identity, regions: u64, bytes: &[u8]) -> Self {
        let pages = bytes.chunks(PAGE_SIZE).enumerate().map(|(index, bytes)| {
            let page = Page::decode(bytes).ok();
            let page = page.filter(|page| identity.owns(page, index));
            let is_bad = page.is_none();
            let mut page = page.unwrap_or_else(|| identity.full_page(index));
            set(&mut page.bits, regions_in(index, regions)..PAGE_BITS, false);
            Rc::new(PageState::new(page, is_bad))
        });
        Self {
            identity: Cell::new(identity),
            regions: Cell::new(regions),
            pages: RefCell::new(pages.collect()),
            #[cfg(any(test, feature = "mutants"))]
            lax: Cell::default(),
        }
    }

    /// How many bytes of pages a bitmap of so many regions uses.
    pub(super) fn pages_len(regions: u64) -> usize {
        let pages = usize::try_from(regions.div_ceil(REGIONS_PER_PAGE)).unwrap_or(usize::MAX);
        pages.min(PAGES) * PAGE_SIZE
    }

    /// Takes over a label with more regions, or larger ones; [`Bitmap::rewrite`] has to follow. New regions of the same
    /// size are not set: nobody wrote to them. Fewer are for a copy that nobody uses, and cleared before. When a bit stands for more than before, every bit is set: that is how
    /// the pages on disk count from the moment on at which the new label does.
    pub(super) fn resize(&self, region_shift: u32, regions: u64) {
        let before = self.identity.get();
        let identity = Identity {
            region_shift,
            ..before
        };
        let mut pages = self.pages.borrow_mut();
        let used = Self::pages_len(regions) / PAGE_SIZE;
        if region_shift == before.region_shift {
            pages.truncate(used);
            let added = (pages.len()..used).map(|index| identity.empty_page(index));
            pages.extend(added.map(|page| Rc::new(PageState::new(page, true))));
        } else {
            let full = (0..used).map(|index| {
                let mut page = identity.full_page(index);
                set(&mut page.bits, regions_in(index, regions)..PAGE_BITS, false);
                // Numbers go on counting.
                page.seq = pages.get(index).map_or(1, |page| page.seq.get());
                Rc::new(PageState::new(page, true))
            });
            *pages = full.collect();
        }
        self.identity.set(identity);
        self.regions.set(regions);
    }

    /// Whether the region's bit is set in memory.
    pub(super) fn is_set(&self, region: u64) -> bool {
        let pages = self.pages.borrow();
        self.parts(region..region + 1)
            .all(|part| get(&pages[part.page].wanted.borrow(), part.bits.start))
    }

    /// Whether the regions' bits are all set on disk, durably, and nobody is about to clear them.
    pub(super) fn is_durable(&self, regions: Range<u64>) -> bool {
        let pages = self.pages.borrow();
        self.parts(regions).all(|part| {
            let page = &pages[part.page];
            all_set(&page.wanted.borrow(), part.bits.clone())
                && all_set(&page.durable.borrow(), part.bits)
        })
    }

    /// The runs of set bits in memory, in order.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (index, page) in self.pages.borrow().iter().enumerate() {
            let first = index as u64 * REGIONS_PER_PAGE;
            let wanted = page.wanted.borrow();
            for (at, byte) in wanted.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                    let region = first + at as u64 * 8 + bit;
                    match runs.last_mut() {
                        Some(run) if run.end == region => run.end += 1,
                        _ => runs.push(region..region + 1),
                    }
                }
            }
        }
        runs
    }

    /// How many bits are set in memory.
    pub(super) fn count(&self) -> u64 {
        let pages = self.pages.borrow();
        pages.iter().map(|page| page.count.get()).sum()
    }

    /// Sets bits in memory; the next write of their pages takes them along, and [`Bitmap::set_durable`] makes sure.
    pub(super) fn set(&self, regions: Range<u64>) {
        for part in self.parts(regions) {
            self.page(part.page).put(part.bits, true);
        }
    }

    /// Sets bits and returns once they are durable (spec L4). Free when they are already.
    pub(super) async fn set_durable<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        regions: Range<u64>,
    ) -> Result<(), IoError> {
        if self.is_durable(regions.clone()) {
            return Ok(());
        }
        self.set(regions.clone());
        let write = async |part: Part| {
            let page = self.page(part.page);
            let done = || {
                // Again before each write: who clears may have come while this one waited for its turn.
                page.put(part.bits.clone(), true);
                all_set(&page.durable.borrow(), part.bits.clone())
            };
            self.write_until(disk, buffers, part.page, false, done)
                .await
        };
        all(self.parts(regions).map(write)).await
    }

    /// Sets every bit that is set in `other`, a bitmap of the same replica, durably.
    pub(super) async fn merge<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        other: &Self,
    ) -> Result<(), IoError> {
        let write = async |index: usize| {
            let added = other.page(index).wanted.borrow().clone();
            let page = self.page(index);
            page.add(&added);
            let done = || contains(&page.durable.borrow(), &added);
            self.write_until(disk, buffers, index, false, done).await
        };
        let pages = self.pages.borrow().len();
        all((0..pages).map(write)).await
    }

    /// Clears bits in memory. [`Bitmap::rewrite`] brings that to the disk.
    pub(super) fn clear(&self, regions: Range<u64>) {
        for part in self.parts(regions) {
            self.page(part.page).put(part.bits, false);
        }
    }

    /// Writes every page that is not on disk as it is in memory: because of cleared bits, or because it was not intact
    /// when it was read. With `fua` cleared bits stay so over a power cut; without, a bit that comes back costs time,
    /// never data (spec L4).
    pub(super) async fn rewrite<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        fua: bool,
    ) -> Result<(), IoError> {
        let write = async |index: usize| {
            let page = self.page(index);
            let version = page.version.get();
            let done = || page.written.get() >= version;
            self.write_until(disk, buffers, index, fua, done).await
        };
        let behind = |index: &usize| {
            let page = self.page(*index);
            page.written.get() < page.version.get()
        };
        let pages = self.pages.borrow().len();
        all((0..pages).filter(behind).map(write)).await
    }

    fn page(&self, index: usize) -> Rc<PageState> {
        Rc::clone(&self.pages.borrow()[index])
    }

    /// Writes the page, or waits for others to do so, until `done`.
    async fn write_until<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        index: usize,
        fua: bool,
        done: impl Fn() -> bool,
    ) -> Result<(), IoError> {
        let page = self.page(index);
        while !done() {
            let (answered, _) = page.outcome.get();
            match page.gate.try_enter()? {
                Some(entered) => {
                    let target = (&*page, index, entered);
                    self.write(disk, buffers, target, fua).await?;
                }
                None => {
                    page.gate.left().await;
                    match page.outcome.get() {
                        // Whoever wrote has failed for all who waited: the member is lost to all of them.
                        (now, Some(error)) if now != answered => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// One write of a page. `durable` loses what the image lacks before the disk can lose it, and gains what the image
    /// has after the disk has it; a failed or torn write leaves each bit old, new or (bad CRC) set.
    async fn write<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        (page, index, entered): (&PageState, usize, Entered<'_>),
        fua: bool,
    ) -> Result<(), IoError> {
        let bits = page.wanted.borrow().clone();
        for (durable, bits) in page.durable.borrow_mut().iter_mut().zip(bits.iter()) {
            *durable &= bits;
        }
        let seq = page.seq.get().saturating_add(1);
        page.seq.set(seq);
        let version = page.version.get();
        // A page that only clears bits need not be durable (spec L4).
        let fua = fua || !contains(&page.durable.borrow(), &bits);
        #[cfg(any(test, feature = "mutants"))]
        let fua = fua && !self.lax.get();
        let image = self.identity.get().page(index, seq, bits);
        let offset = image.kind.offset() + (index * PAGE_SIZE) as u64;
        let written = disk
            .write(offset, &buffers.copy_of(&image.encode()), fua)
            .await;
        if written.is_ok() {
            *page.durable.borrow_mut() = image.bits;
            page.written.set(version);
        }
        let (answered, _) = page.outcome.get();
        page.outcome.set((answered + 1, written.err()));
        entered.leave();
        written
    }

    /// The pages that a range of regions touches.
    ///
    /// # Panics
    /// When the range reaches past the last region.
    fn parts(&self, regions: Range<u64>) -> impl Iterator<Item = Part> + use<> {
        let count = self.regions.get();
        assert!(
            regions.start <= regions.end && regions.end <= count,
            "regions {regions:?} of {count}"
        );
        let mut next = regions.start;
        std::iter::from_fn(move || {
            if next >= regions.end {
                return None;
            }
            let page = next / REGIONS_PER_PAGE;
            let end = ((page + 1) * REGIONS_PER_PAGE).min(regions.end);
            let start = bit_of(next);
            let len = usize::try_from(end - next).expect("a page's bits fit a usize");
            next = end;
            Some(Part {
                page: usize::try_from(page).expect("a bitmap has 33 pages"),
                bits: start..start + len,
            })
        })
    }
}

impl PageState {
    /// A page as it was read, or (`is_bad`) as it has to be written.
    fn new(page: Page, is_bad: bool) -> Self {
        Self {
            count: Cell::new(count(&page.bits)),
            wanted: RefCell::new(page.bits.clone()),
            durable: RefCell::new(page.bits),
            seq: Cell::new(page.seq),
            version: Cell::new(u64::from(is_bad)),
            written: Cell::new(0),
            gate: Gate::default(),
            outcome: Cell::default(),
        }
    }

    /// Changes the wanted bits of a range to `value`.
    fn put(&self, range: Range<usize>, value: bool) {
        let changed = set(&mut self.wanted.borrow_mut(), range, value);
        if changed > 0 {
            self.version.set(self.version.get() + 1);
            let added = if value { changed } else { 0 };
            self.count.set(self.count.get() + 2 * added - changed);
        }
    }

    /// Sets what is set in `added`, too.
    fn add(&self, added: &Bits) {
        let mut wanted = self.wanted.borrow_mut();
        if !contains(&wanted, added) {
            for (bits, added) in wanted.iter_mut().zip(added) {
                *bits |= added;
            }
            self.version.set(self.version.get() + 1);
            self.count.set(count(&wanted));
        }
    }
}

/// Runs writes of several pages at once, to the end of each even when one fails: a write that is dropped half way shuts
/// its page for good (spec L7).
async fn all<F>(writes: impl Iterator<Item = F>) -> Result<(), IoError>
where
    F: Future<Output = Result<(), IoError>>,
{
    let failures = join_all(writes).await.into_iter().filter_map(Result::err);
    // What is tried again, or lost nothing, must not hide a page whose loss has to be known (spec W10).
    let told = failures.min_by_key(|error| error.is_transient() || error.is_refusal());
    told.map_or(Ok(()), Err)
}

/// Regions of the page `index` when there are `regions` in all.
fn regions_in(index: usize, regions: u64) -> usize {
    let before = index as u64 * REGIONS_PER_PAGE;
    let here = regions.saturating_sub(before).min(REGIONS_PER_PAGE);
    usize::try_from(here).expect("a page's bits fit a usize")
}

/// A region's bit within its page.
fn bit_of(region: u64) -> usize {
    usize::try_from(region % REGIONS_PER_PAGE).expect("a page's bits fit a usize")
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of runs may have just one"
)]
mod tests;
