//! Members that are out of sync: opened and locked again, and rebuilt.

use std::sync::Arc;

use super::assemble::{Bring, Brought, candidate, replica_len};
use super::engine::Engine;
use super::error::EngineError;
use super::found::Found;
use super::live::{self, Live};
use crate::model::{PoolName, ReplicaId, VolumeName};
use crate::nexus::{ChildStatus, NexusStatus, RebuildKind, RebuildReport};
use crate::pool::Opened;
use crate::units::Bytes;

/// How far a member got.
#[derive(Debug)]
pub(super) enum Back {
    /// It is here, or need not come any more.
    Here,
    /// It can't be opened before this: `pool "b" is back`.
    Waits(String),
}

impl Engine {
    /// Opens and locks a member that is out of sync and not here (spec A1, E6), and gives it to the nexus. A member in
    /// memory is made anew, blank.
    ///
    /// # Errors
    /// What the pool or the nexus says.
    pub(super) async fn bring_back(
        &self,
        live: &Arc<Live>,
        child: &ChildStatus,
        replica: ReplicaId,
    ) -> Result<Back, EngineError> {
        let Some(name) = self.name_of_live(live) else {
            return Ok(Back::Here);
        };
        // Whoever stops, renames or removes the volume, or changes its members, comes before or after.
        let _turn = self.turn(&name).await;
        let wants = |child: &ChildStatus| child.replica == Some(replica) && child.wants_attach;
        if !self.status_of(live).await?.children.iter().any(wants) {
            return Ok(Back::Here);
        }
        let Some(pool) = self.pool_of(live, child, replica) else {
            let what = "the pool that has its file is open here";
            return Ok(Back::Waits(what.to_owned()));
        };
        // Why that is so is said of the pool.
        let Ok(handle) = self.open_one(&pool) else {
            return Ok(Back::Waits(format!("pool \"{pool}\" is back")));
        };
        let applied = live.applied();
        let what = if handle.is_memory() {
            let len = replica_len(applied.size);
            handle.create(replica, len, true).await?;
            Brought::Memory(len)
        } else {
            match handle.open(replica, applied.policy.degraded_wait).await? {
                Opened::File(file) => Brought::File(file),
                Opened::Memory { size } => Brought::Memory(size),
            }
        };
        let bring = Bring {
            pool: pool.clone(),
            pool_id: Some(handle.id()),
            replica: Some(replica),
            what,
        };
        let is_file = matches!(bring.what, Brought::File(_));
        let (id, thick) = (live.id, applied.thin == Some(false));
        let attached = live.reactor.run(move |local| async move {
            match live::find(&local, id) {
                Some(volume) => volume
                    .device()
                    .attach(candidate(&local, bring, thick))
                    .await
                    .map_err(EngineError::from),
                None => Ok(()),
            }
        });
        attached.await.map_err(|_| EngineError::stopping())??;
        if is_file {
            live.books().add_file(&pool, replica);
        }
        Ok(Back::Here)
    }

    /// Rebuilds a member that is here, once the node has a permit for it (spec B9). Returns what was done, in words.
    ///
    /// # Errors
    /// Why the rebuild ended before its goal.
    pub(super) async fn rebuild(
        &self,
        live: &Arc<Live>,
        replica: ReplicaId,
    ) -> Result<String, EngineError> {
        let _permit = self.shared.rebuilds.take().await;
        let wants = |child: &ChildStatus| child.replica == Some(replica) && child.wants_rebuild;
        if !self.status_of(live).await?.children.iter().any(wants) {
            return Ok("it was not needed any more".to_owned());
        }
        let id = live.id;
        let rebuilt = live.reactor.run(move |local| async move {
            match live::find(&local, id) {
                Some(volume) => {
                    let rebuilt = volume.device().rebuild(replica).await;
                    rebuilt.map(in_words).map_err(EngineError::from)
                }
                None => Err(EngineError::stopping()),
            }
        });
        rebuilt.await.map_err(|_| EngineError::stopping())?
    }

    /// What the nexus says of itself at this moment, not what it was last heard to say.
    pub(super) async fn status_of(&self, live: &Live) -> Result<NexusStatus, EngineError> {
        let id = live.id;
        let status = live.reactor.run(move |local| async move {
            live::find(&local, id).map(|volume| volume.device().status())
        });
        status
            .await
            .map_err(|_| EngineError::stopping())?
            .ok_or_else(EngineError::stopping)
    }

    /// The name that a running volume has now.
    pub(super) fn name_of_live(&self, live: &Live) -> Option<VolumeName> {
        let volumes = self.volumes();
        let mut named = volumes.iter().filter(|(_, other)| other.id == live.id);
        named.next().map(|(name, _)| name.clone())
    }

    /// The pool that a member's file is in, as far as anybody knows.
    pub(super) fn pool_of(
        &self,
        live: &Live,
        child: &ChildStatus,
        replica: ReplicaId,
    ) -> Option<PoolName> {
        let recorded = || {
            let record = self.shared.store.volume(live.id).unwrap_or_default();
            let mut known = record.replicas.into_iter();
            known.find(|(_, known)| *known == replica).map(|(p, _)| p)
        };
        let found = || {
            let pools = self.pools();
            let has_it = |found: &Found| found.of_replica(replica).next().is_some();
            let mut its = pools.iter().filter(|(_, entry)| has_it(&entry.found));
            its.next().map(|(pool, _)| pool.clone())
        };
        child.pool.clone().or_else(recorded).or_else(found)
    }

    /// Tells the keepers of volumes that may have a member in this pool that it can be opened.
    pub(super) fn pool_came(&self, pool: &PoolName) {
        let volumes: Vec<Arc<Live>> = self.volumes().values().cloned().collect();
        for live in volumes {
            if live.books().applied.replicas.contains(pool) {
                live.nudges.afresh();
            }
        }
    }
}

/// What a rebuild did, for people.
fn in_words(report: RebuildReport) -> String {
    let kind = match report.kind {
        RebuildKind::Full => "full",
        RebuildKind::Partial => "partial",
        RebuildKind::ResumedAfterAbsence | RebuildKind::Resumed => "resumed",
    };
    format!(
        "{kind} rebuild ({}): {} copied in {:.1} s",
        report.reason,
        Bytes(report.copied_bytes),
        report.duration.as_secs_f64()
    )
}
