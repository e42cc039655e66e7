//! Guest memory: regions of the front end's files mapped here, translated, and kept until no I/O needs them.
//!
//! Three things can go wrong with memory that someone else owns, and each is dealt with in this file: addresses that
//! lie outside (an error per access), memory that goes away while I/O runs (every user holds the table it took its
//! pointers from), and a file that is shrunk under the mapping (`SIGBUS`, see [`Watch`]).

#![allow(
    unsafe_code,
    reason = "maps and reads memory that a front end and its guest write to; listed in tidy"
)]

#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::address::{BadAddress, GuestRange, MemoryError, RegionSpec};
use super::pin::{self, Pins};
use crate::io::IoBuffer;
use crate::io::buffer::Segment;
pub(super) use watch::WATCHES;
use watch::Watch;

/// Length of what [`MemoryTable::read_words`] reads, bytes.
pub(super) const WORDS_LEN: u32 = 16;

/// Two words at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Words([u64; 2]);

/// A mapped region. May be made on any thread; unmapped when dropped.
pub(super) struct Region {
    spec: RegionSpec,
    /// The region's first byte.
    first: NonNull<u8>,
    /// What was mapped: page-aligned, may start before `first`.
    mapped: NonNull<u8>,
    mapped_len: usize,
    /// `None` only while dropping.
    watch: Option<Watch>,
    /// Whether its pages were made, and may be pinned.
    populated: bool,
}

// SAFETY: the mapping belongs to the process, not to a thread, and the pointers are only used through methods that
// copy or use atomics.
unsafe impl Send for Region {}

impl Region {
    /// Maps a region of `file`.
    ///
    /// # Errors
    /// See [`MemoryError`]; a file that is shorter than the region claims is refused here, so that only a later
    /// shrinking can fault.
    pub(super) fn map(spec: RegionSpec, file: &File) -> Result<Self, MemoryError> {
        let page = spec.check(file)?;
        Self::map_pages(spec, file, page)
    }

