//! Breaking replicas on purpose: [`Engine::inject`].
//!
//! Faults belong to a replica: they outlive its being opened again, and go with the process. Replicas are wrapped only when
//! the switch was on as the engine started; each reactor then knows the board.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::assemble::no_such_volume;
use super::engine::Engine;
use super::error::EngineError;
use super::live::Live;
use crate::io::{Disk, Faults, Injected, Local, ReactorHandle};
use crate::model::fault::Fault;
use crate::model::{PoolName, ReplicaId, VolumeName};

/// What goes wrong where.
#[derive(Debug, Default)]
pub(super) struct FaultBoard {
    replicas: Mutex<BTreeMap<ReplicaId, Arc<Faults>>>,
}

/// The board as a reactor knows it; none when nothing may be broken.
#[derive(Default)]
struct Posted {
    board: Option<Arc<FaultBoard>>,
}

impl FaultBoard {
    /// A board that these reactors know.
    pub(super) fn post(reactors: &[ReactorHandle]) -> Arc<Self> {
        let made = Arc::new(Self::default());
        for reactor in reactors {
            let board = Some(Arc::clone(&made));
            // Mail is read in order, so it is there before any replica.
            drop(reactor.run(move |local| async move {
                local.extension(|| Posted { board });
            }));
        }
        made
    }

    fn replicas(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Arc<Faults>>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, replica: ReplicaId) -> Arc<Faults> {
        Arc::clone(self.replicas().entry(replica).or_default())
    }

    fn active(&self, replica: ReplicaId) -> Vec<Fault> {
        let known = self.replicas().get(&replica).cloned();
        known.map(|faults| faults.active()).unwrap_or_default()
    }
}

/// The disk of a replica that is being opened, breakable if the switch is on.
pub(super) fn breakable(local: &Local, replica: Option<ReplicaId>, disk: Disk) -> Disk {
    let posted = local.extension(Posted::default);
    match (&posted.board, replica) {
        (Some(board), Some(replica)) => {
            let faults = board.of(replica);
            Disk::Injected(Box::new(Injected::new(disk, faults, local.clone())))
        }
        _ => disk,
    }
}

impl Engine {
    /// Replaces what goes wrong on a volume's replica in `pool`; no fault ends it.
    ///
    /// # Errors
    /// `FaultInjectionOff` when the daemon was started without the switch, `NotFound` when there is no such replica.
    pub fn inject(
        &self,
        name: &VolumeName,
        pool: &PoolName,
        faults: &[Fault],
    ) -> Result<(), EngineError> {
        let board = self.shared.faults.as_ref().ok_or_else(|| {
            EngineError::new(
                "FaultInjectionOff",
                "the daemon was started before `[danger_zone] fault_injection = true` was in its configuration: restart it",
            )
        })?;
        let live = self.live(name).ok_or_else(|| no_such_volume(name))?;
        let replica = replica_in(&live, pool).ok_or_else(|| {
            let message = format!("volume \"{name}\" has no replica in pool \"{pool}\"");
            EngineError::new("NotFound", message)
        })?;
        board.of(replica).set(faults);
        if faults.is_empty() {
            tracing::warn!(volume = %name, %pool, "injected faults are cleared");
        } else {
            let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
            tracing::warn!(volume = %name, %pool, faults = texts.join(" "), "faults are injected");
        }
        self.touch();
        Ok(())
    }

    /// What goes wrong now with a volume, by pool.
    pub(super) fn injected(&self, live: &Live) -> BTreeMap<PoolName, Vec<Fault>> {
        let Some(board) = &self.shared.faults else {
            return BTreeMap::new();
        };
        let status = live.status.borrow();
        let places = status.children.iter();
        places
            .filter_map(|child| Some((child.pool.clone()?, board.active(child.replica?))))
            .filter(|(_, faults)| !faults.is_empty())
            .collect()
    }
}

fn replica_in(live: &Live, pool: &PoolName) -> Option<ReplicaId> {
    let status = live.status.borrow();
    let mut children = status.children.iter();
    let child = children.find(|child| child.pool.as_ref() == Some(pool) && child.is_member)?;
    child.replica
}
