//! Guest memory that is pinned (`pin_guest_memory`): registered with the reactor's ring, so that the kernel need not look
//! up and hold its pages for each request.
//!
//! A front end may shrink the file under pinned pages: they stay what they were, belong to the kernel and us, and nobody
//! else sees what is read into them. The numbers are given back when the last memory table with the region has gone, and
//! every request holds the table that it came with.

use std::io;
use std::rc::Rc;

use super::memory::Region;
use crate::io::buffer::Segment;
use crate::io::{Local, Pinned};

/// How much is registered at a time, bytes: the other volumes of the reactor wait meanwhile. A request whose data cross
/// from one such part to the next is served without.
const CHUNK: usize = 64 << 20;

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
            ": raise LimitMEMLOCK of the unit, or `ulimit -l`, above the memory of all such guests"
        }
        Some(libc::ENOSPC) => {
            ": at most 256 GiB of guest memory can be pinned for the volumes of one I/O thread"
        }
        Some(libc::EFAULT | libc::EOPNOTSUPP) => ": it is not made of ordinary memory",
        _ => "",
    };
    format!("the guest's memory is not pinned, and served without ({error}){advice}")
}
