//! [`Engine::why`]: everything that bears on which copy of a volume is the newest, put together for people.

use std::collections::BTreeSet;
use std::time::Duration;

use super::assemble::no_such_volume;
use super::engine::Engine;
use super::error::EngineError;
use super::gather::idle_state;
use super::live::Live;
use crate::model::observed::Problem;
use crate::model::status::ReplicaState;
use crate::model::time::rfc3339;
use crate::model::why::{LabelView, MemberView, Relation, Why, WitnessView};
use crate::model::{PoolName, ReplicaId, VolumeId, VolumeName};
use crate::nexus::{self, ChildStatus, Health, WitnessRecord};
use crate::pool::{FoundReplica, Place};
use crate::replica::{Label, MemberState};

/// How long all pools together may take to be looked into; of those that take longer, what was last seen is told.
const LOOK_MAX: Duration = Duration::from_secs(5);
const NS_PER_SECOND: u64 = 1_000_000_000;

/// What was gathered about one volume.
struct Case {
    labels: Vec<(PoolName, FoundReplica)>,
    witness: Option<WitnessRecord>,
    problem: Option<Problem>,
    offline: Vec<(PoolName, String)>,
}

impl Engine {
    /// Explains a volume, running or not.
    ///
    /// # Errors
    /// `NotFound` when nothing here knows of it.
    pub async fn why(&self, name: &VolumeName) -> Result<Why, EngineError> {
        self.look_everywhere().await;
        let live = self.live(name);
        let ids = match &live {
            Some(live) => BTreeSet::from([live.id]),
            None => self.ids_named(name),
        };
        let id = match ids.len() {
            0 => return Err(no_such_volume(name)),
            1 => ids.first().copied(),
            _ => None,
        };
        let case = self.case(name, &ids, id).await?;
        let members = match &live {
            Some(live) => self.members_of_live(live),
            None => case.members(),
        };
        let labels = case.views(&members);
        let history = id.map(|id| self.shared.store.history(id).events);
        let serving = live.as_ref().is_some_and(|live| !live.has_stopped());
        let summary = match (&case.problem, &live) {
            (_, Some(live)) => summary_of(live),
            (Some(problem), None) => format!("{}: {}", problem.reason, problem.message),
            (None, None) => "it does not run".to_owned(),
        };
        let next = match &live {
            Some(_) => next_while_running(&members, &case.offline),
            None => case.next_while_blocked(name, id.is_none(), &labels),
        };
        Ok(Why {
            volume: name.clone(),
            uuid: id,
            serving,
            summary,
            witness: case.witness.as_ref().map(witness_view),
            members,
            labels,
            history: history.unwrap_or_default(),
            next,
        })
    }

    async fn look_everywhere(&self) {
        let names: Vec<PoolName> = self.pools().keys().cloned().collect();
        let mut looks = tokio::task::JoinSet::new();
        for name in names {
            let engine = self.clone();
            // A pool that does not answer has its problem noted by this.
            looks.spawn(async move { drop(engine.look_into(&name).await) });
        }
        let all = async { while looks.join_next().await.is_some() {} };
        // Late ones go on by themselves.
        let _ = tokio::time::timeout(LOOK_MAX, all).await;
        looks.detach_all();
    }

    /// The ids of volumes that nobody serves and that go by this name.
    fn ids_named(&self, name: &VolumeName) -> BTreeSet<VolumeId> {
        let files = self.all_files();
        let labels = files.iter().filter_map(|(_, found)| found.label.as_ref());
        let mut ids: BTreeSet<VolumeId> = labels
            .filter(|label| label.name == *name)
            .map(|label| label.volume)
            .collect();
        if ids.is_empty() {
            let names = self.witness_names();
            let known = names.iter().filter(|(_, known)| *known == name);
            ids.extend(known.map(|(id, _)| *id));
        }
        ids
    }

