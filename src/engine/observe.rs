//! What there is on this node: [`Engine::observe`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::engine::Engine;
use super::gather::{Gathered, idle_state};
use super::history::left_by;
use super::live::{Live, Outlook};
use super::shown;
use crate::io::clock::wall;
use crate::model::observed::{
    AppliedVolume, Observed, ObservedPool, ObservedQuarantine, ObservedVolume, Problem,
};
use crate::model::policy::VolumePolicy;
use crate::model::spec::BlockSize;
use crate::model::status::{ReplicaState, ReplicaStatus};
use crate::model::{PoolName, ReplicaId, VolumeId, VolumeName};
use crate::nexus::{ChildStatus, Health, NexusStatus};
use crate::pool::{FoundReplica, Place, QuarantineName};
use crate::replica::{Label, Member, MemberState};
use crate::units::Bytes;

/// How long all exports together may take to say how they are: a command that hangs in the kernel must not hold up the
/// reconciler.
const EXPORTS_MAX: Duration = Duration::from_secs(1);

/// A file with its pool.
type Placed = (PoolName, FoundReplica);
/// Bytes that the file of each replica takes up.
type Allocated = BTreeMap<ReplicaId, u64>;

impl Engine {
    /// Everything that is known right now. Never waits for a pool: what a busy one last said is shown.
    pub async fn observe(&self) -> Observed {
        let since = wall()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let files = self.all_files();
        let lives: BTreeMap<VolumeName, Arc<Live>> = self.volumes().clone();
        let mut volumes = self.observe_idle(&files, &lives);
        let deadline = Instant::now() + EXPORTS_MAX;
        let allocated: Allocated = files
            .iter()
            .map(|(_, found)| (found.place.replica(), found.stat.allocated))
            .collect();
        let mut hidden = BTreeSet::new();
        for (name, live) in &lives {
            let volume = self.observe_live(live, &allocated, deadline).await;
            let other = volumes.insert(name.clone(), volume);
            hidden.extend(other.into_iter().flat_map(|other| other.ids));
        }
        Observed {
            at_unix_seconds: since.as_secs(),
            pools: self.observe_pools(),
            volumes,
            quarantine: self.observe_quarantine(&files),
            strays: self.observe_strays(&files, &lives, &hidden),
        }
    }

    pub(super) fn all_files(&self) -> Vec<Placed> {
        let pools = self.pools();
        let files = pools
            .iter()
            .flat_map(|(pool, entry)| entry.found.iter().map(move |f| (pool.clone(), f.clone())));
        files.collect()
    }

    fn observe_pools(&self) -> BTreeMap<PoolName, ObservedPool> {
        let pools = self.pools();
        // A volume must not be taken for one that does not exist because nobody has looked for it yet.
        let known = pools
            .iter()
            .filter(|(_, e)| e.is_known || e.problem.is_some());
        let observed = known.map(|(name, entry)| {
            let pool = ObservedPool {
                spec: entry.spec.clone(),
                id: entry.pool.as_ref().map(crate::pool::Pool::id),
                problem: entry.problem.clone(),
                capacity: entry.capacity.size,
                allocated: entry.capacity.allocated,
                committed: entry.capacity.committed,
                available: entry.capacity.available,
            };
            (name.clone(), pool)
        });
        observed.collect()
    }

    async fn observe_live(
        &self,
        live: &Live,
        allocated: &Allocated,
        deadline: Instant,
    ) -> ObservedVolume {
        let status = live.status.borrow().clone();
        let outlooks = live.outlooks();
        let record = self.shared.store.volume(live.id).unwrap_or_default();
        let applied = AppliedVolume {
            removal: Self::removal_policy(&record),
            ..live.applied()
        };
        ObservedVolume {
            ids: BTreeSet::from([live.id]),
            applied,
            known: true,
            serving: !matches!(status.health, Health::Stopped),
            problem: problem_of(&status),
            export: live.observe_export(deadline).await,
            given_up: outlooks.values().find_map(|o| o.given_up.clone()),
            nexus_generation: status.generation,
            replicas: status
                .children
                .iter()
                .filter_map(|c| replica_status(c, allocated, &outlooks))
                .map(|replica| self.dated(live.id, replica))
                .collect(),
            injected: self.injected(live),
            unresolved: Bytes(status.unresolved_bytes),
            resolved: Bytes(status.resolved_bytes),
            scrub: shown::scrub(&status, record.scrubbed_at_unix_seconds),
        }
    }

    /// The same with the time since which it has not been in sync, and why, also while it is being rebuilt.
    fn dated(&self, id: VolumeId, replica: ReplicaStatus) -> ReplicaStatus {
        let (Some(uuid), false) = (replica.uuid, replica.state == ReplicaState::InSync) else {
            return replica;
        };
        let history = self.shared.store.history(id);
        let left = left_by(&history.events, uuid);
        let why = || left.map(|event| event.detail.clone());
        ReplicaStatus {
            since: left.map(|event| event.time.clone()),
            reason: replica.reason.or_else(why),
            ..replica
        }
    }

