//! The rules for one volume: appear, change, disappear.

use std::collections::BTreeSet;

use super::{Planner, blocked};
use crate::model::observed::{ObservedQuarantine, ObservedVolume, RemovalPolicy};
use crate::model::spec::{ExportSpec, PoolBacking, PoolSpec, VolumeSpec};
use crate::model::{PoolName, VolumeName};
use crate::reconcile::compare::{self, CODE_IMMUTABLE, list};
use crate::reconcile::step::{BlockedKind, Goal, VolumeAction, VolumePlan};

impl Planner<'_> {
    /// A volume that the files have for this node.
    pub(super) fn present(&self, name: &VolumeName, wanted: &VolumeSpec) -> VolumePlan {
        let mut plan = VolumePlan::new(Goal::Present);
        let local = self.local_pools(wanted, &mut plan);
        if local.is_empty() {
            plan.blocked.push(blocked(
                BlockedKind::Blocked,
                "Waiting",
                format!("every replica of volume \"{name}\" belongs to another node"),
            ));
            return plan;
        }
        self.note_memory_only(name, &local, &mut plan);
        let closed = local
            .iter()
            .filter(|p| !self.observed.pools.contains_key(*p));
        plan.unknown_until = closed.cloned().collect();

        let (source, existing) = self.existing(name);
        if let Some(volume) = existing {
            let is_meant = self.is_unambiguous(source, volume, &mut plan)
                && is_the_data(name, wanted, volume, &mut plan);
            if !is_meant {
                return plan;
            }
            self.change(name, wanted, &local, &mut plan);
            return plan;
        }
        // Its data may be in any pool of this node, whatever the table says now (spec A0).
        plan.unknown_until = self.untried_pools();
        self.appear(name, wanted, &local, &mut plan);
        plan
    }

    /// The volume itself or, before its rename, the one it is to be made from.
    pub(super) fn existing<'s>(
        &'s self,
        name: &'s VolumeName,
    ) -> (&'s VolumeName, Option<&'s ObservedVolume>) {
        let source = self
            .renames
            .iter()
            .find_map(|(old, new)| (new == name).then_some(old))
            .unwrap_or(name);
        (source, self.observed.volumes.get(source))
    }

    /// Pools of this node that nobody has tried to open yet.
    fn untried_pools(&self) -> BTreeSet<PoolName> {
        let here = |spec: &PoolSpec| spec.node == self.desired.this_node;
        let declared = self.desired.pools.iter().filter(|(_, spec)| here(spec));
        let untried = declared.filter(|(pool, _)| !self.observed.pools.contains_key(*pool));
        untried.map(|(pool, _)| pool.clone()).collect()
    }

    /// Local pools that the volume names; the others are noted as waiting.
    fn local_pools(&self, wanted: &VolumeSpec, plan: &mut VolumePlan) -> BTreeSet<PoolName> {
        let mut local = BTreeSet::new();
        for pool in &wanted.replicas {
            match self.desired.pools.get(pool) {
                Some(spec) if spec.node != self.desired.this_node => plan.notes.push(blocked(
                    BlockedKind::Waiting,
                    "RemoteReplica",
                    format!("pool \"{pool}\" belongs to node \"{}\"", spec.node),
                )),
                Some(_) => drop(local.insert(pool.clone())),
                // The configuration's own check refuses this; a plan must not trip over it.
                None => {}
            }
        }
        local
    }

    fn note_memory_only(
        &self,
        name: &VolumeName,
        local: &BTreeSet<PoolName>,
        plan: &mut VolumePlan,
    ) {
        let in_memory = |pool: &PoolName| {
            self.desired
                .pools
                .get(pool)
                .is_some_and(|spec| matches!(spec.backing, PoolBacking::Memory(_)))
        };
        if local.iter().all(in_memory) {
            plan.notes.push(blocked(
                BlockedKind::MemoryOnly,
                "MemoryOnly",
                format!(
                    "every copy of volume \"{name}\" is in memory: its data is lost when the daemon stops"
                ),
            ));
        }
    }

    fn is_unambiguous(
        &self,
        name: &VolumeName,
        volume: &ObservedVolume,
        plan: &mut VolumePlan,
    ) -> bool {
        if volume.ids.len() <= 1 {
            return true;
        }
        plan.blocked.push(blocked(
            BlockedKind::Blocked,
            "AmbiguousVolume",
            format!(
                "replicas of {} different volumes carry the name \"{name}\" ({}); nothing is opened: move the \
                 files of the wrong one out of the pool's folder \"replicas\"",
                volume.ids.len(),
                list(&volume.ids)
            ),
        ));
        false
    }

    /// A volume that exists and should.
    fn change(
        &self,
        name: &VolumeName,
        wanted: &VolumeSpec,
        local: &BTreeSet<PoolName>,
        plan: &mut VolumePlan,
    ) {
        let (source, Some(volume)) = self.existing(name) else {
            return;
        };
        plan.blocked
            .extend(compare::refusals(name, wanted, &volume.applied));
        let spec = compare::effective(wanted, local, &volume.applied);
        let renaming = source != name;
        if renaming && volume.is_in_use() {
            plan.blocked.push(blocked(
                BlockedKind::ChangePending,
                "InUse",
                format!("volume \"{source}\" gets the name \"{name}\" once its client has gone"),
            ));
            return;
        }
        if renaming {
            plan.push(VolumeAction::Rename {
                from: source.clone(),
            });
        }
        let policy = policy(wanted);
        if renaming || !volume.serving {
            plan.push(VolumeAction::Ensure {
                spec: Box::new(spec),
                creates: false,
            });
            self.change_opened((name, &volume.applied), wanted, local, plan);
        } else if volume.applied.removal != policy {
            plan.push(VolumeAction::SetPolicy(policy));
        }
        change_export(name, wanted, volume, renaming, plan);
        if !renaming && volume.serving {
            self.change_running(name, wanted, local, plan);
        }
    }

    /// A volume that does not exist and should.
    fn appear(
        &self,
        name: &VolumeName,
        wanted: &VolumeSpec,
        local: &BTreeSet<PoolName>,
        plan: &mut VolumePlan,
    ) {
        let offline = local.iter().filter(|pool| {
            let observed = self.observed.pools.get(*pool);
            observed.is_some_and(|pool| pool.problem.is_some())
        });
        let offline: Vec<&PoolName> = offline.collect();
        if !offline.is_empty() {
            plan.blocked.push(blocked(
                BlockedKind::Blocked,
                "PoolOffline",
                format!(
                    "volume \"{name}\" is neither opened nor created while these pools are offline, as its data may \
                     be there: {}",
                    list(offline)
                ),
            ));
            return;
        }
        let Ok(restored) = self.restore(name, wanted, plan) else {
            return;
        };
        if let (Some(id), None) = (wanted.uuid, restored) {
            plan.blocked.push(blocked(
                BlockedKind::Blocked,
                "DataMissing",
                format!(
                    "volume \"{name}\" is to be the data of {id}, of which no replica is in a pool of this node; nothing \
                     is created under a `uuid`: declare the pool that has it, or drop the key for a blank volume"
                ),
            ));
            return;
        }
        let mut spec = wanted.clone();
        spec.replicas.retain(|pool| local.contains(pool));
        if let Some(entry) = restored {
            spec = compare::effective(wanted, local, &entry.applied);
        }
        plan.push(VolumeAction::Ensure {
            spec: Box::new(spec),
            creates: restored.is_none(),
        });
        if let Some(entry) = restored {
            self.change_opened((name, &entry.applied), wanted, local, plan);
        }
        if wanted.export != ExportSpec::None {
            plan.push(export_action(wanted));
        }
    }

    /// Takes quarantined data of that name back if there is any. `Err`: there is some, and it does not fit.
    fn restore(
        &self,
        name: &VolumeName,
        wanted: &VolumeSpec,
        plan: &mut VolumePlan,
    ) -> Result<Option<&ObservedQuarantine>, ()> {
        let of = |name: &VolumeName| -> Vec<&ObservedQuarantine> {
            let entries = self.observed.quarantine.iter();
            entries.filter(|entry| entry.volume == *name).collect()
        };
        let mut entries = match wanted.uuid {
            Some(id) => {
                let entries = self.observed.quarantine.iter();
                entries.filter(|entry| entry.uuid == id).collect()
            }
            None => of(name),
        };
        if wanted.uuid.is_none()
            && entries.is_empty()
            && let Some(old) = &wanted.renamed_from
            && !self.desired.volumes.contains_key(old)
        {
            entries = of(old);
        }
        entries.sort_by(|a, b| {
            (a.removed_at_unix_seconds, &a.id).cmp(&(b.removed_at_unix_seconds, &b.id))
        });
        let Some(newest) = entries.last() else {
            return Ok(None);
        };
        let refusals = compare::refusals(name, wanted, &newest.applied);
        if refusals.is_empty() {
            plan.push(VolumeAction::Restore {
                entry: newest.id.clone(),
            });
            return Ok(Some(newest));
        }
        let why: Vec<&str> = refusals.iter().map(|r| r.message.as_str()).collect();
        let ids: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
        plan.blocked.push(blocked(
            BlockedKind::Blocked,
            "QuarantinedDataExists",
            format!(
                "data of a removed volume \"{}\" is in quarantine ({}) and the newest does not fit the table: {}. \
                 Make the table fit; or `volund quarantine restore {} --as OTHER`; or `volund quarantine purge {}` \
                 for a blank volume",
                newest.volume,
                ids.join(", "),
                why.join("; "),
                newest.id,
                newest.id
            ),
        ));
        Err(())
    }

    /// A volume that another node runs: leave what is here alone.
    pub(super) fn elsewhere(&self, name: &VolumeName, spec: &VolumeSpec) -> VolumePlan {
        let mut plan = VolumePlan::new(Goal::Elsewhere);
        let serving = self.observed.volumes.get(name).is_some_and(|v| v.serving);
        if serving {
            plan.blocked.push(compare::refused(
                "Immutable",
                CODE_IMMUTABLE,
                format!(
                    "volume \"{name}\" runs here and can't move to node \"{}\" in this version \
                     ({CODE_IMMUTABLE})",
                    spec.node
                ),
            ));
        }
        plan
    }

    /// A volume that exists and whose table is gone.
    pub(super) fn absent(
        &self,
        name: &VolumeName,
        volume: &ObservedVolume,
        held: &mut BTreeSet<VolumeName>,
    ) -> VolumePlan {
        let mut plan = VolumePlan::new(Goal::Absent);
        if !self.is_unambiguous(name, volume, &mut plan) {
            return plan;
        }
        let limit = usize::try_from(self.desired.safety.max_removals).unwrap_or(usize::MAX);
        let count = self.removals.change_size(name);
        if count > limit && !self.removals.approved.contains(name) {
            held.insert(name.clone());
            plan.blocked.push(blocked(
                BlockedKind::RemovalBlocked,
                "ApprovalNeeded",
                format!(
                    "one change removes {count} volumes, more than safety.max_removals = {limit}: put the tables \
                     back, or let it go with `volund approve`, which takes the id that `volund plan` prints"
                ),
            ));
        }
        if volume.is_in_use() {
            plan.blocked.push(blocked(
                BlockedKind::RemovalBlocked,
                "InUse",
                format!(
                    "the table of volume \"{name}\" is gone but a client uses it; it is removed when the client has \
                     gone"
                ),
            ));
        }
        self.note_missing_pools(name, volume, &mut plan);
        if plan.blocked.is_empty() {
            if volume.export.is_some() {
                plan.push(VolumeAction::RemoveExport);
            }
            plan.push(VolumeAction::Quarantine);
        }
        plan
    }

    /// A volume goes to quarantine whole or not at all: a copy left behind would pass for the volume later.
    fn note_missing_pools(
        &self,
        name: &VolumeName,
        volume: &ObservedVolume,
        plan: &mut VolumePlan,
    ) {
        plan.unknown_until = self.untried_pools();
        let offline = volume.applied.replicas.iter().filter(|pool| {
            let observed = self.observed.pools.get(*pool);
            observed.is_none_or(|pool| pool.problem.is_some())
        });
        let offline: Vec<&PoolName> = offline.collect();
        if !offline.is_empty() {
            plan.blocked.push(blocked(
                BlockedKind::RemovalBlocked,
                "PoolOffline",
                format!(
                    "the table of volume \"{name}\" is gone; its data goes to quarantine once these pools are back: {}",
                    list(offline)
                ),
            ));
        }
    }
}