    async fn case(
        &self,
        name: &VolumeName,
        ids: &BTreeSet<VolumeId>,
        id: Option<VolumeId>,
    ) -> Result<Case, EngineError> {
        let record = id.and_then(|id| self.shared.store.volume(id));
        let recorded = record.map(|record| record.replicas).unwrap_or_default();
        let is_its = |found: &FoundReplica| match &found.label {
            Some(label) => ids.contains(&label.volume),
            None => recorded.values().any(|r| *r == found.place.replica()),
        };
        let labels = self.all_files();
        let labels = labels.into_iter().filter(|(_, f)| is_its(f)).collect();
        let witness = match id {
            None => None,
            Some(id) => {
                let state = self.shared.clone();
                let read = tokio::task::spawn_blocking(move || state.state.witness(id));
                // A damaged one is as good as lost: the assembly says so.
                read.await.ok().and_then(Result::ok).flatten()
            }
        };
        let pools = self.pools();
        let offline = pools.iter().filter_map(|(pool, entry)| {
            let problem = entry.problem.as_ref()?;
            Some((pool.clone(), problem.message.clone()))
        });
        let offline = offline.collect();
        drop(pools);
        Ok(Case {
            labels,
            witness,
            problem: self.problems().get(name).cloned(),
            offline,
        })
    }

    fn members_of_live(&self, live: &Live) -> Vec<MemberView> {
        let status = live.status.borrow().clone();
        let outlooks = live.outlooks();
        let members = status.children.iter().filter(|child| child.is_member);
        let views = members.filter_map(|child: &ChildStatus| {
            let replica = child.replica?;
            let rebuild = child.rebuild.as_ref().map(|rebuild| {
                format!(
                    "{:?}, because {}; {} of {} bytes are left",
                    rebuild.kind, rebuild.reason, rebuild.remaining_bytes, rebuild.total_bytes
                )
            });
            Some(MemberView {
                replica,
                pool: self.pool_of(live, child, replica),
                state: child.state,
                reason: child.reason.clone(),
                rebuild,
                outlook: outlooks.get(&replica).map(|outlook| outlook.text.clone()),
            })
        });
        views.collect()
    }
}

impl Case {
    fn usable(&self) -> impl Iterator<Item = (&PoolName, &Label)> {
        let usable = self
            .labels
            .iter()
            .filter(|(_, found)| found.fault.is_none());
        usable.filter_map(|(pool, found)| Some((pool, found.label.as_ref()?)))
    }

    /// The label that the volume would start by; if it can't, the newest that is proven, or else of all.
    fn leader(&self) -> Option<&Label> {
        let admissible = |label: &&Label| {
            let witness = self.witness.as_ref();
            witness.is_none_or(|witness| label.descends_from(witness.generation_id))
        };
        let rank = |label: &&Label| (label.generation, label.epoch);
        let labels = || self.usable().map(|(_, label)| label);
        let all: Vec<&Label> = labels().collect();
        if let Ok(leader) = nexus::leader(self.witness.as_ref(), &all) {
            return all.get(leader).copied();
        }
        let proven = labels().filter(admissible).max_by_key(rank);
        proven.or_else(|| labels().max_by_key(rank))
    }

    /// How a label's history relates to the committed one.
    fn relation(&self, label: &Label) -> Option<Relation> {
        let leader = self.leader()?;
        let (committed, generation) = match &self.witness {
            Some(witness) => (witness.generation_id, witness.generation),
            None => (leader.generation_id, leader.generation),
        };
        Some(if label.generation_id == committed {
            Relation::Same
        } else if label.descends_from(committed) {
            Relation::Ahead(label.generation.saturating_sub(generation))
        } else if leader.descends_from(committed) && leader.descends_from(label.generation_id) {
            Relation::Behind(generation.saturating_sub(label.generation))
        } else if !leader.descends_from(committed) && label.generation < generation {
            Relation::Before(generation - label.generation)
        } else {
            Relation::Other
        })
    }

    fn members(&self) -> Vec<MemberView> {
        let Some(leader) = self.leader() else {
            return Vec::new();
        };
        let members = leader.members.iter();
        let members = members.filter(|member| member.state != MemberState::Removed);
        let views = members.map(|member| {
            let mut its = self.labels.iter();
            let found = its.find(|(_, found)| found.place.replica() == member.replica);
            let state = match member.state {
                _ if found.is_none() => ReplicaState::Absent,
                MemberState::InSync => ReplicaState::InSync,
                MemberState::Rebuilding => ReplicaState::Rebuilding,
                MemberState::Blank => ReplicaState::Blank,
                MemberState::Stale | MemberState::Removed => ReplicaState::Stale,
            };
            let missing = || {
                format!(
                    "its file is in no pool that is open; the table calls it {:?}",
                    member.state
                )
            };
            MemberView {
                replica: member.replica,
                pool: found.map(|(pool, _)| pool.clone()),
                state,
                reason: match found {
                    Some((_, found)) => found.fault.as_ref().map(ToString::to_string),
                    None => Some(missing()),
                },
                rebuild: None,
                outlook: None,
            }
        });
        views.collect()
    }

