//! Replicas that a running volume gains and loses (spec section 10), so that a crash at any moment leaves no file that
//! nobody knows.
//!
//! A replica's file is journalled before it is made; the nexus commits the table that names it before it writes to it.
//! A replica that goes is journalled before the nexus commits the table without it; only then is its file deleted. So
//! whatever the journal names is either in the table, and stays, or not, and may go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::assemble::{Bring, Brought, candidate, no_such_volume, replica_len};
use super::engine::Engine;
use super::error::EngineError;
use super::live::{self, Live};
use crate::model::{PoolName, ReplicaId, VolumeName};
use crate::nexus::{ChildStatus, NexusStatus};
use crate::pool::{Opened, Place, Pool};
use crate::state::MemberChange;

/// A file that nobody else uses is locked by nobody else.
const PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Gives a running volume a replica in `pool`, which is built in the background. An old copy of the volume there that
    /// is no member is used for it, and rebuilt in full. Nothing happens when the volume has a replica there.
    ///
    /// # Errors
    /// What the pool or the nexus says; then no file is left behind that was not there before.
    pub async fn add_replica(&self, name: &VolumeName, pool: &PoolName) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        let live = self.live(name).ok_or_else(|| no_such_volume(name))?;
        self.settle_members(&live).await?;
        if self.member_in(&live, pool).await?.is_some() {
            return Ok(());
        }
        let handle = self.open_one(pool)?;
        if live.is_memory_only && !handle.is_memory() {
            let message = format!(
                "volume \"{name}\" is in memory only and has no record outside: it can't gain a replica in pool \
                 \"{pool}\"; make a new volume there"
            );
            return Err(EngineError::new("MemoryOnly", message));
        }
        self.look_into(pool).await?;
        match self.old_copy(&live, pool).await? {
            Some(replica) => {
                tracing::info!(volume = %name, %pool, %replica, "an old copy is used for the new replica");
                self.join(&live, &handle, replica).await?;
            }
            None => self.join_new(&live, &handle).await?,
        }
        tracing::info!(volume = %name, %pool, "a replica was added and waits for its rebuild");
        self.look_into(pool).await
    }

    /// A file for a replica that has never been.
    async fn join_new(&self, live: &Arc<Live>, pool: &Pool) -> Result<(), EngineError> {
        let replica = ReplicaId::generate();
        let change = MemberChange {
            volume: live.id,
            pool: pool.name().clone(),
            adds: true,
        };
        self.shared
            .store
            .begin_member_change(replica, change)
            .await?;
        let applied = live.applied();
        let len = replica_len(applied.size);
        let joined = async {
            pool.create(replica, len, applied.thin != Some(false))
                .await?;
            self.join(live, pool, replica).await
        };
        if let Err(error) = joined.await {
            // In the table or not: the file stays or goes with that.
            self.settle_members(live).await?;
            return Err(error);
        }
        Ok(self.shared.store.end_member_change(replica).await?)
    }

    /// Opens a replica's file, or makes its memory, and makes it a member.
    async fn join(
        &self,
        live: &Arc<Live>,
        pool: &Pool,
        replica: ReplicaId,
    ) -> Result<(), EngineError> {
        let what = match pool.open(replica, PATIENCE).await? {
            Opened::File(file) => Brought::File(file),
            Opened::Memory { size } => Brought::Memory(size),
        };
        let is_file = matches!(what, Brought::File(_));
        let bring = Bring {
            pool: pool.name().clone(),
            pool_id: Some(pool.id()),
            replica: Some(replica),
            what,
        };
        let (id, thick) = (live.id, live.applied().thin == Some(false));
        let added = live.reactor.run(move |local| async move {
            match live::find(&local, id) {
                Some(volume) => volume
                    .device()
                    .add_member(candidate(&local, bring, thick))
                    .await
                    .map_err(EngineError::from),
                None => Err(EngineError::stopping()),
            }
        });
        added.await.map_err(|_| EngineError::stopping())??;
        self.book_member(live, pool.name(), replica, is_file).await
    }

    /// Takes a running volume's replica in `pool` away, and deletes its file if the pool is online: the others have
    /// everything, and its label is worth nothing any more. Nothing happens when there is none.
    ///
    /// # Errors
    /// `LastCopy` when no other copy is in sync (spec G7).
    pub async fn remove_replica(
        &self,
        name: &VolumeName,
        pool: &PoolName,
    ) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        let live = self.live(name).ok_or_else(|| no_such_volume(name))?;
        self.settle_members(&live).await?;
        let Some(replica) = self.member_in(&live, pool).await? else {
            return self.strike_off(&live, pool, None).await;
        };
        if !live.is_memory_only && !self.has_file_besides(&live, replica) {
            let message = format!(
                "volume \"{name}\" would be in memory only without its replica in pool \"{pool}\": it stays until \
                 another pool with a disk has one"
            );
            return Err(EngineError::new("LastCopy", message));
        }
        let change = MemberChange {
            volume: live.id,
            pool: pool.clone(),
            adds: false,
        };
        self.shared
            .store
            .begin_member_change(replica, change)
            .await?;
        let id = live.id;
        let removed = live.reactor.run(move |local| async move {
            match live::find(&local, id) {
                Some(volume) => {
                    let removed = volume.device().remove_member(replica).await;
                    removed.map_err(EngineError::from)
                }
                None => Err(EngineError::stopping()),
            }
        });
        if let Err(error) = removed.await.map_err(|_| EngineError::stopping())? {
            self.settle_members(&live).await?;
            return Err(error);
        }
        tracing::info!(volume = %name, %pool, %replica, "a replica was taken out");
        self.strike_off(&live, pool, Some(replica)).await?;
        self.delete_struck(&live, pool, replica).await;
        Ok(self.shared.store.end_member_change(replica).await?)
    }

    /// Books the members that a volume was assembled with, and finishes what a crash cut short.
    pub(super) async fn book_table(&self, name: &VolumeName) -> Result<(), EngineError> {
        let Some(live) = self.live(name) else {
            return Ok(());
        };
        let status = live.status.borrow().clone();
        let members = || status.children.iter().filter(|child| child.is_member);
        let placed: BTreeMap<PoolName, ReplicaId> = members()
            .filter_map(|child| {
                let replica = child.replica?;
                Some((self.pool_of(&live, child, replica)?, replica))
            })
            .collect();
        {
            let mut books = live.books();
            books.files.retain(|(_, file)| is_member(&status, *file));
            books.applied.replicas = placed.keys().cloned().collect();
            books.applied.members = members().count();
        }
        let mut record = self.shared.store.volume(live.id).unwrap_or_default();
        record.replicas = placed;
        self.shared.store.set_volume(live.id, record).await?;
        self.settle_members(&live).await
    }

    /// Brings journal, books and files in line with the volume's table, after a crash or a failure half way.
    ///
    /// # Errors
    /// When the database can't be written, or the volume has stopped.
    pub(super) async fn settle_members(&self, live: &Arc<Live>) -> Result<(), EngineError> {
        let all = self.shared.store.member_changes();
        let ours: Vec<_> = all
            .into_iter()
            .filter(|(_, c)| c.volume == live.id)
            .collect();
        if ours.is_empty() {
            return Ok(());
        }
        let status = self.status_of(live).await?;
        for (replica, change) in ours {
            if is_member(&status, replica) {
                let is_file = !self.is_memory(&change.pool);
                self.book_member(live, &change.pool, replica, is_file)
                    .await?;
            } else {
                self.strike_off(live, &change.pool, Some(replica)).await?;
                self.delete_struck(live, &change.pool, replica).await;
            }
            self.shared.store.end_member_change(replica).await?;
        }
        Ok(())
    }

    /// Deletes the file of a replica that the committed table does not have. In a pool that is away it stays: its label
    /// is refused wherever it turns up.
    async fn delete_struck(&self, live: &Live, pool: &PoolName, replica: ReplicaId) {
        let deleted = async {
            self.open_one(pool)?.delete(replica, live.id).await?;
            self.look_into(pool).await
        };
        if let Err(error) = deleted.await {
            tracing::warn!(volume = %live.id, %pool, %replica, %error, "the file of a former replica stays");
        }
    }

    /// Notes that a pool has a replica of the volume.
    async fn book_member(
        &self,
        live: &Live,
        pool: &PoolName,
        replica: ReplicaId,
        is_file: bool,
    ) -> Result<(), EngineError> {
        {
            let mut books = live.books();
            if is_file {
                books.add_file(pool, replica);
            }
            if books.applied.replicas.insert(pool.clone()) {
                books.applied.members += 1;
            }
        }
        let mut record = self.shared.store.volume(live.id).unwrap_or_default();
        record.replicas.insert(pool.clone(), replica);
        self.shared.store.set_volume(live.id, record).await?;
        self.touch();
        Ok(())
    }

    /// Notes that a pool has no replica of the volume any more; `replica` if it was a certain one.
    async fn strike_off(
        &self,
        live: &Live,
        pool: &PoolName,
        replica: Option<ReplicaId>,
    ) -> Result<(), EngineError> {
        let mut record = self.shared.store.volume(live.id).unwrap_or_default();
        let recorded = record.replicas.get(pool).copied();
        let other = replica.is_some() && recorded.is_some() && recorded != replica;
        {
            let mut books = live.books();
            books
                .files
                .retain(|(p, known)| p != pool || replica.is_some_and(|r| r != *known));
            if !other && books.applied.replicas.remove(pool) {
                books.applied.members = books.applied.members.saturating_sub(1);
            }
        }
        if !other && record.replicas.remove(pool).is_some() {
            self.shared.store.set_volume(live.id, record).await?;
        }
        self.touch();
        Ok(())
    }

    /// The member whose file is in this pool.
    pub(super) async fn member_in(
        &self,
        live: &Live,
        pool: &PoolName,
    ) -> Result<Option<ReplicaId>, EngineError> {
        let status = self.status_of(live).await?;
        let members = || status.children.iter().filter(|child| child.is_member);
        let placed = members().find(|child| {
            let replica = child.replica;
            replica.is_some_and(|r| self.pool_of(live, child, r).as_ref() == Some(pool))
        });
        Ok(placed.and_then(|child| child.replica))
    }

    /// A usable file of the volume in this pool that is no member.
    async fn old_copy(
        &self,
        live: &Live,
        pool: &PoolName,
    ) -> Result<Option<ReplicaId>, EngineError> {
        let status = self.status_of(live).await?;
        let pools = self.pools();
        let entry = pools.get(pool).into_iter();
        let files = entry.flat_map(|entry| entry.found.of_volume(live.id));
        let ours = files.filter(|found| {
            let label = found.label.as_ref().filter(|_| found.fault.is_none());
            label.is_some_and(|label| label.volume == live.id)
        });
        let mut old = ours.filter_map(|found| match found.place {
            Place::Active(replica) if !is_member(&status, replica) => Some(replica),
            Place::Active(_) | Place::Quarantined(_) => None,
        });
        Ok(old.next())
    }

    /// Whether another member than this one is in a file.
    fn has_file_besides(&self, live: &Live, replica: ReplicaId) -> bool {
        let status = live.status.borrow().clone();
        let others = |child: &&ChildStatus| child.is_member && child.replica != Some(replica);
        status.children.iter().filter(others).any(|child| {
            let pool = child.replica.and_then(|r| self.pool_of(live, child, r));
            pool.is_none_or(|pool| !self.is_memory(&pool))
        })
    }
}

pub(super) fn is_member(status: &NexusStatus, replica: ReplicaId) -> bool {
    let mut members = status.children.iter().filter(|child| child.is_member);
    members.any(|child| child.replica == Some(replica))
}
