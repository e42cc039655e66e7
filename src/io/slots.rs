//! A record of 4 KiB that is replaced atomically: two slots, of which the older is overwritten (spec L1).
//!
//! Used by replica labels and by witness files. A slot holds its sequence number at byte [`SEQ_AT`] and a CRC32C of
//! everything before byte [`CRC_AT`] there; the rest belongs to the record. A crash during an update leaves the older
//! slot torn, which its CRC shows, and the newer one untouched: a reader always finds the old or the new record.

use std::cell::Cell;

use super::buffer::BufferPool;
use super::device::{BlockDevice, IoError};
use super::gate::Gate;

/// Size of a slot, bytes.
pub const SLOT_SIZE: usize = 4096;
/// Where the sequence number is: 8 bytes, little endian.
pub const SEQ_AT: usize = 16;
/// Where the CRC32C of all bytes before it is: 4 bytes, little endian.
pub const CRC_AT: usize = SLOT_SIZE - 4;

/// One slot's bytes.
pub type Slot = [u8; SLOT_SIZE];

/// Puts the sequence number and the CRC into a slot.
pub fn seal(slot: &mut Slot, seq: u64) {
    slot[SEQ_AT..SEQ_AT + 8].copy_from_slice(&seq.to_le_bytes());
    let crc = crc32c::crc32c(&slot[..CRC_AT]);
    slot[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

/// Whether a slot's CRC is right.
#[must_use]
pub fn is_sealed(slot: &Slot) -> bool {
    slot[CRC_AT..] == crc32c::crc32c(&slot[..CRC_AT]).to_le_bytes()
}

/// A slot's sequence number; meaningless unless [`is_sealed`].
#[must_use]
pub fn seq(slot: &Slot) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&slot[SEQ_AT..SEQ_AT + 8]);
    u64::from_le_bytes(bytes)
}

/// Which of two slots is the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newest {
    /// Neither slot has a right CRC: there is no record.
    Neither,
    /// The slot with this index is the record.
    Slot(usize),
    /// Both have a right CRC and the same sequence number, but different contents: no crash does that.
    Ambiguous,
}

/// Finds the newest of two slots.
#[must_use]
pub fn newest(slots: &[Slot; 2]) -> Newest {
    match (is_sealed(&slots[0]), is_sealed(&slots[1])) {
        (false, false) => Newest::Neither,
        (true, false) => Newest::Slot(0),
        (false, true) => Newest::Slot(1),
        (true, true) => match seq(&slots[0]).cmp(&seq(&slots[1])) {
            std::cmp::Ordering::Greater => Newest::Slot(0),
            std::cmp::Ordering::Less => Newest::Slot(1),
            std::cmp::Ordering::Equal if slots[0] == slots[1] => Newest::Slot(0),
            std::cmp::Ordering::Equal => Newest::Ambiguous,
        },
    }
}

/// The two slots of one record on a disk, and which of them may be overwritten.
#[derive(Debug)]
pub struct SlotPair {
    offsets: [u64; 2],
    /// The slot that holds the record; the other one may be overwritten.
    current: Cell<usize>,
    /// The highest sequence number that was ever submitted: a write that failed may have landed all the same.
    seq_used: Cell<u64>,
    gate: Gate,
}

impl SlotPair {
    /// A pair at these byte offsets whose record is in slot `current` with sequence number `seq`. For a pair that
    /// holds no record yet: slot 1 with sequence number 0, so that slot 0 is written first.
    #[must_use]
    pub fn new(offsets: [u64; 2], current: usize, seq: u64) -> Self {
        Self {
            offsets,
            current: Cell::new(current),
            seq_used: Cell::new(seq),
            gate: Gate::default(),
        }
    }

    /// Reads both slots.
    ///
    /// # Errors
    /// What the disk says. One unreadable slot fails the call: it might be the newer one.
    pub async fn read<D: BlockDevice>(
        disk: &D,
        buffers: &BufferPool,
        offsets: [u64; 2],
    ) -> Result<[Slot; 2], IoError> {
        let mut slots = [[0; SLOT_SIZE]; 2];
        for (slot, offset) in slots.iter_mut().zip(offsets) {
            let buffer = buffers.get(SLOT_SIZE);
            disk.read(offset, &buffer).await?;
            buffer.read_at(0, slot);
        }
        Ok(slots)
    }

    /// Replaces the record with the one that `fill` puts into a zeroed slot, and returns its sequence number. Durable
    /// on return. Concurrent calls run one after the other (spec L7), each filling its slot when its turn comes.
    ///
    /// # Errors
    /// What the disk says; the record is then the old one, or, to the next reader, perhaps the new one.
    /// [`IoError::Stopped`] when an earlier call was dropped half way.
    ///
    /// # Panics
    /// After 2^64 updates.
    pub async fn replace<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
        fill: impl FnOnce(&mut Slot),
    ) -> Result<u64, IoError> {
        let entered = self.gate.enter().await?;
        let older = 1 - self.current.get();
        let seq = self
            .seq_used
            .get()
            .checked_add(1)
            .expect("2^64 updates take longer than any disk lives");
        let mut slot = [0; SLOT_SIZE];
        fill(&mut slot);
        seal(&mut slot, seq);
        self.seq_used.set(seq);
        let written = disk
            .write(self.offsets[older], &buffers.copy_of(&slot), true)
            .await;
        if written.is_ok() {
            self.current.set(older);
        }
        entered.leave();
        written.map(|()| seq)
    }

    /// Zeroes both slots, the older one first: a crash in between leaves the record as it was, never an older one.
    /// Durable on return. From then on the pair takes no record: [`SlotPair::replace`] answers [`IoError::Stopped`].
    ///
    /// # Errors
    /// As [`SlotPair::replace`].
    pub async fn wipe<D: BlockDevice>(
        &self,
        disk: &D,
        buffers: &BufferPool,
    ) -> Result<(), IoError> {
        // Not left again: that shuts the gate.
        let _entered = self.gate.enter().await?;
        let current = self.current.get();
        for slot in [1 - current, current] {
            let zeroes = buffers.zeroed(SLOT_SIZE);
            disk.write(self.offsets[slot], &zeroes, true).await?;
        }
        Ok(())
    }
}
