//! [`MemoryDevice`]: a block device in RAM, served by copying on the caller's thread.

use std::cell::RefCell;
use std::fmt;

use super::buffer::{BufferPool, IoBuffer};
use super::device::{Alignment, BlockDevice, IoError, ZeroOptions};

/// Bytes per chunk. Larger than what a [`BufferPool`] recycles, so that a fresh chunk comes zeroed from the allocator
/// and a dropped one goes back to it.
const CHUNK: u64 = 2 << 20;

/// Anonymous memory as a block device. Chunks exist from their first write on, so that an unused one costs nothing;
/// everything is lost when the device is dropped. Flush and FUA have nothing to do.
pub struct MemoryDevice {
    chunks: RefCell<Vec<Option<IoBuffer>>>,
    size: std::cell::Cell<u64>,
    allocator: BufferPool,
}

/// One chunk's part of a range.
struct Part {
    chunk: usize,
    /// Offset inside the chunk.
    within: usize,
    /// Offset inside the request.
    done: usize,
    len: usize,
}

impl MemoryDevice {
    /// `size` zero bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let device = Self {
            chunks: RefCell::default(),
            size: std::cell::Cell::new(0),
            allocator: BufferPool::default(),
        };
        device.resize(size);
        device
    }

    /// Bytes of memory in use.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.chunks.borrow().iter().flatten().count() as u64 * CHUNK
    }

    fn resize(&self, size: u64) {
        let chunks = usize::try_from(size.div_ceil(CHUNK)).unwrap_or(usize::MAX);
        self.chunks.borrow_mut().resize(chunks, None);
        self.size.set(size);
    }

    fn parts(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = Part> + use<>, IoError> {
        let end = offset.checked_add(len).ok_or(IoError::EINVAL)?;
        if end > self.size.get() {
            return Err(IoError::EINVAL);
        }
        let mut at = offset;
        Ok(std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let within = at % CHUNK;
            let len = (CHUNK - within).min(end - at);
            let small = |value: u64| usize::try_from(value).expect("an offset into memory");
            let part = Part {
                chunk: small(at / CHUNK),
                within: small(within),
                done: small(at - offset),
                len: small(len),
            };
            at += len;
            Some(part)
        }))
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size.get()
    }

    fn alignment(&self) -> Alignment {
        Alignment {
            offset: 1,
            memory: 1,
        }
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        let chunks = self.chunks.borrow();
        for part in self.parts(offset, buf.len() as u64)? {
            let target = buf.slice(part.done, part.len);
            match &chunks[part.chunk] {
                Some(chunk) => target.copy_from(&chunk.slice(part.within, part.len)),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, _fua: bool) -> Result<(), IoError> {
        let mut chunks = self.chunks.borrow_mut();
        for part in self.parts(offset, buf.len() as u64)? {
            let chunk = chunks[part.chunk]
                .get_or_insert_with(|| self.allocator.get(usize::try_from(CHUNK).unwrap_or(0)));
            chunk
                .slice(part.within, part.len)
                .copy_from(&buf.slice(part.done, part.len));
        }
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        _options: ZeroOptions,
    ) -> Result<(), IoError> {
        let mut chunks = self.chunks.borrow_mut();
        for part in self.parts(offset, len)? {
            if part.len as u64 == CHUNK {
                chunks[part.chunk] = None;
            } else if let Some(chunk) = &chunks[part.chunk] {
                chunk.slice(part.within, part.len).fill(0);
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        if size < self.size.get() {
            return Err(IoError::EINVAL);
        }
        self.resize(size);
        Ok(())
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDevice")
            .field("size", &self.size.get())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    fn now<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("memory answers at once"),
        }
    }

    #[test]
    fn data_crosses_chunks_and_zeroing_frees_whole_ones() {
        let device = MemoryDevice::new(3 * CHUNK);
        let pool = BufferPool::default();
        let data: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let at = CHUNK - 5000;
        now(device.write(at, &pool.copy_of(&data), false)).unwrap();
        let back = pool.get(data.len());
        now(device.read(at, &back)).unwrap();
        assert_eq!(back.to_vec(), data);
        assert_eq!(device.allocated(), 2 * CHUNK);
        now(device.write_zeroes(0, CHUNK, ZeroOptions::default())).unwrap();
        assert_eq!(device.allocated(), CHUNK);
        now(device.read(at, &back)).unwrap();
        assert!(back.slice(0, 5000).is_zero());
        assert_eq!(back.slice(5000, 5000).to_vec(), data[5000..]);
        assert_eq!(now(device.read(3 * CHUNK - 1, &back)), Err(IoError::EINVAL));
        assert_eq!(now(device.read(u64::MAX, &back)), Err(IoError::EINVAL));
    }

    #[test]
    fn growing_adds_zeroes_and_keeps_data() {
        let device = MemoryDevice::new(4096);
        let pool = BufferPool::default();
        now(device.write(0, &pool.copy_of(b"kept"), false)).unwrap();
        now(device.grow(2 * CHUNK)).unwrap();
        let back = pool.get(8);
        now(device.read(0, &back)).unwrap();
        assert_eq!(back.to_vec(), b"kept\0\0\0\0");
        assert_eq!(now(device.grow(4096)), Err(IoError::EINVAL));
    }
}
