//! Locks on files (`flock`), and who holds them.
//!
//! A lock belongs to the open file description. Requests that a killed process left in the kernel hold that too, so
//! getting the lock means that they have ended (spec A1).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FlockOperation, fstat, major, minor};

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
    let id = format!(
        "{:02x}:{:02x}:{}",
        major(stat.st_dev),
        minor(stat.st_dev),
        stat.st_ino
    );
    find(&locks, &id).map_or(Holder::Unknown, of_pid)
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
