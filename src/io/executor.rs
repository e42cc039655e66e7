//! A small executor for one thread: tasks, a ready queue, timers, and an end-of-turn list.
//!
//! Waking a task from its own thread is a push onto a thread-local queue: no lock, no atomic read-modify-write. A wake
//! from another thread (a channel's sender, say) goes through a mutex and rings the reactor's doorbell.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

/// How many polls a turn makes before the ring gets its say, so that a task that always wakes itself starves nobody.
const POLLS_PER_TURN_MAX: usize = 4096;

type Task = Pin<Box<dyn Future<Output = ()>>>;

thread_local! {
    /// Tasks of this thread's executor that want to be polled.
    static READY: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
    /// The id of this thread's executor; zero when it has none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// What other threads may do to an executor: wake its tasks.
pub(crate) struct Remote {
    woken: Mutex<Vec<usize>>,
    /// Whether there are any, so that a turn takes no lock for nothing.
    any_woken: AtomicBool,
    ring_doorbell: Box<dyn Fn() + Send + Sync>,
}

struct TaskWaker {
    index: usize,
    executor: u64,
    /// Whether the task is in the ready queue already. Touched only on the executor's thread.
    queued: AtomicBool,
    remote: Arc<Remote>,
}

struct Slot {
    task: Option<Task>,
    state: Arc<TaskWaker>,
    /// The same as a waker. Both are out while the task is polled.
    waker: Option<Waker>,
}

/// What happens when everything that was ready in a turn has run.
enum Late {
    Wake(Waker),
    Run(Rc<dyn AtEndOfTurn>),
}

/// Something to be done once a turn, for instance publishing what its tasks produced.
pub trait AtEndOfTurn {
    /// Does it.
    fn run(self: Rc<Self>);
}

/// The tasks of one thread.
pub(crate) struct Executor {
    id: u64,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    remote: Arc<Remote>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    timer_next: Cell<u64>,
    late: RefCell<Vec<Late>>,
    /// Counts end-of-turn phases.
    late_phase: Cell<u64>,
}

impl TaskWaker {
    fn queue(&self) {
        if !self.queued.load(Ordering::Relaxed) {
            self.queued.store(true, Ordering::Relaxed);
            READY.with_borrow_mut(|ready| ready.push_back(self.index));
        }
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if CURRENT.get() == self.executor {
            self.queue();
        } else {
            let mut woken = self
                .remote
                .woken
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            woken.push(self.index);
            drop(woken);
            self.remote.any_woken.store(true, Ordering::Release);
            (self.remote.ring_doorbell)();
        }
    }
}

impl Executor {
    /// An executor for the calling thread.
    ///
    /// # Panics
    /// When the thread has one already.
    pub(crate) fn new(ring_doorbell: Box<dyn Fn() + Send + Sync>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        assert_eq!(CURRENT.get(), 0, "a thread has at most one executor");
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        CURRENT.set(id);
        Self {
            id,
            slots: RefCell::default(),
            free: RefCell::default(),
            remote: Arc::new(Remote {
                woken: Mutex::default(),
                any_woken: AtomicBool::new(false),
                ring_doorbell,
            }),
            timers: RefCell::default(),
            timer_next: Cell::new(0),
            late: RefCell::default(),
            late_phase: Cell::new(0),
        }
    }

    /// Adds a task; it is first polled in this turn or the next.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let index = self.add(Box::pin(task));
        self.slots.borrow()[index].state.queue();
    }

    /// Adds a task and polls it here and now: of many that end at once, each uses the memory of the one before.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + 'static) {
        let index = self.add(Box::pin(task));
        self.poll(index);
    }

    fn add(&self, task: Task) -> usize {
        let mut slots = self.slots.borrow_mut();
        if let Some(index) = self.free.borrow_mut().pop() {
            slots[index].task = Some(task);
            return index;
        }
        let state = Arc::new(TaskWaker {
            index: slots.len(),
            executor: self.id,
            queued: AtomicBool::new(false),
            remote: Arc::clone(&self.remote),
        });
        slots.push(Slot {
            task: Some(task),
            waker: Some(Waker::from(Arc::clone(&state))),
            state,
        });
        slots.len() - 1
    }

    /// Number of unfinished tasks.
    pub(crate) fn task_count(&self) -> usize {
        self.slots.borrow().len() - self.free.borrow().len()
    }

    /// Whether no task wants to run.
    pub(crate) fn is_idle(&self) -> bool {
        READY.with_borrow(VecDeque::is_empty) && self.late.borrow().is_empty()
    }

    /// Runs what is ready, then the end-of-turn waiters, then what those made ready.
    pub(crate) fn run_turn(&self) {
        self.collect_remote_wakes();
        self.run_ready();
        let mut late = self.late.take();
        self.late_phase.set(self.late_phase.get() + 1);
        if !late.is_empty() {
            for item in late.drain(..) {
                match item {
                    Late::Wake(waker) => waker.wake(),
                    Late::Run(work) => work.run(),
                }
            }
            // Its memory serves the next time.
            let mut again = self.late.borrow_mut();
            late.append(&mut again);
            *again = late;
            drop(again);
            self.run_ready();
        }
    }

    fn collect_remote_wakes(&self) {
        let remote = &self.remote;
        // A wake that comes between the two is for the next turn; it has rung.
        if !remote.any_woken.load(Ordering::Relaxed)
            || !remote.any_woken.swap(false, Ordering::Acquire)
        {
            return;
        }
        let woken = std::mem::take(
            &mut *self
                .remote
                .woken
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for index in woken {
            if let Some(slot) = self.slots.borrow().get(index) {
                slot.state.queue();
            }
        }
    }

    fn run_ready(&self) {
        for _ in 0..POLLS_PER_TURN_MAX {
            let Some(index) = READY.with_borrow_mut(VecDeque::pop_front) else {
                return;
            };
            self.poll(index);
        }
    }

    fn poll(&self, index: usize) {
        let (mut task, waker) = {
            let slot = &mut self.slots.borrow_mut()[index];
            slot.state.queued.store(false, Ordering::Relaxed);
            // A finished task may be woken once more by a waker that someone kept.
            let Some(task) = slot.task.take() else { return };
            let waker = slot.waker.take();
            (
                task,
                waker.expect("the waker is there while its task is not polled"),
            )
        };
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            drop(task);
            self.slots.borrow_mut()[index].waker = Some(waker);
            self.free.borrow_mut().push(index);
        } else {
            let slot = &mut self.slots.borrow_mut()[index];
            slot.task = Some(task);
            slot.waker = Some(waker);
        }
    }

    /// Wakes the timers that are due at `now`.
    pub(crate) fn fire_timers(&self, now: Duration) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let later = self.timers.borrow_mut().split_off(&(now, u64::MAX));
        let due = self.timers.replace(later);
        due.into_values().for_each(Waker::wake);
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.timers
            .borrow()
            .keys()
            .next()
            .map(|(deadline, _)| *deadline)
    }

    /// Registers a timer and returns the key to cancel or update it with.
    pub(crate) fn add_timer(&self, deadline: Duration, waker: Waker) -> (Duration, u64) {
        let number = self.timer_next.get();
        self.timer_next.set(number + 1);
        self.timers.borrow_mut().insert((deadline, number), waker);
        (deadline, number)
    }

    /// Replaces a pending timer's waker.
    pub(crate) fn update_timer(&self, key: (Duration, u64), waker: &Waker) {
        if let Some(stored) = self.timers.borrow_mut().get_mut(&key) {
            stored.clone_from(waker);
        }
    }

    /// Forgets a timer.
    pub(crate) fn cancel_timer(&self, key: (Duration, u64)) {
        self.timers.borrow_mut().remove(&key);
    }

    /// The current end-of-turn phase; it has passed once the number is larger.
    pub(crate) fn late_phase(&self) -> u64 {
        self.late_phase.get()
    }

    /// Wakes `waker` in this turn's end-of-turn phase.
    pub(crate) fn wake_late(&self, waker: Waker) {
        self.late.borrow_mut().push(Late::Wake(waker));
    }

    /// Does `work` in this turn's end-of-turn phase.
    pub(crate) fn run_late(&self, work: Rc<dyn AtEndOfTurn>) {
        self.late.borrow_mut().push(Late::Run(work));
    }

    /// Drops every task, whatever it waits for, and those that are spawned when others are dropped.
    pub(crate) fn clear(&self) {
        loop {
            let tasks: Vec<Task> = self
                .slots
                .borrow_mut()
                .iter_mut()
                .filter_map(|slot| slot.task.take())
                .collect();
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        READY.with_borrow_mut(VecDeque::clear);
        drop(self.late.take());
        self.timers.borrow_mut().clear();
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.clear();
        CURRENT.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    fn executor() -> Rc<Executor> {
        Rc::new(Executor::new(Box::new(|| {})))
    }

    #[test]
    fn a_task_runs_again_only_when_woken() {
        let executor = executor();
        let polls = Rc::new(Cell::new(0));
        let waker = Rc::new(RefCell::new(None::<Waker>));
        let (seen, kept) = (Rc::clone(&polls), Rc::clone(&waker));
        executor.spawn(std::future::poll_fn(move |context| {
            seen.set(seen.get() + 1);
            *kept.borrow_mut() = Some(context.waker().clone());
            if seen.get() == 2 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
        executor.run_turn();
        executor.run_turn();
        assert_eq!((polls.get(), executor.task_count()), (1, 1));
        waker.borrow().as_ref().unwrap().wake_by_ref();
        waker.borrow().as_ref().unwrap().wake_by_ref();
        executor.run_turn();
        assert_eq!((polls.get(), executor.task_count()), (2, 0));
    }

    #[test]
    fn a_task_that_is_started_has_been_polled_and_goes_on_when_woken() {
        let executor = executor();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let got = Rc::new(Cell::new(0));
        let result = Rc::clone(&got);
        let inside = Rc::clone(&executor);
        executor.start(async move {
            let inner = Rc::clone(&result);
            inside.start(async move { inner.set(1) });
            assert_eq!(result.get(), 1, "also from within another");
            result.set(receiver.await.unwrap_or(0));
        });
        assert_eq!((got.get(), executor.task_count()), (1, 1));
        sender.send(7).unwrap();
        executor.run_turn();
        assert_eq!((got.get(), executor.task_count()), (7, 0));
    }

    #[test]
    fn a_wake_from_another_thread_rings_the_doorbell() {
        let rang = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&rang);
        let executor = Executor::new(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let got = Rc::new(Cell::new(0));
        let result = Rc::clone(&got);
        executor.spawn(async move { result.set(receiver.await.unwrap_or(0)) });
        executor.run_turn();
        std::thread::spawn(move || sender.send(7))
            .join()
            .unwrap()
            .unwrap();
        assert_eq!(rang.load(Ordering::Relaxed), 1);
        executor.run_turn();
        assert_eq!(got.get(), 7);
    }

    #[test]
    fn timers_fire_in_order_and_not_early() {
        let executor = executor();
        let order = Rc::new(RefCell::new(Vec::new()));
        for (name, at) in [("late", 20), ("early", 10)] {
            let order = Rc::clone(&order);
            let mut armed = false;
            let exec = Rc::clone(&executor);
            executor.spawn(std::future::poll_fn(move |context| {
                if armed {
                    order.borrow_mut().push(name);
                    return Poll::Ready(());
                }
                armed = true;
                exec.add_timer(Duration::from_millis(at), context.waker().clone());
                Poll::Pending
            }));
        }
        executor.run_turn();
        executor.fire_timers(Duration::from_millis(9));
        executor.run_turn();
        assert!(order.borrow().is_empty());
        assert_eq!(executor.next_timer(), Some(Duration::from_millis(10)));
        executor.fire_timers(Duration::from_millis(30));
        executor.run_turn();
        assert_eq!(*order.borrow(), ["early", "late"]);
        executor.clear();
    }
}
