//! How other threads get a reactor to do something: closures in a box, and an eventfd that rings.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::EventfdFlags;

use super::reactor::Local;

type Mail = Box<dyn FnOnce(&Local) + Send>;

/// What adds one to an eventfd's counter, which is in host byte order by definition (`eventfd(2)`).
#[allow(
    clippy::host_endian_bytes,
    reason = "eventfd(2) wants the host's order"
)]
pub(super) const EVENT: [u8; 8] = 1u64.to_ne_bytes();

/// A reactor's mail.
pub(super) struct Mailbox {
    mail: Mutex<Letters>,
    doorbell: OwnedFd,
}

#[derive(Default)]
struct Letters {
    letters: Vec<Mail>,
    closed: bool,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            mail: Mutex::default(),
            doorbell: rustix::event::eventfd(0, flags)?,
        })
    }

    /// What becomes readable when somebody rings.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(super) fn doorbell(&self) -> io::Result<OwnedFd> {
        self.doorbell.try_clone()
    }

    pub(super) fn ring(&self) {
        // EAGAIN means that the counter is at its maximum: the reactor is being rung already.
        let _ = rustix::io::write(&self.doorbell, &EVENT);
    }

    /// Puts a letter in; `false` when the reactor has stopped reading.
    pub(super) fn post(&self, letter: Mail) -> bool {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        if mail.closed {
            return false;
        }
        mail.letters.push(letter);
        drop(mail);
        self.ring();
        true
    }

    pub(super) fn take(&self) -> Vec<Mail> {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut mail.letters)
    }

    pub(super) fn close(&self) -> Vec<Mail> {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        mail.closed = true;
        std::mem::take(&mut mail.letters)
    }
}
