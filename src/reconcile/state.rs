//! The life of a volume: one table, [`next`].
//!
//! ```text
//!            Create                Ready        Attach                Attached
//!  pending ---------> creating ---------> available ---------> attaching ---------> attached
//!     ^                 |  ^                |   ^                |   ^                 |
//!     |            Fail v  | Create         |   |           Fail v   | Attach          | Detach
//!     |          creating-failed            |   |         attaching-failed             v
//!     | Retry                               |   +---- Detached ---------------- detaching <-> detaching-failed
//!     |                                     v Delete
//!     +---- deleted <----- Deleted ----- deleting <-> deleting-failed
//!
//!  every *-failed state: Error -> error, where nothing is tried; Retry -> pending, from error too, which is the only way out.
//!  Ready, Attached and Stopped also tell what a volume is found to be while no step runs.
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
    /// Given up after many attempts: nothing is tried before somebody asks for it, the files change, or a pool comes back.
    Error,
}

/// What happens to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// It begins to be made, restored, renamed or assembled.
    Create,
    /// It takes I/O, without an export.
    Ready,
    /// Its export begins to be made.
    Attach,
    /// It takes I/O and is exported.
    Attached,
    /// Its export begins to be removed.
    Detach,
    /// Its export is gone.
    Detached,
    /// It begins to go to quarantine.
    Delete,
    /// Its data is in quarantine.
    Deleted,
    /// The step that runs has failed.
    Fail,
    /// It has failed too often.
    Error,
    /// Somebody asks for another attempt, or what may have been the cause is gone.
    Retry,
    /// It is found not to run.
    Stopped,
}

impl Event {
    /// Every event, in the order of a volume's life.
    pub const ALL: [Self; 12] = [
        Self::Create,
        Self::Ready,
        Self::Attach,
        Self::Attached,
        Self::Detach,
        Self::Detached,
        Self::Delete,
        Self::Deleted,
        Self::Fail,
        Self::Error,
        Self::Retry,
        Self::Stopped,
    ];
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

impl Phase {
    /// Its first step starts.
    #[must_use]
    pub const fn begins(self) -> Event {
        match self {
            Self::Create => Event::Create,
            Self::Attach => Event::Attach,
            Self::Detach => Event::Detach,
            Self::Delete => Event::Delete,
        }
    }

    /// Its last step has met its goal.
    #[must_use]
    pub const fn ends(self) -> Event {
        match self {
            Self::Create => Event::Ready,
            Self::Attach => Event::Attached,
            Self::Detach => Event::Detached,
            Self::Delete => Event::Deleted,
        }
    }
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
    let new = match state {
        S::Creating => step(event, Phase::Create, S::Available, S::CreatingFailed),
        S::Attaching => step(event, Phase::Attach, S::Attached, S::AttachingFailed),
        S::Detaching => step(event, Phase::Detach, S::Available, S::DetachingFailed),
        S::Deleting => step(event, Phase::Delete, S::Deleted, S::DeletingFailed),
        S::Pending | S::Available | S::Attached | S::Deleted => rest(event),
        S::CreatingFailed | S::AttachingFailed | S::DetachingFailed | S::DeletingFailed => {
            match event {
                Event::Error => Some(S::Error),
                Event::Retry => Some(S::Pending),
                other => rest(other),
            }
        }
        S::Error => match event {
            Event::Retry => Some(S::Pending),
            // Found: what was to be done has happened by itself, or is not wanted any more.
            Event::Ready | Event::Attached | Event::Stopped => rest(event),
            _ => None,
        },
    };
    new.ok_or(Illegal { state, event })
}

/// A running step ends well or not; what is observed meanwhile does not count, as the step changes it.
fn step(event: Event, phase: Phase, done: VolumeState, failed: VolumeState) -> Option<VolumeState> {
    match event {
        Event::Fail => Some(failed),
        event if event == phase.ends() => Some(done),
        _ => None,
    }
}

/// While no step runs, one may begin, and what is observed wins.
fn rest(event: Event) -> Option<VolumeState> {
    match event {
        Event::Create => Some(VolumeState::Creating),
        Event::Attach => Some(VolumeState::Attaching),
        Event::Detach => Some(VolumeState::Detaching),
        Event::Delete => Some(VolumeState::Deleting),
        Event::Ready => Some(VolumeState::Available),
        Event::Attached => Some(VolumeState::Attached),
        Event::Stopped => Some(VolumeState::Pending),
        Event::Detached | Event::Deleted | Event::Fail | Event::Error | Event::Retry => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair, written down once more: state, then what each event of `Event::ALL` leads to (`-`: illegal).
    const TABLE: [&str; 13] = [
        "pending          creating available attaching attached detaching - deleting - - - - pending",
        "creating         - available - - - - - - creating_failed - - -",
        "creating_failed  creating available attaching attached detaching - deleting - - error pending pending",
        "available        creating available attaching attached detaching - deleting - - - - pending",
        "attaching        - - - attached - - - - attaching_failed - - -",
        "attaching_failed creating available attaching attached detaching - deleting - - error pending pending",
        "attached         creating available attaching attached detaching - deleting - - - - pending",
        "detaching        - - - - - available - - detaching_failed - - -",
        "detaching_failed creating available attaching attached detaching - deleting - - error pending pending",
        "deleting         - - - - - - - deleted deleting_failed - - -",
        "deleting_failed  creating available attaching attached detaching - deleting - - error pending pending",
        "deleted          creating available attaching attached detaching - deleting - - - - pending",
        "error            - available - attached - - - - - - pending pending",
    ];

    #[test]
    fn every_state_answers_every_event_as_the_table_says() {
        for (state, row) in VolumeState::ALL.into_iter().zip(TABLE) {
            let mut row = row.split_whitespace();
            assert_eq!(row.next(), Some(state.label()));
            for event in Event::ALL {
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
                let idle = match state {
                    state if state.is_busy() => next(state, Event::Fail).unwrap(),
                    VolumeState::Error => next(state, Event::Retry).unwrap(),
                    state => state,
                };
                let begun = next(idle, phase.begins()).unwrap();
                assert!(next(begun, phase.ends()).is_ok(), "{state:?} {phase:?}");
            }
        }
    }
}