    fn views(&self, members: &[MemberView]) -> Vec<LabelView> {
        let views = self.labels.iter().map(|(pool, found)| {
            let label = found.label.as_ref();
            let replica = found.place.replica();
            LabelView {
                pool: pool.clone(),
                replica,
                quarantined: matches!(found.place, Place::Quarantined(_)),
                generation: label.map(|label| label.generation),
                relation: label.and_then(|label| self.relation(label)),
                own_state: label.map(|_| idle_state(found).0),
                is_member: members.iter().any(|member| member.replica == replica),
                written_at: label.map(|label| rfc3339(label.wall_ns / NS_PER_SECOND)),
                fault: found.fault.as_ref().map(ToString::to_string),
            }
        });
        views.collect()
    }

    fn next_while_blocked(
        &self,
        name: &VolumeName,
        ambiguous: bool,
        labels: &[LabelView],
    ) -> Vec<String> {
        let mut next = Vec::new();
        if ambiguous {
            next.push(format!(
                "files of several volumes carry the name \"{name}\": move those of the wrong one out of the pool's \
                 folder \"replicas\""
            ));
            return next;
        }
        next.extend(self.offline.iter().map(bring_back));
        for label in labels.iter().filter(|label| label.quarantined) {
            next.push(format!(
                "its data in pool \"{}\" is in quarantine: add [volume.{name}] to the files, or see `volund quarantine \
                 list`",
                label.pool
            ));
        }
        let is_blocked = self.problem.as_ref().is_some_and(|p| p.reason == "Blocked");
        if !is_blocked {
            return next;
        }
        let witness = self.witness.as_ref();
        let members = witness.map_or(&[][..], |witness| &witness.members);
        let here = |replica: ReplicaId| self.usable().any(|(_, label)| label.replica == replica);
        for member in members.iter().filter(|m| m.in_sync && !here(m.replica)) {
            next.push(format!(
                "bring back the pool that has replica {}: it is in sync",
                member.replica
            ));
        }
        let rank = |(_, label): &(&PoolName, &Label)| (label.generation, label.wall_ns);
        if let Some((pool, label)) = self.usable().max_by_key(rank) {
            next.push(format!(
                "only if the data that is missing is gone for good: start from the copy in pool \"{pool}\" and lose \
                 every write that it missed, with this line in [volume.{name}]: {}",
                force_start(label.replica, label.generation)
            ));
        }
        next
    }
}

/// The line that makes an operator's decision.
fn force_start(from: ReplicaId, at_gen: u64) -> String {
    format!("force_start = {{ from = \"{from}\", at_gen = {at_gen} }}")
}

fn bring_back((pool, why): &(PoolName, String)) -> String {
    format!("bring pool \"{pool}\" back: {why}")
}

fn witness_view(record: &WitnessRecord) -> WitnessView {
    let in_sync = record.members.iter().filter(|member| member.in_sync);
    WitnessView {
        generation: record.generation,
        epoch: record.epoch,
        in_sync: in_sync.map(|member| member.replica).collect(),
    }
}

fn summary_of(live: &Live) -> String {
    let status = live.status.borrow();
    match status.health {
        Health::Online => "it runs, and every copy holds every write".to_owned(),
        Health::Degraded => "it runs with fewer copies than it should have".to_owned(),
        Health::Failed if status.lost_unflushed => {
            "writes fail because acknowledged ones may be lost, until the client detaches and comes back".to_owned()
        }
        Health::Failed => "some requests fail: its last copy does, or another owner has it".to_owned(),
        Health::Stopped => "it is being stopped".to_owned(),
    }
}

fn next_while_running(members: &[MemberView], offline: &[(PoolName, String)]) -> Vec<String> {
    let mut next = Vec::new();
    for member in members.iter().filter(|m| m.state != ReplicaState::InSync) {
        let gone = member.pool.as_ref().and_then(|pool| {
            let mut offline = offline.iter();
            offline.find(|(name, _)| name == pool)
        });
        if let Some(gone) = gone {
            next.push(format!(
                "{}; it is rebuilt by itself then. Or take the pool out of the volume's `replicas`",
                bring_back(gone)
            ));
        } else if let Some(outlook) = &member.outlook {
            let pool = member.pool.as_ref().map_or("unknown", PoolName::as_str);
            next.push(format!("the copy in pool \"{pool}\" {outlook}"));
        }
    }
    next
}
