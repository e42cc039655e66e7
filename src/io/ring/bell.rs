//! Bells: eventfds of somebody else that are rung without ever waiting, and without a system call of their own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};

use io_uring::types::Fd;
use io_uring::{IoUring, Probe, opcode, squeue};

/// Completions that a bell's own ring has room for. It is emptied before each new one, so it never fills up.
const ENTRIES: u32 = 4;
/// `user_data` of messages to bells: this bit and the bell's number.
const BELLS: u64 = 1 << 63;

/// Adds to an eventfd's counter as the kernel does, which never waits. `write(2)` may: for room in a counter that is full, if
/// whoever shares the eventfd has made it blocking a moment ago.
///
/// The bell is a ring of its own that rings the eventfd with each of its completions. What makes them is a message from
/// the reactor's ring, which goes with whatever that submits next, or, elsewhere, an operation that does nothing.
pub struct Bell {
    uring: RefCell<IoUring>,
    number: Cell<Option<u64>>,
}

impl Bell {
    /// A bell for `eventfd`, usable on any one thread.
    ///
    /// # Errors
    /// When it is no eventfd, or the kernel gives no ring.
    pub fn new(eventfd: &OwnedFd) -> io::Result<Self> {
        let uring = IoUring::new(ENTRIES)?;
        uring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        Ok(Self {
            uring: RefCell::new(uring),
            number: Cell::new(None),
        })
    }

    /// Adds one, now. Nothing is lost when it does not work: a counter that is full has been rung.
    pub fn ring(&self) {
        let mut uring = self.uring.borrow_mut();
        uring.completion().for_each(drop);
        // SAFETY: the entry points to nothing.
        let _has_room = unsafe { uring.submission().push(&opcode::Nop::new().build()) };
        // Its completion is what rings.
        let _it_stays_for_the_next_time = uring.submit();
        uring.completion().for_each(drop);
    }

    /// The message that rings it, from another ring.
    fn message(&self, number: u64) -> squeue::Entry {
        let mut uring = self.uring.borrow_mut();
        uring.completion().for_each(drop);
        opcode::MsgRingData::new(Fd(uring.as_raw_fd()), 0, 0, None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(BELLS | number)
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

/// A ring's bells: those with a message that the kernel has not taken yet, and who is who when one fails.
#[derive(Debug)]
pub(super) struct Bells {
    /// Whether the kernel has what it takes.
    has_messages: bool,
    numbers: Cell<u64>,
    known: RefCell<BTreeMap<u64, Weak<Bell>>>,
    /// They must not be closed before: their number might belong to another ring then.
    unsent: RefCell<Vec<Rc<Bell>>>,
}

impl Bells {
    pub(super) fn new(uring: &IoUring) -> Self {
        let mut probe = Probe::new();
        let asked = uring.submitter().register_probe(&mut probe);
        let has_messages = asked.is_ok()
            && probe.is_supported(opcode::MsgRingData::CODE)
            && uring.params().is_feature_skip_cqe_on_success();
        Self {
            has_messages,
            numbers: Cell::new(0),
            known: RefCell::default(),
            unsent: RefCell::default(),
        }
    }

    /// The entry that rings `bell` once it is submitted; the bell is to be [kept](Self::keep) until then. None when it is
    /// rung already.
    pub(super) fn message(&self, bell: &Rc<Bell>) -> Option<squeue::Entry> {
        if !self.has_messages {
            bell.ring();
            return None;
        }
        let number = bell.number.get().unwrap_or_else(|| self.enrol(bell));
        Some(bell.message(number))
    }

    /// Keeps the bell open until the kernel has taken every entry that is queued now.
    pub(super) fn keep(&self, bell: &Rc<Bell>) {
        self.unsent.borrow_mut().push(Rc::clone(bell));
    }

    fn enrol(&self, bell: &Rc<Bell>) -> u64 {
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        bell.number.set(Some(number));
        let mut known = self.known.borrow_mut();
        known.retain(|_, bell| bell.strong_count() > 0);
        known.insert(number, Rc::downgrade(bell));
        number
    }

    /// The kernel has taken every entry.
    pub(super) fn sent(&self) {
        if !self.unsent.borrow().is_empty() {
            self.unsent.borrow_mut().clear();
        }
    }

    /// Whether a completion is a bell's; messages that arrive have none, so it has failed and the bell is rung directly.
    pub(super) fn complete(&self, user_data: u64) -> bool {
        if user_data & BELLS == 0 {
            return false;
        }
        let known = self.known.borrow().get(&(user_data & !BELLS)).cloned();
        if let Some(bell) = known.and_then(|bell| bell.upgrade()) {
            bell.ring();
        }
        true
    }
}
