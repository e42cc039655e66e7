//! The eventfds that a front end hands over: kick (it has put requests in), call (we have answered), error.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::io::{Bell, Local};

/// An eventfd of the front end.
#[derive(Debug)]
pub(super) struct Event {
    fd: OwnedFd,
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
        let fd = OwnedFd::from(file);
        Ok(Self { fd })
    }

    /// A second handle to the same eventfd.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
        })
    }

    /// The file descriptor, for polling.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// A way to signal it.
    pub(super) fn into_caller(self) -> Caller {
        let bell = Bell::new(&self.fd).ok().map(Rc::new);
        Caller { bell, fd: self.fd }
    }
}

/// Signals an eventfd of the front end, which may do with it what it likes meanwhile.
#[derive(Debug)]
pub(super) struct Caller {
    /// None when the kernel has no ring left for it.
    bell: Option<Rc<Bell>>,
    fd: OwnedFd,
}

impl Caller {
    /// Adds one to the counter. A counter that is full has been signalled, so nothing is lost when it does not work.
    pub(super) fn signal(&self) {
        match &self.bell {
            Some(bell) => bell.ring(),
            None => self.write(),
        }
    }

    /// The same, at the end of the reactor's turn: together with what that submits then.
    pub(super) fn signal_with(&self, local: &Local) {
        match &self.bell {
            Some(bell) => local.call(bell),
            None => self.write(),
        }
    }

    /// The second best: a front end that makes the eventfd blocking between the look and the write could stop the reactor.
    #[allow(
        clippy::host_endian_bytes,
        reason = "eventfd(2) wants the host's order"
    )]
    fn write(&self) {
        // O_NONBLOCK belongs to the front end as much as to us, so it is looked at, every time, and not set.
        let flags = rustix::fs::fcntl_getfl(&self.fd);
        if !flags.is_ok_and(|flags| flags.contains(OFlags::NONBLOCK)) {
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            let polled = poll(&mut fds, Some(&Timespec::default()));
            // A counter that the kernel has made overflow is ready too, with an error, and has no room.
            if polled != Ok(1) || fds[0].revents() != PollFlags::OUT {
                return;
            }
        }
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
#[allow(
    clippy::host_endian_bytes,
    reason = "eventfd(2) wants the host's order"
)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::fcntl_setfl;

    use super::*;

    fn counter(eventfd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(eventfd, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn every_signal_counts() {
        let theirs = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let caller = Event::new(theirs.try_clone().unwrap().into())
            .unwrap()
            .into_caller();
        for _ in 0..5 {
            caller.signal();
        }
        assert_eq!(counter(&theirs), 5);
        caller.write();
        assert_eq!(counter(&theirs), 1);
    }

    /// A front end that waits in vain for the daemon's thread to be stuck: this test would never end.
    #[test]
    fn a_full_eventfd_that_was_made_blocking_later_stops_nobody() {
        let theirs = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let caller = Event::new(theirs.try_clone().unwrap().into())
            .unwrap()
            .into_caller();
        fcntl_setfl(&theirs, OFlags::empty()).unwrap();
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        caller.signal();
        caller.write();
        // The kernel may add one more than anybody else.
        assert!(counter(&theirs) >= u64::MAX - 1);
    }
}