    /// Volumes of which there are files but which nobody serves.
    fn observe_idle(
        &self,
        files: &[Placed],
        lives: &BTreeMap<VolumeName, Arc<Live>>,
    ) -> BTreeMap<VolumeName, ObservedVolume> {
        let running: BTreeSet<VolumeId> = lives.values().map(|live| live.id).collect();
        let mut by_id: BTreeMap<VolumeId, Vec<&Placed>> = BTreeMap::new();
        for file in files {
            let is_active = matches!(file.1.place, Place::Active(_));
            if let Some(label) = file.1.label.as_ref().filter(|_| is_active)
                && !running.contains(&label.volume)
            {
                by_id.entry(label.volume).or_default().push(file);
            }
        }
        let mut volumes: BTreeMap<VolumeName, ObservedVolume> = BTreeMap::new();
        for (id, files) in by_id {
            let Some(name) = self.name_of(id, &files) else {
                continue;
            };
            match volumes.get_mut(&name) {
                // Two ids under one name: the planner refuses to guess.
                Some(volume) => drop(volume.ids.insert(id)),
                None => {
                    if let Some(volume) = self.observe_files(id, &name, &files) {
                        volumes.insert(name, volume);
                    }
                }
            }
        }
        volumes
    }

    /// The name of a volume that nobody serves. Its labels agree but for a rename that was cut short: then the witness,
    /// which follows last, has the old name, under which the rename will be finished. A label that missed a rename because
    /// its pool was away does not count: the newest one does.
    fn name_of(&self, id: VolumeId, files: &[&Placed]) -> Option<VolumeName> {
        let usable = files.iter().any(|(_, f)| f.fault.is_none());
        let names: BTreeSet<&VolumeName> = files
            .iter()
            // What can't be used is never renamed either.
            .filter(|(_, f)| f.fault.is_none() || !usable)
            .filter_map(|(_, f)| f.label.as_ref())
            .map(|label| &label.name)
            .collect();
        let witness = self.witness_names().get(&id).cloned();
        match witness {
            Some(name) if names.len() > 1 && names.contains(&name) => Some(name),
            _ => {
                let labels = files.iter().filter_map(|(_, f)| f.label.as_ref());
                let named = labels.filter(|label| names.contains(&label.name));
                let newest = named.min_by_key(|label| (Reverse(label.generation), &label.name));
                newest.map(|label| label.name.clone())
            }
        }
    }

    fn observe_files(
        &self,
        id: VolumeId,
        name: &VolumeName,
        files: &[&Placed],
    ) -> Option<ObservedVolume> {
        let labels = files.iter().filter_map(|(_, found)| found.label.as_ref());
        let newest = labels.max_by_key(|label| label.generation)?;
        // A file that is no member any more is none of its replicas: only `volund why` tells of it.
        let its = files.iter().filter(|(_, found)| {
            let replica = found.place.replica();
            members_of(newest).any(|member| member.replica == replica)
        });
        let replicas = its.clone().map(|(pool, found)| {
            let (state, reason) = idle_state(found);
            ReplicaStatus {
                reason,
                allocated_bytes: found.stat.allocated,
                ..ReplicaStatus::new(pool.clone(), Some(found.place.replica()), state)
            }
        });
        Some(ObservedVolume {
            ids: BTreeSet::from([id]),
            applied: self.applied_of(id, newest, its.map(|(pool, _)| pool)),
            known: self.is_known(id),
            serving: false,
            problem: self.problems().get(name).cloned(),
            export: None,
            given_up: None,
            nexus_generation: 0,
            replicas: replicas.collect(),
            injected: BTreeMap::new(),
            unresolved: Bytes(0),
            resolved: Bytes(0),
            scrub: None,
        })
    }

    /// Whether this node ever made or opened this volume.
    pub(super) fn is_known(&self, id: VolumeId) -> bool {
        self.shared.store.volume(id).is_some() || self.witness_names().contains_key(&id)
    }

