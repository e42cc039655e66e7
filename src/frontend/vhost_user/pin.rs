//! Guest memory that is pinned (`pin_guest_memory`): registered with the reactor's ring, so that the kernel need not look
//! up and hold its pages for each request.
//!
//! Pages that a guest gives back (balloon, free page reporting, virtio-mem) are others than the pinned ones when it uses
//! their addresses again, and nobody tells: requests would read and write the old ones. So whoever switches it on is told
//! to use it for guests without those only.
//!
//! A front end may shrink the file under pinned pages: they stay what they were, belong to the kernel and us, and nobody
//! else sees what is read into them. The numbers are given back when the last memory table with the region has gone, and
//! every request holds the table that it came with.

use std::fs::File;
use std::io;
use std::rc::Rc;

use libc::HUGETLBFS_MAGIC;
use rustix::fs::{fstat, fstatfs};

use super::memory::Region;
use crate::io::buffer::Segment;
use crate::io::{Local, Pinned};

/// How much is registered at a time, bytes: the other volumes of the reactor wait meanwhile. A request whose data cross
/// from one such part to the next is served without.
const CHUNK: usize = 64 << 20;

/// Whether the machine has room for the pages that `file` does not have yet: at most half of what is available, lest a front
/// end that claims much takes it from everybody.
pub(super) fn has_room(file: &File) -> bool {
    let Ok(stat) = fstat(file) else { return false };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let has = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    // Huge pages come from a reserve of their own.
    let is_huge = fstatfs(file).is_ok_and(|fs| fs.f_type == HUGETLBFS_MAGIC);
    is_huge || size.saturating_sub(has) <= available_bytes().unwrap_or(0) / 2
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// A pinned region.
#[derive(Debug)]
pub(super) struct Pins {
    region: Rc<Region>,
    memory: Segment,
    chunks: Vec<Pinned>,
}

impl Pins {
    /// Pins a region, one chunk a turn of the reactor.
    ///
    /// # Errors
    /// What the kernel says about the first chunk that it does not take; none is pinned then.
    pub(super) async fn new(local: &Local, region: &Rc<Region>) -> io::Result<Self> {
        if !region.is_populated() {
            return Err(io::Error::from_raw_os_error(libc::EDQUOT));
        }
        let memory = region
            .segment()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut chunks = Vec::with_capacity(memory.len.div_ceil(CHUNK));
        for start in (0..memory.len).step_by(CHUNK) {
            chunks.push(local.pin(Segment {
                base: memory.base.wrapping_add(start),
                len: CHUNK.min(memory.len - start),
            })?);
            local.end_of_turn().await;
        }
        Ok(Self {
            region: Rc::clone(region),
            memory,
            chunks,
        })
    }

    pub(super) fn is_of(&self, region: &Rc<Region>) -> bool {
        Rc::ptr_eq(&self.region, region)
    }

    /// The number of the chunk that holds all of `piece`, if it lies in this region.
    pub(super) fn number(&self, piece: Segment) -> Option<u16> {
        let start = piece.base.addr().checked_sub(self.memory.base.addr())?;
        let last = start.checked_add(piece.len.checked_sub(1)?)?;
        if last >= self.memory.len || start / CHUNK != last / CHUNK {
            return None;
        }
        self.chunks.get(start / CHUNK).map(Pinned::number)
    }
}

/// Why memory could not be pinned, and what to do about it.
pub(super) fn explain(error: &io::Error) -> String {
    let advice = match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            ": raise LimitMEMLOCK of the unit, or `ulimit -l`, above the memory of all such guests, twice \
             that of one whose front end replaces its memory table"
        }
        Some(libc::EDQUOT) => {
            ": it would take more than half of the memory that this machine has left"
        }
        Some(libc::ENOSPC) => {
            ": at most 256 GiB of guest memory can be pinned for the volumes of one I/O thread"
        }
        Some(libc::EFAULT | libc::EOPNOTSUPP) => ": it is not made of ordinary memory",
        _ => "",
    };
    format!("the guest's memory is not pinned, and served without ({error}){advice}")
}
