//! [`FileDevice`]: a block device over an O_DIRECT file on a reactor's ring.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::buffer::IoBuffer;
use super::device::{Alignment, BlockDevice, IoError, ZeroOptions};
use super::operation::Operation;
use super::reactor::Local;

/// What the kernel can zero without reading anything, bytes: the largest block of the filesystems we serve from. Ragged
/// edges are zeroed by writes, because a filesystem would do them through the page cache, past our direct I/O.
const ZERO_GRAIN: u64 = 4096;
/// The largest single write of zeroes, bytes.
const ZERO_WRITE_MAX: u64 = 1 << 20;

/// A file as a block device. Short transfers are continued, odd memory is bounced, `EINTR` is retried at once.
#[derive(Debug)]
pub struct FileDevice {
    local: Local,
    file: Rc<OwnedFd>,
    size: Cell<u64>,
    alignment: Alignment,
    thick: bool,
    /// Whether `fallocate` zeroes ranges here; found out by the first attempt.
    fallocate_zeroes: Cell<bool>,
}

impl FileDevice {
    pub(crate) fn new(
        local: Local,
        file: Rc<OwnedFd>,
        size: u64,
        alignment: Alignment,
        thick: bool,
    ) -> Self {
        Self {
            local,
            file,
            size: Cell::new(size),
            alignment,
            thick,
            fallocate_zeroes: Cell::new(true),
        }
    }

    /// The file, for what only an fd can do (fstat).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let grain = u64::from(self.alignment.offset);
        let end = offset.checked_add(len).ok_or(IoError::EINVAL)?;
        let aligned = offset.is_multiple_of(grain) && len.is_multiple_of(grain);
        if aligned && end <= self.size.get() {
            Ok(())
        } else {
            Err(IoError::EINVAL)
        }
    }

    fn fits(&self, buffer: &IoBuffer) -> bool {
        buffer.is_aligned(
            self.alignment.memory as usize,
            self.alignment.offset as usize,
        )
    }

    async fn operate(
        &self,
        operation: &Operation,
        buffer: Option<&IoBuffer>,
    ) -> Result<usize, IoError> {
        loop {
            match self
                .local
                .operate(&self.file, operation, buffer.cloned())
                .await
            {
                Err(IoError::Os(libc::EINTR)) => {}
                other => return other,
            }
        }
    }

    async fn read_aligned(&self, offset: u64, buffer: &IoBuffer) -> Result<(), IoError> {
        let mut done = 0;
        while done < buffer.len() {
            let rest = buffer.slice(done, buffer.len() - done);
            match self
                .operate(&Operation::Read(offset + done as u64), Some(&rest))
                .await?
            {
                0 => return Err(IoError::Short),
                // Only the end of the file is off the grid. Going on from there would be EINVAL on some filesystems.
                now if !now.is_multiple_of(self.alignment.offset as usize) => {
                    return Err(IoError::Short);
                }
                now => done += now,
            }
        }
        Ok(())
    }

    async fn write_aligned(
        &self,
        offset: u64,
        buffer: &IoBuffer,
        fua: bool,
    ) -> Result<(), IoError> {
        let mut done = 0;
        while done < buffer.len() {
            let rest = buffer.slice(done, buffer.len() - done);
            match self
                .operate(&Operation::Write(offset + done as u64, fua), Some(&rest))
                .await?
            {
                0 => return Err(IoError::EIO),
                now => done += now,
            }
        }
        Ok(())
    }

    /// Zeroes a range that lies on the grain.
    async fn zero_grains(&self, offset: u64, len: u64, unmap: bool) -> Result<(), IoError> {
        if len == 0 {
            return Ok(());
        }
        if self.fallocate_zeroes.get() {
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            let modes = if unmap && !self.thick {
                [punch, zero]
            } else {
                [zero, zero]
            };
            for mode in modes {
                match self
                    .operate(&Operation::Fallocate { offset, len, mode }, None)
                    .await
                {
                    Err(IoError::Os(libc::EOPNOTSUPP)) => {}
                    other => return other.map(drop),
                }
            }
            self.fallocate_zeroes.set(false);
        }
        self.zero_by_writes(offset, len).await
    }

    async fn zero_by_writes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if len == 0 {
            return Ok(());
        }
        let chunk = usize::try_from(len.min(ZERO_WRITE_MAX)).map_err(|_| IoError::EINVAL)?;
        let zeroes = self.local.buffers().zeroed(chunk);
        let mut done = 0;
        while done < len {
            let now = usize::try_from((len - done).min(ZERO_WRITE_MAX)).unwrap_or(chunk);
            self.write_aligned(offset + done, &zeroes.slice(0, now), false)
                .await?;
            done += now as u64;
        }
        Ok(())
    }
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size.get()
    }

    fn alignment(&self) -> Alignment {
        self.alignment
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        self.check(offset, buf.len() as u64)?;
        if self.fits(buf) {
            return self.read_aligned(offset, buf).await;
        }
        let bounce = self.local.buffers().get(buf.len());
        self.read_aligned(offset, &bounce).await?;
        buf.copy_from(&bounce);
        Ok(())
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        self.check(offset, buf.len() as u64)?;
        if self.fits(buf) {
            return self.write_aligned(offset, buf, fua).await;
        }
        let bounce = self.local.buffers().get(buf.len());
        bounce.copy_from(buf);
        self.write_aligned(offset, &bounce, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        self.check(offset, len)?;
        let end = offset + len;
        let inner_start = offset.next_multiple_of(ZERO_GRAIN).min(end);
        let inner_end = (end - end % ZERO_GRAIN).max(inner_start);
        self.zero_by_writes(offset, inner_start - offset).await?;
        self.zero_grains(inner_start, inner_end - inner_start, options.unmap)
            .await?;
        self.zero_by_writes(inner_end, end - inner_end).await?;
        if options.fua {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.operate(&Operation::Fdatasync, None).await.map(drop)
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        if size < self.size.get() || !size.is_multiple_of(u64::from(self.alignment.offset)) {
            return Err(IoError::EINVAL);
        }
        if self.thick {
            let (offset, len) = (self.size.get(), size - self.size.get());
            self.operate(
                &Operation::Fallocate {
                    offset,
                    len,
                    mode: 0,
                },
                None,
            )
            .await?;
        } else {
            self.operate(&Operation::Ftruncate(size), None).await?;
        }
        self.flush().await?;
        self.size.set(size);
        Ok(())
    }
}
