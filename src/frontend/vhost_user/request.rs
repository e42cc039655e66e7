//! virtio-blk requests (virtio 1.2, section 5.2.6): from a chain's ranges to what a volume understands.
//!
//! The layout of a request is not taken for granted: the header is the first 16 readable bytes and the status the last
//! writable one, however they are spread over descriptors (section 2.7.4).

#[cfg(test)]
mod tests;

use std::rc::Rc;

use super::address::{BadAddress, GuestRange};
use super::chain::{Chain, ChainError};
use super::memory::{MemoryTable, WORDS_LEN};
use crate::io::IoBuffer;

/// Virtio's unit of offsets and lengths, whatever the block size.
pub(super) const SECTOR: u64 = 512;
/// The most ranges in one discard or write-zeroes request.
pub(super) const ZERO_RANGES_MAX: u32 = 16;
/// The most sectors in each: 1 GiB, so that one request does not keep a disk busy for long.
pub(super) const ZERO_SECTORS_MAX: u32 = 1 << 21;
/// Length of the answer to GET_ID.
pub(super) const ID_LEN: usize = 20;

/// The header of a request and a range to be zeroed are two words each.
const ZERO_RANGE_LEN: usize = WORDS_LEN as usize;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const FLAG_UNMAP: u32 = 1;

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// A request that makes sense.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    /// Guest address of the status byte.
    pub(super) status: u64,
    /// Bytes that a success writes, the status byte included.
    pub(super) written: u32,
}

/// What a request asks for. Offsets and lengths are bytes.
#[derive(Debug)]
pub(super) enum Command {
    Read { offset: u64, buffer: IoBuffer },
    Write { offset: u64, buffer: IoBuffer },
    Flush,
    Zero(Vec<ZeroRange>),
    GetId(IoBuffer),
}

/// One range of a discard or write-zeroes request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZeroRange {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) unmap: bool,
}

/// A request that does not make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) error: ChainError,
    /// Guest address of the status byte, if there is one.
    pub(super) status: Option<u64>,
}

impl Refusal {
    /// What the status byte says about it.
    pub(super) fn code(self) -> Status {
        match self.error {
            ChainError::Type(_) | ChainError::Flags => Status::Unsupported,
            _ => Status::IoErr,
        }
    }
}

impl From<BadAddress> for ChainError {
    fn from(bad: BadAddress) -> Self {
        Self::Address(bad.address)
    }
}

/// Understands the request in `chain` (as filled by [`Chain::read`]) for a disk of `disk_size` bytes. Uses the ranges
/// up.
///
/// # Errors
/// [`Refusal`]; nothing has been done then.
pub(super) fn decode(
    memory: &Rc<MemoryTable>,
    chain: &mut Chain,
    disk_size: u64,
) -> Result<Request, Refusal> {
    let status = chain.status();
    let refuse = |error| Refusal { error, status };
    let status = status.ok_or(refuse(ChainError::NoStatus))?;
    // The status must be writable before anything is done: nobody would learn of the result otherwise.
    let range = GuestRange {
        address: status,
        len: 1,
    };
    if let Err(bad) = memory.check(range) {
        return Err(Refusal {
            error: bad.into(),
            status: None,
        });
    }
    take_back(&mut chain.writable, 1);
    let (command, written) = command(memory, chain, disk_size).map_err(refuse)?;
    Ok(Request {
        command,
        status,
        written,
    })
}

/// The command and the number of bytes that its success writes.
fn command(
    memory: &Rc<MemoryTable>,
    chain: &mut Chain,
    disk_size: u64,
) -> Result<(Command, u32), ChainError> {
    let [kind, sector] = take_words(memory, &mut chain.readable)?;
    let (kind, _reserved) = halves(kind);
    let command = match kind {
        TYPE_IN => {
            let buffer = memory.buffer(&chain.writable)?;
            let offset = offset(sector, &buffer, disk_size)?;
            // One more for the status. More than 4 GiB can't be said in the used ring, and isn't asked for.
            let written = u32::try_from(buffer.len())
                .ok()
                .and_then(|n| n.checked_add(1));
            let written = written.ok_or(ChainError::Data)?;
            return Ok((Command::Read { offset, buffer }, written));
        }
        TYPE_OUT => {
            let buffer = memory.buffer(&chain.readable)?;
            let offset = offset(sector, &buffer, disk_size)?;
            Command::Write { offset, buffer }
        }
        TYPE_FLUSH => Command::Flush,
        TYPE_GET_ID => {
            let buffer = memory.buffer(&chain.writable)?;
            let len = buffer.len().min(ID_LEN);
            let written = u32::try_from(len + 1).unwrap_or(1);
            return Ok((Command::GetId(buffer.slice(0, len)), written));
        }
        TYPE_DISCARD | TYPE_WRITE_ZEROES => {
            let is_discard = kind == TYPE_DISCARD;
            Command::Zero(zero_ranges(memory, chain, disk_size, is_discard)?)
        }
        other => return Err(ChainError::Type(other)),
    };
    Ok((command, 1))
}

