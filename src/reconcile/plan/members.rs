//! What changes about a volume while it runs: its policy, its size, and which pools have a copy of it.
//!
//! The rules about copies: what is to be added is added at once; what is to go goes only when every copy that stays is
//! in sync. So replacing one is adding, then removing, and no plan ever removes the last copy that is in sync.

use std::collections::BTreeSet;

use super::{Planner, blocked};
use crate::model::observed::{AppliedVolume, ObservedVolume};
use crate::model::spec::VolumeSpec;
use crate::model::status::ReplicaState;
use crate::model::{PoolName, VolumeName};
use crate::reconcile::compare::list;
use crate::reconcile::step::{Blocked, BlockedKind, VolumeAction, VolumePlan};

/// Most members of a volume (spec section 9: the label has 16 member slots).
const MEMBERS_MAX: usize = 16;

impl Planner<'_> {
    /// `local` are the pools of this node that `wanted` names, at least one.
    pub(super) fn change_running(
        &self,
        name: &VolumeName,
        wanted: &VolumeSpec,
        local: &BTreeSet<PoolName>,
        plan: &mut VolumePlan,
    ) {
        let Some(volume) = self.observed.volumes.get(name) else {
            return;
        };
        let applied = &volume.applied;
        if applied.policy != wanted.policy {
            plan.push(VolumeAction::Configure(wanted.policy.clone()));
        }
        if applied.size < wanted.size {
            plan.push(VolumeAction::Grow { size: wanted.size });
        }
        self.add_members((name, applied), wanted, local, plan);
        remove_members(name, volume, local, plan);
    }

    /// What is left to change of a volume that is being opened as it was: a plan lists all that will be done.
    pub(super) fn change_opened(
        &self,
        (name, applied): (&VolumeName, &AppliedVolume),
        wanted: &VolumeSpec,
        local: &BTreeSet<PoolName>,
        plan: &mut VolumePlan,
    ) {
        if applied.size < wanted.size {
            plan.push(VolumeAction::Grow { size: wanted.size });
        }
        // With the state folder lost, a listed pool may turn out to have a member once it is looked into.
        if applied.members <= applied.replicas.len() {
            self.add_members((name, applied), wanted, local, plan);
        }
        let dropped: Vec<&PoolName> = applied.replicas.difference(local).collect();
        if !dropped.is_empty() {
            plan.blocked.push(waiting(
                "ReplicaRemovalWaiting",
                format!(
                    "volume \"{name}\" keeps its replica in {} until it runs and the others are in sync",
                    list(dropped.iter().map(|pool| format!("\"{pool}\"")))
                ),
            ));
        }
    }

    fn add_members(
        &self,
        (name, applied): (&VolumeName, &AppliedVolume),
        wanted: &VolumeSpec,
        local: &BTreeSet<PoolName>,
        plan: &mut VolumePlan,
    ) {
        let mut members = applied.members.max(applied.replicas.len());
        let is_missing =
            |pool: &&PoolName| local.contains(*pool) && !applied.replicas.contains(*pool);
        for pool in wanted.replicas.iter().filter(is_missing) {
            if members >= MEMBERS_MAX {
                plan.blocked.push(waiting(
                    "ReplicaAdditionWaiting",
                    format!(
                        "volume \"{name}\" gets its replica in pool \"{pool}\" once it has fewer than {MEMBERS_MAX}: \
                         take others off the list first"
                    ),
                ));
                continue;
            }
            match self.observed.pools.get(pool) {
                Some(observed) if observed.problem.is_none() => {
                    members += 1;
                    plan.push(VolumeAction::AddReplica { pool: pool.clone() });
                }
                // One that nobody looked into yet holds up the whole plan.
                None => {}
                Some(_) => plan.blocked.push(waiting(
                    "ReplicaAdditionWaiting",
                    format!(
                        "volume \"{name}\" gets its replica in pool \"{pool}\" once that pool is online"
                    ),
                )),
            }
        }
    }
}

/// Takes away what the table does not name any more, once every copy that stays is there and in sync.
fn remove_members(
    name: &VolumeName,
    volume: &ObservedVolume,
    local: &BTreeSet<PoolName>,
    plan: &mut VolumePlan,
) {
    let applied = &volume.applied;
    let dropped: Vec<&PoolName> = applied.replicas.difference(local).collect();
    let unknown = applied.members.saturating_sub(applied.replicas.len());
    if unknown > 0 && applied.replicas.is_superset(local) {
        plan.blocked.push(waiting(
            "ReplicaUnknown",
            format!(
                "volume \"{name}\" has {unknown} more replicas than the pools that this node knows of, as its state \
                 folder was lost: list the pools that have them once, and they can be removed by name"
            ),
        ));
    }
    if dropped.is_empty() {
        return;
    }
    let missing = local.iter().filter_map(|pool| not_in_sync(volume, pool));
    let missing: Vec<String> = missing.collect();
    if missing.is_empty() {
        for pool in dropped {
            plan.push(VolumeAction::RemoveReplica { pool: pool.clone() });
        }
        return;
    }
    plan.blocked.push(waiting(
        "ReplicaRemovalWaiting",
        format!(
            "volume \"{name}\" keeps its replica in {} until the others are in sync: {}",
            list(dropped.iter().map(|pool| format!("\"{pool}\""))),
            missing.join(", ")
        ),
    ));
}

/// What keeps the copy in this pool from being enough; none when it is in sync.
fn not_in_sync(volume: &ObservedVolume, pool: &PoolName) -> Option<String> {
    let found = volume.replicas.iter().find(|replica| replica.pool == *pool);
    match found.map(|replica| replica.state) {
        _ if !volume.applied.replicas.contains(pool) => {
            Some(format!("the one in \"{pool}\" is not there yet"))
        }
        Some(ReplicaState::InSync) => None,
        Some(state) => Some(format!("the one in \"{pool}\" is {state:?}")),
        None => Some(format!("nothing is known of the one in \"{pool}\"")),
    }
}

fn waiting(reason: &str, message: String) -> Blocked {
    blocked(BlockedKind::ChangePending, reason, message)
}
