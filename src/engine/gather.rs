//! Finding the replicas of a volume: by the name in their labels, then by the id in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::error::EngineError;
use super::look::Looks;
use crate::model::spec::VolumeSpec;
use crate::model::status::ReplicaState;
use crate::model::{PoolName, ReplicaId, VolumeId, VolumeName};
use crate::pool::{FoundReplica, Place};
use crate::replica::{Label, MemberState};

/// How often it looks again meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What the listed pools hold.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Every replica in use of a volume that some label gives the name to, with its pool.
    pub(super) active: Vec<(PoolName, FoundReplica)>,
    /// Quarantined data whose label or file name carries the name.
    pub(super) quarantined: Vec<String>,
    /// Listed pools that are not open, and why.
    pub(super) offline: Vec<(PoolName, String)>,
}

impl Gathered {
    /// The ids of all volumes of which some label has `name`.
    pub(super) fn ids_of(&self, name: &VolumeName) -> BTreeSet<VolumeId> {
        let labels = self
            .active
            .iter()
            .filter_map(|(_, found)| found.label.as_ref());
        labels
            .filter(|label| label.name == *name)
            .map(|label| label.volume)
            .collect()
    }

    /// Labels of a volume's replicas.
    pub(super) fn labels_of(&self, id: VolumeId) -> impl Iterator<Item = &Label> {
        self.active
            .iter()
            .filter_map(|(_, found)| found.label.as_ref())
            .filter(move |label| label.volume == id)
    }

    /// Whether `pool` has a file of the volume.
    pub(super) fn is_in(&self, id: VolumeId, pool: &PoolName) -> bool {
        let mut there = self.active.iter().filter(|(place, _)| place == pool);
        there.any(|(_, found)| found.label.as_ref().is_some_and(|label| label.volume == id))
    }

    /// Whether it is clear for each member of the table in which pool it is: by its file, or on record.
    pub(super) fn knows_every_member(
        &self,
        table: &Label,
        recorded: &BTreeMap<PoolName, ReplicaId>,
    ) -> bool {
        let mut members = table.members.iter();
        members.all(|member| {
            let mut files = self.labels_of(table.volume);
            member.state == MemberState::Removed
                || recorded.values().any(|replica| *replica == member.replica)
                || files.any(|label| label.replica == member.replica)
        })
    }

    /// The label with the highest generation.
    pub(super) fn newest_label(&self, id: VolumeId) -> Option<&Label> {
        self.labels_of(id)
            .max_by_key(|label| (label.generation, label.epoch))
    }

    /// Whether an in-sync member of the newest table has no usable file here, although it is not one of those in memory.
    fn lacks_a_member(&self, id: VolumeId, memory: &Memory) -> bool {
        let Some(newest) = self.newest_label(id) else {
            return false;
        };
        let here = |replica| {
            self.active.iter().any(|(_, found)| {
                found.place.replica() == replica && found.label.is_some() && found.fault.is_none()
            })
        };
        let absent = newest
            .members
            .iter()
            .filter(|m| m.state == MemberState::InSync)
            .filter(|m| !here(m.replica) && !memory.members.contains(&m.replica))
            .count();
        absent > memory.unknown
    }
}

/// The members of a volume that are in memory.
struct Memory {
    members: BTreeSet<ReplicaId>,
    /// Memory pools whose member nobody remembers.
    unknown: usize,
}

impl Engine {
    /// Looks into every listed pool.
    pub(super) async fn gather(&self, name: &VolumeName, pools: &[PoolName]) -> Gathered {
        let mut gathered = Gathered::default();
        let mut looked = Vec::new();
        for pool in pools {
            match self.look_into_open(pool).await {
                Ok(looks) => looked.push((pool, looks)),
                Err(error) => gathered.offline.push((pool.clone(), error.to_string())),
            }
        }
        self.collect(name, &looked, &mut gathered);
        let parked: Vec<_> = self.parked().values().cloned().collect();
        for volume in parked.into_iter().filter(|volume| volume.name == *name) {
            gathered
                .quarantined
                .push(format!("{}@{}", volume.name, volume.removed_at));
        }
        gathered.quarantined.sort();
        gathered.quarantined.dedup();
        gathered
    }