/// The byte offset of a transfer, checked against the disk.
fn offset(sector: u64, buffer: &IoBuffer, disk_size: u64) -> Result<u64, ChainError> {
    let len = buffer.len() as u64;
    if len == 0 || !len.is_multiple_of(SECTOR) {
        return Err(ChainError::Data);
    }
    byte_range(sector, len, disk_size)
}

fn byte_range(sector: u64, len: u64, disk_size: u64) -> Result<u64, ChainError> {
    let offset = sector.checked_mul(SECTOR).ok_or(ChainError::Sector)?;
    let end = offset.checked_add(len).ok_or(ChainError::Sector)?;
    if end > disk_size {
        return Err(ChainError::Sector);
    }
    Ok(offset)
}

fn zero_ranges(
    memory: &MemoryTable,
    chain: &mut Chain,
    disk_size: u64,
    is_discard: bool,
) -> Result<Vec<ZeroRange>, ChainError> {
    let len = total(&chain.readable);
    let count = len / ZERO_RANGE_LEN as u64;
    if count == 0
        || count > u64::from(ZERO_RANGES_MAX)
        || !len.is_multiple_of(ZERO_RANGE_LEN as u64)
    {
        return Err(ChainError::Data);
    }
    (0..count)
        .map(|_| {
            let [sector, rest] = take_words(memory, &mut chain.readable)?;
            let (sectors, flags) = halves(rest);
            // A discard always unmaps and says so by having no flag.
            let known = if is_discard { 0 } else { FLAG_UNMAP };
            if flags & !known != 0 {
                return Err(ChainError::Flags);
            }
            if sectors == 0 || sectors > ZERO_SECTORS_MAX {
                return Err(ChainError::Data);
            }
            let len = u64::from(sectors) * SECTOR;
            Ok(ZeroRange {
                offset: byte_range(sector, len, disk_size)?,
                len,
                unmap: is_discard || flags & FLAG_UNMAP != 0,
            })
        })
        .collect()
}

/// The low and the high half of a word.
#[allow(
    clippy::cast_possible_truncation,
    reason = "each half is cut out of the word that holds it"
)]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

fn total(ranges: &[GuestRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.len)).sum()
}

/// Reads the first two words of `ranges` and takes them off.
fn take_words(memory: &MemoryTable, ranges: &mut Vec<GuestRange>) -> Result<[u64; 2], ChainError> {
    // Drivers put them into a descriptor of their own, though none has to.
    if let Some(first) = ranges.first()
        && first.len == WORDS_LEN
    {
        let words = memory.read_words(first.address)?;
        ranges.remove(0);
        return Ok(words);
    }
    let mut words = [[0; 8]; 2];
    take_front(memory, ranges, words.as_flattened_mut())?;
    Ok(words.map(u64::from_le_bytes))
}

/// Reads the first bytes of `ranges` and takes them off.
fn take_front(
    memory: &MemoryTable,
    ranges: &mut Vec<GuestRange>,
    bytes: &mut [u8],
) -> Result<(), ChainError> {
    if total(ranges) < bytes.len() as u64 {
        return Err(ChainError::Header(total(ranges)));
    }
    let mut rest = bytes;
    let mut used_up = 0;
    for range in ranges.iter_mut() {
        let len = rest
            .len()
            .min(usize::try_from(range.len).unwrap_or(usize::MAX));
        let (now, later) = rest.split_at_mut(len);
        memory.read(range.address, now)?;
        rest = later;
        let taken = u32::try_from(len).unwrap_or(range.len);
        range.address = range.address.wrapping_add(u64::from(taken));
        range.len -= taken;
        if range.len > 0 {
            break;
        }
        used_up += 1;
    }
    ranges.drain(..used_up);
    Ok(())
}

/// Takes `count` bytes off the end of the last range, which has them.
fn take_back(ranges: &mut Vec<GuestRange>, count: u32) {
    if let Some(last) = ranges.last_mut() {
        last.len -= count;
        if last.len == 0 {
            ranges.pop();
        }
    }
}
