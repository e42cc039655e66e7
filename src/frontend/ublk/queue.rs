//! Data path, hop 1 of 5: takes requests from a ublk device's queue, owns their buffers, and answers them.
//!
//! Each of the queue's tags is a task that goes round: tell the kernel the last answer and ask for the next request
//! (COMMIT_AND_FETCH_REQ; the first time FETCH_REQ), read its descriptor, run it, repeat. A tag ends when the kernel
//! answers with an error: `UBLK_IO_RES_ABORT` when the device was stopped, and nothing else in normal life.

#![allow(
    unsafe_code,
    reason = "maps the descriptors, and copies between a request's pages and IoBuffers, which are raw memory"
)]

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libublk::sys;
use rustix::mm::{MapFlags, ProtFlags};
use tokio::sync::oneshot;

use super::DATA_LEN_MAX;
use super::descriptor::{self, Command, DESCRIPTOR_LEN};
use crate::io::{BlockDevice, IoBuffer, IoError, Local, Spawn};
use crate::volume::Request;
use crate::volume::volume::SharedVolume;

/// The queue of one device, served on the volume's reactor.
pub(super) struct Queue<D> {
    file: Rc<OwnedFd>,
    descriptors: Descriptors,
    volume: SharedVolume<D, Local>,
    local: Local,
    tags_left: Cell<u16>,
    /// The first answer to a FETCH that is not the end of the device.
    trouble: Cell<i32>,
    is_served: Arc<AtomicBool>,
    ended: RefCell<Option<oneshot::Sender<i32>>>,
}

/// A queue as other threads see it.
#[derive(Debug)]
pub(super) struct Serving {
    /// Whether requests are still being fetched.
    pub(super) is_served: Arc<AtomicBool>,
    /// Comes when the last tag has ended: zero after an orderly end, else the first unexpected errno.
    pub(super) ended: oneshot::Receiver<i32>,
}

/// The kernel's array of descriptors, one per tag, mapped for reading.
struct Descriptors {
    base: NonNull<sys::ublksrv_io_desc>,
    depth: u16,
    len: usize,
}

impl<D: BlockDevice> Queue<D> {
    /// Maps the queue of the character device `file` and starts to fetch requests for `volume`.
    pub(super) fn start(
        file: OwnedFd,
        depth: u16,
        volume: SharedVolume<D, Local>,
        local: &Local,
    ) -> io::Result<Serving> {
        let (tell, ended) = oneshot::channel();
        let is_served = Arc::new(AtomicBool::new(true));
        let queue = Rc::new(Self {
            descriptors: Descriptors::map(&file, depth)?,
            file: Rc::new(file),
            volume,
            local: local.clone(),
            tags_left: Cell::new(depth),
            trouble: Cell::new(0),
            is_served: Arc::clone(&is_served),
            ended: RefCell::new(Some(tell)),
        });
        for tag in 0..depth {
            local.spawn(Rc::clone(&queue).serve(tag));
        }
        Ok(Serving { is_served, ended })
    }

    async fn serve(self: Rc<Self>, tag: u16) {
        let mut operation = sys::UBLK_U_IO_FETCH_REQ;
        let mut result = 0;
        loop {
            let payload = descriptor::payload(tag, result);
            let file = Rc::clone(&self.file);
            let code = self.local.uring_cmd(file, operation, payload, None).await;
            if code != sys::UBLK_IO_RES_OK.cast_signed() {
                self.end_tag(code);
                return;
            }
            result = self.answer(tag).await;
            operation = sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ;
        }
    }

    fn end_tag(&self, code: i32) {
        if code != sys::UBLK_IO_RES_ABORT && self.trouble.get() == 0 {
            self.trouble.set(-code);
        }
        self.tags_left.set(self.tags_left.get() - 1);
        // After trouble nothing good can come of the other tags, which may never end: the device is not going to start.
        if (self.tags_left.get() == 0 || self.trouble.get() != 0)
            && let Some(ended) = self.ended.take()
        {
            self.is_served.store(false, Ordering::Release);
            let _ = ended.send(self.trouble.get());
        }
    }

    /// Runs the request that the kernel has put under `tag`; the result is what COMMIT_AND_FETCH_REQ tells it.
    async fn answer(&self, tag: u16) -> i32 {
        let data_len_max = DATA_LEN_MAX as usize;
        match descriptor::decode(self.descriptors.read(tag), data_len_max) {
            Ok(command) => match self.run(tag, command).await {
                Ok(moved) => descriptor::moved(moved),
                Err(error) => -error.errno(),
            },
            Err(errno) => -errno,
        }
    }

    /// Answers how many bytes of data the request moved.
    async fn run(&self, tag: u16, command: Command) -> Result<usize, IoError> {
        match command {
            Command::Read { offset, len } => {
                let buffer = self.local.buffers().get(len);
                let into = buffer.clone();
                let request = Request::Read {
                    offset,
                    buffer: into,
                };
                self.volume.submit(&request).await?;
                self.give_data(tag, &buffer)?;
                Ok(len)
            }
            Command::Write { offset, len, fua } => {
                let buffer = self.local.buffers().get(len);
                self.take_data(tag, &buffer)?;
                let request = Request::Write {
                    offset,
                    buffer,
                    fua,
                };
                self.volume.submit(&request).await.map(|()| len)
            }
            Command::Zero {
                offset,
                len,
                options,
            } => {
                let request = Request::WriteZeroes {
                    offset,
                    len,
                    options,
                };
                self.volume.submit(&request).await.map(|()| 0)
            }
            Command::Flush => self.volume.submit(&Request::Flush).await.map(|()| 0),
        }
    }

