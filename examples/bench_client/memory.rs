//! The guest's memory: one memfd that the backend maps as well, with rings, requests and buffers in it.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{AtomicAccess, Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

/// Where the memory starts, physically.
const GUEST: u64 = 1 << 30;

/// All of it, mapped. Places in it are offsets from its start.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: MmapRegion,
    file: File,
}

impl Memory {
    pub(crate) fn new(len: usize) -> Result<Self> {
        let file = File::from(memfd_create("bench-client", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, len as u64)?;
        let offset = FileOffset::new(file.try_clone()?, 0);
        let mapping = MmapRegion::from_file(offset, len)
            .with_context(|| format!("cannot map {len} bytes of memory"))?;
        Ok(Self { mapping, file })
    }

    /// How the backend is told of it.
    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: self.mapping.size() as u64,
            userspace_addr: self.user(0),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// The address that descriptors use.
    pub(crate) fn guest(at: usize) -> u64 {
        GUEST + at as u64
    }

    /// The address that rings are announced by.
    pub(crate) fn user(&self, at: usize) -> u64 {
        self.mapping.as_ptr().addr() as u64 + at as u64
    }

    /// Takes the memory away from behind both mappings. Nobody may touch it here from now on.
    pub(crate) fn shrink(&self, len: u64) -> Result<()> {
        Ok(ftruncate(&self.file, len)?)
    }

    pub(crate) fn store<T: AtomicAccess>(&self, at: usize, value: T, order: Ordering) {
        let stored = self.mapping.as_volatile_slice().store(value, at, order);
        stored.expect("an aligned place within the memory");
    }

    pub(crate) fn load<T: AtomicAccess>(&self, at: usize, order: Ordering) -> T {
        let loaded = self.mapping.as_volatile_slice().load(at, order);
        loaded.expect("an aligned place within the memory")
    }

    pub(crate) fn fill(&self, at: usize, bytes: &[u8]) {
        let written = self.mapping.as_volatile_slice().write_slice(bytes, at);
        written.expect("a place within the memory");
    }
}