    /// What was just seen in the pools that were looked into and bears on the volumes of this name. One that was closed or
    /// opened anew since counts as offline: nobody may take it for empty (spec A0).
    fn collect(
        &self,
        name: &VolumeName,
        looked: &[(&PoolName, Arc<Looks>)],
        gathered: &mut Gathered,
    ) {
        let all = self.pools();
        let mut entries = Vec::new();
        for (pool, looks) in looked {
            let entry = all.get(*pool).filter(|entry| entry.is_of(looks));
            match entry.filter(|entry| entry.pool.is_some()) {
                Some(entry) => entries.push((*pool, entry)),
                None => gathered.offline.push((
                    (*pool).clone(),
                    format!("pool \"{pool}\" was closed while others were looked into"),
                )),
            }
        }
        let named = entries.iter().flat_map(|(_, e)| e.found.named(name));
        let ids: BTreeSet<VolumeId> = named
            .filter(|found| matches!(found.place, Place::Active(_)))
            .filter_map(|found| found.label.as_ref())
            .filter(|label| label.name == *name)
            .map(|label| label.volume)
            .collect();
        for (pool, entry) in &entries {
            for found in ids.iter().flat_map(|id| entry.found.of_volume(*id)) {
                let is_its = found
                    .label
                    .as_ref()
                    .is_some_and(|l| ids.contains(&l.volume));
                if is_its && matches!(found.place, Place::Active(_)) {
                    gathered.active.push(((*pool).clone(), found.clone()));
                }
            }
            for found in entry.found.named(name) {
                if let Place::Quarantined(entry) = &found.place {
                    gathered.quarantined.push(entry.id());
                }
            }
        }
    }

    fn members_in_memory(&self, id: VolumeId, pools: &[PoolName]) -> Memory {
        let recorded = self.shared.store.volume(id).unwrap_or_default().replicas;
        let memory: Vec<_> = pools.iter().filter(|pool| self.is_memory(pool)).collect();
        let members: BTreeSet<_> = memory
            .iter()
            .filter_map(|pool| recorded.get(*pool).copied())
            .collect();
        let unknown = memory.len() - members.len();
        Memory { members, unknown }
    }

    /// Looks for the members of an existing volume: into the listed pools and into those that are on record. Answers
    /// `spec` with the pools that have one, whatever it lists; a pool that is listed besides gets one later, when the
    /// volume runs.
    pub(super) async fn gather_members(
        &self,
        name: &VolumeName,
        id: VolumeId,
        spec: &VolumeSpec,
    ) -> (Gathered, VolumeSpec) {
        let mut spec = spec.clone();
        let recorded = self.shared.store.volume(id).unwrap_or_default().replicas;
        let listed: BTreeSet<PoolName> = spec.replicas.iter().cloned().collect();
        let known = recorded.keys().filter(|pool| !listed.contains(*pool));
        spec.replicas.extend(known.cloned());
        let gathered = self.gather_patiently(name, id, &spec).await;
        let newest = gathered.newest_label(id);
        if newest.is_some_and(|label| gathered.knows_every_member(label, &recorded)) {
            let has_one = |pool: &PoolName| recorded.contains_key(pool) || gathered.is_in(id, pool);
            spec.replicas.retain(has_one);
        }
        (gathered, spec)
    }

