//! A bitmap of regions: the image in memory, the pages on disk, and which bits are known to be durable.
//!
//! A page is overwritten in place. A torn or decayed page fails its CRC and counts as *all bits set*, which is always
//! safe, so pages need no second copy. At most one write per page is in flight, its image taken when it is submitted
//! (spec L7); callers that find it busy wait and share the next one (group commit).

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::layout::{
    INTENT_OFFSET, MISSED_OFFSET, PAGE_BITS_LEN, PAGE_SIZE, PAGES, REGIONS_PER_PAGE,
};
use super::page::{Bits, Page};
use crate::io::gate::{Entered, Gate};
use crate::io::{BlockDevice, BufferPool, IoError};
use crate::model::VolumeId;

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
    identity: Identity,
    /// Regions of the data; bits past them mean nothing.
    regions: u64,
    /// Only the pages that have regions.
    pages: Vec<PageState>,
}

#[derive(Debug)]
struct PageState {
    /// What the bits should be.
    wanted: RefCell<Box<Bits>>,
    /// Bits that are set on disk, durably, whatever write is in flight.
    durable: RefCell<Box<Bits>>,
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
    /// rewritten by the next write to it, or by [`Bitmap::rewrite_bad_pages`].
    pub(super) fn from_disk(identity: Identity, regions: u64, bytes: &[u8]) -> Self {
        let pages = bytes.chunks(PAGE_SIZE).enumerate().map(|(index, bytes)| {
            let page = Page::decode(bytes).ok();
            let page = page.filter(|page| identity.owns(page, index));
            let version = u64::from(page.is_none());
            let page = page.unwrap_or_else(|| identity.full_page(index));
            PageState {
                wanted: RefCell::new(page.bits.clone()),
                durable: RefCell::new(page.bits),
                seq: Cell::new(page.seq),
                version: Cell::new(version),
                written: Cell::new(0),
                gate: Gate::default(),
                outcome: Cell::default(),
            }
        });
        Self {
            identity,
            regions,
            pages: pages.collect(),
        }
    }

    /// How many bytes of pages a bitmap of so many regions uses.
    pub(super) fn pages_len(regions: u64) -> usize {
        let pages = usize::try_from(regions.div_ceil(REGIONS_PER_PAGE)).unwrap_or(usize::MAX);
        pages.min(PAGES) * PAGE_SIZE
    }

    /// Whether the region's bit is set in memory.
    pub(super) fn is_set(&self, region: u64) -> bool {
        self.parts(region..region + 1)
            .all(|part| get(&self.pages[part.page].wanted.borrow(), part.bits.start))
    }

