//! What the kernel and a ublk server tell each other per request: `linux/ublk_cmd.h`, in safe Rust.

use libublk::sys;

use crate::io::ZeroOptions;

/// Bytes per sector in the ABI, whatever the logical block size is.
const SECTOR: u64 = 512;
/// Low bits of `op_flags` that hold the operation; the others are flags.
const OPERATION_MASK: u32 = 0xff;
/// Size of a descriptor in the shared area, bytes.
pub(super) const DESCRIPTOR_LEN: usize = size_of::<sys::ublksrv_io_desc>();

/// A request, as its descriptor (`struct ublksrv_io_desc`) tells it. Offsets and lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Fill the request's pages.
    Read { offset: u64, len: usize },
    /// Write the request's pages.
    Write { offset: u64, len: usize, fua: bool },
    /// Zero a range: WRITE_ZEROES, and DISCARD, which is one that may unmap (spec section 10).
    Zero {
        offset: u64,
        len: u64,
        options: ZeroOptions,
    },
    /// Make durable what was answered.
    Flush,
}

/// Reads a descriptor. The kernel is trusted not to lie, but a version of it may say something new.
///
/// # Errors
/// The errno to answer: `EOPNOTSUPP` for an operation that volund does not offer, `EINVAL` for a range that does not
/// fit 64 bits or carries more than `data_len_max` bytes of data.
pub(super) fn decode(
    descriptor: sys::ublksrv_io_desc,
    data_len_max: usize,
) -> Result<Command, i32> {
    let flags = descriptor.op_flags & !OPERATION_MASK;
    let len = u64::from(descriptor.nr_sectors) * SECTOR;
    let data_len = || {
        let len = usize::try_from(len).map_err(|_| libc::EINVAL)?;
        (len <= data_len_max).then_some(len).ok_or(libc::EINVAL)
    };
    // A flush has no range: the kernel says sector 2^64 - 1.
    let offset = match descriptor.start_sector.checked_mul(SECTOR) {
        _ if descriptor.op_flags & OPERATION_MASK == sys::UBLK_IO_OP_FLUSH => 0,
        Some(offset) if offset.checked_add(len).is_some() => offset,
        _ => return Err(libc::EINVAL),
    };
    let fua = flags & sys::UBLK_IO_F_FUA != 0;
    match descriptor.op_flags & OPERATION_MASK {
        sys::UBLK_IO_OP_READ => data_len().map(|len| Command::Read { offset, len }),
        sys::UBLK_IO_OP_WRITE => data_len().map(|len| Command::Write { offset, len, fua }),
        sys::UBLK_IO_OP_FLUSH => Ok(Command::Flush),
        sys::UBLK_IO_OP_DISCARD => {
            let options = ZeroOptions { unmap: true, fua };
            Ok(Command::Zero {
                offset,
                len,
                options,
            })
        }
        sys::UBLK_IO_OP_WRITE_ZEROES => {
            let unmap = flags & sys::UBLK_IO_F_NOUNMAP == 0;
            let options = ZeroOptions { unmap, fua };
            Ok(Command::Zero {
                offset,
                len,
                options,
            })
        }
        _ => Err(libc::EOPNOTSUPP),
    }
}

/// The 16 bytes that go with FETCH_REQ and COMMIT_AND_FETCH_REQ (`struct ublksrv_io_cmd`) on queue 0. The address
/// stays zero, as UBLK_F_USER_COPY demands.
#[allow(
    clippy::host_endian_bytes,
    reason = "the kernel ABI is in the host's byte order"
)]
pub(super) fn payload(tag: u16, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes
}

/// Where the data of request `tag` of queue 0 is in the character device's address space, for UBLK_F_USER_COPY.
pub(super) fn data_position(tag: u16) -> u64 {
    u64::from(sys::UBLKSRV_IO_BUF_OFFSET) + (u64::from(tag) << sys::UBLK_TAG_OFF)
}

