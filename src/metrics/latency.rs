//! Latencies by bucket. One writer (a reactor), any number of readers (scrapes): plain relaxed loads and stores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, seconds: 16 us times 4 up to 4.2 s; slower ones are only in the total.
pub const LATENCY_BUCKETS_SECONDS: [f64; 10] = [
    0.000_016, 0.000_064, 0.000_256, 0.001_024, 0.004_096, 0.016_384, 0.065_536, 0.262_144,
    1.048_576, 4.194_304,
];

/// One more than the bounds: the last holds what is slower than all of them.
pub const BUCKETS: usize = LATENCY_BUCKETS_SECONDS.len() + 1;

/// How long operations took.
#[derive(Debug, Default)]
pub struct Latencies {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// Adds to a counter that only the calling thread writes.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

impl Latencies {
    /// Notes one operation. Only one thread may call this.
    pub(crate) fn note(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanoseconds, nanoseconds);
        add(&self.buckets[bucket(nanoseconds)], 1);
    }

    /// Time that all of them took, seconds.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "seconds are a float in Prometheus"
    )]
    pub fn seconds(&self) -> f64 {
        self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Operations per bucket, not cumulative; the last is what exceeds every bound.
    #[must_use]
    pub fn buckets(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed))
    }
}

/// The bucket of a latency: bounds are 16 us times powers of four, inclusive.
fn bucket(nanoseconds: u64) -> usize {
    let mut bound = 16_000;
    for index in 0..LATENCY_BUCKETS_SECONDS.len() {
        if nanoseconds <= bound {
            return index;
        }
        bound *= 4;
    }
    LATENCY_BUCKETS_SECONDS.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_the_bucket_whose_bound_includes_them() {
        for (index, bound) in LATENCY_BUCKETS_SECONDS.iter().enumerate() {
            let duration = Duration::from_secs_f64(*bound);
            let nanoseconds = u64::try_from(duration.as_nanos()).unwrap();
            assert_eq!(bucket(nanoseconds), index);
            assert_eq!(bucket(nanoseconds + 1), index + 1);
        }
    }
}
