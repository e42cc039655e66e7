//! Out of the way without deleting anything, back again, and gone for good.

use jiff::Timestamp;

use super::engine::{Engine, Parked};
use super::error::EngineError;
use crate::io::clock::wall;
use crate::model::{PoolName, VolumeId, VolumeName};
use crate::pool::{Place, QuarantineName};

impl Engine {
    /// Stops a volume cleanly and moves its replicas to quarantine; answers the entry's id. A volume in memory goes on
    /// running unreachable, since there is no file to move.
    ///
    /// # Errors
    /// `InUse` while it is exported; what a pool says, and then the call finishes the rest when made again.
    pub async fn quarantine_volume(&self, name: &VolumeName) -> Result<String, EngineError> {
        let _turn = self.turn(name).await;
        let removed_at = Timestamp::try_from(wall()).unwrap_or_default();
        if let Some(live) = self.live(name) {
            if live.export.lock().await.is_some() {
                return Err(EngineError::in_use(format!(
                    "volume \"{name}\" is exported"
                )));
            }
            if live.is_memory_only {
                self.volumes().remove(name);
                let removed_at =
                    Timestamp::from_second(removed_at.as_second()).unwrap_or(removed_at);
                let parked = Parked {
                    name: name.clone(),
                    removed_at,
                    live,
                };
                let entry = parked.entry();
                self.parked().insert(parked.live.id, parked);
                self.touch();
                return Ok(entry);
            }
            live.stop().await?;
            self.volumes().remove(name);
        }
        self.problems().remove(name);
        let Some(id) = self.idle_id(name) else {
            return Err(super::assemble::no_such_volume(name));
        };
        self.quarantine_files(name, id, removed_at).await
    }

    async fn quarantine_files(
        &self,
        name: &VolumeName,
        id: VolumeId,
        removed_at: Timestamp,
    ) -> Result<String, EngineError> {
        // What is there of it already gives the entry its time, so that it stays one entry.
        let earlier = self
            .quarantined(id)
            .first()
            .map(|(_, entry)| entry.removed_at);
        let removed_at = earlier.unwrap_or(removed_at);
        let mut entry = None;
        for (pool, place) in self.places_of(id) {
            let Place::Active(replica) = place else {
                continue;
            };
            let to = QuarantineName::new(name.clone(), id, replica, removed_at);
            entry = Some(to.id());
            self.open_one(&pool)?.quarantine(to).await?;
            self.look_into(&pool).await?;
        }
        let entry = entry.ok_or_else(|| super::assemble::no_such_volume(name))?;
        tracing::info!(volume = %name, %id, %entry, "quarantined; the data is kept");
        Ok(entry)
    }

