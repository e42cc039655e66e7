//! From a reading to series.

use std::collections::BTreeSet;

use super::families::{self as family, Family};
use super::reading::{OperationReading, Reading};
use super::series::Series;
use super::{VolumeReading, process};
use crate::model::status::{PoolState, ReplicaState, Truth, VolumeStatus};

/// Every series of a reading.
pub(super) fn collect(reading: &Reading) -> Series {
    let mut series = Series::default();
    daemon(&mut series, reading);
    config(&mut series, reading);
    reconcile(&mut series, reading);
    pools(&mut series, reading);
    for volume in &reading.status.volumes {
        volume_status(&mut series, reading, volume);
    }
    for volume in &reading.volumes {
        volume_counters(&mut series, volume);
        copies(&mut series, volume);
    }
    let quarantine = &reading.status.quarantine;
    let bytes = quarantine.iter().map(|e| e.allocated_bytes).sum();
    series.number(family::QUARANTINED_VOLUMES, &[], count(quarantine.len()));
    series.number(family::QUARANTINED_BYTES, &[], bytes);
    let orphans = &reading.status.orphans;
    let bytes = orphans.iter().map(|orphan| orphan.allocated_bytes).sum();
    series.number(family::ORPHANS, &[], count(orphans.len()));
    series.number(family::ORPHAN_BYTES, &[], bytes);
    series
}

fn daemon(series: &mut Series, reading: &Reading) {
    series.flag(
        family::BUILD_INFO,
        &[("version", &reading.status.version)],
        true,
    );
    series.number(family::START_TIME, &[], reading.started_unix_seconds);
    let process = process::read();
    series.value(family::PROCESS_CPU, &[], process.cpu_seconds);
    series.number(family::PROCESS_RESIDENT, &[], process.resident_bytes);
    series.number(family::PROCESS_FDS, &[], process.open_fds);
}

fn config(series: &mut Series, reading: &Reading) {
    let config = &reading.config;
    series.flag(family::CONFIG_SUCCESSFUL, &[], config.last_successful);
    series.number(
        family::CONFIG_SUCCESS_TIME,
        &[],
        config.last_success_unix_seconds,
    );
    series.number(
        family::CONFIG_RELOADS,
        &[("result", "success")],
        config.reloads_ok,
    );
    series.number(
        family::CONFIG_RELOADS,
        &[("result", "failure")],
        config.reloads_failed,
    );
    let revisions = &reading.status.revisions;
    for (word, revision) in [
        ("applied", &revisions.applied),
        ("pending", &revisions.pending),
        ("last_good", &revisions.last_good),
    ] {
        if let Some(revision) = revision {
            let labels = [
                ("revision", word),
                ("sha256", &revision.hash),
                ("commit", revision.commit.as_deref().unwrap_or_default()),
            ];
            series.flag(family::CONFIG_INFO, &labels, true);
        }
    }
    drift(series, reading);
}

fn drift(series: &mut Series, reading: &Reading) {
    let mut reasons = BTreeSet::new();
    let mut objects = BTreeSet::new();
    for drift in &reading.status.drift {
        let object = ("object", drift.object.as_str());
        let reason = ("reason", drift.reason.as_str());
        if reasons.insert([object, reason]) {
            series.flag(family::DRIFT, &[object, reason], true);
        }
        let since = drift.since.parse::<jiff::Timestamp>().ok();
        let since = since.and_then(|since| u64::try_from(since.as_second()).ok());
        if let Some(since) = since.filter(|_| objects.insert(object)) {
            series.number(family::DRIFT_SINCE, &[object], since);
        }
    }
}

fn reconcile(series: &mut Series, reading: &Reading) {
    let reconcile = &reading.reconcile;
    series.number(
        family::RECONCILE_RUNS,
        &[("result", "success")],
        reconcile.passes_ok,
    );
    series.number(
        family::RECONCILE_RUNS,
        &[("result", "failure")],
        reconcile.passes_failed,
    );
    series.histogram(family::RECONCILE_DURATION, &[], &reconcile.durations);
    for (action, pending) in &reconcile.pending {
        series.number(family::RECONCILE_PENDING, &[("action", action)], *pending);
    }
    if let Some(time) = reconcile.last_success_unix_seconds {
        series.number(family::RECONCILE_SUCCESS_TIME, &[], time);
    }
}

fn pools(series: &mut Series, reading: &Reading) {
    for pool in &reading.status.pools {
        let name = ("pool", pool.name.as_str());
        let id = pool.id.map(|id| id.to_string()).unwrap_or_default();
        let info = [name, ("backing", pool.backing.as_str()), ("uuid", &id)];
        series.flag(family::POOL_INFO, &info, true);
        series.number(family::POOL_CAPACITY, &[name], pool.capacity_bytes);
        series.number(family::POOL_ALLOCATED, &[name], pool.allocated_bytes);
        series.number(family::POOL_COMMITTED, &[name], pool.committed_bytes);
        series.number(family::POOL_AVAILABLE, &[name], pool.available_bytes);
        let states = [
            ("online", PoolState::Online),
            ("offline", PoolState::Offline),
        ];
        let states = states.map(|(label, state)| (label, pool.state == state));
        series.states(family::POOL_STATE, &[name], states);
    }
}

