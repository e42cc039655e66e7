//! Planning without a node: what `volund status --output json` printed is enough to plan against.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::plan::{Removals, plan};
use super::report::PlanReport;
use crate::model::observed::{
    AppliedVolume, Observed, ObservedPool, ObservedQuarantine, ObservedVolume, Problem,
};
use crate::model::spec::DesiredState;
use crate::model::status::{
    Condition, NodeStatus, PoolState, PoolStatus, QuarantineEntry, ReplicaStatus, VolumeStatus,
};
use crate::model::{VolumeId, VolumeName};
use crate::units::Bytes;

/// What `desired` would change about the node whose status this is. `now` is in seconds since 1970.
///
/// # Errors
/// What the status lacks: it was saved by an older release, or by hand.
pub fn plan_against(
    desired: &DesiredState,
    status: &NodeStatus,
    now: u64,
) -> Result<PlanReport, String> {
    let observed = observed(status, now)?;
    let mut removals = Removals::default();
    removals.note(desired, &observed, status.generation + 1);
    Ok(PlanReport::new(
        &plan(desired, &observed, &removals),
        &observed,
    ))
}

/// What there was when the status was saved, as far as a plan depends on it.
///
/// # Errors
/// See [`plan_against`].
fn observed(status: &NodeStatus, now: u64) -> Result<Observed, String> {
    let mut observed = Observed {
        at_unix_seconds: now,
        ..Observed::default()
    };
    for pool in &status.pools {
        // One that nobody has opened yet has no marker that could have been read, and no problem either.
        if let Some(found) = observed_pool(pool)? {
            observed.pools.insert(pool.name.clone(), found);
        }
    }
    for volume in status.volumes.iter().filter(|volume| volume.uuid.is_some()) {
        let found = observed_volume(volume)?;
        observed.volumes.insert(volume.name.clone(), found);
    }
    for orphan in &status.orphans {
        if let (Some(name), Some(id), Some(applied)) = (&orphan.volume, orphan.id, &orphan.applied)
        {
            let volume = idle(VolumeId::from_uuid(id), applied.clone());
            observed.volumes.insert(VolumeName::clone(name), volume);
        }
    }
    for entry in &status.quarantine {
        observed.quarantine.push(quarantined(entry)?);
    }
    Ok(observed)
}

fn observed_pool(pool: &PoolStatus) -> Result<Option<ObservedPool>, String> {
    let ready = pool
        .conditions
        .iter()
        .find(|condition| condition.kind == "Ready");
    if ready.is_some_and(|ready| ready.reason == "Opening") {
        return Ok(None);
    }
    let spec = pool.spec.clone();
    Ok(Some(ObservedPool {
        spec: spec.ok_or_else(|| lacks(&format!("pool {}", pool.name), "spec"))?,
        id: pool.id,
        problem: (pool.state == PoolState::Offline).then(|| problem(ready)),
        capacity: Bytes(pool.capacity_bytes),
        allocated: Bytes(pool.allocated_bytes),
        committed: Bytes(pool.committed_bytes),
        available: Bytes(pool.available_bytes),
    }))
}

fn observed_volume(volume: &VolumeStatus) -> Result<ObservedVolume, String> {
    let applied = volume.applied.clone();
    let applied = applied.ok_or_else(|| lacks(&format!("volume {}", volume.name), "applied"))?;
    let ids = volume.uuids.iter().chain(&volume.uuid).copied();
    let replicas = volume.replicas.iter();
    // What the files ask for and is not there is shown without an id.
    let replicas = replicas.filter(|replica| replica.uuid.is_some());
    Ok(ObservedVolume {
        ids: ids.collect(),
        serving: volume.serving,
        export: volume.exported.clone(),
        nexus_generation: volume.nexus_generation,
        replicas: replicas.cloned().collect::<Vec<ReplicaStatus>>(),
        known: true,
        ..idle(VolumeId::generate(), applied)
    })
}

/// A volume on disk of which nothing else is known.
fn idle(id: VolumeId, applied: AppliedVolume) -> ObservedVolume {
    ObservedVolume {
        ids: BTreeSet::from([id]),
        applied,
        known: false,
        serving: false,
        problem: None,
        given_up: None,
        export: None,
        nexus_generation: 0,
        replicas: Vec::new(),
        injected: BTreeMap::new(),
        unresolved: Bytes(0),
        resolved: Bytes(0),
        scrub: None,
    }
}

fn quarantined(entry: &QuarantineEntry) -> Result<ObservedQuarantine, String> {
    let object = format!("quarantine entry {}", entry.id);
    let removed_at = entry.removed_at.parse::<Timestamp>();
    let removed_at = removed_at.map_err(|error| format!("{object}: removedAt: {error}"))?;
    Ok(ObservedQuarantine {
        id: entry.id.clone(),
        volume: entry.volume.clone(),
        uuid: entry.uuid,
        removed_at_unix_seconds: u64::try_from(removed_at.as_second()).unwrap_or(0),
        applied: entry
            .applied
            .clone()
            .ok_or_else(|| lacks(&object, "applied"))?,
        allocated: Bytes(entry.allocated_bytes),
    })
}

fn problem(ready: Option<&Condition>) -> Problem {
    let (reason, message) = ready.map_or(("Offline", "it is offline"), |ready| {
        (ready.reason.as_str(), ready.message.as_str())
    });
    Problem {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn lacks(object: &str, field: &str) -> String {
    format!(
        "the saved status has no \"{field}\" of {object}: save it anew with `volund status --output json`"
    )
}