/// The result of a request that moved `len` bytes of data; others answer zero.
pub(super) fn moved(len: usize) -> i32 {
    i32::try_from(len).expect("a request's data is at most DATA_LEN_MAX, far below 2 GiB")
}

#[cfg(test)]
#[allow(
    clippy::host_endian_bytes,
    reason = "the kernel ABI is in the host's byte order"
)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    fn check(op_flags: u32, sectors: u32, start_sector: u64, expected: Result<Command, i32>) {
        let descriptor = sys::ublksrv_io_desc {
            op_flags,
            nr_sectors: sectors,
            start_sector,
            addr: u64::MAX,
        };
        assert_eq!(
            decode(descriptor, MAX),
            expected,
            "{op_flags:#x} {sectors} {start_sector}"
        );
    }

    #[test]
    fn every_offered_operation_and_its_flags_are_understood() {
        let (offset, len) = (8 * 512, 4096);
        check(0, 8, 8, Ok(Command::Read { offset, len }));
        let write = |fua| Ok(Command::Write { offset, len, fua });
        check(1, 8, 8, write(false));
        check(1 | sys::UBLK_IO_F_FUA, 8, 8, write(true));
        check(
            1 | sys::UBLK_IO_F_META | sys::UBLK_IO_F_SWAP,
            8,
            8,
            write(false),
        );
        check(2, 0, 0, Ok(Command::Flush));
        check(2, 0, u64::MAX, Ok(Command::Flush));
        let zero = |unmap, fua| {
            let options = ZeroOptions { unmap, fua };
            Ok(Command::Zero {
                offset,
                len: 4096,
                options,
            })
        };
        check(3, 8, 8, zero(true, false));
        check(5, 8, 8, zero(true, false));
        check(5 | sys::UBLK_IO_F_NOUNMAP, 8, 8, zero(false, false));
        check(5 | sys::UBLK_IO_F_FUA, 8, 8, zero(true, true));
    }

    #[test]
    fn operations_that_were_not_offered_are_refused() {
        for operation in (0..=255).filter(|op| ![0, 1, 2, 3, 5].contains(op)) {
            check(operation, 8, 8, Err(libc::EOPNOTSUPP));
        }
    }

    #[test]
    fn hostile_ranges_are_refused_and_nothing_is_allocated_for_them() {
        check(0, u32::MAX, 0, Err(libc::EINVAL));
        check(1, 2049, 0, Err(libc::EINVAL));
        let len = 1 << 20;
        check(0, 2048, 0, Ok(Command::Read { offset: 0, len }));
        check(0, 8, u64::MAX, Err(libc::EINVAL));
        check(0, 8, u64::MAX / 512, Err(libc::EINVAL));
        check(3, u32::MAX, u64::MAX / 512 - 3, Err(libc::EINVAL));
        let options = ZeroOptions {
            unmap: true,
            fua: false,
        };
        let len = u64::from(u32::MAX) * 512;
        check(
            3,
            u32::MAX,
            0,
            Ok(Command::Zero {
                offset: 0,
                len,
                options,
            }),
        );
    }

    #[test]
    fn payloads_are_laid_out_as_the_header_says() {
        assert_eq!(size_of::<sys::ublksrv_io_cmd>(), 16);
        assert_eq!(DESCRIPTOR_LEN, 24);
        let bytes = payload(0x0102, -5);
        assert_eq!(bytes[0..2], [0, 0]);
        assert_eq!(bytes[2..4], 0x0102_u16.to_ne_bytes());
        assert_eq!(bytes[4..8], (-5_i32).to_ne_bytes());
        assert_eq!(bytes[8..], [0; 8]);
    }

    #[test]
    fn each_tag_has_its_own_data_window() {
        assert_eq!(data_position(0), 0x8000_0000);
        assert_eq!(data_position(1) - data_position(0), 32 << 20);
        assert!(data_position(4095) < 0x8000_0000 + (1 << 41));
    }
}
