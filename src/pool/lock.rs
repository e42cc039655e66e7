//! Locks on files (`flock`), and who holds them.
//!
//! A lock belongs to the open file description. Requests that a killed process left in the kernel hold that too, so
//! getting the lock means that they have ended (spec A1).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FlockOperation, StatxFlags, fstat, major, minor, statx};

/// Who holds a lock, as far as `/proc/locks` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This process itself.
    Ourselves,
    /// Another process.
    Process {
        /// Its id.
        pid: i32,
        /// Its command; none when it is gone and only its I/O is left.
        command: Option<String>,
    },
    /// The kernel does not say.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ourselves => write!(f, "this daemon itself"),
            Self::Process {
                pid,
                command: Some(command),
            } => write!(f, "process {pid} ({command})"),
            Self::Process { pid, command: None } => {
                write!(f, "I/O still under way of process {pid}, which is gone")
            }
            Self::Unknown => write!(f, "an unknown process"),
        }
    }
}

/// Takes the exclusive lock if nobody has it.
///
/// # Errors
/// What the kernel says, but for the lock being taken.
pub(super) fn try_lock(file: impl AsFd) -> rustix::io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Who holds the lock on a file.
pub(super) fn holder(file: BorrowedFd<'_>) -> Holder {
    let (Ok(stat), Ok(locks)) = (fstat(file), std::fs::read_to_string("/proc/locks")) else {
        return Holder::Unknown;
    };
    let own = (major(stat.st_dev), minor(stat.st_dev));
    let (major, minor) = filesystem(file).unwrap_or(own);
    let id = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    find(&locks, &id).map_or(Holder::Unknown, of_pid)
}

/// The device number that the kernel knows the file's filesystem by. On btrfs, `stat` has that of the subvolume.
fn filesystem(file: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    find_mount(&mounts, found.stx_mnt_id)
}

/// The device number of a mount. Lines look like `36 35 98:0 /root /mountpoint ...`, the mount's id first.
fn find_mount(mounts: &str, id: u64) -> Option<(u32, u32)> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let found: u64 = words.next()?.parse().ok()?;
        let (major, minor) = words.nth(1)?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        (found == id).then_some(device)
    })
}

fn of_pid(pid: i32) -> Holder {
    if u32::try_from(pid) == Ok(std::process::id()) {
        return Holder::Ourselves;
    }
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    Holder::Process {
        pid,
        command: command.ok().map(|name| name.trim().to_owned()),
    }
}

/// The process that holds the `flock` on a file. Lines look like
/// `1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF`; those of waiters have `->` after the number.
fn find(locks: &str, id: &str) -> Option<i32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, file, ..] if *file == id => {
                pid.parse().ok().filter(|pid| *pid > 0)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_in_proc_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fd:00:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 12 fd:00:7 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 fd:00:7 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE -1 fd:00:8 0 EOF\n";
        assert_eq!(find(locks, "fd:00:7"), Some(13));
        assert_eq!(find(locks, "fd:00:8"), None);
        assert_eq!(find(locks, "fd:00:9"), None);
        assert_eq!(find("", "fd:00:7"), None);
    }

    #[test]
    fn a_mount_is_found_by_its_id() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      36 22 0:42 /sub /mnt rw - btrfs /dev/loop0 rw\n";
        assert_eq!(find_mount(mounts, 36), Some((0, 42)));
        assert_eq!(find_mount(mounts, 6), None);
        assert_eq!(find_mount("", 36), None);
    }

    #[test]
    fn a_lock_is_exclusive_and_names_its_holder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (file.reopen().unwrap(), file.reopen().unwrap());
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&second).unwrap());
        assert_eq!(holder(second.as_fd()), Holder::Ourselves);
        drop(first);
        assert!(try_lock(&second).unwrap());
    }
}