    fn applied_of<'a>(
        &self,
        id: VolumeId,
        label: &Label,
        pools: impl Iterator<Item = &'a PoolName>,
    ) -> AppliedVolume {
        let record = self.shared.store.volume(id).unwrap_or_default();
        let known = self.shared.store.volume(id).is_some();
        let block_size = if label.lb_size == 512 {
            BlockSize::B512
        } else {
            BlockSize::B4096
        };
        AppliedVolume {
            size: Bytes(label.data_len),
            block_size,
            thin: Some(!label.is_thick()),
            replicas: pools
                .cloned()
                .chain(record.replicas.keys().cloned())
                .collect(),
            members: members_of(label).count(),
            removal: if known {
                Self::removal_policy(&record)
            } else {
                Default::default()
            },
            policy: VolumePolicy::default(),
        }
    }

    fn observe_quarantine(&self, files: &[Placed]) -> Vec<ObservedQuarantine> {
        let mut by_id: BTreeMap<VolumeId, Vec<(&QuarantineName, &Placed)>> = BTreeMap::new();
        for file in files {
            if let Place::Quarantined(name) = &file.1.place {
                by_id.entry(name.volume_id).or_default().push((name, file));
            }
        }
        let mut entries: Vec<ObservedQuarantine> = by_id
            .into_iter()
            .filter_map(|(id, files)| self.quarantine_entry(id, &files))
            .collect();
        let parked: Vec<_> = self.parked().values().cloned().collect();
        for volume in parked {
            let record = self.shared.store.volume(volume.live.id).unwrap_or_default();
            entries.push(ObservedQuarantine {
                id: volume.entry(),
                volume: volume.name.clone(),
                uuid: volume.live.id,
                removed_at_unix_seconds: seconds(volume.removed_at),
                applied: AppliedVolume {
                    removal: Self::removal_policy(&record),
                    ..volume.live.applied()
                },
                allocated: volume.live.applied().size,
            });
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        entries
    }

    fn quarantine_entry(
        &self,
        id: VolumeId,
        files: &[(&QuarantineName, &Placed)],
    ) -> Option<ObservedQuarantine> {
        let (first, _) = files.first()?;
        let labels = files
            .iter()
            .filter_map(|(_, (_, found))| found.label.as_ref());
        let newest = labels.max_by_key(|label| label.generation)?;
        Some(ObservedQuarantine {
            id: first.id(),
            volume: first.volume.clone(),
            uuid: id,
            removed_at_unix_seconds: seconds(first.removed_at),
            applied: self.applied_of(id, newest, files.iter().map(|(_, (pool, _))| pool)),
            allocated: Bytes(
                files
                    .iter()
                    .map(|(_, (_, found))| found.stat.allocated)
                    .sum(),
            ),
        })
    }

    /// The ids of all volumes of which the gathered files are, and whose name this is.
    pub(super) fn ids_of(&self, name: &VolumeName, gathered: &Gathered) -> BTreeSet<VolumeId> {
        let mut ids = gathered.ids_of(name);
        ids.retain(|id| {
            let its = self.active_files_of(*id);
            let its: Vec<&Placed> = its.iter().collect();
            self.name_of(*id, &its).as_ref() == Some(name)
        });
        ids
    }

    /// Every file in use of a volume, in whatever pool.
    fn active_files_of(&self, id: VolumeId) -> Vec<Placed> {
        let is_its = |found: &&FoundReplica| {
            let label = found.label.as_ref();
            label.is_some_and(|l| l.volume == id) && matches!(found.place, Place::Active(_))
        };
        let pools = self.pools();
        let files = pools.iter().flat_map(|(pool, entry)| {
            let its = entry.found.of_volume(id).filter(is_its);
            its.map(|found| (pool.clone(), found.clone()))
        });
        files.collect()
    }

    /// The id of the volume that has this name and that nobody serves; none when there is none, or more than one.
    pub(super) fn idle_id(&self, name: &VolumeName) -> Option<VolumeId> {
        let ids = self.idle_ids(name);
        ids.first().copied().filter(|_| ids.len() == 1)
    }

    /// The ids of all volumes that have this name and that nobody serves.
    pub(super) fn idle_ids(&self, name: &VolumeName) -> BTreeSet<VolumeId> {
        let files = self.all_files();
        let lives = self.volumes().clone();
        let volume = self.observe_idle(&files, &lives).remove(name);
        volume.map_or_else(BTreeSet::new, |volume| volume.ids)
    }
}

/// Those that the label's table has.
fn members_of(label: &Label) -> impl Iterator<Item = &Member> {
    let members = label.members.iter();
    members.filter(|member| member.state != MemberState::Removed)
}

fn seconds(time: jiff::Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}

fn problem_of(status: &NexusStatus) -> Option<Problem> {
    let reasons: Vec<String> = status
        .children
        .iter()
        .filter_map(|child| {
            Some(format!(
                "{}: {}",
                child.pool.as_ref()?,
                child.reason.as_ref()?
            ))
        })
        .collect();
    let (reason, message) = match status.health {
        Health::Online | Health::Degraded => return None,
        Health::Stopped => ("Stopped", "the volume is being stopped".to_owned()),
        Health::Failed if status.lost_unflushed => (
            "LostUnflushed",
            format!(
                "acknowledged writes may be lost, so writes fail until the client detaches and comes back ({})",
                reasons.join("; ")
            ),
        ),
        Health::Failed => (
            "LastCopyFailing",
            format!(
                "the last in-sync copy fails, and is tried again by every request ({})",
                reasons.join("; ")
            ),
        ),
    };
    Some(Problem {
        reason: reason.to_owned(),
        message,
    })
}

fn replica_status(
    child: &ChildStatus,
    allocated: &Allocated,
    outlooks: &BTreeMap<ReplicaId, Outlook>,
) -> Option<ReplicaStatus> {
    let allocated = |replica: ReplicaId| allocated.get(&replica).copied();
    let outlook = child.replica.and_then(|replica| outlooks.get(&replica));
    Some(ReplicaStatus {
        reason: child.reason.clone(),
        next: outlook.map(|outlook| outlook.text.clone()),
        allocated_bytes: child.replica.and_then(allocated).unwrap_or(0),
        rebuild: child.rebuild.as_ref().map(shown::rebuild),
        hung: child.hung,
        ..ReplicaStatus::new(child.pool.clone()?, child.replica, child.state)
    })
}
