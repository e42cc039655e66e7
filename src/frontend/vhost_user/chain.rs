//! Descriptor chains: from what a driver wrote to two lists of guest ranges, whatever it wrote.
//!
//! A chain is data of an untrusted guest. It is followed with a bound, its descriptors are read once, and what does not
//! follow virtio 1.2 section 2.7 is a [`ChainError`], never a guess.

use super::address::GuestRange;
use super::memory::MemoryTable;
use super::ring::{DESCRIPTOR_LEN, Descriptor, Ring};

/// The most descriptors that a chain may have, in an indirect table above all: what QEMU allows too.
pub(super) const CHAIN_LEN_MAX: usize = 1024;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What is wrong with a chain, or with the request in it. The driver gets an error status where it left room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    /// A loop, or more descriptors than can be.
    #[error("a descriptor chain that does not end after {0} descriptors")]
    Endless(usize),
    /// `next` points outside the table.
    #[error("a descriptor chain that leads to descriptor {0}, outside its table")]
    Next(u16),
    /// A descriptor of no bytes.
    #[error("a descriptor of zero bytes")]
    Empty,
    /// What the device reads must come before what it writes.
    #[error("a readable descriptor after a writable one")]
    Order,
    /// An indirect table whose size is not a whole number of descriptors, or none, or too many.
    #[error("an indirect descriptor table of {0} bytes")]
    TableSize(u32),
    /// An indirect table named from within one, or in the middle of a chain.
    #[error("an indirect descriptor where none may be")]
    Indirect,
    /// Some range is outside the guest's memory.
    #[error("a descriptor that points outside the guest's memory, at {0:#x}")]
    Address(u64),
    /// No room for a request header.
    #[error("a request of {0} readable bytes: its header has 16")]
    Header(u64),
    /// No writable byte for the status.
    #[error("a request without a status byte")]
    NoStatus,
    /// Data in the wrong direction, not whole sectors, or more than a request may have.
    #[error("a request whose data do not fit its type")]
    Data,
    /// The range lies outside the disk.
    #[error("a request for sectors that the disk does not have")]
    Sector,
    /// Flags that the type does not have.
    #[error("a request with unknown flags")]
    Flags,
    /// A type that was not offered.
    #[error("a request of unknown type {0}")]
    Type(u32),
}

/// The guest ranges of one chain. Reused from chain to chain.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// What the device reads, in order.
    pub(super) readable: Vec<GuestRange>,
    /// What the device writes, in order.
    pub(super) writable: Vec<GuestRange>,
    /// The first violation that did not keep the rest of the chain from being followed.
    fault: Option<ChainError>,
}

impl Chain {
    /// Follows the chain from `head`. After an error the ranges that could be found are there all the same, because
    /// the last of them probably has the status byte.
    ///
    /// # Errors
    /// The violation that ended the chain, else the first one.
    pub(super) fn read(
        &mut self,
        ring: &Ring,
        memory: &MemoryTable,
        head: u16,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.fault = None;
        self.follow(ring, memory, head)?;
        self.fault.map_or(Ok(()), Err)
    }

    /// The guest address of the last writable byte: where a request has its status.
    pub(super) fn status(&self) -> Option<u64> {
        let last = self.writable.last()?;
        last.address
            .checked_add(u64::from(last.len.checked_sub(1)?))
    }

    fn follow(&mut self, ring: &Ring, memory: &MemoryTable, head: u16) -> Result<(), ChainError> {
        let bound = usize::from(ring.size()).min(CHAIN_LEN_MAX);
        let mut index = head;
        for _ in 0..bound {
            let descriptor = ring.descriptor(index).ok_or(ChainError::Next(index))?;
            if descriptor.flags & INDIRECT != 0 {
                // A chain may end with an indirect table; Linux's chains consist of nothing else.
                if descriptor.flags & (NEXT | WRITE) != 0 {
                    return Err(ChainError::Indirect);
                }
                return self.read_table(memory, descriptor);
            }
            self.push(descriptor);
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::Endless(bound))
    }

    /// Follows the chain in an indirect table, from its first descriptor.
    fn read_table(&mut self, memory: &MemoryTable, table: Descriptor) -> Result<(), ChainError> {
        let size = usize::try_from(table.len).unwrap_or(usize::MAX);
        let count = size / DESCRIPTOR_LEN;
        if size == 0 || !size.is_multiple_of(DESCRIPTOR_LEN) || count > usize::from(u16::MAX) {
            return Err(ChainError::TableSize(table.len));
        }
        let left = CHAIN_LEN_MAX - self.readable.len() - self.writable.len();
        let bound = count.min(left);
        let mut index = 0u16;
        for _ in 0..bound {
            if usize::from(index) >= count {
                return Err(ChainError::Next(index));
            }
            let skip = u64::from(index) * DESCRIPTOR_LEN as u64;
            let descriptor = read_descriptor(memory, table.address, skip)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(ChainError::Indirect);
            }
            self.push(descriptor);
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::Endless(bound))
    }

    fn push(&mut self, descriptor: Descriptor) {
        let range = GuestRange {
            address: descriptor.address,
            len: descriptor.len,
        };
        if descriptor.len == 0 {
            self.fault.get_or_insert(ChainError::Empty);
        } else if descriptor.flags & WRITE != 0 {
            self.writable.push(range);
        } else {
            if !self.writable.is_empty() {
                self.fault.get_or_insert(ChainError::Order);
            }
            self.readable.push(range);
        }
    }
}

/// Reads the descriptor `skip` bytes into the table at `table`.
fn read_descriptor(memory: &MemoryTable, table: u64, skip: u64) -> Result<Descriptor, ChainError> {
    let address = table.checked_add(skip).ok_or(ChainError::Address(table))?;
    let [address, rest] = memory.read_words(address)?;
    Ok(Descriptor::from_words(address, rest))
}
