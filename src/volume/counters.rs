//! What a volume counts. One writer (its reactor), any number of readers (scrapes): plain relaxed loads and stores.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, seconds: 16 us times 4 up to 4.2 s; slower ones are only in the total.
pub const LATENCY_BUCKETS_SECONDS: [f64; 10] = [
    0.000_016, 0.000_064, 0.000_256, 0.001_024, 0.004_096, 0.016_384, 0.065_536, 0.262_144,
    1.048_576, 4.194_304,
];

/// The kinds of request that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Discard and write-zeroes.
    Discard,
}

impl Operation {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 2,
            Self::Discard => 3,
        }
    }
}

/// Counters of one volume.
#[derive(Debug, Default)]
pub struct Counters {
    operations: [OperationCounters; 4],
    inflight: AtomicI64,
}

/// Counters of one kind of request.
#[derive(Debug, Default)]
pub struct OperationCounters {
    completed: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    /// One more than the bounds: the last holds what is slower than all of them.
    buckets: [AtomicU64; LATENCY_BUCKETS_SECONDS.len() + 1],
}

/// A reading of one kind of request's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OperationReading {
    /// Requests answered with success.
    pub completed: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes moved by the successful ones.
    pub bytes: u64,
    /// Time that all requests took, seconds.
    pub seconds: f64,
    /// Requests per latency bucket, not cumulative; the last is what exceeds every bound.
    pub buckets: [u64; LATENCY_BUCKETS_SECONDS.len() + 1],
}

/// Adds to a counter that only the calling thread writes.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

impl Counters {
    /// Notes that a request was taken in. Only the volume's reactor may call this.
    pub(crate) fn start(&self) {
        self.inflight
            .store(self.inflight.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Notes an answer. Only the volume's reactor may call this.
    pub(crate) fn finish(&self, operation: Operation, bytes: u64, ok: bool, took: Duration) {
        let counters = &self.operations[operation.index()];
        if ok {
            add(&counters.completed, 1);
            add(&counters.bytes, bytes);
        } else {
            add(&counters.errors, 1);
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&counters.nanoseconds, nanoseconds);
        add(&counters.buckets[bucket(nanoseconds)], 1);
        self.inflight
            .store(self.inflight.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// What was counted so far for one kind of request.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "seconds are a float in Prometheus"
    )]
    pub fn read(&self, operation: Operation) -> OperationReading {
        let counters = &self.operations[operation.index()];
        OperationReading {
            completed: counters.completed.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            seconds: counters.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9,
            buckets: std::array::from_fn(|i| counters.buckets[i].load(Ordering::Relaxed)),
        }
    }

    /// Requests taken in and not yet answered.
    #[must_use]
    pub fn inflight(&self) -> u64 {
        u64::try_from(self.inflight.load(Ordering::Relaxed)).unwrap_or(0)
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

    #[test]
    fn failures_are_counted_apart_and_move_no_bytes() {
        let counters = Counters::default();
        counters.start();
        counters.start();
        assert_eq!(counters.inflight(), 2);
        counters.finish(Operation::Write, 4096, true, Duration::from_micros(10));
        counters.finish(Operation::Write, 4096, false, Duration::from_secs(9));
        let reading = counters.read(Operation::Write);
        assert_eq!(
            (reading.completed, reading.errors, reading.bytes),
            (1, 1, 4096)
        );
        assert_eq!((reading.buckets[0], reading.buckets[10]), (1, 1));
        assert_eq!(counters.inflight(), 0);
    }
}
