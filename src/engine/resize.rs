//! What changes about a running volume but its members: its size and its policy.

use super::assemble::{nexus_policy, no_such_volume, replica_len};
use super::engine::Engine;
use super::error::EngineError;
use super::history::Happened;
use super::live;
use crate::io::BlockDevice;
use crate::model::VolumeName;
use crate::model::policy::{NodePolicy, VolumePolicy};
use crate::units::Bytes;

impl Engine {
    /// Changes how this node looks after its volumes, from now on.
    pub fn configure_node(&self, policy: NodePolicy) {
        self.shared.rebuilds.set_max(policy.rebuild_max);
        self.shared.policy.send_if_modified(|current| {
            let changed = *current != policy;
            *current = policy;
            changed
        });
    }

    /// Changes how a running volume is looked after, from now on. What its keeper had given up is tried again.
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
        live.nudges.afresh();
        self.touch();
        Ok(())
    }

    /// Enlarges a running volume to `size`, on every member (spec section 10). Nothing happens when it has that size.
    ///
    /// # Errors
    /// `NoSpace` when a pool has no room, `Invalid` for a smaller size; else what the nexus says.
    pub async fn grow_volume(&self, name: &VolumeName, size: Bytes) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        let live = self.live(name).ok_or_else(|| no_such_volume(name))?;
        let applied = live.applied();
        if size < applied.size {
            let message = format!(
                "volume \"{name}\" has {}: it can't shrink to {size}",
                applied.size
            );
            return Err(EngineError::new("Invalid", message));
        }
        if size == applied.size {
            return Ok(());
        }
        let thin = applied.thin != Some(false);
        for child in self.status_of(&live).await?.children {
            let Some(replica) = child.replica.filter(|_| child.is_member) else {
                continue;
            };
            // One that is away is enlarged when it comes back.
            let pool = self.pool_of(&live, &child, replica);
            let Some(Ok(pool)) = pool.map(|pool| self.open_one(&pool)) else {
                continue;
            };
            pool.make_room(replica, replica_len(size), thin).await?;
        }
        let id = live.id;
        let grown = live.reactor.run(move |local| async move {
            let volume = live::find(&local, id).ok_or_else(EngineError::stopping)?;
            let grown = volume.device().grow(size.get()).await;
            grown.map_err(|error| {
                let reason = if error.is_no_space() {
                    "NoSpace"
                } else {
                    "PoolFailed"
                };
                EngineError::new(reason, format!("it could not be enlarged: {error}"))
            })?;
            volume.set_size(volume.device().size());
            Ok::<_, EngineError>(())
        });
        grown.await.map_err(|_| EngineError::stopping())??;
        live.books().applied.size = size;
        tracing::info!(volume = %name, %size, "grown");
        let export = live.export.lock().await;
        if let Some(export) = export.as_ref()
            && let Some(later) = export.resize(size.get()).await
        {
            tracing::warn!(volume = %name, %size, "{later}");
            let generation = live.status.borrow().generation;
            let happened = Happened::to_volume("SizeShownLater", later);
            self.note(live.id, generation, vec![happened]);
        }
        drop(export);
        let pools = live.applied().replicas;
        for pool in pools {
            // How full it is now. A pool that does not answer says so itself.
            if let Some((open, looks)) = self.open_with_looks(&pool) {
                let _ = self.survey(&pool, &open, &looks).await;
            }
        }
        self.touch();
        Ok(())
    }
}
