//! [`BlockDevice`]: the one seam between production and simulation, and the error that it reports.

use std::future::Future;

use super::buffer::IoBuffer;

/// Something with a fixed number of bytes that can be read, written, zeroed and flushed at byte offsets.
///
/// Implemented by files on a reactor's ring, by memory, by simulated disks, and by the nexus itself. All calls belong
/// to the thread that made the device. A call does nothing before its future is first polled; dropping the future
/// afterwards abandons the *answer*, never the memory: the device holds a clone of the buffer until the kernel is done.
///
/// Offsets and lengths must be multiples of [`Alignment::offset`]; ranges must lie inside [`BlockDevice::size`].
/// Violations are answered with `EINVAL` and have no effect.
pub trait BlockDevice: 'static {
    /// Usable size in bytes.
    fn size(&self) -> u64;

    /// What offsets, lengths and memory must be multiples of.
    fn alignment(&self) -> Alignment;

    /// Fills `buf` from `offset`. Short reads are retried for the remainder; at the end of the backing store the
    /// answer is [`IoError::Short`].
    fn read(&self, offset: u64, buf: &IoBuffer) -> impl Future<Output = Result<(), IoError>>;

    /// Writes all of `buf` at `offset`. With `fua` the data is durable when this returns `Ok`; without, after the
    /// next [`BlockDevice::flush`] that was submitted after this returned.
    fn write(
        &self,
        offset: u64,
        buf: &IoBuffer,
        fua: bool,
    ) -> impl Future<Output = Result<(), IoError>>;

    /// Makes `len` bytes at `offset` read as zeroes, deallocating them when the options say so.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> impl Future<Output = Result<(), IoError>>;

    /// Makes every write that completed before this was submitted durable. After a failure nothing is known about
    /// those writes, and a later success says nothing about them (spec W10).
    fn flush(&self) -> impl Future<Output = Result<(), IoError>>;

    /// Enlarges the device to `size` bytes, durably; the new range reads as zeroes. Never shrinks.
    fn grow(&self, size: u64) -> impl Future<Output = Result<(), IoError>>;
}

/// What a device wants addresses to be multiples of, in bytes; both are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of offsets and lengths.
    pub offset: u32,
    /// Of the memory of each segment.
    pub memory: u32,
}

/// How to zero a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Whether the range may be deallocated. A thick replica ignores this and keeps its reservation.
    pub unmap: bool,
    /// Whether the zeroes are durable when the call returns.
    pub fua: bool,
}

/// Why an I/O failed: the errno, or what no errno says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The kernel's (or simulated disk's) errno, positive.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
    /// The backing store ended inside the range although it should not (spec section 5: `Truncated`).
    #[error("the backing file ends before the range does")]
    Short,
    /// The device, volume or session was stopped before the I/O could complete.
    #[error("stopped before the I/O could complete")]
    Stopped,
}

impl IoError {
    /// `EIO`.
    pub const EIO: Self = Self::Os(libc::EIO);
    /// `EINVAL`.
    pub const EINVAL: Self = Self::Os(libc::EINVAL);
    /// `ENOSPC`.
    pub const ENOSPC: Self = Self::Os(libc::ENOSPC);
    /// `EROFS`.
    pub const EROFS: Self = Self::Os(libc::EROFS);
    /// `EOPNOTSUPP`.
    pub const EOPNOTSUPP: Self = Self::Os(libc::EOPNOTSUPP);

    /// The errno to tell a client: positive, `EIO` for what has none.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Os(errno) => errno,
            Self::Short | Self::Stopped => libc::EIO,
        }
    }

    /// Whether the kernel did nothing for want of something that it may have again soon.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Os(libc::EAGAIN | libc::EINTR | libc::ENOMEM))
    }

    /// Whether it was refused before the disk had anything to do with it: nothing written before can have been lost.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        let refused = matches!(
            self,
            Self::Stopped | Self::Os(libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP | libc::EROFS)
        );
        refused || self.is_no_space()
    }

    /// Whether the pool has no room left (`ENOSPC` or `EDQUOT`).
    #[must_use]
    pub const fn is_no_space(self) -> bool {
        matches!(self, Self::Os(libc::ENOSPC | libc::EDQUOT))
    }
}
