//! What a volume counts. One writer (its reactor), any number of readers (scrapes): plain relaxed loads and stores.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::latency::{BUCKETS, Latencies, add};

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
    latencies: Latencies,
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
    pub buckets: [u64; BUCKETS],
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
        counters.latencies.note(took);
        self.inflight
            .store(self.inflight.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// What was counted so far for one kind of request.
    #[must_use]
    pub fn read(&self, operation: Operation) -> OperationReading {
        let counters = &self.operations[operation.index()];
        OperationReading {
            completed: counters.completed.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            seconds: counters.latencies.seconds(),
            buckets: counters.latencies.buckets(),
        }
    }

    /// Requests taken in and not yet answered.
    #[must_use]
    pub fn inflight(&self) -> u64 {
        u64::try_from(self.inflight.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