fn volume_status(series: &mut Series, reading: &Reading, volume: &VolumeStatus) {
    let name = ("volume", volume.name.as_str());
    let id = volume.uuid.map(|id| id.to_string()).unwrap_or_default();
    let info = [
        name,
        ("uuid", id.as_str()),
        ("export", volume.export.as_str()),
    ];
    series.flag(family::VOLUME_INFO, &info, true);
    series.number(family::VOLUME_SIZE, &[name], volume.size_bytes);
    series.number(family::VOLUME_ALLOCATED, &[name], volume.allocated_bytes);
    let states = reading.volume_states.iter();
    let states = states.map(|(state, label)| (*label, *state == volume.state));
    series.states(family::VOLUME_STATE, &[name], states);
    let mut conditions = volume.conditions.iter();
    let ready = conditions.any(|c| c.kind == "Ready" && c.status == Truth::True);
    series.flag(family::VOLUME_READY, &[name], ready);
    series.number(
        family::VOLUME_DESIRED,
        &[name],
        count(volume.replicas.len()),
    );
    let healthy = volume
        .replicas
        .iter()
        .filter(|r| r.state == ReplicaState::InSync);
    series.number(family::VOLUME_HEALTHY, &[name], count(healthy.count()));
    series.flag(family::VOLUME_CONNECTED, &[name], volume.client_connected);
    for replica in &volume.replicas {
        let labels = [name, ("pool", replica.pool.as_str())];
        let states = REPLICA_STATES.map(|(label, state)| (label, replica.state == state));
        series.states(family::REPLICA_STATE, &labels, states);
        series.number(family::REPLICA_ALLOCATED, &labels, replica.allocated_bytes);
        series.flag(family::REPLICA_HUNG, &labels, replica.hung);
        if let Some(rebuild) = &replica.rebuild {
            series.number(family::REBUILD_SIZE, &labels, rebuild.total_bytes);
            series.number(family::REBUILD_REMAINING, &labels, rebuild.remaining_bytes);
        }
    }
    let unresolved = volume.resolving.as_ref();
    let unresolved = unresolved.map_or(0, |resolving| resolving.unresolved_bytes);
    series.number(family::VOLUME_UNRESOLVED, &[name], unresolved);
    series.number(family::VOLUME_RESOLVED, &[name], volume.resolved_bytes);
}

const REPLICA_STATES: [(&str, ReplicaState); 6] = [
    ("in_sync", ReplicaState::InSync),
    ("rebuilding", ReplicaState::Rebuilding),
    ("stale", ReplicaState::Stale),
    ("blank", ReplicaState::Blank),
    ("absent", ReplicaState::Absent),
    ("waiting", ReplicaState::Waiting),
];

fn volume_counters(series: &mut Series, volume: &VolumeReading) {
    let name = ("volume", volume.volume.as_str());
    series.number(family::VOLUME_INFLIGHT, &[name], volume.inflight);
    series.number(family::VOLUME_RECONNECTS, &[name], volume.reconnects);
    for operation in &volume.operations {
        let (completed, bytes) = families_of(operation);
        if let Some(completed) = completed {
            series.number(completed, &[name], operation.completed);
        }
        if let Some(bytes) = bytes {
            series.number(bytes, &[name], operation.bytes);
        }
        let labels = [name, ("op", operation.operation)];
        series.number(family::VOLUME_ERRORS, &labels, operation.errors);
        series.histogram(family::VOLUME_DURATION, &labels, &operation.durations);
    }
}

fn copies(series: &mut Series, volume: &VolumeReading) {
    let name = ("volume", volume.volume.as_str());
    let copies = &volume.copies;
    let numbers = [
        (family::VOLUME_HEDGED, copies.hedged_reads),
        (family::VOLUME_INTENT, copies.intent_regions),
        (family::REBUILD_COPIED, copies.rebuild_copied_bytes),
        (family::SCRUB_BYTES, copies.scrubbed_bytes),
        (family::SCRUB_MISMATCHES, copies.scrub_mismatches),
        (family::SCRUB_REPAIRED, copies.scrub_repaired),
        (family::SCRUB_UNREPAIRABLE, copies.scrub_unrepairable),
    ];
    for (family, number) in numbers {
        series.number(family, &[name], number);
    }
    for (result, number) in [
        ("success", copies.rebuilds_ok),
        ("failure", copies.rebuilds_failed),
    ] {
        series.number(family::REBUILDS, &[name, ("result", result)], number);
    }
    for replica in &copies.replicas {
        let labels = [name, ("pool", replica.pool.as_str())];
        series.number(family::REPLICA_CORRECTED, &labels, replica.corrected_reads);
        for (operation, durations) in &replica.latencies {
            let labels = [labels[0], labels[1], ("op", *operation)];
            series.histogram(family::REPLICA_DURATION, &labels, durations);
        }
        for (operation, errors) in replica.errors {
            let labels = [labels[0], labels[1], ("op", operation)];
            series.number(family::REPLICA_ERRORS, &labels, errors);
        }
    }
}

/// Completed requests and moved bytes are families of their own per operation, as in node_exporter's diskstats.
fn families_of(operation: &OperationReading) -> (Option<Family>, Option<Family>) {
    match operation.operation {
        "read" => (Some(family::VOLUME_READS), Some(family::VOLUME_READ_BYTES)),
        "write" => (
            Some(family::VOLUME_WRITES),
            Some(family::VOLUME_WRITTEN_BYTES),
        ),
        "flush" => (Some(family::VOLUME_FLUSHES), None),
        "discard" => (
            Some(family::VOLUME_DISCARDS),
            Some(family::VOLUME_DISCARDED_BYTES),
        ),
        _ => (None, None),
    }
}

fn count(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}
