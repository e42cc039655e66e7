//! How often a replica's disk has answered with an error, for the metrics.

use std::cell::Cell;

use crate::io::IoError;

/// What was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Read,
    Write,
    Discard,
    Flush,
    Label,
}

/// Errors by what was asked, those included that were tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorCounts {
    /// Reads of data.
    pub reads: u64,
    /// Writes of data.
    pub writes: u64,
    /// Discards and writes of zeroes.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
    /// Writes of the label and of the bitmaps.
    pub labels: u64,
}

impl ErrorCounts {
    /// These and those.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            discards: self.discards + other.discards,
            flushes: self.flushes + other.flushes,
            labels: self.labels + other.labels,
        }
    }
}

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct ErrorCounter(Cell<ErrorCounts>);

impl ErrorCounter {
    pub(super) fn counts(&self) -> ErrorCounts {
        self.0.get()
    }

    /// Counts `result` if it is an error, and hands it on.
    pub(super) fn note<T>(&self, asked: Asked, result: Result<T, IoError>) -> Result<T, IoError> {
        if result.is_err() {
            let mut counts = self.0.get();
            let count = match asked {
                Asked::Read => &mut counts.reads,
                Asked::Write => &mut counts.writes,
                Asked::Discard => &mut counts.discards,
                Asked::Flush => &mut counts.flushes,
                Asked::Label => &mut counts.labels,
            };
            *count += 1;
            self.0.set(counts);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_what_was_asked() {
        let counter = ErrorCounter::default();
        for asked in [Asked::Read, Asked::Write, Asked::Write, Asked::Flush] {
            assert_eq!(
                counter.note::<()>(asked, Err(IoError::EIO)),
                Err(IoError::EIO)
            );
        }
        assert_eq!(counter.note(Asked::Label, Ok(7)), Ok(7));
        let expected = ErrorCounts {
            reads: 1,
            writes: 2,
            flushes: 1,
            ..ErrorCounts::default()
        };
        assert_eq!(counter.counts(), expected);
        assert_eq!(expected.plus(expected).writes, 4);
    }
}
