//! How long children take to answer. One operation in 16 on each child of a mirror is timed, since two readings of the clock
//! for each of them would be felt. (A volume with one copy has the copy's latency.)

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use crate::io::Clock;
use crate::metrics::latency::Latencies;

/// One operation in so many is timed.
const EVERY: u32 = 16;

/// What is timed apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timed {
    Read,
    Write,
    Flush,
}

/// How long operations on a child took, those that were timed. Clones share it; equal are those that do.
#[derive(Clone, Debug, Default)]
pub struct ChildLatencies(Arc<[Latencies; 3]>);

impl ChildLatencies {
    /// By what was asked: the metric label, and how long it took.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &Latencies)> {
        ["read", "write", "flush"].into_iter().zip(self.0.iter())
    }
}

impl PartialEq for ChildLatencies {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ChildLatencies {}

/// Times some of the operations on a child.
#[derive(Debug, Default)]
pub(super) struct Timing {
    turn: Cell<u32>,
    latencies: RefCell<ChildLatencies>,
}

impl Timing {
    /// An operation begins: when, if it is one of those that are timed.
    pub(super) fn begin(&self, clock: &impl Clock) -> Option<Duration> {
        let turn = self.turn.get().wrapping_add(1);
        self.turn.set(turn);
        turn.is_multiple_of(EVERY).then(|| clock.now())
    }

    /// It has ended.
    pub(super) fn end(&self, timed: Timed, began: Option<Duration>, clock: &impl Clock) {
        if let Some(began) = began {
            let took = clock.now().saturating_sub(began);
            self.latencies.borrow().0[timed as usize].note(took);
        }
    }

    /// Somebody else is the child from now on.
    pub(super) fn reset(&self) {
        self.latencies.take();
    }

    pub(super) fn latencies(&self) -> ChildLatencies {
        self.latencies.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    /// Goes on by a millisecond with each reading.
    #[derive(Clone, Default)]
    struct Ticking(Rc<Cell<u64>>);

    impl Clock for Ticking {
        fn now(&self) -> Duration {
            self.0.set(self.0.get() + 1);
            Duration::from_millis(self.0.get())
        }

        fn wall_ns(&self) -> u64 {
            0
        }

        fn sleep(&self, _: Duration) -> impl Future<Output = ()> + 'static {
            std::future::ready(())
        }
    }

    fn counts(timing: &Timing) -> Vec<u64> {
        let latencies = timing.latencies();
        let counts = latencies.each().map(|(_, one)| one.buckets().iter().sum());
        counts.collect()
    }

    #[test]
    fn one_operation_in_sixteen_is_timed_under_its_own_name() {
        let (timing, clock) = (Timing::default(), Ticking::default());
        for _ in 0..48 {
            let began = timing.begin(&clock);
            timing.end(Timed::Write, began, &clock);
        }
        assert_eq!(clock.0.get(), 6, "the clock is read for those only");
        assert_eq!(counts(&timing), [0, 3, 0]);
        let before = timing.latencies();
        let seconds: f64 = before.each().map(|(_, one)| one.seconds()).sum();
        assert!((seconds - 0.003).abs() < 1e-9);

        timing.reset();
        assert_eq!(counts(&timing), [0, 0, 0]);
        assert_ne!(timing.latencies(), before);
    }
}
