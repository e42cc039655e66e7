//! How a front end describes guest memory, and what can be wrong with it.

use std::fmt;
use std::fs::File;

use rustix::fs::{FileType, fstat, fstatfs};
use rustix::param::page_size;

use super::memory::WATCHES;

/// What `statfs` says of hugetlbfs and of memfds made of huge pages.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// What `statfs` says of filesystems whose pages come from another process or another machine: FUSE and virtiofs, NFS,
/// SMB, 9p, Ceph. A page that never comes would stop the reactor, and with it every volume there.
const FOREIGN_MAGICS: [i64; 6] = [
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
];

/// Why guest memory can't be used as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    /// The region is empty, or its end does not fit 64 bits.
    #[error("memory region {0} is empty or wraps around the address space")]
    Extent(RegionSpec),
    /// `mmap` can't start there.
    #[error("memory region {0} does not start on a page of its file")]
    Offset(RegionSpec),
    /// Only regular files can be checked for their size.
    #[error("memory region {0} is backed by something that is not a memory file")]
    NotAFile(RegionSpec),
    /// The file's pages come from another process or machine, which may keep us waiting.
    #[error(
        "memory region {0} is backed by a network or FUSE filesystem: use a memfd, tmpfs or huge pages"
    )]
    Foreign(RegionSpec),
    /// Accessing the region would fault sooner or later.
    #[error("memory region {spec} ends beyond its file of {file_size} bytes")]
    Short {
        /// The region.
        spec: RegionSpec,
        /// The file's size, bytes.
        file_size: u64,
    },
    /// The kernel refused.
    #[error("memory region {spec} can't be mapped")]
    Map {
        /// The region.
        spec: RegionSpec,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The process-wide table of mapped ranges is full.
    #[error("no more than {} memory regions can be mapped at a time", WATCHES)]
    TooMany,
    /// Two regions claim the same guest address.
    #[error("memory region {0} overlaps {1}")]
    Overlap(RegionSpec, RegionSpec),
    /// The region to remove is not there.
    #[error("memory region {0} is not mapped")]
    Unknown(RegionSpec),
    /// A vring address does not lie, whole and aligned, in one region.
    #[error(
        "{len} bytes at front-end address {address:#x} are not inside one memory region, or misaligned"
    )]
    Area {
        /// The address as the front end sees it.
        address: u64,
        /// Bytes needed.
        len: usize,
    },
}

/// A guest address range that no region covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at guest address {address:#x} are outside the guest's memory")]
pub(super) struct BadAddress {
    /// Guest physical address.
    pub(super) address: u64,
    /// Bytes from there.
    pub(super) len: u64,
}

/// A region as the front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionSpec {
    /// Guest physical address of its first byte.
    pub(super) guest: u64,
    /// Address of its first byte in the front end's process; ring addresses are given so.
    pub(super) user: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Where in the file it starts, bytes.
    pub(super) offset: u64,
}

impl fmt::Display for RegionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x}+{:#x} (file offset {:#x})",
            self.guest, self.size, self.offset
        )
    }
}

impl RegionSpec {
    /// Checks the claim against the file and returns what offsets and lengths of its mappings must be multiples of.
    ///
    /// # Errors
    /// See [`MemoryError`]; a file that is shorter than the region claims is refused here, so that only a later
    /// shrinking can fault.
    pub(super) fn check(self, file: &File) -> Result<usize, MemoryError> {
        let wraps = |start: u64| start.checked_add(self.size).is_none();
        if self.size == 0 || wraps(self.guest) || wraps(self.user) || wraps(self.offset) {
            return Err(MemoryError::Extent(self));
        }
        if !self.offset.is_multiple_of(page_size() as u64) {
            return Err(MemoryError::Offset(self));
        }
        let failed = |source: rustix::io::Errno| MemoryError::Map {
            spec: self,
            source: source.into(),
        };
        let stat = fstat(file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemoryError::NotAFile(self));
        }
        let file_size = u64::try_from(stat.st_size).unwrap_or(0);
        if file_size < self.offset + self.size {
            return Err(MemoryError::Short {
                spec: self,
                file_size,
            });
        }
        let system = fstatfs(file).map_err(failed)?;
        if is_foreign(system.f_type) {
            return Err(MemoryError::Foreign(self));
        }
        if system.f_type == HUGETLBFS_MAGIC {
            return Ok(usize::try_from(system.f_bsize).unwrap_or_else(|_| page_size()));
        }
        Ok(page_size())
    }
}

/// Whether a page of a file on this kind of filesystem can be a long time coming.
fn is_foreign(kind: i64) -> bool {
    // The field is signed and of the machine's width; the numbers are 32 bits wide.
    FOREIGN_MAGICS.contains(&(kind & 0xffff_ffff))
}

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuestRange {
    /// First byte.
    pub(super) address: u64,
    /// Bytes.
    pub(super) len: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_another_process_or_machine_provides_is_refused() {
        let foreign = [libc::FUSE_SUPER_MAGIC, libc::NFS_SUPER_MAGIC];
        assert!(foreign.into_iter().all(is_foreign));
        let ours = [
            libc::TMPFS_MAGIC,
            HUGETLBFS_MAGIC,
            libc::EXT4_SUPER_MAGIC,
            libc::XFS_SUPER_MAGIC,
        ];
        assert!(!ours.into_iter().any(is_foreign));
        assert!(
            is_foreign(0xff53_4d42_u32.cast_signed().into()),
            "sign-extended"
        );
    }
}
