//! A split virtqueue in guest memory (virtio 1.2, section 2.7), walked by hand.
//!
//! Only what both sides see at once is here: indices, flags, events, and the order in which they are read and written.
//! Each descriptor is read once, into a [`Descriptor`] of our own; nothing else ever looks at the guest's copy.

use std::sync::atomic::{Ordering, fence};

use super::address::MemoryError;
use super::memory::{Area, MemoryTable};

/// Size of a descriptor, bytes.
pub(super) const DESCRIPTOR_LEN: usize = 16;
/// The largest ring that virtio allows.
pub(super) const RING_SIZE_MAX: u16 = 1 << 15;

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

// Where things are: both rings start with flags and index, the driver's has 2-byte entries, the device's 8-byte ones.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// What makes a ring unusable as a whole. The queue is stopped; nothing it says can be trusted any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingError {
    /// Not a power of two, or too large.
    #[error("a virtqueue of {0} entries: expected a power of two up to 32768")]
    Size(u32),
    /// Part of the ring is not in guest memory.
    #[error("the virtqueue can't be reached")]
    Memory(#[from] MemoryError),
    /// More entries became available than the ring has.
    #[error("the driver made {available} requests available in a virtqueue of {size} entries")]
    Overrun {
        /// Entries between what was taken and what is offered.
        available: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// The driver offers descriptors again that it has not got back.
    #[error("the driver has more requests in flight than its virtqueue of {0} entries can hold")]
    Reused(u16),
    /// The available ring names a descriptor that does not exist.
    #[error("the driver offers descriptor {head} of a virtqueue of {size} entries")]
    Head {
        /// The index found.
        head: u16,
        /// Entries of the ring.
        size: u16,
    },
}

/// One descriptor, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// Takes apart the two little-endian words of a descriptor.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "each field is cut out of the word that holds it"
    )]
    pub(super) const fn from_words(address: u64, rest: u64) -> Self {
        Self {
            address,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// Where the parts of a ring are, as addresses of the front end's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingAddresses {
    /// Descriptor table.
    pub(super) descriptors: u64,
    /// The driver's ring.
    pub(super) available: u64,
    /// The device's ring.
    pub(super) used: u64,
}

/// The parts of a ring, found in guest memory.
#[derive(Debug)]
struct Areas {
    descriptors: Area,
    available: Area,
    used: Area,
}

impl Areas {
    fn find(memory: &MemoryTable, at: RingAddresses, size: u16) -> Result<Self, MemoryError> {
        let size = usize::from(size);
        Ok(Self {
            descriptors: memory.area(at.descriptors, DESCRIPTOR_LEN * size, 16)?,
            // Both rings end with the other side's event field.
            available: memory.area(at.available, ENTRIES + 2 * size + 2, 2)?,
            used: memory.area(at.used, ENTRIES + 8 * size + 2, 4)?,
        })
    }
}

/// The device's side of a virtqueue.
#[derive(Debug)]
pub(super) struct Ring {
    addresses: RingAddresses,
    areas: Areas,
    size: u16,
    event_idx: bool,
    /// The next entry of the available ring to take; counts without wrapping at the size.
    next_available: u16,
    /// The next entry of the used ring to fill.
    next_used: u16,
    /// The used index as last published.
    published: u16,
}

impl Ring {
    /// Takes a ring over. `base` is the available index to go on from; the used index is the ring's own, since that is
    /// what the driver has seen.
    ///
    /// # Errors
    /// [`RingError::Size`], [`RingError::Memory`].
    pub(super) fn new(
        memory: &MemoryTable,
        addresses: RingAddresses,
        size: u32,
        base: u16,
        event_idx: bool,
    ) -> Result<Self, RingError> {
        let bad_size = RingError::Size(size);
        let Some(size) = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= RING_SIZE_MAX)
        else {
            return Err(bad_size);
        };
        let areas = Areas::find(memory, addresses, size)?;
        let used = areas.used.load_u16(INDEX, Ordering::Relaxed);
        Ok(Self {
            addresses,
            areas,
            size,
            event_idx,
            next_available: base,
            next_used: used,
            published: used,
        })
    }

    /// Looks the ring up in a new memory table. Stays where it is when the table does not have it (any more): a front
    /// end that replaces a region removes it first, and the old mapping is kept alive by this ring.
    pub(super) fn follow(&mut self, memory: &MemoryTable) {
        if let Ok(areas) = Areas::find(memory, self.addresses, self.size) {
            self.areas = areas;
        }
    }

    /// Number of entries.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The available index up to which requests were taken: the answer to `GET_VRING_BASE` once all are done.
    pub(super) fn base(&self) -> u16 {
        self.next_available
    }

    /// Takes the next available head descriptor.
    ///
    /// # Errors
    /// [`RingError::Overrun`], [`RingError::Head`].
    pub(super) fn pop(&mut self) -> Result<Option<u16>, RingError> {
        // Acquire: the entry and its descriptors were written before the index.
        let offered = self.areas.available.load_u16(INDEX, Ordering::Acquire);
        let available = offered.wrapping_sub(self.next_available);
        if available == 0 {
            return Ok(None);
        }
        let size = self.size;
        if available > size {
            return Err(RingError::Overrun { available, size });
        }
        let entry = ENTRIES + 2 * usize::from(self.next_available & (size - 1));
        let head = self.areas.available.load_u16(entry, Ordering::Relaxed);
        if head >= size {
            return Err(RingError::Head { head, size });
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Reads one descriptor of the table; `None` when the index is outside.
    pub(super) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        let at = DESCRIPTOR_LEN * usize::from(index);
        let table = &self.areas.descriptors;
        Some(Descriptor::from_words(
            table.load_u64(at),
            table.load_u64(at + 8),
        ))
    }

    /// Tells the driver not to kick while its requests are being taken anyway.
    pub(super) fn disarm(&self) {
        // With EVENT_IDX the event is one behind what was taken: it is crossed again only after 65536 requests.
        if self.event_idx {
            let event = ENTRIES + 8 * usize::from(self.size);
            let behind = self.next_available.wrapping_sub(1);
            self.areas.used.store_u16(event, behind, Ordering::Relaxed);
        } else {
            self.areas
                .used
                .store_u16(FLAGS, USED_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Whether requests are available.
    pub(super) fn has_available(&self) -> bool {
        self.areas.available.load_u16(INDEX, Ordering::Relaxed) != self.next_available
    }

    /// Asks for a kick at the next request. Returns whether one has come meanwhile, for which there may be no kick.
    pub(super) fn arm(&self) -> bool {
        if self.event_idx {
            let event = ENTRIES + 8 * usize::from(self.size);
            self.areas
                .used
                .store_u16(event, self.next_available, Ordering::Relaxed);
        } else {
            self.areas.used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // The driver writes its index and then reads the event; we write the event and then read the index.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    /// Gives a chain back, invisibly until [`Ring::publish`]. `len` is the number of bytes written from the start of
    /// its writable part.
    pub(super) fn add_used(&mut self, head: u16, len: u32) {
        let entry = ENTRIES + 8 * usize::from(self.next_used & (self.size - 1));
        self.areas.used.store_u32(entry, u32::from(head));
        self.areas.used.store_u32(entry + 4, len);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver everything given back so far. Returns whether it wants to be called.
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        // Release: the entries, the status bytes and the data before the index.
        self.areas.used.store_u16(INDEX, new, Ordering::Release);
        self.published = new;
        // The driver writes its event (or flags) and then reads the index; we write the index and then read them.
        fence(Ordering::SeqCst);
        let available = &self.areas.available;
        if !self.event_idx {
            return available.load_u16(FLAGS, Ordering::Relaxed) & AVAIL_NO_INTERRUPT == 0;
        }
        let event = ENTRIES + 2 * usize::from(self.size);
        let event = available.load_u16(event, Ordering::Relaxed);
        // virtio 1.2, section 2.7.10: whether the event lies in (old, new].
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}