    /// The runs of set bits in memory, in order.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (index, page) in self.pages.iter().enumerate() {
            let first = index as u64 * REGIONS_PER_PAGE;
            let count = (self.regions - first).min(REGIONS_PER_PAGE);
            let wanted = page.wanted.borrow();
            for region in first..first + count {
                if !get(&wanted, bit_of(region)) {
                    continue;
                }
                match runs.last_mut() {
                    Some(run) if run.end == region => run.end += 1,
                    _ => runs.push(region..region + 1),
                }
            }
        }
        runs
    }

    /// How many bits are set in memory.
    pub(super) fn count(&self) -> u64 {
        self.runs().iter().map(|run| run.end - run.start).sum()
    }

    /// Sets bits and returns once they are durable (spec L4). Free when they are already.
    pub(super) async fn set_durable<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        regions: Range<u64>,
    ) -> Result<(), IoError> {
        for part in self.parts(regions) {
            let page = &self.pages[part.page];
            page.change(|bits| set(bits, part.bits.clone(), true));
            let done = || all_set(&page.durable.borrow(), part.bits.clone());
            self.write_until(disk, buffers, part.page, done).await?;
        }
        Ok(())
    }

    /// Sets every bit that is set in `other`, a bitmap of the same replica, durably.
    pub(super) async fn merge<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        other: &Self,
    ) -> Result<(), IoError> {
        for (index, page) in self.pages.iter().enumerate() {
            let added = other.pages[index].wanted.borrow().clone();
            page.change(|bits| add(bits, &added));
            let done = || contains(&page.durable.borrow(), &added);
            self.write_until(disk, buffers, index, done).await?;
        }
        Ok(())
    }

    /// Clears bits. Returns once the pages were written, not once that is durable: a bit that comes back after a power
    /// cut costs time, never data.
    pub(super) async fn clear<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        regions: Range<u64>,
    ) -> Result<(), IoError> {
        for part in self.parts(regions) {
            let page = &self.pages[part.page];
            page.change(|bits| set(bits, part.bits.clone(), false));
            let version = page.version.get();
            let done = || page.written.get() >= version;
            self.write_until(disk, buffers, part.page, done).await?;
        }
        Ok(())
    }

    /// Rewrites what was not intact on disk.
    pub(super) async fn rewrite_bad_pages<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
    ) -> Result<(), IoError> {
        for (index, page) in self.pages.iter().enumerate() {
            let version = page.version.get();
            let done = || page.written.get() >= version;
            self.write_until(disk, buffers, index, done).await?;
        }
        Ok(())
    }

    /// Writes the page, or waits for others to do so, until `done`.
    async fn write_until<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        index: usize,
        done: impl Fn() -> bool,
    ) -> Result<(), IoError> {
        let page = &self.pages[index];
        while !done() {
            let (answered, _) = page.outcome.get();
            match page.gate.try_enter()? {
                Some(entered) => self.write(disk, buffers, index, entered).await?,
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
        index: usize,
        entered: Entered<'_>,
    ) -> Result<(), IoError> {
        let page = &self.pages[index];
        let bits = page.wanted.borrow().clone();
        for (durable, bits) in page.durable.borrow_mut().iter_mut().zip(bits.iter()) {
            *durable &= bits;
        }
        let seq = page.seq.get().saturating_add(1);
        page.seq.set(seq);
        let version = page.version.get();
        // A page that only clears bits need not be durable (spec L4).
        let sets = !contains(&page.durable.borrow(), &bits);
        let image = self.identity.page(index, seq, bits);
        let offset = self.identity.kind.offset() + (index * PAGE_SIZE) as u64;
        let written = disk
            .write(offset, &buffers.copy_of(&image.encode()), sets)
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
        assert!(
            regions.start <= regions.end && regions.end <= self.regions,
            "regions {regions:?} of {}",
            self.regions
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
    /// Applies a change to the wanted bits; it says whether it changed anything.
    fn change(&self, change: impl FnOnce(&mut Bits) -> bool) {
        if change(&mut self.wanted.borrow_mut()) {
            self.version.set(self.version.get() + 1);
        }
    }
}

/// A region's bit within its page.
fn bit_of(region: u64) -> usize {
    usize::try_from(region % REGIONS_PER_PAGE).expect("a page's bits fit a usize")
}

fn get(bits: &Bits, bit: usize) -> bool {
    bits[bit / 8] & (1 << (bit % 8)) != 0
}

fn set(bits: &mut Bits, range: Range<usize>, value: bool) -> bool {
    let mut changed = false;
    for bit in range {
        changed |= get(bits, bit) != value;
        let mask = 1 << (bit % 8);
        if value {
            bits[bit / 8] |= mask;
        } else {
            bits[bit / 8] &= !mask;
        }
    }
    changed
}

fn add(bits: &mut Bits, added: &Bits) -> bool {
    let changed = !contains(bits, added);
    for (bits, added) in bits.iter_mut().zip(added) {
        *bits |= added;
    }
    changed
}

fn all_set(bits: &Bits, mut range: Range<usize>) -> bool {
    range.all(|bit| get(bits, bit))
}

/// Whether every bit of `part` is set in `bits`.
fn contains(bits: &Bits, part: &Bits) -> bool {
    bits.iter().zip(part).all(|(bits, part)| part & !bits == 0)
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of runs may have just one"
)]
mod tests;
