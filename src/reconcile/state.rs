//! The life of a volume: one table, [`next`].
//!
//! ```text
//!            Begin(Create)        Done              Begin(Attach)          Done
//!  pending ---------------> creating --> available --------------> attaching --> attached
//!     ^                        |  ^        |   ^                     |   ^         |
//!     |                 Failed v  | Begin  |   |              Failed v   | Begin   | Begin(Detach)
//!     |              creating-failed       |   |            attaching-failed       v
//!     |                                    |   +---- Done ------------------- detaching <-> detaching-failed
//!     | FoundStopped                        v Begin(Delete)
//!     +--------- deleted <-- Done --- deleting <-> deleting-failed
//!
//!  every *-failed state: GivenUp -> error; from error any Begin starts again.
//!  Found...: where no step runs, what is observed wins; a failure only once nothing is left to do about it.
//! ```

use serde::{Deserialize, Serialize};

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VolumeState {
    /// The files have it; nothing was done yet.
    Pending,
    /// Being made, restored, renamed or assembled.
    Creating,
    /// That failed; it is tried again.
    CreatingFailed,
    /// Takes I/O; not reachable for clients.
    Available,
    /// Its export is being made.
    Attaching,
    /// That failed; it is tried again.
    AttachingFailed,
    /// Reachable for clients.
    Attached,
    /// Its export is being removed.
    Detaching,
    /// That failed; it is tried again.
    DetachingFailed,
    /// On its way to the quarantine.
    Deleting,
    /// That failed; it is tried again.
    DeletingFailed,
    /// Gone; its data is in quarantine.
    Deleted,
    /// Given up after many attempts; it is still tried now and then, and at once when something changes.
    Error,
}

/// What happens to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A step begins.
    Begin(Phase),
    /// The step that runs has met its goal.
    Done,
    /// The step that runs has failed.
    Failed,
    /// It has failed too often.
    GivenUp,
    /// It is found to take I/O, without an export.
    FoundAvailable,
    /// It is found to take I/O and to be exported.
    FoundAttached,
    /// It is found not to run.
    FoundStopped,
}

/// The kinds of step that a volume's life knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Make, restore, rename or assemble.
    Create,
    /// Export.
    Attach,
    /// Remove the export.
    Detach,
    /// Quarantine.
    Delete,
}

/// An event that a state does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a volume that is {state:?} can't take {event:?}")]
pub struct Illegal {
    /// The state.
    pub state: VolumeState,
    /// The event.
    pub event: Event,
}

impl VolumeState {
    /// Every state, in the order of a volume's life.
    pub const ALL: [Self; 13] = [
        Self::Pending,
        Self::Creating,
        Self::CreatingFailed,
        Self::Available,
        Self::Attaching,
        Self::AttachingFailed,
        Self::Attached,
        Self::Detaching,
        Self::DetachingFailed,
        Self::Deleting,
        Self::DeletingFailed,
        Self::Deleted,
        Self::Error,
    ];

    /// The word for people and metrics: `creating_failed`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Creating => "creating",
            Self::CreatingFailed => "creating_failed",
            Self::Available => "available",
            Self::Attaching => "attaching",
            Self::AttachingFailed => "attaching_failed",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
            Self::DetachingFailed => "detaching_failed",
            Self::Deleting => "deleting",
            Self::DeletingFailed => "deleting_failed",
            Self::Deleted => "deleted",
            Self::Error => "error",
        }
    }

    /// Whether its last step failed.
    #[must_use]
    pub const fn has_failed(self) -> bool {
        matches!(
            self,
            Self::CreatingFailed
                | Self::AttachingFailed
                | Self::DetachingFailed
                | Self::DeletingFailed
                | Self::Error
        )
    }

    /// Whether a step runs.
    #[must_use]
    pub const fn is_busy(self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Attaching | Self::Detaching | Self::Deleting
        )
    }
}

