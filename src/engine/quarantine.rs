//! Out of the way without deleting anything, back again, and gone for good.

use std::time::Duration;

use jiff::Timestamp;

use super::engine::{Engine, Parked};
use super::error::EngineError;
use crate::io::clock::wall;
use crate::io::planted::kill_point;
use crate::model::observed::RemovalPolicy;
use crate::model::spec::OnRemove;
use crate::model::{PoolName, VolumeId, VolumeName};
use crate::pool::{Place, QuarantineName};
use crate::state::VolumeRecord;

impl Engine {
    /// Stops a volume cleanly and moves its replicas to quarantine; answers the entry's id. A volume in memory goes on
    /// running unreachable, since there is no file to move.
    ///
    /// # Errors
    /// `InUse` while it is exported; what a pool says, and then the call finishes the rest when made again.
    pub async fn quarantine_volume(&self, name: &VolumeName) -> Result<String, EngineError> {
        let _turn = self.turn(name).await;
        let removed_at = Timestamp::try_from(wall()).unwrap_or_default();
        let running = self.live(name);
        let id = running.as_ref().map(|live| live.id);
        let id = id.or_else(|| self.idle_id(name));
        let id = id.ok_or_else(|| super::assemble::no_such_volume(name))?;
        if let Some(live) = running {
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
            kill_point();
            live.stop().await?;
            kill_point();
            self.volumes().remove(name);
        }
        self.problems().remove(name);
        let _claim = self.claim_idle(id).await?;
        // Whole or not at all: a pool that does not answer is not worked around.
        self.all_pools_of(id).await?;
        self.quarantine_files(name, id, removed_at).await
    }