    /// Brings all quarantined replicas of an entry's volume back, under `name`. Does not start it.
    ///
    /// # Errors
    /// `NotFound` when there is no such entry; what a pool says.
    pub async fn restore_volume(&self, entry: &str, name: &VolumeName) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        if let Some(parked) = self.parked_entry(entry) {
            if self.live(name).is_some() {
                return Err(name_taken(entry, name));
            }
            self.parked().remove(&parked.live.id);
            self.volumes().insert(name.clone(), parked.live);
            self.touch();
            return Ok(());
        }
        let id = self.entry_id(entry)?;
        if self.idle_id(name).is_some_and(|other| other != id) || self.live(name).is_some() {
            return Err(name_taken(entry, name));
        }
        for (pool, quarantined) in self.quarantined(id) {
            let replica = quarantined.replica;
            let handle = self.open_one(&pool)?;
            handle.restore(quarantined).await?;
            handle.rename(Place::Active(replica), name.clone()).await?;
            self.look_into(&pool).await?;
        }
        tracing::info!(volume = %name, %id, %entry, "back from quarantine");
        Ok(())
    }

    /// Deletes an entry's replicas for ever.
    ///
    /// # Errors
    /// `NotFound` when there is no such entry; what a pool says.
    pub async fn purge(&self, entry: &str) -> Result<(), EngineError> {
        if let Some(parked) = self.parked_entry(entry) {
            let _turn = self.turn(&parked.name).await;
            parked.live.stop().await?;
            self.parked().remove(&parked.live.id);
            for pool in &parked.live.applied.replicas {
                self.release_memory(pool, parked.live.id).await?;
            }
            self.touch();
            return Ok(());
        }
        let id = self.entry_id(entry)?;
        for (pool, quarantined) in self.quarantined(id) {
            self.open_one(&pool)?.purge(quarantined).await?;
            self.look_into(&pool).await?;
        }
        // A replica in a pool that is not open keeps the books: it is still there.
        let recorded = self.shared.store.volume(id).unwrap_or_default();
        let all_seen = recorded
            .replicas
            .keys()
            .all(|pool| self.open_one(pool).is_ok());
        if all_seen && self.places_of(id).is_empty() {
            self.shared.state.remove_witness(id)?;
            self.shared.store.remove_volume(id).await?;
            self.witness_names().remove(&id);
        }
        tracing::info!(%id, %entry, "purged");
        Ok(())
    }

    async fn release_memory(&self, pool: &PoolName, id: VolumeId) -> Result<(), EngineError> {
        let record = self.shared.store.volume(id).unwrap_or_default();
        if let Some(replica) = record.replicas.get(pool) {
            self.open_one(pool)?.discard_creation(*replica).await?;
        }
        self.shared.store.remove_volume(id).await?;
        self.look_into(pool).await
    }

    fn parked_entry(&self, entry: &str) -> Option<Parked> {
        self.parked()
            .values()
            .find(|parked| parked.entry() == entry)
            .cloned()
    }

    /// The volume that an entry is of.
    fn entry_id(&self, entry: &str) -> Result<VolumeId, EngineError> {
        let pools = self.pools();
        let names = pools
            .values()
            .flat_map(|pool| &pool.found)
            .filter_map(|f| match &f.place {
                Place::Quarantined(name) => Some(name),
                Place::Active(_) => None,
            });
        let ids: std::collections::BTreeSet<VolumeId> = names
            .filter(|name| name.id() == entry)
            .map(|name| name.volume_id)
            .collect();
        match ids.len() {
            1 => Ok(ids.into_iter().next().unwrap_or_else(VolumeId::generate)),
            0 => Err(EngineError::new(
                "NotFound",
                format!("there is no quarantine entry \"{entry}\": see `volund quarantine list`"),
            )),
            _ => Err(EngineError::new(
                "Ambiguous",
                format!("more than one volume has the quarantine entry \"{entry}\""),
            )),
        }
    }

    /// Every file of a volume.
    pub(super) fn places_of(&self, id: VolumeId) -> Vec<(PoolName, Place)> {
        let pools = self.pools();
        let mut places = Vec::new();
        for (pool, entry) in pools.iter() {
            for found in &entry.found {
                let is_ours = match &found.place {
                    Place::Quarantined(name) => name.volume_id == id,
                    Place::Active(_) => found.label.as_ref().is_some_and(|l| l.volume == id),
                };
                if is_ours {
                    places.push((pool.clone(), found.place.clone()));
                }
            }
        }
        places
    }

    /// Every quarantined file of a volume.
    fn quarantined(&self, id: VolumeId) -> Vec<(PoolName, QuarantineName)> {
        let places = self
            .places_of(id)
            .into_iter()
            .filter_map(|(pool, place)| match place {
                Place::Quarantined(name) => Some((pool, name)),
                Place::Active(_) => None,
            });
        places.collect()
    }
}

impl Parked {
    /// What the commands call it.
    pub(super) fn entry(&self) -> String {
        format!("{}@{}", self.name, self.removed_at)
    }
}

fn name_taken(entry: &str, name: &VolumeName) -> EngineError {
    EngineError::new(
        "NameTaken",
        format!("\"{entry}\" can't be restored as \"{name}\": there is a volume of that name"),
    )
}