/// Whether a volume is the data that its table's `uuid` asks for. One that serves stays what it is.
fn is_the_data(
    name: &VolumeName,
    wanted: &VolumeSpec,
    volume: &ObservedVolume,
    plan: &mut VolumePlan,
) -> bool {
    let Some(id) = wanted.uuid.filter(|id| !volume.ids.contains(id)) else {
        return true;
    };
    let found = list(&volume.ids);
    if volume.serving {
        plan.blocked.push(compare::refused(
            "Immutable",
            CODE_IMMUTABLE,
            format!(
                "uuid {found} -> {id} refused: immutable ({CODE_IMMUTABLE}); volume \"{name}\" stays the data that it is"
            ),
        ));
        return true;
    }
    plan.blocked.push(blocked(
        BlockedKind::Blocked,
        "NameTaken",
        format!(
            "the table of volume \"{name}\" asks for the data of {id}, but the data of that name here is {found}: give \
             one of them another name"
        ),
    ));
    false
}

fn change_export(
    name: &VolumeName,
    wanted: &VolumeSpec,
    volume: &ObservedVolume,
    renaming: bool,
    plan: &mut VolumePlan,
) {
    let current = volume.export.as_ref().filter(|_| !renaming);
    let Some(current) = current else {
        if wanted.export != ExportSpec::None {
            plan.push(export_action(wanted));
        }
        return;
    };
    let same = current.spec == wanted.export && current.read_only == wanted.read_only;
    if same && current.problem.is_none() {
        return;
    }
    if current.in_use {
        if !same {
            plan.blocked.push(blocked(
                BlockedKind::ChangePending,
                "InUse",
                format!("the export of volume \"{name}\" changes once its client has gone"),
            ));
        }
        return;
    }
    plan.push(match wanted.export {
        ExportSpec::None => VolumeAction::RemoveExport,
        ExportSpec::VhostUser { .. } | ExportSpec::Ublk { .. } => export_action(wanted),
    });
}

fn export_action(wanted: &VolumeSpec) -> VolumeAction {
    VolumeAction::EnsureExport {
        export: wanted.export.clone(),
        read_only: wanted.read_only,
    }
}

fn policy(wanted: &VolumeSpec) -> RemovalPolicy {
    RemovalPolicy {
        on_remove: wanted.on_remove,
        quarantine_for: wanted.quarantine_for,
    }
}