    pub(super) async fn quarantine_files(
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
            kill_point();
            self.open_one(&pool)?.quarantine(to).await?;
            kill_point();
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
            let _claim = self.claim(parked.live.id).await;
            if self.live(name).is_some() || !self.idle_ids(name).is_empty() {
                return Err(name_taken(entry, name));
            }
            if self.parked().remove(&parked.live.id).is_none() {
                return Err(no_such_entry(entry));
            }
            self.volumes().insert(name.clone(), parked.live);
            self.touch();
            return Ok(());
        }
        let id = self.entry_id(entry)?;
        let _claim = self.claim_idle(id).await?;
        if self.live(name).is_some() || self.idle_ids(name).iter().any(|other| *other != id) {
            return Err(name_taken(entry, name));
        }
        let quarantined = self.quarantined(id);
        if quarantined.is_empty() {
            // Purged, or brought back by somebody else, while this waited for its claim.
            return Err(no_such_entry(entry));
        }
        self.note_purge(id, false).await?;
        // Before they are back: under their old name they might be taken for, or beside, the volume that has it now.
        self.rename_files(id, name).await?;
        for (pool, quarantined) in quarantined {
            kill_point();
            self.open_one(&pool)?.restore(quarantined).await?;
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
            let _claim = self.claim(parked.live.id).await;
            if !self.parked().contains_key(&parked.live.id) {
                return Err(no_such_entry(entry));
            }
            parked.live.stop().await?;
            self.parked().remove(&parked.live.id);
            for pool in &parked.live.applied().replicas {
                self.release_memory(pool, parked.live.id).await?;
            }
            self.touch();
            return Ok(());
        }
        let id = self.entry_id(entry)?;
        let _claim = self.claim(id).await;
        if self.has_active_files(id) {
            return Err(EngineError::in_use(format!(
                "\"{entry}\" is a part of a volume of which the rest is not in quarantine: it comes back with that, or \
                 that follows it"
            )));
        }
        self.note_purge(id, true).await?;
        for (pool, quarantined) in self.quarantined(id) {
            kill_point();
            self.open_one(&pool)?.purge(quarantined).await?;
            self.look_into(&pool).await?;
        }
        self.forget_purged(id).await?;
        tracing::info!(%id, %entry, "purged");
        Ok(())
    }

    /// Forgets a volume of which a purge has left nothing.
    async fn forget_purged(&self, id: VolumeId) -> Result<(), EngineError> {
        // A replica in a pool that is not open keeps the books: it is still there.
        let recorded = self.shared.store.volume(id).unwrap_or_default();
        let all_seen = recorded
            .replicas
            .keys()
            .all(|pool| self.open_one(pool).is_ok());
        if all_seen && self.places_of(id).is_empty() {
            for (pool, replica) in recorded.replicas {
                if self.is_memory(&pool) {
                    self.open_one(&pool)?.discard_creation(replica).await?;
                }
            }
            kill_point();
            self.shared.state.remove_witness(id)?;
            kill_point();
            self.shared.store.remove_volume(id).await?;
            self.shared.store.remove_history(id).await?;
            self.close_journal(id).await?;
            kill_point();
            self.witness_names().remove(&id);
        }
        Ok(())
    }

    /// Notes that a purge begins, so that one that a crash cuts short is known for what it is; or that it is not wanted
    /// any more.
    async fn note_purge(&self, id: VolumeId, purging: bool) -> Result<(), EngineError> {
        let record = self.shared.store.volume(id).unwrap_or_default();
        if record.purging == purging {
            return Ok(());
        }
        let record = VolumeRecord { purging, ..record };
        Ok(self.shared.store.set_volume(id, record).await?)
    }

    /// Forgets, in the background, every volume of which a purge that was cut short has left nothing.
    pub(super) fn collect_purged(&self) {
        let volumes = self.shared.store.volumes();
        for (id, _) in volumes.into_iter().filter(|(_, record)| record.purging) {
            let engine = self.clone();
            tokio::spawn(async move {
                let _claim = engine.claim(id).await;
                // One that is closed may have a file of it.
                if engine.all_pools_of(id).await.is_err() {
                    return;
                }
                match engine.forget_purged(id).await {
                    Ok(()) => {
                        tracing::info!(volume = %id, "looked after a purge that was cut short")
                    }
                    Err(error) => tracing::warn!(volume = %id, %error, "could not be forgotten"),
                }
            });
        }
    }

    /// What was last applied about a volume's removal.
    pub(super) fn removal_policy(record: &VolumeRecord) -> RemovalPolicy {
        let on_remove = if record.delete_on_remove {
            OnRemove::Delete
        } else {
            OnRemove::Retain
        };
        let quarantine_for = Duration::from_secs(record.quarantine_seconds);
        RemovalPolicy {
            on_remove,
            quarantine_for,
        }
    }

    /// Notes what becomes of a volume when its table goes.
    ///
    /// # Errors
    /// When the database can't be written, or there is no such volume.
    pub async fn set_removal_policy(
        &self,
        name: &VolumeName,
        policy: RemovalPolicy,
    ) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        let live = self.live(name).map(|live| live.id);
        let id = match live {
            Some(id) => id,
            None => self
                .idle_id(name)
                .ok_or_else(|| super::assemble::no_such_volume(name))?,
        };
        let mut record = self.shared.store.volume(id).unwrap_or_default();
        record.delete_on_remove = policy.on_remove == OnRemove::Delete;
        record.quarantine_seconds = policy.quarantine_for.as_secs();
        self.shared.store.set_volume(id, record).await?;
        self.touch();
        Ok(())
    }

    async fn release_memory(&self, pool: &PoolName, id: VolumeId) -> Result<(), EngineError> {
        let record = self.shared.store.volume(id).unwrap_or_default();
        if let Some(replica) = record.replicas.get(pool) {
            self.open_one(pool)?.discard_creation(*replica).await?;
        }
        self.shared.store.remove_volume(id).await?;
        self.shared.store.remove_history(id).await?;
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
            .flat_map(|pool| pool.found.iter())
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
            0 => Err(no_such_entry(entry)),
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
            for found in entry.found.of_volume(id) {
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
    pub(super) fn quarantined(&self, id: VolumeId) -> Vec<(PoolName, QuarantineName)> {
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

fn no_such_entry(entry: &str) -> EngineError {
    EngineError::new(
        "NotFound",
        format!("there is no quarantine entry \"{entry}\": see `volund quarantine list`"),
    )
}

fn name_taken(entry: &str, name: &VolumeName) -> EngineError {
    EngineError::new(
        "NameTaken",
        format!("\"{entry}\" can't be restored as \"{name}\": there is a volume of that name"),
    )
}
