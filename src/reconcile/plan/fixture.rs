//! Cases for the planner's tests, built up in a line or two each.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Plan, Removals, plan};
use crate::model::VolumeId;
use crate::model::observed::Observed;
use crate::model::observed::{
    AppliedVolume, ObservedExport, ObservedPool, ObservedQuarantine, ObservedVolume, RemovalPolicy,
};
use crate::model::policy::{NodePolicy, VolumePolicy};
use crate::model::spec::{BlockSize, DangerZone, PoolBacking, Safety, VolumeSpec};
use crate::model::spec::{DesiredState, ExportSpec, OnRemove, PoolSpec};
use crate::model::status::{ReplicaState, ReplicaStatus};
use crate::model::{PoolId, PoolName, VolumeName};
use crate::reconcile::step::VolumeAction;
use crate::units::{Bytes, GIB};
use std::collections::BTreeMap;

pub(in crate::reconcile) fn volume_name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

pub(in crate::reconcile) fn pool_name(text: &str) -> PoolName {
    text.parse().unwrap()
}

pub(in crate::reconcile) fn pool_spec(name: &str) -> PoolSpec {
    PoolSpec {
        node: "n1".parse().unwrap(),
        backing: PoolBacking::Directory(format!("/pools/{name}").into()),
        reserve: Bytes(GIB),
    }
}

pub(in crate::reconcile) fn socket() -> ExportSpec {
    ExportSpec::VhostUser {
        socket: None,
        queues: 16,
        depth: 256,
        pin_guest_memory: false,
    }
}

pub(in crate::reconcile) fn spec(pools: &[&str]) -> VolumeSpec {
    VolumeSpec {
        node: "n1".parse().unwrap(),
        size: Bytes(GIB),
        replicas: pools.iter().map(|pool| pool_name(pool)).collect(),
        thin: true,
        block_size: BlockSize::B4096,
        read_only: false,
        export: socket(),
        on_remove: OnRemove::Retain,
        quarantine_for: Duration::from_secs(7 * 24 * 3600),
        on_create_fail: Default::default(),
        uuid: None,
        renamed_from: None,
        policy: VolumePolicy::default(),
        force_start: None,
    }
}

pub(in crate::reconcile) fn applied(pools: &[&str]) -> AppliedVolume {
    AppliedVolume {
        size: Bytes(GIB),
        block_size: BlockSize::B4096,
        thin: Some(true),
        replicas: pools.iter().map(|pool| pool_name(pool)).collect(),
        members: pools.len(),
        removal: RemovalPolicy::default(),
        policy: VolumePolicy::default(),
    }
}

pub(in crate::reconcile) fn running(pools: &[&str]) -> ObservedVolume {
    ObservedVolume {
        ids: BTreeSet::from([VolumeId::from_uuid(uuid::Uuid::from_u128(7))]),
        applied: applied(pools),
        known: true,
        serving: true,
        problem: None,
        export: Some(ObservedExport {
            spec: socket(),
            read_only: false,
            in_use: false,
            address: "vhost-user /run/volund/db.sock".to_owned(),
            problem: None,
        }),
        given_up: None,
        nexus_generation: 1,
        replicas: Vec::new(),
        injected: std::collections::BTreeMap::new(),
        unresolved: Bytes(0),
        resolved: Bytes(0),
        scrub: None,
    }
}

pub(in crate::reconcile) fn in_sync(pool: &str) -> ReplicaStatus {
    ReplicaStatus {
        allocated_bytes: 1 << 20,
        ..ReplicaStatus::new(pool_name(pool), None, ReplicaState::InSync)
    }
}

pub(in crate::reconcile) fn in_use(mut volume: ObservedVolume) -> ObservedVolume {
    volume.export.as_mut().unwrap().in_use = true;
    volume
}

