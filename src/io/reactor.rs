//! A reactor: one thread with one ring and one executor, and the two handles to it.
//!
//! The loop is `Shared::turn`: run what is ready, submit, sleep, reap, fire timers, take mail. [`ReactorHandle`] is for
//! other threads, [`Local`] for tasks on the reactor's own.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::buffer::{BufferPool, IoBuffer, Segment};
use super::clock::{Clock, Rng, Spawn, monotonic, wall};
use super::device::{Alignment, IoError};
use super::doors::{Door, Doors};
use super::executor::{AtEndOfTurn, Executor};
use super::file::FileDevice;
use super::mailbox::Mailbox;
use super::operation::Operation;
use super::polling::{Spinner, Wait};
use super::ring::{Bell, Pinned, Readable, Ring};
use crate::model::Polling;

/// A reactor as other threads see it. Clones share the thread.
#[derive(Clone)]
pub struct ReactorHandle {
    index: usize,
    mailbox: Arc<Mailbox>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// How often, while it looks around, a reactor asks the kernel for what that has to finish.
const ASKS_MAX: u32 = 8;
/// Pause before the doorbell is polled again when that failed.
const POLL_AGAIN: Duration = Duration::from_millis(100);

impl ReactorHandle {
    /// Starts a reactor's thread, named `reactor-<index>`. It sleeps whenever there is nothing to do.
    ///
    /// # Errors
    /// When the thread, its ring or its eventfd can't be made; io_uring may be disabled on this machine.
    pub fn start(index: usize) -> io::Result<Self> {
        Self::start_polling(index, Polling::Off)
    }

