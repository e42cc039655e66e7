//! One volume at a time: who moves, renames or opens a volume's files has claimed its id first.
//!
//! A turn is taken by name, and a volume can have two of them while a rename or a removal is half done. Two nexuses on
//! one volume's files would be two writers (spec G8), so the id decides.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use super::engine::Engine;
use super::error::EngineError;
use crate::model::{VolumeId, VolumeName};
use crate::pool::Place;

impl Engine {
    /// Waits until nobody else works on this volume's files. Taken after the turn of a name, never before it.
    pub(super) async fn claim(&self, id: VolumeId) -> OwnedMutexGuard<()> {
        let claim = Arc::clone(self.claims().entry(id).or_default());
        claim.lock_owned().await
    }

    /// As [`Engine::claim`], for a volume that nobody serves.
    ///
    /// # Errors
    /// `InUse` when it is served, under whatever name.
    pub(super) async fn claim_idle(
        &self,
        id: VolumeId,
    ) -> Result<OwnedMutexGuard<()>, EngineError> {
        let claim = self.claim(id).await;
        match self.served_as(id) {
            None => Ok(claim),
            Some(name) => Err(EngineError::in_use(format!(
                "volume {id} runs under the name \"{name}\""
            ))),
        }
    }

    fn served_as(&self, id: VolumeId) -> Option<VolumeName> {
        let volumes = self.volumes();
        let served = volumes.iter().find(|(_, live)| live.id == id);
        served.map(|(name, _)| name.clone())
    }

    /// Brings back what is in quarantine of a volume that is also among those in use: its removal was cut short, and it
    /// is wanted again. What can't be brought back is an absent member to the assembly.
    pub(super) async fn undo_removal(&self, id: VolumeId) {
        for (pool, quarantined) in self.quarantined(id) {
            let replica = quarantined.replica;
            let back =
                async { Ok::<_, EngineError>(self.open_one(&pool)?.restore(quarantined).await?) };
            match back.await {
                Ok(()) => {
                    tracing::warn!(%pool, %replica, volume = %id, "an unfinished removal was undone")
                }
                Err(error) => {
                    tracing::error!(%pool, %replica, volume = %id, %error, "stays in quarantine")
                }
            }
        }
    }

    /// Whether a file of this volume is among those in use.
    pub(super) fn has_active_files(&self, id: VolumeId) -> bool {
        let places = self.places_of(id);
        places
            .iter()
            .any(|(_, place)| matches!(place, Place::Active(_)))
    }
}
