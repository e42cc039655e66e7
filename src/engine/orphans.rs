//! Files in pools that are no replica of any volume here, and deleting what nobody wants any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use super::engine::Engine;
use super::error::EngineError;
use super::live::Live;
use super::pools::PoolEntry;
use crate::io::clock::wall;
use crate::model::observed::{Problem, Stray};
use crate::model::{PoolName, ReplicaId, VolumeId, VolumeName};
use crate::pool::{FoundReplica, Place};
use crate::replica::MemberState;
use crate::units::Bytes;

impl Engine {
    /// Every file that nobody reads or writes: no member of its volume's newest table, without a label, not named like
    /// a replica, or of a volume in `hidden`: those share their name with one that runs. Files of changes that are under
    /// way are not among them.
    pub(super) fn observe_strays(
        &self,
        files: &[(PoolName, FoundReplica)],
        lives: &BTreeMap<VolumeName, Arc<Live>>,
        hidden: &BTreeSet<VolumeId>,
    ) -> Vec<Stray> {
        let mut members = self.under_way();
        for live in lives.values() {
            let children = &live.status.borrow().children;
            members.extend(children.iter().filter_map(|child| child.replica));
        }
        // Labels of one generation may differ in who is a member: then all that they name are.
        let labels = || files.iter().filter_map(|(_, found)| found.label.as_ref());
        let mut newest: BTreeMap<VolumeId, u64> = BTreeMap::new();
        for label in labels() {
            let known = newest.entry(label.volume).or_default();
            *known = label.generation.max(*known);
        }
        for label in labels().filter(|label| newest.get(&label.volume) == Some(&label.generation)) {
            let current = label.members.iter();
            let current = current.filter(|member| member.state != MemberState::Removed);
            members.extend(current.map(|member| member.replica));
        }
        let mut strays: Vec<Stray> = files
            .iter()
            .filter_map(|(pool, found)| {
                let hidden = hidden_stray(pool, found, hidden);
                hidden.or_else(|| stray(pool, found, &members))
            })
            .collect();
        for (pool, entry) in self.pools().iter() {
            strays.extend(entry.strangers.iter().map(|path| Stray {
                pool: pool.clone(),
                path: path.clone(),
                replica: None,
                why: Problem {
                    reason: "Stranger".to_owned(),
                    message: format!(
                        "{} is not named like a replica: move it away",
                        path.display()
                    ),
                },
                allocated: Bytes(0),
            }));
        }
        strays
    }

    /// Replicas that are being made or removed.
    fn under_way(&self) -> BTreeSet<ReplicaId> {
        let creations = self.shared.store.creations();
        let unfinished = creations
            .values()
            .filter(|creation| creation.left.is_none());
        let created = unfinished.flat_map(|creation| creation.replicas.iter().map(|(_, id)| *id));
        let changed = self.shared.store.member_changes();
        created.chain(changed.keys().copied()).collect()
    }

    /// Deletes an undeclared volume, or a file that is no replica of any volume, for ever. The caller knows that nobody
    /// declares it.
    ///
    /// # Errors
    /// `InUse` while it is served; `NotFound`; what a pool says, which refuses files that it can't understand.
    pub async fn purge_orphan(&self, id: Uuid) -> Result<(), EngineError> {
        let volume = VolumeId::from_uuid(id);
        if self.has_active_files(volume) {
            return self.purge_undeclared(volume).await;
        }
        let replica = ReplicaId::from_uuid(id);
        let files = self.all_files().into_iter();
        let mut its = files.filter(|(_, found)| found.place == Place::Active(replica));
        let Some((pool, found)) = its.next() else {
            return Err(EngineError::new(
                "NotFound",
                format!("there is no orphan \"{id}\": see `volund orphans list`"),
            ));
        };
        let owner = found.label.as_ref().map_or(volume, |label| label.volume);
        let _claim = self.claim(owner).await;
        self.open_one(&pool)?.delete(replica, owner).await?;
        tracing::info!(%pool, %replica, "a stray replica was purged");
        self.look_into(&pool).await?;
        for (creation, record) in self.shared.store.creations() {
            let is_its = record.replicas.iter().any(|(_, other)| *other == replica);
            if is_its && record.left.is_some() && !self.has_any_of(&record.replicas) {
                self.shared.store.end_creation(creation).await?;
            }
        }
        Ok(())
    }

    /// Whether one of these files is there, or may be, as its pool is not here.
    pub(super) fn has_any_of(&self, replicas: &[(PoolName, ReplicaId)]) -> bool {
        let pools = self.pools();
        replicas.iter().any(|(pool, replica)| {
            let entry = pools.get(pool);
            let is_here = |entry: &PoolEntry| entry.found.of_replica(*replica).next().is_some();
            entry.is_none_or(|entry| entry.pool.is_none() || is_here(entry))
        })
    }

    async fn purge_undeclared(&self, id: VolumeId) -> Result<(), EngineError> {
        let claim = self.claim_idle(id).await?;
        let names = self.all_files().into_iter();
        let mut names =
            names.filter_map(|(_, found)| found.label.filter(|label| label.volume == id));
        let name = names.next().map(|label| label.name);
        let name = name.ok_or_else(|| EngineError::new("NotFound", "its files are gone"))?;
        let now = Timestamp::try_from(wall()).unwrap_or_default();
        let entry = self.quarantine_files(&name, id, now).await?;
        drop(claim);
        self.purge(&entry).await
    }
}

/// A file of a volume that has the name of one that runs.
fn hidden_stray(
    pool: &PoolName,
    found: &FoundReplica,
    hidden: &BTreeSet<VolumeId>,
) -> Option<Stray> {
    let label = found.label.as_ref()?;
    let Place::Active(replica) = found.place else {
        return None;
    };
    let why = || Problem {
        reason: "NameTaken".to_owned(),
        message: format!(
            "{} is of volume {}, which has the name \"{}\" of another that runs here: neither is opened at the next \
             start. Move it out of the pool's folder \"replicas\", or `volund orphans purge {replica}` deletes it",
            found.path.display(),
            label.volume,
            label.name
        ),
    };
    hidden.contains(&label.volume).then(|| Stray {
        pool: pool.clone(),
        path: found.path.clone(),
        replica: Some(replica),
        why: why(),
        allocated: Bytes(found.stat.allocated),
    })
}

/// What a file is when nobody needs it; none when somebody does.
fn stray(pool: &PoolName, found: &FoundReplica, members: &BTreeSet<ReplicaId>) -> Option<Stray> {
    let Place::Active(replica) = found.place else {
        return None;
    };
    let (reason, message) = match (&found.label, &found.fault) {
        _ if members.contains(&replica) => return None,
        (None, fault) => {
            let why = fault.as_ref().map_or_else(String::new, ToString::to_string);
            let text = format!("{} is no readable replica: {why}", found.path.display());
            ("Unreadable", text)
        }
        (Some(_), Some(fault)) => (
            "Unusable",
            format!("{} can't be used: {fault}", found.path.display()),
        ),
        (Some(label), None) => (
            "FormerMember",
            format!(
                "{} is no member of volume \"{}\" any more",
                found.path.display(),
                label.name
            ),
        ),
    };
    Some(Stray {
        pool: pool.clone(),
        path: found.path.clone(),
        replica: Some(replica),
        why: Problem {
            reason: reason.to_owned(),
            message,
        },
        allocated: Bytes(found.stat.allocated),
    })
}
