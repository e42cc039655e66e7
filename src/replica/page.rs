//! One page of a bitmap on disk (spec section 9).
//!
//! ```text
//! off   len   field
//! 0     4     magic "RPBM"
//! 4     2     index of the page in its bitmap
//! 6     1     kind: 0 intent, 1 missed
//! 7     1     region_shift
//! 8     8     seq: counts the writes of this page (diagnostic only)
//! 16    16    volume uuid
//! 32    4060  bits, the first region in the lowest bit of the first byte
//! 4092  4     crc32c of bytes 0..4092
//! ```

use std::ops::Range;

use uuid::Uuid;

use super::bitmap::BitmapKind;
use super::layout::{PAGE_BITS_LEN, PAGE_SIZE, PAGES};
use crate::model::VolumeId;

/// The first bytes of every page.
pub const PAGE_MAGIC: [u8; 4] = *b"RPBM";
const BITS_AT: usize = 32;
const CRC_AT: usize = BITS_AT + PAGE_BITS_LEN;

/// The bits of a page.
pub type Bits = [u8; PAGE_BITS_LEN];

/// One page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its place in the bitmap, below [`PAGES`].
    pub index: u16,
    /// Which bitmap it belongs to.
    pub kind: BitmapKind,
    /// Base-2 logarithm of the bytes that one bit stands for.
    pub region_shift: u8,
    /// Counts the writes of this page; for people only.
    pub seq: u64,
    /// The volume that it belongs to.
    pub volume: VolumeId,
    /// The bits.
    pub bits: Box<Bits>,
}

/// Why bytes are not a page. Such a page counts as all ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Not 4096 bytes.
    #[error("a bitmap page has {PAGE_SIZE} bytes, this has {0}")]
    Length(usize),
    /// Something else is here.
    #[error("the page does not start with the bitmap magic")]
    Magic,
    /// The bytes changed since they were written, or the write was torn.
    #[error("the page's checksum does not match")]
    Checksum,
    /// A kind that does not exist.
    #[error("the page's kind is {0}, expected 0 or 1")]
    Kind(u8),
    /// A place that does not exist.
    #[error("the page's index is {0}, expected less than {PAGES}")]
    Index(u16),
}

impl Page {
    /// Reads a page. Any bytes are allowed; this never panics.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let bytes: &[u8; PAGE_SIZE] = bytes
            .try_into()
            .map_err(|_| PageError::Length(bytes.len()))?;
        if bytes[..4] != PAGE_MAGIC {
            return Err(PageError::Magic);
        }
        if bytes[CRC_AT..] != crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes() {
            return Err(PageError::Checksum);
        }
        let kind = match bytes[6] {
            0 => BitmapKind::Intent,
            1 => BitmapKind::Missed,
            other => return Err(PageError::Kind(other)),
        };
        let index = u16::from_le_bytes([bytes[4], bytes[5]]);
        if usize::from(index) >= PAGES {
            return Err(PageError::Index(index));
        }
        let mut seq = [0; 8];
        seq.copy_from_slice(&bytes[8..16]);
        let mut volume = [0; 16];
        volume.copy_from_slice(&bytes[16..32]);
        let mut bits = Box::new([0; PAGE_BITS_LEN]);
        bits.copy_from_slice(&bytes[BITS_AT..CRC_AT]);
        Ok(Self {
            index,
            kind,
            region_shift: bytes[7],
            seq: u64::from_le_bytes(seq),
            volume: VolumeId::from_uuid(Uuid::from_bytes(volume)),
            bits,
        })
    }

    /// The page's bytes, with their CRC.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_SIZE] {
        let mut bytes = [0; PAGE_SIZE];
        bytes[..4].copy_from_slice(&PAGE_MAGIC);
        bytes[4..6].copy_from_slice(&self.index.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[7] = self.region_shift;
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..32].copy_from_slice(self.volume.uuid().as_bytes());
        bytes[BITS_AT..CRC_AT].copy_from_slice(&self.bits[..]);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// How many bits are set.
pub(super) fn count(bits: &Bits) -> u64 {
    bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
}

/// Whether a bit is set.
pub(super) fn get(bits: &Bits, bit: usize) -> bool {
    bits[bit / 8] & (1 << (bit % 8)) != 0
}

/// Changes a range to `value`; how many bits were different.
pub(super) fn set(bits: &mut Bits, range: Range<usize>, value: bool) -> u64 {
    let mut changed = 0;
    for bit in range {
        if get(bits, bit) != value {
            bits[bit / 8] ^= 1 << (bit % 8);
            changed += 1;
        }
    }
    changed
}

/// Whether every bit of a range is set.
pub(super) fn all_set(bits: &Bits, mut range: Range<usize>) -> bool {
    range.all(|bit| get(bits, bit))
}

/// Whether every bit of `part` is set in `bits`.
pub(super) fn contains(bits: &Bits, part: &Bits) -> bool {
    bits.iter().zip(part).all(|(bits, part)| part & !bits == 0)
}
