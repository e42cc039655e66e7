//! Data path, hop 5 of 5: queue the SQE, own what it points to until its CQE, wake who waits.
//!
//! Everything an operation lends to the kernel (buffer, iovecs, file) moves into the ring's table before the SQE is
//! published and leaves with the CQE. Dropping a future abandons the answer only.

#![allow(
    unsafe_code,
    reason = "publishing SQEs that point to memory; listed in tidy"
)]

mod bell;
mod fixed;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::buffer::IoBuffer;
use super::device::IoError;
use super::operation::Operation;
pub use bell::Bell;
use bell::Bells;
pub use fixed::Pinned;
use fixed::Slots;

/// Submission entries; when a turn queues more, they are submitted in between.
const ENTRIES: u32 = 256;
/// Completion entries; the kernel keeps what does not fit and hands it over later (`IORING_FEAT_NODROP`).
const COMPLETIONS: u32 = 4096;
/// After how many queued SQEs a turn submits for the first time; doubled each time up to [`BURST_MAX`]. Measured:
/// collecting a whole turn starves the disk (`docs/adr/0002-one-ring-own-executor.md`). More than two, because Linux plugs only
/// such submissions: of two requests each rings the disk's doorbell by itself.
const BURST_FIRST: u32 = 4;
/// The largest burst.
const BURST_MAX: u32 = 16;
/// Kernel threads of a ring that may block on files at a time. The kernel's own limit is four per CPU, so that a few
/// operations on a disk that hangs would keep every other volume of the reactor waiting. Threads come only as others
/// block, and go when idle.
const WORKERS_MAX: u32 = 512;
/// `user_data` of operations nobody waits for.
const NOBODY: u64 = u64::MAX;
/// How long a dropped ring waits for its last completions before it leaks their memory instead.
const DRAIN_SECONDS: u64 = 2;

/// What the kernel may touch until the CQE.
struct Lent {
    _file: Rc<OwnedFd>,
    buffer: Option<IoBuffer>,
    iovecs: Vec<libc::iovec>,
}

enum State {
    /// Submitted; this task waits.
    Pending(Option<Waker>),
    /// Completed with this result.
    Done(i32),
    /// Submitted; nobody waits any more.
    Abandoned,
    /// A multishot poll: readiness seen since last asked; ended when the kernel will say no more.
    Poll {
        ready: bool,
        ended: Option<i32>,
        waker: Option<Waker>,
    },
}

struct Slot {
    state: State,
    _lent: Lent,
}

/// One io_uring and the table of what is in flight on it. Belongs to the thread that made it.
pub(crate) struct Ring {
    uring: RefCell<IoUring>,
    slots: RefCell<Vec<Option<Slot>>>,
    free: RefCell<Vec<usize>>,
    queued: Cell<u32>,
    burst: Cell<u32>,
    bells: Bells,
    pins: Slots,
}

