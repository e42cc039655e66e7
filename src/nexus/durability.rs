//! What one child's flushes prove (spec W10).
//!
//! A device, or the kernel, tells a failed flush to one caller only: to a flush, or to a write that is to be durable by
//! itself (FUA, labels, bitmaps). Another flush that overlaps it may report success although the writes that both
//! should have made durable are lost. So flushes run one at a time, a flush that ended waits for the durable writes
//! that overlapped it, and after any failure none is believed until the frontends re-attach.

use std::cell::Cell;

use super::signal::Signal;
use crate::io::IoError;

/// The flushes and durable writes of one child.
#[derive(Debug, Default)]
pub(super) struct Durability {
    state: Cell<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    started: u64,
    /// The newest flush that succeeded.
    succeeded: u64,
    running: bool,
    failed: Option<IoError>,
    /// Durable writes under way: those that a flush waits for, and those that began later. Each flush swaps the two.
    writes: [u32; 2],
    turn: usize,
}

/// What a flush has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushTurn {
    /// Submit one, then report to [`Durability::flushed`].
    Submit,
    /// Wait for the one under way.
    Wait,
    /// Nothing: a flush that started after this one was wanted has ended.
    Done(Result<(), IoError>),
}

/// A durable write under way. To be told of a failure before it is dropped.
#[derive(Debug)]
pub(super) struct DurableWrite<'a> {
    durability: &'a Durability,
    signal: &'a Signal,
    turn: usize,
}

impl Durability {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.get();
        let answer = change(&mut state);
        self.state.set(state);
        answer
    }

    /// The number of the flush that a flush wanted now has to wait for: one that is not under way yet.
    pub(super) fn wanted(&self) -> u64 {
        self.state.get().started + 1
    }

    /// What the flush with the number `wanted` has to do.
    pub(super) fn turn(&self, wanted: u64) -> FlushTurn {
        self.change(|state| {
            if state.succeeded >= wanted {
                return FlushTurn::Done(Ok(()));
            }
            if let Some(error) = state.failed {
                return FlushTurn::Done(Err(error));
            }
            if state.running {
                return FlushTurn::Wait;
            }
            state.running = true;
            state.started += 1;
            FlushTurn::Submit
        })
    }

    /// The flush under way ended; what it says counts once the durable writes that overlapped it have ended.
    pub(super) async fn flushed(&self, result: Result<(), IoError>, signal: &Signal) {
        let before = self.change(|state| {
            state.failed = state.failed.or(result.err());
            let before = state.turn;
            state.turn = 1 - before;
            before
        });
        signal
            .until(|| self.state.get().writes[before] == 0 || self.state.get().failed.is_some())
            .await;
        self.change(|state| {
            state.running = false;
            if state.failed.is_none() {
                state.succeeded = state.started;
            }
        });
        signal.notify();
    }

    /// A durable write begins.
    pub(super) fn write<'a>(&'a self, signal: &'a Signal) -> DurableWrite<'a> {
        let turn = self.change(|state| {
            state.writes[state.turn] += 1;
            state.turn
        });
        DurableWrite {
            durability: self,
            signal,
            turn,
        }
    }

    /// A new session of the device: it knows nothing of the old one's failures. Nothing is under way.
    pub(super) fn reset(&self) {
        self.change(|state| *state = State::default());
    }

    /// The frontends have re-attached: what was lost is lost.
    pub(super) fn forgive(&self) {
        self.change(|state| state.failed = None);
    }
}

impl DurableWrite<'_> {
    /// Tells how the write ended.
    pub(super) fn ended(self, result: Result<(), IoError>) {
        if let Some(error) = result.err().filter(|error| !error.is_refusal()) {
            self.durability
                .change(|state| state.failed = state.failed.or(Some(error)));
        }
    }
}

impl Drop for DurableWrite<'_> {
    fn drop(&mut self) {
        let waited_for = self.durability.change(|state| {
            state.writes[self.turn] -= 1;
            state.running && self.turn != state.turn
        });
        if waited_for {
            self.signal.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    const EIO: Result<(), IoError> = Err(IoError::EIO);

    fn is_ready(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        future.poll(&mut context).is_ready()
    }

    #[test]
    fn flushes_that_wait_share_the_next_one() {
        let (child, signal) = (Durability::default(), Signal::default());
        let first = child.wanted();
        assert_eq!(child.turn(first), FlushTurn::Submit);
        let (second, third) = (child.wanted(), child.wanted());
        assert_eq!(child.turn(second), FlushTurn::Wait);
        assert!(is_ready(pin!(child.flushed(Ok(()), &signal))));
        assert_eq!(child.turn(first), FlushTurn::Done(Ok(())));
        assert_eq!(child.turn(second), FlushTurn::Submit);
        assert!(is_ready(pin!(child.flushed(Ok(()), &signal))));
        assert_eq!(child.turn(third), FlushTurn::Done(Ok(())));
    }

    #[test]
    fn a_flush_waits_for_durable_writes_that_overlap_it_and_for_no_later_ones() {
        let check = |result: Result<(), IoError>, expected: FlushTurn| {
            let (child, signal) = (Durability::default(), Signal::default());
            let wanted = child.wanted();
            assert_eq!(child.turn(wanted), FlushTurn::Submit);
            let overlapping = child.write(&signal);
            let mut flushed = pin!(child.flushed(Ok(()), &signal));
            assert!(!is_ready(flushed.as_mut()));
            let _later = child.write(&signal);
            overlapping.ended(result);
            assert!(is_ready(flushed));
            assert_eq!(child.turn(wanted), expected);
        };
        check(Ok(()), FlushTurn::Done(Ok(())));
        check(EIO, FlushTurn::Done(EIO));
        check(Err(IoError::ENOSPC), FlushTurn::Done(Ok(())));
    }

    #[test]
    fn after_a_failure_no_flush_is_believed_until_it_is_forgiven() {
        let (child, signal) = (Durability::default(), Signal::default());
        child.write(&signal).ended(EIO);
        let wanted = child.wanted();
        assert_eq!(child.turn(wanted), FlushTurn::Done(EIO));
        child.forgive();
        assert_eq!(child.turn(wanted), FlushTurn::Submit);
    }
}
