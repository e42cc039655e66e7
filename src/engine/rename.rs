//! Giving a volume another name.

use super::engine::Engine;
use super::error::EngineError;
use crate::model::{PoolName, VolumeName};
use crate::pool::Place;

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
        if let Some(live) = self.live(from) {
            if live.is_memory_only {
                return self.rename_in_memory(from, to);
            }
            self.remove_unused_export(from, &live).await?;
            live.stop().await?;
            self.volumes().remove(from);
        }
        let Some(id) = self.idle_id(from) else {
            // Done already, or never there: the next assembly of `to` tells.
            return Ok(());
        };
        let mut renamed: Vec<(PoolName, Place)> = Vec::new();
        for (pool, entry) in self.pools().iter() {
            for found in &entry.found {
                let Some(label) = &found.label else { continue };
                if label.name == *to && label.volume != id {
                    return Err(EngineError::new(
                        "NameTaken",
                        format!(
                            "volume \"{from}\" can't become \"{to}\": volume {} has that name",
                            label.volume
                        ),
                    ));
                }
                let ours = label.volume == id && label.name != *to;
                if ours && matches!(found.place, Place::Active(_)) {
                    renamed.push((pool.clone(), found.place.clone()));
                }
            }
        }
        for (pool, place) in renamed {
            self.open_one(&pool)?.rename(place, to.clone()).await?;
            self.look_into(&pool).await?;
        }
        self.problems().remove(from);
        self.touch();
        tracing::info!(%from, %to, volume = %id, "renamed");
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