/// The table. There is no `_` for a state: a new one does not compile until every event is decided.
///
/// # Errors
/// [`Illegal`] when the event can't happen in that state: a bug of the caller.
pub fn next(state: VolumeState, event: Event) -> Result<VolumeState, Illegal> {
    use VolumeState as S;
    let illegal = Err(Illegal { state, event });
    match state {
        S::Creating => step(event, S::Available, S::CreatingFailed).map_or(illegal, Ok),
        S::Attaching => step(event, S::Attached, S::AttachingFailed).map_or(illegal, Ok),
        S::Detaching => step(event, S::Available, S::DetachingFailed).map_or(illegal, Ok),
        S::Deleting => step(event, S::Deleted, S::DeletingFailed).map_or(illegal, Ok),
        S::CreatingFailed | S::AttachingFailed | S::DetachingFailed | S::DeletingFailed => {
            match event {
                Event::GivenUp => Ok(S::Error),
                Event::Done | Event::Failed => illegal,
                Event::Begin(phase) => Ok(begin(phase)),
                Event::FoundAvailable => Ok(S::Available),
                Event::FoundAttached => Ok(S::Attached),
                Event::FoundStopped => Ok(S::Pending),
            }
        }
        S::Pending | S::Available | S::Attached | S::Deleted => match event {
            Event::Begin(phase) => Ok(begin(phase)),
            Event::FoundAvailable => Ok(S::Available),
            Event::FoundAttached => Ok(S::Attached),
            Event::FoundStopped => Ok(S::Pending),
            Event::Done | Event::Failed | Event::GivenUp => illegal,
        },
        S::Error => match event {
            Event::Begin(phase) => Ok(begin(phase)),
            Event::FoundAvailable => Ok(S::Available),
            Event::FoundAttached => Ok(S::Attached),
            Event::FoundStopped => Ok(S::Pending),
            Event::Done | Event::Failed | Event::GivenUp => illegal,
        },
    }
}

/// A running step ends well or not; what is observed meanwhile does not count, as the step changes it.
fn step(event: Event, done: VolumeState, failed: VolumeState) -> Option<VolumeState> {
    match event {
        Event::Done => Some(done),
        Event::Failed => Some(failed),
        Event::Begin(_)
        | Event::GivenUp
        | Event::FoundAvailable
        | Event::FoundAttached
        | Event::FoundStopped => None,
    }
}

fn begin(phase: Phase) -> VolumeState {
    match phase {
        Phase::Create => VolumeState::Creating,
        Phase::Attach => VolumeState::Attaching,
        Phase::Detach => VolumeState::Detaching,
        Phase::Delete => VolumeState::Deleting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 10] = [
        Event::Begin(Phase::Create),
        Event::Begin(Phase::Attach),
        Event::Begin(Phase::Detach),
        Event::Begin(Phase::Delete),
        Event::Done,
        Event::Failed,
        Event::GivenUp,
        Event::FoundAvailable,
        Event::FoundAttached,
        Event::FoundStopped,
    ];

    /// Every pair, written down once more: state, then what each event of `EVENTS` leads to (`-`: illegal).
    const TABLE: [&str; 13] = [
        "pending           creating attaching detaching deleting - - - available attached pending",
        "creating          - - - - available creating_failed - - - -",
        "creating_failed   creating attaching detaching deleting - - error available attached pending",
        "available         creating attaching detaching deleting - - - available attached pending",
        "attaching         - - - - attached attaching_failed - - - -",
        "attaching_failed  creating attaching detaching deleting - - error available attached pending",
        "attached          creating attaching detaching deleting - - - available attached pending",
        "detaching         - - - - available detaching_failed - - - -",
        "detaching_failed  creating attaching detaching deleting - - error available attached pending",
        "deleting          - - - - deleted deleting_failed - - - -",
        "deleting_failed   creating attaching detaching deleting - - error available attached pending",
        "deleted           creating attaching detaching deleting - - - available attached pending",
        "error             creating attaching detaching deleting - - - available attached pending",
    ];

    #[test]
    fn every_state_answers_every_event_as_the_table_says() {
        for (state, row) in VolumeState::ALL.into_iter().zip(TABLE) {
            let mut row = row.split_whitespace();
            assert_eq!(row.next(), Some(state.label()));
            for event in EVENTS {
                let found = next(state, event).map_or("-", VolumeState::label);
                assert_eq!(row.next(), Some(found), "{state:?} on {event:?}");
            }
            assert_eq!(row.next(), None);
        }
    }

    #[test]
    fn from_every_state_a_volume_can_still_come_to_life_and_be_removed() {
        for state in VolumeState::ALL {
            for phase in [Phase::Create, Phase::Delete] {
                let idle = if state.is_busy() {
                    next(state, Event::Failed).unwrap()
                } else {
                    state
                };
                assert!(
                    next(idle, Event::Begin(phase)).is_ok(),
                    "{state:?} {phase:?}"
                );
            }
        }
    }
}