pub(in crate::reconcile) fn quarantined(
    volume: &str,
    at: u64,
    pools: &[&str],
) -> ObservedQuarantine {
    ObservedQuarantine {
        id: format!("{volume}@{at}"),
        volume: volume_name(volume),
        uuid: VolumeId::from_uuid(uuid::Uuid::from_u128(u128::from(at))),
        removed_at_unix_seconds: at,
        applied: applied(pools),
        allocated: Bytes(4096),
    }
}

/// One case: what the files say, what is there.
pub(in crate::reconcile) struct Case {
    pub(in crate::reconcile) desired: DesiredState,
    pub(in crate::reconcile) observed: Observed,
    pub(in crate::reconcile) removals: Removals,
}

impl Case {
    /// One node, pools `a` and `b`, both declared and open; no volume anywhere.
    pub(in crate::reconcile) fn new() -> Self {
        let mut desired = DesiredState {
            this_node: "n1".parse().unwrap(),
            nodes: BTreeMap::new(),
            pools: BTreeMap::new(),
            volumes: BTreeMap::new(),
            safety: Safety::default(),
            policy: NodePolicy::default(),
            danger_zone: DangerZone::default(),
        };
        let mut observed = Observed::default();
        for name in ["a", "b"] {
            desired.pools.insert(pool_name(name), pool_spec(name));
            let pool = ObservedPool {
                spec: pool_spec(name),
                id: Some(PoolId::nil()),
                problem: None,
                capacity: Bytes(100 * GIB),
                allocated: Bytes(0),
                committed: Bytes(0),
                available: Bytes(90 * GIB),
            };
            observed.pools.insert(pool_name(name), pool);
        }
        Self {
            desired,
            observed,
            removals: Removals::default(),
        }
    }

    pub(in crate::reconcile) fn wants(mut self, name: &str, spec: VolumeSpec) -> Self {
        self.desired.volumes.insert(volume_name(name), spec);
        self
    }

    pub(in crate::reconcile) fn has(mut self, name: &str, volume: ObservedVolume) -> Self {
        self.observed.volumes.insert(volume_name(name), volume);
        self
    }

    pub(in crate::reconcile) fn has_quarantined(mut self, entry: ObservedQuarantine) -> Self {
        self.observed.quarantine.push(entry);
        self
    }

    pub(in crate::reconcile) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(in crate::reconcile) fn plan(&mut self) -> Plan {
        self.removals.note(&self.desired, &self.observed, 1);
        let first = plan(&self.desired, &self.observed, &self.removals);
        let second = plan(&self.desired, &self.observed, &self.removals);
        assert_eq!(first, second, "the planner is deterministic");
        first
    }

    /// Steps and reasons of one volume, as words.
    pub(in crate::reconcile) fn check(mut self, name: &str, expected: &str) -> Plan {
        let plan = self.plan();
        assert_eq!(words(&plan, name), expected);
        plan
    }
}

pub(in crate::reconcile) fn words(plan: &Plan, name: &str) -> String {
    let volume = &plan.volumes[&volume_name(name)];
    let steps = volume.steps.iter().map(|step| match &step.action {
        VolumeAction::Rename { from } => format!("rename {from}"),
        VolumeAction::Restore { entry } => format!("restore {entry}"),
        VolumeAction::Ensure { creates: true, .. } => "create".to_owned(),
        VolumeAction::Ensure { .. } => "open".to_owned(),
        VolumeAction::SetPolicy(_) => "policy".to_owned(),
        VolumeAction::EnsureExport { .. } => "export".to_owned(),
        VolumeAction::RemoveExport => "unexport".to_owned(),
        VolumeAction::Quarantine => "quarantine".to_owned(),
        VolumeAction::Configure(_) => "configure".to_owned(),
        VolumeAction::Grow { size } => format!("grow {size}"),
        VolumeAction::AddReplica { pool } => format!("add {pool}"),
        VolumeAction::RemoveReplica { pool } => format!("remove {pool}"),
    });
    let blocked = volume
        .blocked
        .iter()
        .map(|blocked| format!("{}/{}", blocked.kind.condition(), blocked.reason));
    steps.chain(blocked).collect::<Vec<_>>().join(" ")
}
