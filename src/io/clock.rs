//! Time, randomness and tasks as the data path sees them: small traits, so that a simulator can own all three.

use std::future::Future;
use std::time::Duration;

/// Monotonic time, wall time and timers.
pub trait Clock: Clone + 'static {
    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;

    /// Nanoseconds since 1970-01-01 UTC. For people only: nothing may be decided by it.
    fn wall_ns(&self) -> u64;

    /// Completes once `duration` has passed.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;
}

/// Random numbers for ids and jitter.
pub trait Rng: Clone + 'static {
    /// 128 uniformly random bits.
    fn random_u128(&self) -> u128;
}

/// Starts tasks on the current thread's executor.
pub trait Spawn: Clone + 'static {
    /// Runs `task` to its end, concurrently with the caller. The task starts at the executor's next turn.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
}

/// A monotonic reading for code outside the data path. The only place that reads the clock.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the system clock"
)]
pub fn monotonic() -> std::time::Instant {
    std::time::Instant::now()
}

/// Wall time for people and files' names. The only place that reads it.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the system clock"
)]
pub fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