    /// `page` is what offsets and lengths of a mapping of `file` must be multiples of: more than the machine's page
    /// for huge pages, where the front end's offset need not be a multiple.
    fn map_pages(spec: RegionSpec, file: &File, page: usize) -> Result<Self, MemoryError> {
        let before = spec.offset % page as u64;
        let extent = || MemoryError::Extent(spec);
        let skip = usize::try_from(before).map_err(|_| extent())?;
        let len = usize::try_from(spec.size + before)
            .ok()
            .and_then(|len| len.checked_next_multiple_of(page))
            .ok_or_else(extent)?;
        // SAFETY: the kernel chooses a range of addresses that nothing else uses.
        let mapped = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file.as_fd(),
                spec.offset - before,
            )
        };
        let mapped = mapped.map_err(|source| MemoryError::Map {
            spec,
            source: source.into(),
        })?;
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or_else(extent)?;
        let Some(watch) = Watch::new(mapped.addr().get(), len, page) else {
            // SAFETY: nobody has seen the mapping yet.
            let _ = unsafe { munmap(mapped.as_ptr().cast(), len) };
            return Err(MemoryError::TooMany);
        };
        // SAFETY: the advice keeps guest memory out of core dumps and changes nothing else. Failing is harmless.
        let _ = unsafe { madvise(mapped.as_ptr().cast(), len, Advice::LinuxDontDump) };
        // SAFETY: `skip` is less than a page and `spec.size` more bytes follow it, all inside the mapping.
        let first = unsafe { mapped.add(skip) };
        Ok(Self {
            spec,
            first,
            mapped,
            mapped_len: len,
            watch: Some(watch),
            populated: false,
        })
    }

    /// Has all pages of the file made now, on a thread that may wait, if the machine has room for them: they are to be
    /// pinned.
    pub(super) fn populate(&mut self, file: &File) {
        if pin::has_room(file) {
            let start = self.mapped.as_ptr().cast();
            // SAFETY: the range is the whole mapping. It makes pages, and changes none; when it fails, pinning tells.
            let _ = unsafe { madvise(start, self.mapped_len, Advice::LinuxPopulateWrite) };
            self.populated = true;
        }
    }

    /// Whether [`Region::populate`] found room.
    pub(super) const fn is_populated(&self) -> bool {
        self.populated
    }

    /// All of it.
    pub(super) fn segment(&self) -> Option<Segment> {
        self.piece(self.spec.guest, self.spec.size)
    }

    /// The part of the guest range `address..address + len` that lies in this region, as memory here.
    fn piece(&self, address: u64, len: u64) -> Option<Segment> {
        let skip = address.checked_sub(self.spec.guest)?;
        let left = self.spec.size.checked_sub(skip)?;
        let len = usize::try_from(len.min(left)).ok()?;
        let skip = usize::try_from(skip).ok()?;
        Some(Segment {
            base: self.first.as_ptr().wrapping_add(skip),
            len,
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Before the address range can belong to someone else.
        drop(self.watch.take());
        // SAFETY: mapped by `map_pages` with this length. Whoever uses the memory holds an `Rc` of this region or of
        // a table with it, so nobody does any more.
        let _ = unsafe { munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Region").field(&self.spec).finish()
    }
}

/// All regions of a guest at one moment. Never changed: a change makes a new table, and I/O that runs keeps its own.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    /// Sorted by guest address, without overlap.
    regions: Vec<Rc<Region>>,
    /// What of it is pinned.
    pins: Vec<Rc<Pins>>,
}

impl MemoryTable {
    /// A table of these regions; none is fine.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`] when two regions share a guest address.
    pub(super) fn new(mut regions: Vec<Rc<Region>>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|region| region.spec.guest);
        for pair in regions.windows(2) {
            let (low, high) = (pair[0].spec, pair[1].spec);
            if high.guest - low.guest < low.size {
                return Err(MemoryError::Overlap(high, low));
            }
        }
        let pins = Vec::new();
        Ok(Self { regions, pins })
    }

    /// This table with one region more.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`].
    pub(super) fn with(&self, region: Region) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(Rc::new(region));
        let pins = self.pins.clone();
        Ok(Self {
            pins,
            ..Self::new(regions)?
        })
    }

    /// This table without the region at `spec`; the file offset is not compared, since front ends leave it out.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`].
    pub(super) fn without(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        let is_it = |region: &Rc<Region>| {
            let have = region.spec;
            (have.guest, have.user, have.size) == (spec.guest, spec.user, spec.size)
        };
        let at = self.regions.iter().position(is_it);
        let at = at.ok_or(MemoryError::Unknown(spec))?;
        let mut regions = self.regions.clone();
        let removed = regions.remove(at);
        let stays = |pins: &&Rc<Pins>| !pins.is_of(&removed);
        let pins = self.pins.iter().filter(stays).cloned().collect();
        Ok(Self { regions, pins })
    }

    /// A region that is not pinned, if there is one.
    pub(super) fn unpinned(&self) -> Option<&Rc<Region>> {
        let is_pinned = |region: &&Rc<Region>| self.pins.iter().any(|pins| pins.is_of(region));
        self.regions.iter().find(|region| !is_pinned(region))
    }

    /// Has the kernel look up a region's pages by number from now on.
    pub(super) fn add_pins(&mut self, pins: Pins) {
        self.pins.push(Rc::new(pins));
    }

    /// Lets go of all pinned pages, once nothing under way uses them.
    pub(super) fn unpin(&mut self) {
        self.pins.clear();
    }

    /// Whether an access has hit a page that the front end's file no longer has. What was read from there are zeroes.
    pub(super) fn is_damaged(&self) -> bool {
        let faulted = |region: &Rc<Region>| region.watch.as_ref().is_some_and(Watch::has_faulted);
        self.regions.iter().any(faulted)
    }

    /// Calls `each` with every piece of memory behind a guest range, in order; one range can cross regions.
    fn pieces(
        &self,
        address: u64,
        len: u64,
        mut each: impl FnMut(Segment),
    ) -> Result<(), BadAddress> {
        let bad = BadAddress { address, len };
        let (mut at, mut left) = (address, len);
        let mut next = self
            .regions
            .partition_point(|region| region.spec.guest <= address)
            .checked_sub(1)
            .ok_or(bad)?;
        while left > 0 {
            let region = self.regions.get(next).ok_or(bad)?;
            let piece = region.piece(at, left).filter(|piece| piece.len > 0);
            let piece = piece.ok_or(bad)?;
            each(piece);
            left -= piece.len as u64;
            // Behind the last region the sum may be 2^64, but then nothing is left or `get` finds no region.
            at = at.wrapping_add(piece.len as u64);
            next += 1;
        }
        Ok(())
    }

    /// The memory behind a guest range, if that is one piece.
    fn piece(&self, range: GuestRange) -> Option<Segment> {
        let len = u64::from(range.len);
        let whole = |region: &Rc<Region>| {
            let piece = region.piece(range.address, len)?;
            (piece.len as u64 == len && len > 0).then_some(piece)
        };
        self.regions.iter().find_map(whole)
    }

    /// Whether all of a guest range is there.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub(super) fn check(&self, range: GuestRange) -> Result<(), BadAddress> {
        self.pieces(range.address, u64::from(range.len), |_| ())
    }

    /// Copies from guest memory.
    ///
    /// # Errors
    /// [`BadAddress`]; parts of `bytes` may have been filled.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), BadAddress> {
        let mut done = 0;
        self.pieces(address, bytes.len() as u64, |piece| {
            let target = &mut bytes[done..done + piece.len];
            // SAFETY: the piece is mapped and as long as `target`; no reference into guest memory exists.
            unsafe { std::ptr::copy_nonoverlapping(piece.base, target.as_mut_ptr(), target.len()) };
            done += piece.len;
        })
    }

    /// Reads two little-endian words, wherever they lie: a descriptor, or the header of a request.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub(super) fn read_words(&self, address: u64) -> Result<[u64; 2], BadAddress> {
        let range = GuestRange {
            address,
            len: WORDS_LEN,
        };
        if let Some(piece) = self.piece(range) {
            // SAFETY: the piece is mapped and has as many bytes, which need no alignment. Volatile, because nothing may
            // look at the guest's copy a second time.
            let words = unsafe { piece.base.cast::<Words>().read_volatile() };
            return Ok({ words.0 }.map(u64::from_le));
        }
        let mut words = [[0; 8]; 2];
        self.read(address, words.as_flattened_mut())?;
        Ok(words.map(u64::from_le_bytes))
    }

    /// Writes one byte of guest memory.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub(super) fn write_byte(&self, address: u64, byte: u8) -> Result<(), BadAddress> {
        let piece = self.piece(GuestRange { address, len: 1 });
        let piece = piece.ok_or(BadAddress { address, len: 1 })?;
        // SAFETY: the piece is mapped and has this byte; no reference into guest memory exists.
        unsafe { piece.base.write_volatile(byte) };
        Ok(())
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    /// [`BadAddress`]; a part may have been written.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        let mut done = 0;
        self.pieces(address, bytes.len() as u64, |piece| {
            let source = &bytes[done..done + piece.len];
            // SAFETY: the piece is mapped and as long as `source`; no reference into guest memory exists.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), piece.base, source.len()) };
            done += piece.len;
        })
    }

    /// The guest ranges as one buffer, which keeps this table, and so the mappings, alive.
    ///
    /// # Errors
    /// [`BadAddress`] of the first range that is not covered.
    pub(super) fn buffer(self: &Rc<Self>, ranges: &[GuestRange]) -> Result<IoBuffer, BadAddress> {
        let keep: Rc<Self> = Rc::clone(self);
        if let [range] = ranges
            && let Some(piece) = self.piece(*range)
        {
            let number = self.pins.iter().find_map(|pins| pins.number(piece));
            // SAFETY: as below; the pins are kept by the table.
            return Ok(unsafe { IoBuffer::from_segment(piece, keep, number) });
        }
        let mut segments = Vec::with_capacity(ranges.len());
        for range in ranges {
            let push = |piece| segments.push(piece);
            self.pieces(range.address, u64::from(range.len), push)?;
        }
        // SAFETY: every piece lies in a region of this table, which `keep` holds and with it the mapping. All access
        // to guest memory copies or is atomic, so no reference to it ever exists.
        Ok(unsafe { IoBuffer::from_foreign(segments, keep) })
    }

    /// Finds a vring part by its front-end address.
    ///
    /// # Errors
    /// [`MemoryError::Area`] unless it lies whole in one region and on a multiple of `alignment` (a power of two).
    pub(super) fn area(
        &self,
        address: u64,
        len: usize,
        alignment: usize,
    ) -> Result<Area, MemoryError> {
        let found = self.regions.iter().find_map(|region| {
            let skip = address.checked_sub(region.spec.user)?;
            let end = skip.checked_add(len as u64)?;
            let skip = usize::try_from(skip).ok()?;
            let base = region.first.as_ptr().wrapping_add(skip);
            let fits = end <= region.spec.size && base.addr().is_multiple_of(alignment);
            fits.then(|| Area {
                base,
                len,
                _region: Rc::clone(region),
            })
        });
        found.ok_or(MemoryError::Area { address, len })
    }
}