    /// Copies a write's data out of the request's pages.
    fn take_data(&self, tag: u16, buffer: &IoBuffer) -> Result<(), IoError> {
        copy(tag, buffer, |base, len, position| {
            // SAFETY: the segment is valid for writes of `len` bytes and nobody holds a reference into it, both by
            // `IoBuffer`'s rules; `buffer` outlives the call.
            unsafe { libc::pread64(self.file.as_raw_fd(), base.cast(), len, position) }
        })
    }

    /// Copies a read's data into the request's pages.
    fn give_data(&self, tag: u16, buffer: &IoBuffer) -> Result<(), IoError> {
        copy(tag, buffer, |base, len, position| {
            // SAFETY: the segment is valid for reads of `len` bytes by `IoBuffer`'s rules; `buffer` outlives the call.
            unsafe { libc::pwrite64(self.file.as_raw_fd(), base.cast(), len, position) }
        })
    }
}

/// Moves all of `buffer` by calls of `step(address, bytes, position in the character device)`, which say how far they got.
fn copy(
    tag: u16,
    buffer: &IoBuffer,
    step: impl Fn(*mut u8, usize, i64) -> isize,
) -> Result<(), IoError> {
    let mut position = descriptor::data_position(tag).cast_signed();
    for segment in buffer.segments() {
        let (mut base, mut left) = (segment.base, segment.len);
        while left > 0 {
            let moved = match usize::try_from(step(base, left, position)) {
                Ok(0) => return Err(IoError::EIO),
                Ok(moved) => moved,
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => continue,
                    errno => return Err(IoError::Os(errno.unwrap_or(libc::EIO))),
                },
            };
            base = base.wrapping_add(moved);
            left -= moved;
            position += i64::try_from(moved).expect("a request's data is at most DATA_LEN_MAX");
        }
    }
    Ok(())
}

impl Descriptors {
    fn map(file: &OwnedFd, depth: u16) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let len = (usize::from(depth) * DESCRIPTOR_LEN).next_multiple_of(page);
        let position = u64::from(sys::UBLKSRV_CMD_BUF_OFFSET);
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs no existing memory.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                flags,
                file,
                position,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, depth, len })
    }

    fn read(&self, tag: u16) -> sys::ublksrv_io_desc {
        assert!(tag < self.depth, "tag {tag} of a queue of {}", self.depth);
        // SAFETY: the tag is below the depth, and the mapping holds at least that many descriptors.
        let place = unsafe { self.base.add(usize::from(tag)) };
        // SAFETY: the mapping is page-aligned and lives as long as `self`. The kernel wrote this descriptor before it
        // completed the fetch of this tag, and leaves it alone until the tag is committed.
        unsafe { place.read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no pointer into it leaves this type.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "unmapping a mapping of ours can't fail");
    }
}

#[cfg(test)]
#[allow(
    clippy::host_endian_bytes,
    reason = "the kernel ABI is in the host's byte order"
)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::io::BufferPool;

    #[test]
    fn descriptors_are_read_where_the_kernel_puts_them() {
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0u8; 8192];
        let at = 200 * DESCRIPTOR_LEN;
        bytes[at..at + 4].copy_from_slice(&0x2001_u32.to_ne_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&8_u32.to_ne_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&77_u64.to_ne_bytes());
        file.write_all(&bytes).unwrap();
        let descriptors = Descriptors::map(&File::into(file), 256).unwrap();
        assert_eq!(descriptors.len, 8192);
        let read = descriptors.read(200);
        assert_eq!(
            (read.op_flags, read.nr_sectors, read.start_sector),
            (0x2001, 8, 77)
        );
        assert_eq!(descriptors.read(255).op_flags, 0);
    }

    #[test]
    fn short_copies_go_on_where_they_stopped() {
        let buffer = BufferPool::default().zeroed(10_000);
        let calls = RefCell::new(Vec::new());
        let base = buffer.segments().next().unwrap().base;
        let result = copy(3, &buffer, |at, len, position| {
            let start = descriptor::data_position(3).cast_signed();
            calls
                .borrow_mut()
                .push((at as usize - base as usize, len, position - start));
            4096.min(len.cast_signed())
        });
        assert_eq!(result, Ok(()));
        assert_eq!(
            calls.into_inner(),
            [(0, 10_000, 0), (4096, 5904, 4096), (8192, 1808, 8192)]
        );
    }

    #[test]
    fn a_copy_that_gets_nowhere_is_an_error() {
        let buffer = BufferPool::default().zeroed(4096);
        assert_eq!(copy(0, &buffer, |_, _, _| 0), Err(IoError::EIO));
    }
}
