//! The planner: desired and observed state in, steps out. Pure and deterministic: no clock, no randomness, no I/O.
//!
//! Its rules are about what must not happen: data is never lost because a table vanished, a blank volume never takes
//! the name of one that exists somewhere, and nothing in use is touched.

mod members;
mod volume;

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::compare::{self, CODE_IMMUTABLE, list};
use super::step::{Blocked, BlockedKind, Plan, PoolAction, PoolPlan, Purge, VolumeAction};
use crate::model::observed::{Observed, ObservedQuarantine};
use crate::model::spec::{DesiredState, ExportSpec, OnRemove, PoolSpec, VolumeSpec};
use crate::model::{PoolName, VolumeId, VolumeName};

/// What is remembered about removals from one plan to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removals {
    /// For each volume whose table is gone: the configuration's generation that it went with. Volumes stay here
    /// after their removal, until their table comes back: `max_removals` counts a change, not a moment.
    pub gone_since: BTreeMap<VolumeName, u64>,
    /// Removals that a person has approved.
    pub approved: BTreeSet<VolumeName>,
    /// Generation of the configuration that is being planned for.
    pub generation: u64,
}

impl Removals {
    /// Takes note of a new configuration or of volumes that came to light.
    pub fn note(&mut self, desired: &DesiredState, observed: &Observed, generation: u64) {
        self.generation = generation;
        let renamed = renames(desired, observed);
        self.gone_since
            .retain(|name, _| !desired.volumes.contains_key(name));
        self.approved
            .retain(|name| !desired.volumes.contains_key(name));
        for (name, volume) in &observed.volumes {
            let is_declared = desired.volumes.contains_key(name) || renamed.contains_key(name);
            if volume.known && !is_declared {
                self.gone_since.entry(name.clone()).or_insert(generation);
            }
        }
    }

    /// How many tables went in the same change as that of `name`.
    fn change_size(&self, name: &VolumeName) -> usize {
        let since = self.gone_since.get(name).unwrap_or(&self.generation);
        let same = self.gone_since.values().filter(|other| *other == since);
        same.count().max(1)
    }
}

/// Works out what has to change.
#[must_use]
pub fn plan(desired: &DesiredState, observed: &Observed, removals: &Removals) -> Plan {
    let planner = Planner {
        desired,
        observed,
        removals,
        renames: renames(desired, observed),
    };
    let mut plan = Plan::default();
    planner.plan_volumes(&mut plan);
    planner.plan_pools(&mut plan);
    planner.plan_purges(&mut plan);
    planner.order(&mut plan);
    plan.id = planner.id(&plan);
    plan
}

/// Names that exist and are to be renamed: old name to new name.
fn renames(desired: &DesiredState, observed: &Observed) -> BTreeMap<VolumeName, VolumeName> {
    let mut renames = BTreeMap::new();
    for (name, spec) in &desired.volumes {
        if spec.node != desired.this_node || observed.volumes.contains_key(name) {
            continue;
        }
        let by_id = spec.uuid.and_then(|id| name_of(id, observed));
        let old = by_id.or(spec.renamed_from.as_ref().filter(|_| spec.uuid.is_none()));
        if let Some(old) = old
            && observed.volumes.contains_key(old)
            && !desired.volumes.contains_key(old)
        {
            renames.entry(old.clone()).or_insert_with(|| name.clone());
        }
    }
    renames
}

/// The name that a volume has on disk; none when there is none, or it shares the name with another.
fn name_of(id: VolumeId, observed: &Observed) -> Option<&VolumeName> {
    let mut volumes = observed.volumes.iter();
    let found = volumes.find(|(_, volume)| volume.ids.len() == 1 && volume.ids.contains(&id));
    found.map(|(name, _)| name)
}

struct Planner<'a> {
    desired: &'a DesiredState,
    observed: &'a Observed,
    removals: &'a Removals,
    renames: BTreeMap<VolumeName, VolumeName>,
}

