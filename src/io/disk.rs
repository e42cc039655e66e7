//! [`Disk`]: the block devices that replicas live on in production.

use super::buffer::IoBuffer;
use super::device::{Alignment, BlockDevice, IoError, ZeroOptions};
use super::file::FileDevice;
use super::inject::Injected;
use super::memory::MemoryDevice;
use super::reactor::Local;

/// Where a replica's bytes are.
#[derive(Debug)]
pub enum Disk {
    /// In a file of a directory pool.
    File(FileDevice),
    /// In RAM, of a memory pool.
    Memory(MemoryDevice),
    /// One of the others, which breaks on command. Its futures are boxed, so that those of the others stay small.
    Injected(Box<Injected<Local>>),
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        match self {
            Self::File(device) => device.size(),
            Self::Memory(device) => device.size(),
            Self::Injected(device) => device.size(),
        }
    }

    fn alignment(&self) -> Alignment {
        match self {
            Self::File(device) => device.alignment(),
            Self::Memory(device) => device.alignment(),
            Self::Injected(device) => device.alignment(),
        }
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        match self {
            Self::File(device) => device.read(offset, buf).await,
            Self::Memory(device) => device.read(offset, buf).await,
            Self::Injected(device) => Box::pin(device.read(offset, buf)).await,
        }
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        match self {
            Self::File(device) => device.write(offset, buf, fua).await,
            Self::Memory(device) => device.write(offset, buf, fua).await,
            Self::Injected(device) => Box::pin(device.write(offset, buf, fua)).await,
        }
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        match self {
            Self::File(device) => device.write_zeroes(offset, len, options).await,
            Self::Memory(device) => device.write_zeroes(offset, len, options).await,
            Self::Injected(device) => Box::pin(device.write_zeroes(offset, len, options)).await,
        }
    }

    async fn flush(&self) -> Result<(), IoError> {
        match self {
            Self::File(device) => device.flush().await,
            Self::Memory(device) => device.flush().await,
            Self::Injected(device) => Box::pin(device.flush()).await,
        }
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        match self {
            Self::File(device) => device.grow(size).await,
            Self::Memory(device) => device.grow(size).await,
            Self::Injected(device) => Box::pin(device.grow(size)).await,
        }
    }
}
