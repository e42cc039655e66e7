//! What a reactor can ask of a file, and the SQE that asks it.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::buffer::IoBuffer;

/// What a file operation does. Offsets and lengths are bytes.
pub(crate) enum Operation {
    /// Read into the buffer.
    Read(u64),
    /// Write the buffer, durably (`RWF_DSYNC`) if asked.
    Write(u64, bool),
    /// `fallocate` with this mode.
    Fallocate { offset: u64, len: u64, mode: i32 },
    /// `fdatasync`.
    Fdatasync,
    /// `ftruncate`.
    Ftruncate(u64),
    /// A device command with a 16-byte payload.
    Command { op: u32, payload: [u8; 16] },
}

impl Operation {
    /// The SQE. It may point into `buffer` and `iovecs`, which must stay where they are until its CQE.
    pub(crate) fn entry(
        &self,
        file: &OwnedFd,
        buffer: Option<&IoBuffer>,
        iovecs: &mut Vec<libc::iovec>,
    ) -> squeue::Entry {
        let fd = Fd(file.as_raw_fd());
        match self {
            Self::Read(offset) => match single(buffer, iovecs) {
                Some((base, len, Some(number))) => opcode::ReadFixed::new(fd, base, len, number)
                    .offset(*offset)
                    .build(),
                Some((base, len, None)) => opcode::Read::new(fd, base, len).offset(*offset).build(),
                None => opcode::Readv::new(fd, iovecs.as_ptr(), count(iovecs))
                    .offset(*offset)
                    .build(),
            },
            Self::Write(offset, durable) => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                match single(buffer, iovecs) {
                    Some((base, len, Some(number))) => {
                        opcode::WriteFixed::new(fd, base, len, number)
                            .offset(*offset)
                            .rw_flags(flags)
                            .build()
                    }
                    Some((base, len, None)) => opcode::Write::new(fd, base, len)
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Writev::new(fd, iovecs.as_ptr(), count(iovecs))
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Self::Fallocate { offset, len, mode } => opcode::Fallocate::new(fd, *len)
                .offset(*offset)
                .mode(*mode)
                .build(),
            Self::Fdatasync => opcode::Fsync::new(fd)
                .flags(io_uring::types::FsyncFlags::DATASYNC)
                .build(),
            Self::Ftruncate(len) => opcode::Ftruncate::new(fd, *len).build(),
            Self::Command { op, payload } => opcode::UringCmd16::new(fd, *op).cmd(*payload).build(),
        }
    }
}

/// The only segment of a buffer and what it is registered as, or `None` with all segments in `iovecs`.
fn single(
    buffer: Option<&IoBuffer>,
    iovecs: &mut Vec<libc::iovec>,
) -> Option<(*mut u8, u32, Option<u16>)> {
    let buffer = buffer.expect("reads and writes come with a buffer");
    let mut segments = buffer.segments();
    let first = segments.next()?;
    if let (None, Ok(len)) = (segments.next(), u32::try_from(first.len)) {
        return Some((first.base, len, buffer.number()));
    }
    iovecs.extend(buffer.segments().map(|s| libc::iovec {
        iov_base: s.base.cast(),
        iov_len: s.len,
    }));
    None
}

fn count(iovecs: &[libc::iovec]) -> u32 {
    u32::try_from(iovecs.len()).expect("fewer segments than a virtqueue has descriptors")
}