    /// The same with one that looks around for a while first.
    ///
    /// # Errors
    /// As [`ReactorHandle::start`].
    pub fn start_polling(index: usize, polling: Polling) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let (started, result) = std::sync::mpsc::sync_channel(1);
        let inside = Arc::clone(&mailbox);
        let thread = std::thread::Builder::new()
            .name(format!("reactor-{index}"))
            .spawn(move || thread_main(&inside, polling, &started))?;
        let gone = || io::Error::other("the reactor's thread ended before it started");
        result.recv().map_err(|_| gone())??;
        Ok(Self {
            index,
            mailbox,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Which of the node's reactors this is, from zero.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Calls `make` on the reactor's thread and runs the future it returns there as a task. The answer comes through
    /// the channel; it is closed without one when the reactor has stopped.
    pub fn run<T, F, Fut>(&self, make: F) -> oneshot::Receiver<T>
    where
        T: Send + 'static,
        F: FnOnce(Local) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (answer, receiver) = oneshot::channel();
        self.mailbox.post(Box::new(move |local| {
            let task = make(local.clone());
            local.spawn(async move {
                // The caller may have given up waiting; the work was done all the same.
                let _ = answer.send(task.await);
            });
        }));
        receiver
    }

    /// Ends the reactor: tasks that have not finished are dropped, I/O in flight is waited for (a moment).
    pub fn stop(&self) {
        self.mailbox
            .post(Box::new(|local| local.shared.stopping.set(true)));
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A panic on the reactor aborts the process, so joining can't fail.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReactorHandle({})", self.index)
    }
}

fn thread_main(
    mailbox: &Arc<Mailbox>,
    polling: Polling,
    started: &std::sync::mpsc::SyncSender<io::Result<()>>,
) {
    // A reactor owns volumes; going on without it would leave clients waiting for ever. Stopping the whole process
    // at once is what a crash is, and that is what the on-disk rules are made for.
    let run = AssertUnwindSafe(|| match Local::new(mailbox, polling) {
        Ok(local) => {
            let _ = started.send(Ok(()));
            local.run(mailbox);
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    });
    if std::panic::catch_unwind(run).is_err() {
        tracing::error!("a reactor panicked; aborting");
        std::process::abort();
    }
}

/// A reactor as its own tasks see it. Cheap to clone; never leaves the thread.
#[derive(Clone)]
pub struct Local {
    shared: Rc<Shared>,
}

struct Shared {
    ring: Rc<Ring>,
    executor: Executor,
    buffers: BufferPool,
    /// None when the reactor does not look around.
    spinner: Option<Spinner>,
    doors: Doors,
    epoch: Instant,
    /// Time at the start of this turn: requests and timers need no better.
    now: Cell<Duration>,
    stopping: Cell<bool>,
    extensions: RefCell<Vec<Rc<dyn std::any::Any>>>,
}

impl Local {
    fn new(mailbox: &Arc<Mailbox>, polling: Polling) -> io::Result<Self> {
        let doorbell = Arc::clone(mailbox);
        let ring = Rc::new(Ring::new()?);
        // Weak: what is under way holds buffers, and a ring that ends waits for it.
        let registrar = Rc::downgrade(&ring);
        let register = move |chunk: Segment| match registrar.upgrade() {
            Some(ring) => ring.pin_for_good(chunk),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        let shared = Rc::new(Shared {
            ring,
            executor: Executor::new(Box::new(move || doorbell.ring())),
            buffers: BufferPool::registered(register),
            spinner: Spinner::new(polling),
            doors: Doors::default(),
            epoch: monotonic(),
            now: Cell::new(Duration::ZERO),
            stopping: Cell::new(false),
            extensions: RefCell::default(),
        });
        Ok(Self { shared })
    }

    fn run(&self, mailbox: &Arc<Mailbox>) {
        let shared = &self.shared;
        let doorbell = match mailbox.doorbell() {
            Ok(fd) => Rc::new(fd),
            Err(error) => panic!("a reactor can't hear its doorbell: {error}"),
        };
        let mut rings = shared.ring.poll_readable(Rc::clone(&doorbell));
        let mailbox_seen = Arc::clone(mailbox);
        let local = self.clone();
        shared.executor.spawn(async move {
            loop {
                for letter in mailbox_seen.take() {
                    letter(&local);
                }
                // The poll only fails when the kernel is out of memory. A reactor that hears nothing can't even be stopped.
                if rings.next().await.is_err() {
                    local.sleep(POLL_AGAIN).await;
                    rings = local.poll_readable(Rc::clone(&doorbell));
                }
            }
        });
        while !shared.stopping.get() {
            shared.turn();
        }
        drop(mailbox.close());
        shared.executor.clear();
        // Out of the cell first: what is dropped may look for other extensions.
        drop(shared.extensions.take());
    }

    /// Private buffers of this thread.
    #[must_use]
    pub fn buffers(&self) -> &BufferPool {
        &self.shared.buffers
    }

    /// A block device over an open file. `size` is the file's length in bytes; `thick` keeps zeroed ranges allocated.
    #[must_use]
    pub fn file(&self, fd: OwnedFd, size: u64, alignment: Alignment, thick: bool) -> FileDevice {
        FileDevice::new(self.clone(), Rc::new(fd), size, alignment, thick)
    }

    /// Readiness of `fd`, once per burst of events, until the result is dropped.
    #[must_use]
    pub fn poll_readable(&self, fd: Rc<OwnedFd>) -> Readable {
        self.shared.ring.poll_readable(fd)
    }

    /// Rings a bell, at the end of this turn at the latest. A bell belongs to one reactor.
    pub fn call(&self, bell: &Rc<Bell>) {
        self.shared.ring.call(bell);
    }

    /// Registers memory with the ring, at most 1 GiB: buffers that bear its number ([`IoBuffer::from_segment`]) cost less.
    ///
    /// # Errors
    /// `ENOMEM` above `RLIMIT_MEMLOCK`, `EFAULT` when there is no memory behind the addresses, `ENOSPC` when a reactor
    /// has too many.
    pub fn pin(&self, memory: Segment) -> io::Result<Pinned> {
        self.shared.ring.pin(memory)
    }

    /// Starts a device command (`IORING_OP_URING_CMD`) with a 16-byte payload and waits for its result, as the driver
    /// gave it. `keep` stays allocated until then.
    pub fn uring_cmd(
        &self,
        fd: Rc<OwnedFd>,
        cmd_op: u32,
        payload: [u8; 16],
        keep: Option<IoBuffer>,
    ) -> impl Future<Output = i32> + use<> {
        self.shared.ring.start(
            fd,
            &Operation::Command {
                op: cmd_op,
                payload,
            },
            keep,
        )
    }

    /// Starts a file operation.
    pub(crate) fn operate(
        &self,
        fd: &Rc<OwnedFd>,
        operation: &Operation,
        buffer: Option<IoBuffer>,
    ) -> impl Future<Output = Result<usize, IoError>> + use<> {
        let in_flight = self.shared.ring.start(Rc::clone(fd), operation, buffer);
        async move {
            let result = in_flight.await;
            usize::try_from(result).map_err(|_| IoError::Os(-result))
        }
    }

    /// Completes after every task that is ready in this turn has run, before the ring is submitted: the place to
    /// publish what the turn produced, once.
    pub fn end_of_turn(&self) -> impl Future<Output = ()> + use<> {
        EndOfTurn {
            local: self.clone(),
            phase: None,
        }
    }

    /// Does `work` at that place.
    pub fn at_end_of_turn(&self, work: Rc<dyn AtEndOfTurn>) {
        self.shared.executor.run_late(work);
    }

    /// Runs `task` as [`Spawn::spawn`] does, but its first part here and now; no cell that it uses may be borrowed meanwhile.
    pub fn start(&self, task: impl Future<Output = ()> + 'static) {
        self.shared.executor.start(task);
    }

    /// Whether this reactor looks behind doors that are shut.
    #[must_use]
    pub fn looks_around(&self) -> bool {
        self.shared.spinner.is_some()
    }

    /// A door was shut. The reactor looks behind it, if it [looks around](Self::looks_around), and opens it before it sleeps.
    pub fn shut(&self, door: Weak<dyn Door>) {
        self.shared.doors.shut(door);
    }

    /// The thread's one value of type `T`, made by `make` when it is first asked for. For registries that belong to a
    /// reactor, such as its volumes.
    pub fn extension<T: 'static>(&self, make: impl FnOnce() -> T) -> Rc<T> {
        let found = self
            .shared
            .extensions
            .borrow()
            .iter()
            .find_map(|e| Rc::clone(e).downcast().ok());
        found.unwrap_or_else(|| {
            let made = Rc::new(make());
            let stored: Rc<dyn std::any::Any> = Rc::clone(&made) as _;
            self.shared.extensions.borrow_mut().push(stored);
            made
        })
    }
}

impl Shared {
    fn turn(&self) {
        // Whoever keeps the reactor busy must not keep those waiting who are told not to ring. Without polling no door is shut.
        self.doors.look();
        self.executor.run_turn();
        let idle = self.executor.is_idle() && !self.stopping.get();
        match &self.spinner {
            Some(spinner) if idle => self.rest(spinner),
            _ => self.ring.enter(idle, self.until_timer(idle)),
        }
        self.now.set(self.epoch.elapsed());
        self.ring.reap();
        self.executor.fire_timers(self.now.get());
    }

    /// How long an idle reactor may sleep.
    fn until_timer(&self, idle: bool) -> Option<Duration> {
        let deadline = self.executor.next_timer().filter(|_| idle)?;
        // A cached time would make the sleep too long by what this turn took.
        Some(deadline.saturating_sub(self.epoch.elapsed()))
    }

    /// Waits for something to do: looks around, if that is likely to be worth it, then sleeps.
    fn rest(&self, spinner: &Spinner) {
        let began = self.epoch.elapsed();
        let timer = self.executor.next_timer();
        let until_timer = timer.map_or(Duration::MAX, |at| at.saturating_sub(began));
        let budget = spinner.budget().min(until_timer);
        let passed = || self.epoch.elapsed().saturating_sub(began);
        if !budget.is_zero() {
            self.ring.enter(false, None);
            if self.look_around(began + budget) {
                return spinner.waited(passed(), Wait::Seen);
            }
        }
        // What has come meanwhile is taken here, and begins now.
        self.now.set(self.epoch.elapsed());
        if self.doors.open() {
            return self.ring.enter(false, None);
        }
        self.ring.enter(true, self.until_timer(true));
        let how = if budget.is_zero() {
            Wait::Slept
        } else {
            Wait::Missed
        };
        spinner.waited(passed(), how);
    }

    /// Looks at the ring and behind the doors until `limit`. Whether there is something to do.
    fn look_around(&self, limit: Duration) -> bool {
        // The kernel may leave the flag up with nothing behind it.
        let mut asks = 0;
        loop {
            if self.ring.has_completions() || self.doors.have_work() {
                return true;
            }
            if asks < ASKS_MAX && self.ring.has_task_work() {
                asks += 1;
                self.ring.enter(false, None);
            }
            if self.epoch.elapsed() >= limit {
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

impl Clock for Local {
    fn now(&self) -> Duration {
        self.shared.now.get()
    }

    fn wall_ns(&self) -> u64 {
        let since = wall()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let deadline = self.shared.epoch.elapsed().saturating_add(duration);
        Sleep {
            local: self.clone(),
            deadline,
            key: None,
        }
    }
}

impl Rng for Local {
    fn random_u128(&self) -> u128 {
        // Six bits of a version 4 UUID are fixed; rotating a second one puts random bits in their place.
        uuid::Uuid::new_v4().as_u128() ^ uuid::Uuid::new_v4().as_u128().rotate_left(32)
    }
}

impl Spawn for Local {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.shared.executor.spawn(task);
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("tasks", &self.shared.executor.task_count())
            .finish()
    }
}

struct Sleep {
    local: Local,
    deadline: Duration,
    key: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.local.now() >= self.deadline {
            return Poll::Ready(());
        }
        let executor = &self.local.shared.executor;
        match self.key {
            Some(key) => executor.update_timer(key, context.waker()),
            None => {
                let key = executor.add_timer(self.deadline, context.waker().clone());
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.local.shared.executor.cancel_timer(key);
        }
    }
}

struct EndOfTurn {
    local: Local,
    phase: Option<u64>,
}

impl Future for EndOfTurn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let executor = &self.local.shared.executor;
        match self.phase {
            Some(phase) if executor.late_phase() > phase => Poll::Ready(()),
            _ => {
                let phase = executor.late_phase();
                executor.wake_late(context.waker().clone());
                self.phase = Some(phase);
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests;
