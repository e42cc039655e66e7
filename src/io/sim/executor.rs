//! A deterministic executor: tasks, virtual time and random numbers, all from one seed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::io::clock::{Clock, Rng, Spawn};

/// The simulated world. Clones share it.
#[derive(Clone)]
pub struct Sim {
    world: Rc<World>,
}

/// One life of one process in the world: its tasks die together. Implements [`Clock`], [`Rng`] and [`Spawn`].
#[derive(Clone)]
pub struct SimNode {
    world: Rc<World>,
    group: u64,
}

struct World {
    random: Cell<u64>,
    now: Cell<Duration>,
    next_id: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: Arc<ReadyList>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    /// What happened, if somebody wants to know.
    trace: RefCell<Option<Vec<String>>>,
}

struct Task {
    group: u64,
    waker: Arc<TaskWaker>,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

#[derive(Default)]
struct ReadyList {
    tasks: Mutex<Vec<Arc<TaskWaker>>>,
}

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    ready: Arc<ReadyList>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let ready = Arc::clone(&self.ready);
            ready.lock().push(self);
        }
    }
}

impl ReadyList {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<TaskWaker>>> {
        self.tasks
            .lock()
            .expect("no task panics while it holds the list")
    }
}

impl Sim {
    /// A world in which everything follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let world = World {
            random: Cell::new(seed ^ 0x9e37_79b9_7f4a_7c15),
            now: Cell::new(Duration::from_secs(1)),
            next_id: Cell::new(1),
            tasks: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
            trace: RefCell::default(),
        };
        Self {
            world: Rc::new(world),
        }
    }

    /// A new process, with no tasks yet.
    #[must_use]
    pub fn node(&self) -> SimNode {
        SimNode {
            world: Rc::clone(&self.world),
            group: self.world.fresh_id(),
        }
    }

    /// A random number below `bound`; zero when `bound` is zero.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.world.below(bound)
    }

    /// True once in `n` times.
    #[must_use]
    pub fn one_in(&self, n: u64) -> bool {
        self.world.below(n) == 0
    }

    /// A number that is larger than every earlier one: orders events.
    #[must_use]
    pub fn tick(&self) -> u64 {
        self.world.fresh_id()
    }

    /// Keeps what is noted from now on.
    pub fn keep_trace(&self) {
        self.world.trace.replace(Some(Vec::new()));
    }

    /// Notes what happens, if the trace is kept. Changes nothing else: a run with a trace goes as one without.
    pub fn note(&self, event: impl FnOnce() -> String) {
        if let Some(trace) = self.world.trace.borrow_mut().as_mut() {
            let (tick, now) = (self.world.next_id.get(), self.world.now.get());
            trace.push(format!(
                "{tick:>7} {:>12.6}s  {}",
                now.as_secs_f64(),
                event()
            ));
        }
    }

    /// What was noted, oldest first.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.world.trace.borrow().clone().unwrap_or_default()
    }

    /// Runs `main` and every other task until `main` has ended; the others end with it. Virtual time passes only when no
    /// task is ready.
    ///
    /// # Panics
    /// When nothing can ever happen any more although `main` has not ended: a deadlock.
    pub fn block_on<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        let _end = EndOfWorld(&self.world);
        let answer = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&answer);
        self.node().spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            if let Some(value) = answer.borrow_mut().take() {
                return value;
            }
            let progressed = self.world.run_one() || self.world.fire_timer();
            assert!(progressed, "deadlock: no task is ready and no timer is set");
        }
    }
}

/// Ends every task when dropped: tasks hold the world that holds them, so nothing else would free either.
struct EndOfWorld<'a>(&'a World);

impl Drop for EndOfWorld<'_> {
    fn drop(&mut self) {
        loop {
            // Dropped outside of the borrow: destructors may spawn, wake and look at the world.
            let last = self.0.tasks.borrow_mut().pop_last();
            if last.is_none() {
                break;
            }
        }
    }
}

impl SimNode {
    /// Ends every task of this process at once, wherever it stands.
    pub fn kill(&self) {
        loop {
            let dead: Vec<Task> = {
                let mut tasks = self.world.tasks.borrow_mut();
                let ids: Vec<u64> = tasks
                    .iter()
                    .filter(|(_, task)| task.group == self.group)
                    .map(|(id, _)| *id)
                    .collect();
                ids.iter().filter_map(|id| tasks.remove(id)).collect()
            };
            if dead.is_empty() {
                break;
            }
            // Dropped only now: destructors may spawn, wake and look at the world. What they spawn dies as well.
            drop(dead);
        }
    }

    /// The world that the process lives in.
    #[must_use]
    pub fn sim(&self) -> Sim {
        Sim {
            world: Rc::clone(&self.world),
        }
    }
}

impl World {
    fn fresh_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random_u64(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&self, bound: u64) -> u64 {
        self.random_u64().checked_rem(bound).unwrap_or(0)
    }