impl Ring {
    /// A ring for the calling thread, which alone may submit to it.
    ///
    /// # Errors
    /// When the kernel refuses: io_uring disabled (`kernel.io_uring_disabled`), forbidden by seccomp, or no memory.
    pub(crate) fn new() -> io::Result<Self> {
        let flagged = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES);
        // SINGLE_ISSUER came with 6.0, COOP_TASKRUN with 5.19; without them it is only slower.
        let uring = match flagged {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
                .setup_cqsize(COMPLETIONS)
                .build(ENTRIES)?,
            other => other?,
        };
        // Zero leaves the limit for what is no file alone. Refused by a kernel that does not know it: as it was, then.
        let _ = uring
            .submitter()
            .register_iowq_max_workers(&mut [WORKERS_MAX, 0]);
        Ok(Self {
            bells: Bells::new(&uring),
            pins: Slots::default(),
            uring: RefCell::new(uring),
            slots: RefCell::default(),
            free: RefCell::default(),
            queued: Cell::new(0),
            burst: Cell::new(BURST_FIRST),
        })
    }

    /// How many of the kernel's threads may block on files at a time.
    #[cfg(test)]
    pub(crate) fn workers_max(&self) -> u32 {
        let mut limits = [0, 0];
        let uring = self.uring.borrow();
        let asked = uring.submitter().register_iowq_max_workers(&mut limits);
        asked.expect("zeroes only ask for the limits");
        limits[0]
    }

    /// Number of operations that the kernel still has.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.borrow().len() - self.free.borrow().len()
    }

    /// Starts `operation` now and returns the future of its result: bytes, or a negative errno.
    pub(crate) fn start(
        self: &Rc<Self>,
        file: Rc<OwnedFd>,
        operation: &Operation,
        buffer: Option<IoBuffer>,
    ) -> InFlight {
        let mut iovecs = Vec::new();
        let entry = operation.entry(&file, buffer.as_ref(), &mut iovecs);
        // The iovec array's heap memory stays where it is while the vector moves into the table.
        let lent = Lent {
            _file: file,
            buffer,
            iovecs,
        };
        let index = self.insert(Slot {
            state: State::Pending(None),
            _lent: lent,
        });
        self.push(&entry.user_data(index as u64));
        InFlight {
            ring: Rc::clone(self),
            index,
        }
    }

    /// Rings a bell: with what is submitted next, at the end of the turn at the latest.
    pub(crate) fn call(&self, bell: &Rc<Bell>) {
        if let Some(entry) = self.bells.message(bell) {
            self.push(&entry);
            // Not before: pushing may submit, and what is kept until then is what was queued then.
            self.bells.keep(bell);
        }
    }

    /// Polls `file` for readability until dropped.
    pub(crate) fn poll_readable(self: &Rc<Self>, file: Rc<OwnedFd>) -> Readable {
        let index = self.arm_poll(&file);
        Readable {
            ring: Rc::clone(self),
            file,
            index,
        }
    }

    fn arm_poll(&self, file: &Rc<OwnedFd>) -> usize {
        let fd = Fd(file.as_raw_fd());
        let lent = Lent {
            _file: Rc::clone(file),
            buffer: None,
            iovecs: Vec::new(),
        };
        let state = State::Poll {
            ready: false,
            ended: None,
            waker: None,
        };
        let index = self.insert(Slot { state, _lent: lent });
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let entry = opcode::PollAdd::new(fd, events).multi(true).build();
        self.push(&entry.user_data(index as u64));
        index
    }

    fn insert(&self, slot: Slot) -> usize {
        if let Some(index) = self.free.borrow_mut().pop() {
            self.slots.borrow_mut()[index] = Some(slot);
            return index;
        }
        let mut slots = self.slots.borrow_mut();
        slots.push(Some(slot));
        slots.len() - 1
    }

    fn remove(&self, index: usize) {
        // Dropped outside the borrow: freeing a buffer may run foreign code.
        let slot = self.slots.borrow_mut()[index].take();
        self.free.borrow_mut().push(index);
        drop(slot);
    }

    fn push(&self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is owned by the table until its CQE (`insert` came first), or it
            // points to nothing.
            let pushed = unsafe { self.uring.borrow_mut().submission().push(entry) };
            if pushed.is_ok() {
                break;
            }
            self.submit();
        }
        self.queued.set(self.queued.get() + 1);
        if self.queued.get() >= self.burst.get() {
            self.burst.set((self.burst.get() * 2).min(BURST_MAX));
            self.submit();
        }
    }

    /// Hands queued SQEs to the kernel without waiting.
    fn submit(&self) {
        // EBUSY and EAGAIN mean "reap first"; the entries stay queued and go with the next enter.
        let mut uring = self.uring.borrow_mut();
        if uring.submit().is_ok() {
            self.submitted(&mut uring);
        }
    }

    fn submitted(&self, uring: &mut IoUring) {
        // The kernel may take a part only, when it is short of memory.
        let left = uring.submission().len();
        self.queued.set(u32::try_from(left).unwrap_or(u32::MAX));
        if left == 0 {
            self.bells.sent();
        }
    }

    /// Ends a turn: submits, and sleeps for at least one completion if `wait`, at most `timeout`.
    pub(crate) fn enter(&self, wait: bool, timeout: Option<Duration>) {
        self.burst.set(BURST_FIRST);
        let mut uring = self.uring.borrow_mut();
        let has_completions = !uring.completion().is_empty();
        if has_completions || !wait {
            let taskrun = uring.submission().taskrun();
            if self.queued.get() > 0 || taskrun {
                drop(uring);
                self.submit();
            }
            return;
        }
        let entered = match timeout {
            None => uring.submit_and_wait(1),
            Some(timeout) => {
                let time = Timespec::from(timeout);
                uring
                    .submitter()
                    .submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        // ETIME: the timeout passed; EINTR: a signal; both after submission.
        match entered.map_err(|error| error.raw_os_error()) {
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR)) => self.submitted(&mut uring),
            Err(_) => {}
        }
    }

    /// Whether completions are there to be taken.
    pub(crate) fn has_completions(&self) -> bool {
        !self.uring.borrow_mut().completion().is_empty()
    }

    /// Whether the kernel has something to finish for us, which it does at the next system call.
    pub(crate) fn has_task_work(&self) -> bool {
        self.uring.borrow_mut().submission().taskrun()
    }

    /// Takes all completions and wakes who waits for them.
    pub(crate) fn reap(&self) {
        loop {
            let next = self.uring.borrow_mut().completion().next();
            let Some(cqe) = next else { return };
            if cqe.user_data() != NOBODY && !self.bells.complete(cqe.user_data()) {
                let index = usize::try_from(cqe.user_data()).expect("an index that we made");
                self.complete(index, cqe.result(), io_uring::cqueue::more(cqe.flags()));
            }
        }
    }

    fn complete(&self, index: usize, result: i32, more: bool) {
        let mut waker = None;
        let mut finished = false;
        {
            let mut slots = self.slots.borrow_mut();
            let slot = slots[index]
                .as_mut()
                .expect("a slot stays until its last completion");
            match &mut slot.state {
                State::Pending(waiting) => {
                    waker = waiting.take();
                    slot.state = State::Done(result);
                }
                State::Poll {
                    ready,
                    ended,
                    waker: waiting,
                } => {
                    *ready |= result >= 0;
                    if !more {
                        *ended = Some(result);
                    }
                    waker = waiting.take();
                }
                State::Abandoned => finished = !more,
                State::Done(_) => unreachable!("one completion per operation"),
            }
        }
        if finished {
            self.remove(index);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Gives up interest in a slot; frees it now if the kernel is done with it, else at its completion.
    fn abandon(&self, index: usize, cancel: bool) {
        let done = {
            let mut slots = self.slots.borrow_mut();
            let slot = slots[index]
                .as_mut()
                .expect("a slot stays until it is given up");
            let done = matches!(
                slot.state,
                State::Done(_) | State::Poll { ended: Some(_), .. }
            );
            slot.state = State::Abandoned;
            done
        };
        if done {
            self.remove(index);
        } else if cancel {
            let entry = opcode::AsyncCancel::new(index as u64).build();
            self.push(&entry.user_data(NOBODY));
        }
    }
}

impl Drop for Ring {
    /// Waits a moment for what is in flight; what a hung disk still holds is leaked, never freed under the kernel.
    fn drop(&mut self) {
        for _ in 0..DRAIN_SECONDS * 10 {
            self.reap();
            if self.in_flight() == 0 {
                return;
            }
            let cancel_all = opcode::AsyncCancel2::new(io_uring::types::CancelBuilder::any());
            self.push(&cancel_all.build().user_data(NOBODY));
            self.enter(true, Some(Duration::from_millis(100)));
        }
        std::mem::forget(self.slots.take());
    }
}

/// The answer to a started operation: bytes or a negative errno, as in `io_uring_enter(2)`.
#[derive(Debug)]
#[must_use = "an operation's result says whether it happened"]
pub(crate) struct InFlight {
    ring: Rc<Ring>,
    index: usize,
}

impl Future for InFlight {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<i32> {
        let mut slots = self.ring.slots.borrow_mut();
        let slot = slots[self.index]
            .as_mut()
            .expect("a slot stays until its future is dropped");
        match &mut slot.state {
            State::Done(result) => Poll::Ready(*result),
            State::Pending(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            State::Abandoned | State::Poll { .. } => unreachable!("the slot is this future's own"),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.ring.abandon(self.index, false);
    }
}

/// Readiness of a file, again and again; dropping it ends the poll.
#[derive(Debug)]
pub struct Readable {
    ring: Rc<Ring>,
    file: Rc<OwnedFd>,
    index: usize,
}

impl Readable {
    /// Waits until the file has become readable since the last time; several events may count as one. An eventfd
    /// need not be read for this: each write to it is an event.
    ///
    /// # Errors
    /// What the poll failed with.
    pub async fn next(&mut self) -> Result<(), IoError> {
        match std::future::poll_fn(|context| self.poll_state(context)).await {
            None => Ok(()),
            Some(errno) if errno < 0 => Err(IoError::Os(-errno)),
            // The kernel ends a multishot poll when its completion queue overflows: count it as an event.
            Some(_) => {
                self.ring.remove(self.index);
                self.index = self.ring.arm_poll(&self.file);
                Ok(())
            }
        }
    }

    fn poll_state(&self, context: &Context<'_>) -> Poll<Option<i32>> {
        let mut slots = self.ring.slots.borrow_mut();
        let slot = slots[self.index]
            .as_mut()
            .expect("a poll's slot stays until it is dropped");
        let State::Poll {
            ready,
            ended,
            waker,
        } = &mut slot.state
        else {
            unreachable!("the slot is this poll's own")
        };
        if let Some(result) = ended {
            return Poll::Ready(Some(*result));
        }
        if std::mem::take(ready) {
            return Poll::Ready(None);
        }
        *waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Readable {
    fn drop(&mut self) {
        self.ring.abandon(self.index, true);
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in {} iovecs", self.buffer, self.iovecs.len())
    }
}
