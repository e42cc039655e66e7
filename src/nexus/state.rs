//! The states of a child, and every way between them.
//!
//! ```text
//!                 FailedAsLast                      (G7: the last copy is kept and retried)
//!        InSync ----------------> Failing --+
//!          |  ^                   ^  |      | FailedAsLast
//!          |  +----- Succeeded ---|--+      |
//!   Failed |                      +---------+
//!          v                         |
//!        Faulted <------- Failed ----+              (F1: out of every set in memory, still in the committed table)
//!          |
//!          +-- Committed, operations under way --> Draining -- Drained --+
//!          |                                                            v
//!          +-- Committed, none under way ----------------------------> Stale
//!
//!        Vacant -- Occupied --> Blank               (no data; waits for a rebuild)
//!        Stale, Blank -- Joined --> Rebuilding -- Synced --> InSync
//!        Rebuilding -- Failed --> Faulted           (as above)
//!        Stale, Blank -- Vacated --> Vacant         (the table has no such member any more)
//! ```
//!
//! `InSync` and `Failing` children are read and written; `Rebuilding` ones are only written.

use std::fmt;
use std::time::Duration;

use crate::io::IoError;

/// What the nexus thinks of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildState {
    /// In the active set.
    InSync,
    /// In the active set although it fails, because no other copy is left (spec G7, F2). Every request tries it.
    Failing(FaultReason),
    /// Out of the sets in memory; the table without it is not committed yet (spec F1 to F6).
    Faulted(FaultReason),
    /// Out of the committed active set; operations that can't be recalled are still under way (spec F1).
    Draining {
        /// The generation without it.
        since: u64,
        /// Why it left.
        reason: FaultReason,
    },
    /// Out of the committed active set.
    Stale {
        /// The generation without it.
        since: u64,
        /// Why it left.
        reason: FaultReason,
    },
    /// Has no data yet.
    Blank,
    /// Being copied to: gets every write, is never read for a client (spec B1).
    Rebuilding,
    /// Nobody is in this slot.
    Vacant,
}

/// What happens to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// An operation failed in a way that faults the child, and another copy is left.
    Failed(FaultReason),
    /// The same, but this is the last copy.
    FailedAsLast(FaultReason),
    /// An operation succeeded.
    Succeeded,
    /// The generation without it was committed.
    Committed {
        /// That generation.
        since: u64,
        /// Whether operations are still under way.
        busy: bool,
    },
    /// The last operation under way ended.
    Drained,
    /// A rebuild begins: writes are forwarded from now on (spec B2).
    Joined,
    /// The generation with it in the active set was committed (spec B7).
    Synced,
    /// A new member was put into the slot.
    Occupied,
    /// Its member left the table for good.
    Vacated,
}

/// Why a child is not in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// A write or zeroing failed.
    Write(IoError),
    /// A flush failed.
    Flush(IoError),
    /// A read failed and another copy had the data.
    Read(IoError),
    /// Too many of its reads had to be corrected from another copy.
    ReadErrors,
    /// Its label or bitmap area could not be written.
    Label(IoError),
    /// Its pool is full and others' are not.
    NoSpace,
    /// Its file is shorter than its label says.
    Truncated,
    /// It answered "try again" until the I/O timeout.
    TimedOut(IoError),
    /// It did not answer for so long.
    Hung(Duration),
    /// It was not there when the volume was assembled.
    Absent,
    /// It missed writes before the volume was assembled.
    Behind,
    /// It was taken out of the configuration.
    Removed,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(error) => write!(f, "WriteError: {error}"),
            Self::Flush(error) => write!(f, "FlushError: {error}"),
            Self::Read(error) => write!(f, "ReadError: {error}"),
            Self::Label(error) => write!(f, "LabelError: {error}"),
            Self::ReadErrors => {
                f.write_str("ReadErrors: more than 20 reads had to be corrected within an hour")
            }
            Self::NoSpace => f.write_str("NoSpace: its pool is full"),
            Self::Truncated => f.write_str("Truncated: its file is shorter than its label says"),
            Self::TimedOut(error) => write!(f, "TimedOut: it kept answering \"{error}\""),
            Self::Hung(time) => {
                write!(f, "TimedOut: it did not answer for {} s", time.as_secs())
            }
            Self::Absent => f.write_str("Absent: it was not there when the volume was assembled"),
            Self::Removed => f.write_str("Removed: the configuration no longer has it"),
            Self::Behind => f.write_str("Behind: it missed writes before the volume was assembled"),
        }
    }
}

/// An event that the state does not allow: a bug in the nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} can't happen to a child that is {state:?}")]
pub struct Illegal {
    /// The state.
    pub state: ChildState,
    /// The event.
    pub event: ChildEvent,
}

impl ChildState {
    /// Whether writes go to the child.
    #[must_use]
    pub const fn is_written(self) -> bool {
        self.is_usable() || matches!(self, Self::Rebuilding)
    }

    /// Whether reads and writes go to the child.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        match self {
            Self::InSync | Self::Failing(_) => true,
            Self::Faulted(_)
            | Self::Draining { .. }
            | Self::Stale { .. }
            | Self::Blank
            | Self::Rebuilding
            | Self::Vacant => false,
        }
    }

    /// Why it is not in sync.
    #[must_use]
    pub const fn reason(self) -> Option<FaultReason> {
        match self {
            Self::InSync | Self::Blank | Self::Rebuilding | Self::Vacant => None,
            Self::Failing(reason)
            | Self::Faulted(reason)
            | Self::Draining { reason, .. }
            | Self::Stale { reason, .. } => Some(reason),
        }
    }
}

