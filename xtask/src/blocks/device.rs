//! A block device of this host, or a file, as the disk under `blocks`: direct I/O, one buffer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context, Result};

use super::Disk;
use super::content::BLOCK;

const O_DIRECT: i32 = 0o40_000;

/// An open device. The buffer is aligned to a page by starting later in a larger vector.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    memory: Vec<u8>,
    start: usize,
}

impl Device {
    pub(super) fn open(path: &Path, buffer: usize) -> Result<Device> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_DIRECT)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let memory = vec![0; buffer + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Ok(Device {
            file,
            memory,
            start,
        })
    }
}

impl Disk for Device {
    fn buffer(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + length]
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<()> {
        let data = &mut self.memory[self.start..self.start + length];
        Ok(self.file.read_exact_at(data, offset)?)
    }

    fn write(&mut self, offset: u64, length: usize) -> Result<()> {
        Ok(self
            .file
            .write_all_at(&self.memory[self.start..self.start + length], offset)?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }
}