    /// As [`Engine::gather`], but looks again for a while when an in-sync member of the volume is missing (spec A6,
    /// `degraded_wait`).
    pub(super) async fn gather_patiently(
        &self,
        name: &VolumeName,
        id: VolumeId,
        spec: &VolumeSpec,
    ) -> Gathered {
        let pools = &spec.replicas;
        let memory = self.members_in_memory(id, pools);
        let mut gathered = self.gather(name, pools).await;
        let deadline = tokio::time::Instant::now() + spec.policy.degraded_wait;
        while gathered.lacks_a_member(id, &memory) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
            gathered = self.gather(name, pools).await;
        }
        gathered
    }

    pub(super) fn is_memory(&self, pool: &PoolName) -> bool {
        let pools = self.pools();
        pools
            .get(pool)
            .and_then(|e| e.pool.as_ref())
            .is_some_and(crate::pool::Pool::is_memory)
    }

    /// Refuses what a person has to sort out first (spec A0, `ux` 3.5).
    pub(super) fn check_creatable(
        &self,
        name: &VolumeName,
        renamed_from: Option<&VolumeName>,
        gathered: &Gathered,
    ) -> Result<(), EngineError> {
        if !gathered.quarantined.is_empty() {
            return Err(EngineError::new(
                "QuarantinedDataExists",
                format!(
                    "removed data carries the name \"{name}\" ({}); nothing is created: bring it back with `volund \
                     quarantine restore`, or delete it with `volund quarantine purge`",
                    gathered.quarantined.join(", ")
                ),
            ));
        }
        if let Some((_, why)) = gathered.offline.first() {
            return Err(EngineError::new(
                "PoolOffline",
                format!("volume \"{name}\" is created once all of its pools are online: {why}"),
            ));
        }
        self.check_elsewhere(name)?;
        match renamed_from.and_then(|old| Some((old, self.vanished(old)?))) {
            None => Ok(()),
            Some((old, id)) => Err(EngineError::new(
                "DataMissing",
                format!(
                    "volume \"{name}\" is to be the data of \"{old}\" ({id}), of which no replica is in the pools of this \
                     node; nothing is created: declare and mount the pool that has it, or drop `renamed_from` for a \
                     blank volume"
                ),
            )),
        }
    }

    /// Whatever the volume's own pools say: a name that has data anywhere is not free.
    fn check_elsewhere(&self, name: &VolumeName) -> Result<(), EngineError> {
        let pools = self.pools();
        let mut labelled = pools.iter().flat_map(|(pool, entry)| {
            let labels = entry.found.named(name).filter_map(|f| f.label.as_ref());
            labels.map(move |label| (pool, label))
        });
        if let Some((pool, label)) = labelled.find(|(_, label)| label.name == *name) {
            return Err(EngineError::new(
                "DataElsewhere",
                format!(
                    "pool \"{pool}\" has data of a volume \"{name}\" ({}); nothing is created: list the pools that \
                     have it, or give the new volume another name",
                    label.volume
                ),
            ));
        }
        drop(labelled);
        drop(pools);
        match self.vanished(name) {
            Some(id) => Err(EngineError::new(
                "DataMissing",
                format!(
                    "this node had a volume \"{name}\" ({id}) but no replica of it is in the listed pools; nothing is \
                     created: list the pools that have them, or give the new volume another name"
                ),
            )),
            None => Ok(()),
        }
    }

    /// Refuses data that this node never had in the place of data that it had under this name, unless the table asks for
    /// it by its id.
    pub(super) fn check_not_another(
        &self,
        name: &VolumeName,
        id: VolumeId,
        wanted: Option<VolumeId>,
    ) -> Result<(), EngineError> {
        let vanished = self.vanished(name);
        match vanished.filter(|_| wanted != Some(id) && !self.is_known(id)) {
            None => Ok(()),
            Some(known) => Err(EngineError::new(
                "DataMissing",
                format!(
                    "this node had a volume \"{name}\" ({known}) but no replica of it is in its pools; what has the name \
                     now is {id}, which it never had; nothing is opened: declare and mount the pool with the replicas of \
                     the first, or put uuid = \"{id}\" into the table to adopt the other"
                ),
            )),
        }
    }

    /// The volume that a witness knows by this name and of which no pool has a replica.
    fn vanished(&self, name: &VolumeName) -> Option<VolumeId> {
        let pools = self.pools();
        // The witness follows the labels when a volume gets another name.
        let is_here = |id: VolumeId| {
            let files = pools.values().flat_map(|entry| entry.found.of_volume(id));
            let mut labels = files.filter_map(|found| found.label.as_ref());
            labels.any(|label| label.volume == id)
        };
        let witnesses = self.witness_names();
        let mut its = witnesses.iter().filter(|(_, known)| *known == name);
        its.find(|(id, _)| !is_here(**id)).map(|(id, _)| *id)
    }
}

/// What a replica is when nobody serves it.
pub(super) fn idle_state(found: &FoundReplica) -> (ReplicaState, Option<String>) {
    let Some(label) = &found.label else {
        return (
            ReplicaState::Absent,
            found.fault.as_ref().map(ToString::to_string),
        );
    };
    let own = label
        .members
        .iter()
        .find(|member| member.replica == label.replica);
    let state = match own.map(|member| member.state) {
        _ if found.fault.is_some() => ReplicaState::Absent,
        Some(MemberState::InSync) => ReplicaState::InSync,
        Some(MemberState::Rebuilding) => ReplicaState::Rebuilding,
        Some(MemberState::Blank) => ReplicaState::Blank,
        Some(MemberState::Stale | MemberState::Removed) | None => ReplicaState::Stale,
    };
    (state, found.fault.as_ref().map(ToString::to_string))
}