/// A contiguous part of guest memory that holds little-endian numbers both sides access at once: part of a vring.
#[derive(Debug)]
pub(super) struct Area {
    base: *mut u8,
    len: usize,
    _region: Rc<Region>,
}

impl Area {
    /// The address of an aligned field, checked.
    fn field(&self, at: usize, size: usize) -> *mut u8 {
        assert!(
            at.is_multiple_of(size) && at + size <= self.len,
            "a vring field lies inside its area, which was sized for the ring"
        );
        self.base.wrapping_add(at)
    }

    /// Loads the 16-bit number at byte `at`.
    pub(super) fn load_u16(&self, at: usize, order: Ordering) -> u16 {
        // SAFETY: `field` checked the bounds; the area is aligned for its widest field and stays mapped with `self`.
        let field = unsafe { AtomicU16::from_ptr(self.field(at, 2).cast()) };
        u16::from_le(field.load(order))
    }

    /// Loads the 64-bit number at byte `at`.
    pub(super) fn load_u64(&self, at: usize) -> u64 {
        // SAFETY: as in `load_u16`; the only area with such fields is the descriptor table, aligned to 16.
        let field = unsafe { AtomicU64::from_ptr(self.field(at, 8).cast()) };
        u64::from_le(field.load(Ordering::Relaxed))
    }

    /// Stores a 16-bit number at byte `at`.
    pub(super) fn store_u16(&self, at: usize, value: u16, order: Ordering) {
        // SAFETY: as in `load_u16`.
        let field = unsafe { AtomicU16::from_ptr(self.field(at, 2).cast()) };
        field.store(value.to_le(), order);
    }

    /// Stores a 32-bit number at byte `at`.
    pub(super) fn store_u32(&self, at: usize, value: u32) {
        // SAFETY: as in `load_u16`; the only area with such fields is the used ring, aligned to 4.
        let field = unsafe { AtomicU32::from_ptr(self.field(at, 4).cast()) };
        field.store(value.to_le(), Ordering::Relaxed);
    }
}
