//! The eventfds that a front end hands over: kick (it has put requests in), call (we have answered), error.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// An eventfd of the front end.
#[derive(Debug)]
pub(super) struct Event {
    fd: OwnedFd,
    /// Whether a write could wait, for a reader that never comes.
    may_block: bool,
}

impl Event {
    /// Takes a file descriptor over.
    ///
    /// # Errors
    /// `InvalidInput` if it is something else than an eventfd: writing to a pipe or a file could stop the reactor.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        // Without /proc there is no telling; then the front end is believed.
        if let Ok(target) = std::fs::read_link(link)
            && target.as_os_str() != "anon_inode:[eventfd]"
        {
            let what = format!(
                "expected an eventfd for a virtqueue, found {:?}",
                target.display().to_string()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // O_NONBLOCK belongs to the front end as much as to us, so it is looked at and not set.
        let may_block = !rustix::fs::fcntl_getfl(&file)?.contains(OFlags::NONBLOCK);
        let fd = OwnedFd::from(file);
        Ok(Self { fd, may_block })
    }

    /// A second handle to the same eventfd.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            may_block: self.may_block,
        })
    }

    /// The file descriptor, for polling.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Adds one to the counter. A counter that is full has been signalled, so nothing is lost when it does not work.
    #[allow(
        clippy::host_endian_bytes,
        reason = "eventfd(2) wants the host's order"
    )]
    pub(super) fn signal(&self) {
        if self.may_block {
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            if poll(&mut fds, Some(&Timespec::default())) != Ok(1) {
                return;
            }
        }
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}
