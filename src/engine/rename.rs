//! Giving a volume another name.

use super::engine::Engine;
use super::error::EngineError;
use crate::model::{VolumeId, VolumeName};
use crate::replica::Label;

impl Engine {
    /// Writes the name `to` into the labels of the volume `from`, which is stopped for it and found under `to`
    /// afterwards. Its witness follows when it is next assembled. Cut short by a crash, it is finished by calling again.
    ///
    /// # Errors
    /// `InUse` while a client is there; `NameTaken` when another volume is called `to`; what a pool says.
    pub async fn rename_volume(
        &self,
        from: &VolumeName,
        to: &VolumeName,
    ) -> Result<(), EngineError> {
        let _turn = self.turn(from).await;
        let running = self.live(from);
        let id = running.as_ref().map(|live| live.id);
        let Some(id) = id.or_else(|| self.idle_id(from)) else {
            // Done already, or never there: the next assembly of `to` tells.
            return Ok(());
        };
        // A label that is not here would keep the old name, for whoever gets that next.
        self.all_pools_of(id).await?;
        // Before it is stopped: it goes on under its old name.
        self.check_name_free(id, from, to)?;
        if let Some(live) = running {
            self.remove_unused_export(from, &live).await?;
            if live.is_memory_only {
                return self.rename_in_memory(from, to);
            }
            live.stop().await?;
            self.volumes().remove(from);
        }
        let _claim = self.claim_idle(id).await?;
        self.check_name_free(id, from, to)?;
        self.rename_files(id, to).await?;
        self.problems().remove(from);
        self.touch();
        tracing::info!(%from, %to, volume = %id, "renamed");
        Ok(())
    }

    fn check_name_free(
        &self,
        id: VolumeId,
        from: &VolumeName,
        to: &VolumeName,
    ) -> Result<(), EngineError> {
        let files = self.all_files();
        let mut labels = files.iter().filter_map(|(_, found)| found.label.as_ref());
        match labels.find(|label| label.name == *to && label.volume != id) {
            None => Ok(()),
            Some(label) => Err(EngineError::new(
                "NameTaken",
                format!(
                    "volume \"{from}\" can't become \"{to}\": the data of volume {} has that name. Give it another with \
                     `volund quarantine restore`, or purge it; `volund quarantine list` and `volund orphans list` \
                     show it",
                    label.volume
                ),
            )),
        }
    }

    /// Looks into every pool that a volume is known to have a replica in.
    ///
    /// # Errors
    /// When one of them is not here or does not answer.
    pub(super) async fn all_pools_of(&self, id: VolumeId) -> Result<(), EngineError> {
        let recorded = self.shared.store.volume(id).unwrap_or_default().replicas;
        for pool in recorded.keys() {
            self.open_one(pool)?;
            self.look_into(pool).await?;
        }
        Ok(())
    }

    /// Writes `name` into the labels of a volume's files, also those in quarantine. Files that can't be used are left
    /// alone (spec A3).
    pub(super) async fn rename_files(
        &self,
        id: VolumeId,
        name: &VolumeName,
    ) -> Result<(), EngineError> {
        for (pool, found) in self.all_files() {
            let is_ours = |label: &Label| label.volume == id && label.name != *name;
            let wants = found.fault.is_none() && found.label.as_ref().is_some_and(is_ours);
            if wants {
                let handle = self.open_one(&pool)?;
                handle.rename(found.place, name.clone()).await?;
                self.look_into(&pool).await?;
            }
        }
        Ok(())
    }

    /// A volume in memory has no label file; its books are all there is.
    fn rename_in_memory(&self, from: &VolumeName, to: &VolumeName) -> Result<(), EngineError> {
        let mut volumes = self.volumes();
        if volumes.contains_key(to) {
            let message = format!("volume \"{from}\" can't become \"{to}\": that name is taken");
            return Err(EngineError::new("NameTaken", message));
        }
        if let Some(live) = volumes.remove(from) {
            volumes.insert(to.clone(), live);
        }
        drop(volumes);
        self.touch();
        Ok(())
    }
}
