//! What changes about a running volume: its members, its size, its policy.

use super::assemble::{nexus_policy, no_such_volume};
use super::engine::Engine;
use super::error::EngineError;
use super::live;
use crate::model::policy::{NodePolicy, VolumePolicy};
use crate::model::{PoolName, VolumeName};
use crate::units::Bytes;

impl Engine {
    /// Changes how this node looks after its volumes, from now on.
    pub fn configure_node(&self, policy: NodePolicy) {
        self.shared.policy.send_if_modified(|current| {
            let changed = *current != policy;
            *current = policy;
            changed
        });
    }

    /// Changes how a running volume is looked after, from now on.
    ///
    /// # Errors
    /// `NotFound` when it does not run.
    pub async fn configure_volume(
        &self,
        name: &VolumeName,
        policy: &VolumePolicy,
    ) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        let live = self.live(name).ok_or_else(|| no_such_volume(name))?;
        let (id, nexus) = (live.id, nexus_policy(policy));
        let configured = live.reactor.run(move |local| async move {
            if let Some(volume) = live::find(&local, id) {
                volume.device().configure(nexus);
            }
        });
        configured.await.map_err(|_| EngineError::stopping())?;
        live.books().applied.policy = policy.clone();
        self.touch();
        Ok(())
    }

    /// Gives a running volume a replica in `pool`, which is built in the background. Nothing happens when it has one.
    ///
    /// # Errors
    /// What the pool or the nexus says; then nothing is left behind.
    pub async fn add_replica(&self, name: &VolumeName, pool: &PoolName) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        Err(unsupported(name, &format!("gain a replica in \"{pool}\"")))
    }

    /// Takes a running volume's replica in `pool` away and deletes it. Nothing happens when it has none.
    ///
    /// # Errors
    /// `LastCopy` when no in-sync replica would be left.
    pub async fn remove_replica(
        &self,
        name: &VolumeName,
        pool: &PoolName,
    ) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        Err(unsupported(
            name,
            &format!("lose its replica in \"{pool}\""),
        ))
    }

    /// Enlarges a running volume to `size`. Nothing happens when it has that size.
    ///
    /// # Errors
    /// `NoSpace` when a pool has no room; `Invalid` for a smaller size.
    pub async fn grow_volume(&self, name: &VolumeName, size: Bytes) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        Err(unsupported(name, &format!("grow to {size}")))
    }
}

fn unsupported(name: &VolumeName, what: &str) -> EngineError {
    EngineError::new(
        "NotSupported",
        format!("volume \"{name}\" can't {what} while it runs"),
    )
}
