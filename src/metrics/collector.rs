//! From a reading to families.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::families::{self as family, Family};
use super::reading::{HistogramReading, OperationReading, Reading};
use super::{VolumeReading, process};
use crate::model::status::{PoolState, ReplicaState, Truth, VolumeStatus};

/// Gives a reading without waiting.
pub(super) type Read = Box<dyn Fn() -> Reading + Send + Sync>;

/// The one collector of the registry.
pub(super) struct Collected {
    descriptions: Vec<Desc>,
    read: Read,
}

impl Collected {
    pub(super) fn new(read: Read) -> Self {
        let describe = |family: &Family| {
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                Vec::new(),
                HashMap::new(),
            )
            .expect("names and helps of families are constants, and a test describes them all")
        };
        Self {
            descriptions: family::ALL.iter().map(describe).collect(),
            read,
        }
    }
}

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collected").finish_non_exhaustive()
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let reading = (self.read)();
        let mut series = Series::default();
        daemon(&mut series, &reading);
        config(&mut series, &reading);
        reconcile(&mut series, &reading);
        pools(&mut series, &reading);
        for volume in &reading.status.volumes {
            volume_status(&mut series, &reading, volume);
        }
        for volume in &reading.volumes {
            volume_counters(&mut series, volume);
            copies(&mut series, volume);
        }
        let bytes = reading
            .status
            .quarantine
            .iter()
            .map(|e| e.allocated_bytes)
            .sum();
        series.number(
            family::QUARANTINED_VOLUMES,
            &[],
            count(reading.status.quarantine.len()),
        );
        series.number(family::QUARANTINED_BYTES, &[], bytes);
        series.into_families()
    }
}

type Label<'a> = (&'a str, &'a str);

/// Series by family; a family without series does not appear.
#[derive(Default)]
struct Series {
    families: BTreeMap<&'static str, (Family, Vec<Metric>)>,
}

impl Series {
    fn push(&mut self, family: Family, labels: &[Label<'_>], mut metric: Metric) {
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(pairs.collect());
        let entry = self.families.entry(family.name);
        entry.or_insert_with(|| (family, Vec::new())).1.push(metric);
    }

    fn value(&mut self, family: Family, labels: &[Label<'_>], value: f64) {
        let mut metric = Metric::default();
        if family.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.push(family, labels, metric);
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "every number is a float in Prometheus"
    )]
    fn number(&mut self, family: Family, labels: &[Label<'_>], value: u64) {
        self.value(family, labels, value as f64);
    }

    fn flag(&mut self, family: Family, labels: &[Label<'_>], value: bool) {
        self.number(family, labels, u64::from(value));
    }

    /// One series per state: 1 for the current one.
    fn states<'a>(
        &mut self,
        family: Family,
        labels: &[Label<'_>],
        states: impl IntoIterator<Item = (&'a str, bool)>,
    ) {
        for (state, is_current) in states {
            let mut labels = labels.to_vec();
            labels.push(("state", state));
            self.flag(family, &labels, is_current);
        }
    }

    fn histogram(&mut self, family: Family, labels: &[Label<'_>], reading: &HistogramReading) {
        let mut total = 0;
        let mut buckets = Vec::new();
        for (bound, count) in reading.bounds.iter().zip(&reading.buckets) {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            buckets.push(bucket);
        }
        let beyond = reading.buckets.iter().skip(reading.bounds.len());
        total += beyond.sum::<u64>();
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(total);
        histogram.set_sample_sum(reading.sum);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.push(family, labels, metric);
    }

    fn into_families(self) -> Vec<MetricFamily> {
        let families = self.families.into_values().map(|(family, metrics)| {
            let mut proto = MetricFamily::default();
            proto.set_name(family.name.to_owned());
            proto.set_help(family.help.to_owned());
            proto.set_field_type(family.kind);
            proto.set_metric(metrics);
            proto
        });
        families.collect()
    }
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
    let hash = &reading.status.config_hash;
    if !hash.is_empty() {
        series.flag(family::CONFIG_INFO, &[("sha256", hash)], true);
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