impl Planner<'_> {
    /// The rules for a single volume are in [`volume`].
    fn plan_volumes(&self, plan: &mut Plan) {
        for (name, spec) in &self.desired.volumes {
            let volume = if spec.node == self.desired.this_node {
                self.present(name, spec)
            } else {
                self.elsewhere(name, spec)
            };
            plan.volumes.insert(name.clone(), volume);
        }
        for (name, volume) in &self.observed.volumes {
            if self.desired.volumes.contains_key(name) || self.renames.contains_key(name) {
                continue;
            }
            if !volume.known {
                plan.orphans.insert(name.clone());
            } else {
                let absent = self.absent(name, volume, &mut plan.held);
                plan.volumes.insert(name.clone(), absent);
            }
        }
    }

    fn plan_pools(&self, plan: &mut Plan) {
        for (name, spec) in &self.desired.pools {
            if spec.node != self.desired.this_node {
                continue;
            }
            let mut pool = PoolPlan::default();
            match self.observed.pools.get(name) {
                // The path of one that is not open may have been a mistake; the engine opens none with another marker.
                Some(observed)
                    if observed.spec.backing != spec.backing
                        && (observed.id.is_some() || !self.users_of(name).is_empty()) =>
                {
                    pool.blocked.push(compare::refused(
                        "Immutable",
                        CODE_IMMUTABLE,
                        format!(
                            "pool \"{name}\" can't be moved to another path, disk or memory ({CODE_IMMUTABLE}); \
                             declare a new pool"
                        ),
                    ));
                }
                Some(observed) if observed.problem.is_none() && observed.spec == *spec => {}
                _ => pool.action = Some(PoolAction::Open(spec.clone())),
            }
            plan.pools.insert(name.clone(), pool);
        }
        for name in self.observed.pools.keys() {
            let ours = |spec: &PoolSpec| spec.node == self.desired.this_node;
            if !self.desired.pools.get(name).is_some_and(ours) {
                plan.pools.insert(name.clone(), self.close(name));
            }
        }
    }

    /// The volumes that run on a pool.
    fn users_of(&self, pool: &PoolName) -> Vec<&VolumeName> {
        let volumes = self.observed.volumes.iter();
        let users =
            volumes.filter(|(_, volume)| volume.serving && volume.applied.replicas.contains(pool));
        users.map(|(name, _)| name).collect()
    }

    /// A pool whose table is gone: it is let go once no volume is left on it.
    fn close(&self, name: &PoolName) -> PoolPlan {
        let users = self.users_of(name);
        if users.is_empty() {
            return PoolPlan {
                action: Some(PoolAction::Close),
                blocked: Vec::new(),
            };
        }
        let message = format!(
            "the table of pool \"{name}\" is gone but volumes still run on it: {}",
            list(users)
        );
        PoolPlan {
            action: None,
            blocked: vec![blocked(BlockedKind::RemovalBlocked, "InUse", message)],
        }
    }

    /// Only what was last applied counts: a table that is gone says nothing about its data any more.
    fn plan_purges(&self, plan: &mut Plan) {
        // Half of a removal that was cut short: the other half is still, or again, a volume.
        let volumes = self.observed.volumes.values();
        let in_use: BTreeSet<_> = volumes.flat_map(|volume| &volume.ids).collect();
        for entry in &self.observed.quarantine {
            let policy = entry.applied.removal;
            let due = entry
                .removed_at_unix_seconds
                .saturating_add(policy.quarantine_for.as_secs());
            if policy.on_remove == OnRemove::Delete
                && self.observed.at_unix_seconds >= due
                && !self.is_wanted(entry)
                && !in_use.contains(&entry.uuid)
            {
                let purge = Purge {
                    volume: entry.volume.clone(),
                    allocated: entry.allocated,
                };
                plan.purges.insert(entry.id.clone(), purge);
            }
        }
    }

    /// Whether a table that has no data yet asks for this entry's, even if it can't be brought back at this moment.
    fn is_wanted(&self, entry: &ObservedQuarantine) -> bool {
        let asks = |name: &VolumeName, spec: &VolumeSpec| match spec.uuid {
            Some(id) => id == entry.uuid,
            None => *name == entry.volume || spec.renamed_from.as_ref() == Some(&entry.volume),
        };
        let mut volumes = self.desired.volumes.iter();
        volumes.any(|(name, spec)| {
            let is_here = spec.node == self.desired.this_node;
            is_here
                && asks(name, spec)
                && !self.observed.volumes.contains_key(self.existing(name).0)
        })
    }

    /// Removals first: whoever takes over a socket path or device number waits until it is free.
    fn order(&self, plan: &mut Plan) {
        let mut holders: BTreeMap<String, VolumeName> = BTreeMap::new();
        for (name, volume) in &self.observed.volumes {
            if let Some(export) = &volume.export
                && let Some(address) = address(&export.spec)
            {
                holders.insert(address, name.clone());
            }
        }
        for (name, volume) in &mut plan.volumes {
            for step in &volume.steps {
                if let VolumeAction::EnsureExport { export, .. } = &step.action
                    && let Some(address) = address(export)
                    && let Some(holder) = holders.get(&address)
                    && holder != name
                    && self.renames.get(holder) != Some(name)
                {
                    volume.after.insert(holder.clone());
                }
            }
        }
    }

    /// The held removals and their volumes' ids if there are any, else all that is to be done.
    fn id(&self, plan: &Plan) -> String {
        let mut hash = Sha256::new();
        for name in &plan.held {
            hash.update(name.as_str());
            if let Some(volume) = self.observed.volumes.get(name) {
                hash.update(format!(" {:?}\n", volume.ids));
            }
        }
        if plan.held.is_empty() {
            hash.update(format!("{:?}", (&plan.pools, &plan.volumes, &plan.purges)));
        }
        let digest = hash.finalize();
        digest[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// What a volume exports itself on, if the files fix it.
fn address(export: &ExportSpec) -> Option<String> {
    match export {
        ExportSpec::None => None,
        ExportSpec::VhostUser { socket, .. } => {
            socket.as_ref().map(|socket| socket.display().to_string())
        }
        ExportSpec::Ublk { id, .. } => id.map(|id| format!("ublk {id}")),
    }
}

/// Something that is wrong with the moment, or with what is there; codes are for what is wrong with the files.
pub(super) fn blocked(kind: BlockedKind, reason: &str, message: String) -> Blocked {
    let code = match reason {
        "InUse" => Some(compare::CODE_IN_USE),
        "ApprovalNeeded" => Some(compare::CODE_REMOVALS),
        _ => None,
    };
    Blocked {
        kind,
        reason: reason.to_owned(),
        message,
        code: code.map(str::to_owned),
    }
}

#[cfg(test)]
pub(in crate::reconcile) mod fixture;
#[cfg(test)]
mod tests;
