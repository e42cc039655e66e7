//! Who may give a device its next command, and who cleans up after it: decided between the device's owner and a command
//! that may be stuck in the kernel, which know nothing of each other but this.
//!
//! ```text
//!            begin                    abandon
//!   Idle -----------> Running ------------------> Orphaned
//!     ^                 |  end                       |  end: the command's thread cleans up
//!     '-----------------'                            v
//!     '---- abandon: the owner has it cleaned up --> (gone)
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::VolumeId;

/// Volumes whose last device hangs in the kernel, with its number. As long as one does, its volume gets no other device:
/// it would hang as well, and take one more of the few threads along.
#[derive(Clone, Debug, Default)]
pub(super) struct Orphans(Arc<Mutex<BTreeMap<VolumeId, u32>>>);

/// One device's state.
#[derive(Debug)]
pub(super) struct Occupancy {
    state: Mutex<State>,
    id: u32,
    volume: VolumeId,
    orphans: Orphans,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    Orphaned,
}

impl Orphans {
    /// The number of the volume's device that hangs.
    pub(super) fn of(&self, volume: VolumeId) -> Option<u32> {
        let orphans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orphans.get(&volume).copied()
    }
}

impl Occupancy {
    pub(super) fn new(id: u32, volume: VolumeId, orphans: Orphans) -> Self {
        Self {
            state: Mutex::new(State::Idle),
            id,
            volume,
            orphans,
        }
    }

    /// Takes the device for a command; `false` when an earlier one still has it.
    pub(super) fn begin(&self) -> bool {
        self.change(|state| match state {
            State::Idle => (State::Running, true),
            State::Running | State::Orphaned => (state, false),
        })
    }

    /// The command has come back. `true` when the owner left meanwhile, so that the caller has to clean up.
    pub(super) fn end(&self) -> bool {
        let was_orphaned = self.change(|state| (State::Idle, state == State::Orphaned));
        if was_orphaned {
            let mut orphans = self
                .orphans
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            orphans.remove(&self.volume);
        }
        was_orphaned
    }

    /// The owner leaves. `true` when no command is running, so that the caller has to clean up.
    pub(super) fn abandon(&self) -> bool {
        // Under the state's lock, so that `end` finds what this puts there.
        self.change(|state| match state {
            State::Idle => (State::Idle, true),
            State::Running | State::Orphaned => {
                let mut orphans = self
                    .orphans
                    .0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                orphans.insert(self.volume, self.id);
                (State::Orphaned, false)
            }
        })
    }

    fn change(&self, decide: impl FnOnce(State) -> (State, bool)) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, answer) = decide(*state);
        *state = next;
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> (Occupancy, Orphans, VolumeId) {
        let (orphans, volume) = (Orphans::default(), VolumeId::generate());
        let occupancy = Occupancy::new(7, volume, orphans.clone());
        (occupancy, orphans, volume)
    }

    #[test]
    fn commands_follow_one_another() {
        let (device, orphans, volume) = device();
        assert!(device.begin());
        assert!(!device.begin());
        assert!(!device.end());
        assert!(device.begin());
        assert!(!device.end());
        assert!(device.abandon());
        assert_eq!(orphans.of(volume), None);
    }

    #[test]
    fn a_device_abandoned_in_a_command_blocks_its_volume_until_that_is_back() {
        let (device, orphans, volume) = device();
        assert!(device.begin());
        assert!(!device.abandon());
        assert_eq!(orphans.of(volume), Some(7));
        assert_eq!(orphans.of(VolumeId::generate()), None);
        assert!(!device.begin());
        assert!(device.end());
        assert_eq!(orphans.of(volume), None);
    }
}