/// The state after an event.
///
/// # Errors
/// [`Illegal`] when the event can't happen in that state.
pub const fn next(state: ChildState, event: ChildEvent) -> Result<ChildState, Illegal> {
    use ChildEvent as E;
    use ChildState as S;
    match (state, event) {
        (S::InSync, E::Succeeded) | (S::Failing(_), E::Succeeded) => Ok(S::InSync),
        (S::InSync | S::Failing(_) | S::Rebuilding, E::Failed(reason)) => Ok(S::Faulted(reason)),
        (S::InSync | S::Failing(_), E::FailedAsLast(reason)) => Ok(S::Failing(reason)),
        (S::Rebuilding, E::Succeeded) => Ok(S::Rebuilding),

        // Late answers of operations that could not be recalled: the first reason stands.
        (
            S::Faulted(_) | S::Draining { .. } | S::Stale { .. },
            E::Failed(_) | E::FailedAsLast(_) | E::Succeeded,
        ) => Ok(state),

        (S::Faulted(reason), E::Committed { since, busy: true }) => {
            Ok(S::Draining { since, reason })
        }
        (S::Faulted(reason), E::Committed { since, busy: false }) => Ok(S::Stale { since, reason }),
        (S::Draining { since, reason }, E::Drained) => Ok(S::Stale { since, reason }),
        // Drained before the commit: the commit will find nothing under way.
        (S::Faulted(_), E::Drained) => Ok(state),

        (S::Stale { .. } | S::Blank, E::Joined) => Ok(S::Rebuilding),
        (S::Rebuilding, E::Synced) => Ok(S::InSync),
        (S::Stale { .. } | S::Blank, E::Vacated) => Ok(S::Vacant),
        (S::Vacant, E::Occupied) => Ok(S::Blank),

        _ => Err(Illegal { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: FaultReason = FaultReason::NoSpace;
    const NEW: FaultReason = FaultReason::Truncated;

    fn states() -> [ChildState; 8] {
        let (since, reason) = (7, OLD);
        [
            ChildState::InSync,
            ChildState::Failing(OLD),
            ChildState::Faulted(OLD),
            ChildState::Draining { since, reason },
            ChildState::Stale { since, reason },
            ChildState::Blank,
            ChildState::Rebuilding,
            ChildState::Vacant,
        ]
    }

    fn events() -> [ChildEvent; 10] {
        [
            ChildEvent::Failed(NEW),
            ChildEvent::FailedAsLast(NEW),
            ChildEvent::Succeeded,
            ChildEvent::Committed {
                since: 9,
                busy: true,
            },
            ChildEvent::Committed {
                since: 9,
                busy: false,
            },
            ChildEvent::Drained,
            ChildEvent::Joined,
            ChildEvent::Synced,
            ChildEvent::Occupied,
            ChildEvent::Vacated,
        ]
    }

    /// Every pair, as the first letter of the state that follows; `-` where the event can't happen.
    #[test]
    fn every_state_and_event_is_decided() {
        let letter = |state: ChildState| match state {
            ChildState::InSync => 'i',
            ChildState::Failing(reason) => {
                if reason == NEW {
                    'L'
                } else {
                    'l'
                }
            }
            ChildState::Faulted(reason) => {
                if reason == NEW {
                    'F'
                } else {
                    'f'
                }
            }
            ChildState::Draining { .. } => 'd',
            ChildState::Stale { .. } => 's',
            ChildState::Blank => 'b',
            ChildState::Rebuilding => 'r',
            ChildState::Vacant => 'v',
        };
        let table: Vec<String> = states()
            .into_iter()
            .map(|state| {
                let row = events()
                    .into_iter()
                    .map(|event| next(state, event).map_or('-', letter));
                row.collect()
            })
            .collect();
        assert_eq!(
            table,
            [
                "FLi-------",
                "FLi-------",
                "fffdsf----",
                "ddd--s----",
                "sss---r--v",
                "------r--v",
                "F-r----i--",
                "--------b-",
            ]
        );
    }

    /// From `InSync`, whatever happens but the end of a rebuild, in every order up to five events.
    #[test]
    fn a_child_that_left_comes_back_only_by_a_rebuild() {
        fn explore(state: ChildState, left: bool, depth: u32) {
            assert!(!(left && state.is_usable()), "G6: {state:?}");
            if depth == 0 {
                return;
            }
            for event in events() {
                if event == ChildEvent::Synced {
                    continue;
                }
                if let Ok(after) = next(state, event) {
                    explore(after, left || !state.is_usable(), depth - 1);
                }
            }
        }
        explore(ChildState::InSync, false, 5);
    }

    #[test]
    fn the_generation_of_the_commit_is_kept() {
        let faulted = ChildState::Faulted(OLD);
        let draining = next(
            faulted,
            ChildEvent::Committed {
                since: 9,
                busy: true,
            },
        )
        .unwrap();
        let (since, reason) = (9, OLD);
        assert_eq!(
            next(draining, ChildEvent::Drained),
            Ok(ChildState::Stale { since, reason })
        );
    }
}