    /// Polls one ready task, chosen at random. False when none is ready.
    fn run_one(&self) -> bool {
        let chosen = {
            let mut ready = self.ready.lock();
            if ready.is_empty() {
                return false;
            }
            let count = ready.len() as u64;
            let index = usize::try_from(self.below(count)).expect("an index fits a usize");
            ready.swap_remove(index)
        };
        chosen.queued.store(false, Ordering::Relaxed);
        // Out of the map while it runs, so that it may spawn and kill.
        let Some(mut task) = self.tasks.borrow_mut().remove(&chosen.id) else {
            return true;
        };
        let waker = Waker::from(Arc::clone(&task.waker));
        let done = task.future.as_mut().poll(&mut Context::from_waker(&waker));
        if done.is_pending() {
            self.tasks.borrow_mut().insert(chosen.id, task);
        }
        true
    }

    /// Lets time pass until the next timer, and fires it. False when there is none.
    fn fire_timer(&self) -> bool {
        let Some(((at, _), waker)) = self.timers.borrow_mut().pop_first() else {
            return false;
        };
        self.now.set(self.now.get().max(at));
        waker.wake();
        true
    }
}

impl Spawn for SimNode {
    fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let id = self.world.fresh_id();
        let waker = Arc::new(TaskWaker {
            id,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.world.ready),
        });
        let task = Task {
            group: self.group,
            waker: Arc::clone(&waker),
            future: Box::pin(future),
        };
        self.world.tasks.borrow_mut().insert(id, task);
        waker.wake();
    }
}

impl Rng for SimNode {
    fn random_u128(&self) -> u128 {
        u128::from(self.world.random_u64()) << 64 | u128::from(self.world.random_u64())
    }
}

impl Clock for SimNode {
    fn now(&self) -> Duration {
        self.world.now.get()
    }

    fn wall_ns(&self) -> u64 {
        u64::try_from(self.world.now.get().as_nanos()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        SimSleep {
            world: Rc::clone(&self.world),
            at: self.world.now.get() + duration,
            timer: None,
        }
    }
}

/// A pending timer; forgotten when dropped.
struct SimSleep {
    world: Rc<World>,
    at: Duration,
    timer: Option<u64>,
}

impl Future for SimSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.world.now.get() >= self.at {
            return Poll::Ready(());
        }
        let id = match self.timer {
            Some(id) => id,
            None => self.world.fresh_id(),
        };
        self.timer = Some(id);
        let waker = context.waker().clone();
        self.world.timers.borrow_mut().insert((self.at, id), waker);
        Poll::Pending
    }
}

impl Drop for SimSleep {
    fn drop(&mut self) {
        if let Some(id) = self.timer {
            self.world.timers.borrow_mut().remove(&(self.at, id));
        }
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("now", &self.world.now.get())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SimNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNode")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order_of(seed: u64) -> Vec<u64> {
        let sim = Sim::new(seed);
        let node = sim.node();
        let order = Rc::new(RefCell::new(Vec::new()));
        for index in 0..10 {
            let (order, clock) = (Rc::clone(&order), node.clone());
            node.spawn(async move {
                clock.sleep(Duration::from_millis(index % 3)).await;
                order.borrow_mut().push(index);
            });
        }
        let clock = node.clone();
        sim.block_on(async move { clock.sleep(Duration::from_secs(1)).await });
        order.take()
    }

    #[test]
    fn the_same_seed_gives_the_same_order_and_another_gives_another() {
        assert_eq!(order_of(1), order_of(1));
        assert_ne!(order_of(1), order_of(2));
        assert_eq!(order_of(3).len(), 10);
    }

    #[test]
    fn time_passes_only_while_everybody_sleeps() {
        let sim = Sim::new(1);
        let clock = sim.node();
        let before = clock.now();
        let later = clock.clone();
        sim.block_on(async move { later.sleep(Duration::from_secs(3600)).await });
        assert_eq!(clock.now() - before, Duration::from_secs(3600));
    }

    #[test]
    fn the_end_of_main_frees_what_other_tasks_hold() {
        let sim = Sim::new(1);
        let (node, held) = (sim.node(), Rc::new(()));
        let (clock, theirs) = (node.clone(), Rc::clone(&held));
        node.spawn(async move {
            clock.sleep(Duration::from_secs(1)).await;
            drop(theirs);
        });
        sim.block_on(async {});
        assert_eq!(Rc::strong_count(&held), 1);
    }

    #[test]
    fn a_killed_process_does_nothing_more() {
        let sim = Sim::new(1);
        let node = sim.node();
        let ran = Rc::new(Cell::new(false));
        let (flag, clock) = (Rc::clone(&ran), node.clone());
        node.spawn(async move {
            clock.sleep(Duration::from_millis(2)).await;
            flag.set(true);
        });
        let main = sim.node();
        sim.block_on(async move {
            main.sleep(Duration::from_millis(1)).await;
            node.kill();
            main.sleep(Duration::from_millis(10)).await;
        });
        assert!(!ran.get());
    }
}
