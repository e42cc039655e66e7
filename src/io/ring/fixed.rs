//! Memory that is registered with a ring: the kernel keeps its pages, and looks them up by a number instead of by address.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};

use io_uring::IoUring;

use super::Ring;
use crate::io::buffer::Segment;

/// Numbers that a ring has; the table is made when the first one is wanted (32 KiB).
const SLOTS: u16 = 4096;

/// Which numbers are free.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// None until the first is wanted.
    free: RefCell<Option<Vec<u16>>>,
}

/// Memory that is registered until this is dropped. Operations under way keep the pages for as long as they run.
#[derive(Debug)]
pub struct Pinned {
    /// Not kept: what is in flight on the ring keeps this.
    ring: Weak<Ring>,
    number: u16,
}

impl Pinned {
    /// The number to use it by, in operations on the same reactor.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }
}

impl Ring {
    /// Registers memory, at most 1 GiB. All of its pages are in RAM from then on, whatever happens to the mapping.
    ///
    /// # Errors
    /// `ENOMEM` above `RLIMIT_MEMLOCK`, `EFAULT` when there is no memory behind the addresses, `ENOSPC` when all numbers
    /// are taken.
    pub(crate) fn pin(self: &Rc<Self>, memory: Segment) -> io::Result<Pinned> {
        let number = self.pins.take(&self.uring.borrow())?;
        let pinned = Pinned {
            ring: Rc::downgrade(self),
            number,
        };
        // When it fails, dropping gives the number back.
        self.put(number, memory)?;
        Ok(pinned)
    }

    /// The same until the ring ends.
    ///
    /// # Errors
    /// As [`Ring::pin`].
    pub(crate) fn pin_for_good(&self, memory: Segment) -> io::Result<u16> {
        let number = self.pins.take(&self.uring.borrow())?;
        let registered = self.put(number, memory);
        if registered.is_err() {
            self.pins.give_back(number);
        }
        registered.map(|()| number)
    }

    fn put(&self, number: u16, memory: Segment) -> io::Result<()> {
        let iovec = libc::iovec {
            iov_base: memory.base.cast(),
            iov_len: memory.len,
        };
        let uring = self.uring.borrow();
        // SAFETY: registering touches no byte; the kernel takes the pages behind the range, or fails. They are read and
        // written only by operations that name a part of the range, and those own a buffer that vouches for it.
        unsafe {
            uring
                .submitter()
                .register_buffers_update(number.into(), &[iovec], None)
        }
    }
}

impl Slots {
    fn take(&self, uring: &IoUring) -> io::Result<u16> {
        let mut free = self.free.borrow_mut();
        let free = match &mut *free {
            Some(free) => free,
            none => {
                uring.submitter().register_buffers_sparse(SLOTS.into())?;
                none.insert((0..SLOTS).rev().collect())
            }
        };
        free.pop()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn give_back(&self, number: u16) {
        if let Some(free) = &mut *self.free.borrow_mut() {
            free.push(number);
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let nothing = Segment {
            base: std::ptr::null_mut(),
            len: 0,
        };
        let Some(ring) = self.ring.upgrade() else {
            return;
        };
        // A number that the kernel does not let go of is not used again.
        if ring.put(self.number, nothing).is_ok() {
            ring.pins.give_back(self.number);
        }
    }
}
