//! Every family: name, type, help. `docs/metrics.md` describes the same ones; a test and `cargo xtask tidy` compare.

use prometheus::proto::MetricType;

/// A family of series.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What sort of series it has.
    pub kind: MetricType,
    /// What it says, in a sentence.
    pub help: &'static str,
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    let kind = MetricType::GAUGE;
    Family { name, kind, help }
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    let kind = MetricType::COUNTER;
    Family { name, kind, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    let kind = MetricType::HISTOGRAM;
    Family { name, kind, help }
}

/// Declares the families as constants and lists them all.
macro_rules! families {
    ($($constant:ident = $kind:ident($name:literal, $help:literal);)*) => {
        $(#[doc = $help] pub const $constant: Family = $kind($name, $help);)*
        /// All of them, by subject.
        pub const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    BUILD_INFO = gauge("volund_build_info", "Always 1; the label is the daemon's version.");
    START_TIME = gauge("volund_start_time_seconds", "When the daemon started, seconds since 1970.");
    PROCESS_CPU = counter("process_cpu_seconds_total", "User and system CPU time spent, seconds.");
    PROCESS_RESIDENT = gauge("process_resident_memory_bytes", "Resident memory size, bytes.");
    PROCESS_FDS = gauge("process_open_fds", "Number of open file descriptors.");

    CONFIG_SUCCESSFUL = gauge(
        "volund_config_last_reload_successful",
        "1 if the files on disk are the ones in force, 0 if they were refused."
    );
    CONFIG_SUCCESS_TIME = gauge(
        "volund_config_last_reload_success_timestamp_seconds",
        "When files were last put in force, seconds since 1970."
    );
    CONFIG_RELOADS = counter("volund_config_reloads_total", "Reloads of changed files, by result.");
    CONFIG_INFO = gauge(
        "volund_config_info",
        "Always 1; the labels are a revision of the configuration: applied, pending or last_good, its hash and commit."
    );
    DRIFT = gauge("volund_drift", "1 for each object that is not as the files want it, and each reason.");
    DRIFT_SINCE = gauge(
        "volund_drift_since_timestamp_seconds",
        "Since when an object is not as the files want it, seconds since 1970."
    );

    RECONCILE_RUNS = counter("volund_reconcile_runs_total", "Passes of the reconciler, by result.");
    RECONCILE_DURATION = histogram("volund_reconcile_duration_seconds", "Time that a pass of the reconciler took.");
    RECONCILE_PENDING = gauge("volund_reconcile_pending_changes", "Changes that are left to do, by action.");
    RECONCILE_SUCCESS_TIME = gauge(
        "volund_reconcile_last_success_timestamp_seconds",
        "When a pass last ended with everything as configured, seconds since 1970."
    );

    POOL_INFO = gauge("volund_pool_info", "Always 1; the labels say what and where the pool is.");
    POOL_CAPACITY = gauge("volund_pool_capacity_bytes", "Size of the pool's filesystem or memory.");
    POOL_ALLOCATED = gauge("volund_pool_allocated_bytes", "Bytes that the pool's replicas take up.");
    POOL_COMMITTED = gauge("volund_pool_committed_bytes", "Sum of the full sizes of the pool's replicas.");
    POOL_AVAILABLE = gauge(
        "volund_pool_available_bytes",
        "Bytes that new replicas can still get, the reserve taken off."
    );
    POOL_STATE = gauge("volund_pool_state", "1 for the state that the pool is in, 0 for the others.");

    VOLUME_INFO = gauge("volund_volume_info", "Always 1; the labels say which volume it is and how it is exported.");
    VOLUME_SIZE = gauge("volund_volume_size_bytes", "Size of the volume.");
    VOLUME_ALLOCATED = gauge("volund_volume_allocated_bytes", "Bytes that the volume's replicas take up, all together.");
    VOLUME_STATE = gauge("volund_volume_state", "1 for the state that the volume is in, 0 for the others.");
    VOLUME_READY = gauge("volund_volume_ready", "1 if the volume is as configured and takes I/O.");
    VOLUME_DESIRED = gauge("volund_volume_replicas_desired", "Replicas that the volume should have.");
    VOLUME_HEALTHY = gauge("volund_volume_replicas_healthy", "Replicas that hold every acknowledged write.");
    VOLUME_READS = counter("volund_volume_reads_completed_total", "Reads answered with success.");
    VOLUME_WRITES = counter("volund_volume_writes_completed_total", "Writes answered with success.");
    VOLUME_FLUSHES = counter("volund_volume_flushes_completed_total", "Flushes answered with success.");
    VOLUME_DISCARDS = counter(
        "volund_volume_discards_completed_total",
        "Discards and write-zeroes answered with success."
    );
    VOLUME_READ_BYTES = counter("volund_volume_read_bytes_total", "Bytes read.");
    VOLUME_WRITTEN_BYTES = counter("volund_volume_written_bytes_total", "Bytes written.");
    VOLUME_DISCARDED_BYTES = counter("volund_volume_discarded_bytes_total", "Bytes discarded or zeroed.");
    VOLUME_DURATION = histogram(
        "volund_volume_io_duration_seconds",
        "Time from taking a request in to answering it, by operation."
    );
    VOLUME_ERRORS = counter("volund_volume_io_errors_total", "Requests answered with an error, by operation.");
    VOLUME_INFLIGHT = gauge("volund_volume_io_inflight", "Requests taken in and not yet answered.");
    VOLUME_CONNECTED = gauge("volund_volume_export_connected", "1 while a client uses the volume's export.");
    VOLUME_RECONNECTS = counter(
        "volund_volume_export_reconnects_total",
        "Clients that came after the first one of the volume's present export."
    );

    REPLICA_STATE = gauge("volund_replica_state", "1 for the state that the replica is in, 0 for the others.");
    REPLICA_ALLOCATED = gauge("volund_replica_allocated_bytes", "Bytes that the replica takes up.");

    REPLICA_DURATION = histogram(
        "volund_replica_io_duration_seconds",
        "Time that a replica of a mirror took for an operation; one in 16 is timed."
    );
    REPLICA_ERRORS = counter(
        "volund_replica_io_errors_total",
        "Errors that the replica's disk answered with, by operation."
    );
    REPLICA_CORRECTED = counter(
        "volund_replica_read_repairs_total",
        "Reads of the replica that were corrected from another one."
    );
    REPLICA_HUNG = gauge("volund_replica_hung", "1 while the replica has not answered for longer than `io_timeout`.");
    VOLUME_HEDGED = counter(
        "volund_volume_hedged_reads_total",
        "Reads that were sent to another replica as well because the first took too long."
    );
    VOLUME_UNRESOLVED = gauge(
        "volund_volume_unresolved_bytes",
        "Bytes that may differ between replicas after a crash and are still to be made equal."
    );
    VOLUME_RESOLVED = gauge(
        "volund_volume_resolved_bytes",
        "Bytes that might have differed between replicas when the volume was last assembled: what a crash had left."
    );
    VOLUME_INTENT = gauge(
        "volund_volume_intent_regions",
        "Regions marked as written and not yet proven to be on every replica: what a crash would leave to be resolved."
    );

    REBUILD_SIZE = gauge("volund_rebuild_size_bytes", "Bytes that the rebuild under way has to copy in all.");
    REBUILD_REMAINING = gauge("volund_rebuild_remaining_bytes", "Bytes that the rebuild under way has left to copy.");
    REBUILD_COPIED = counter("volund_rebuild_copied_bytes_total", "Bytes that rebuilds copied, zeroes included.");
    REBUILDS = counter("volund_rebuilds_total", "Rebuilds that have ended, by result.");

    SCRUB_BYTES = counter("volund_scrub_bytes_total", "Bytes of the volume that scrubs compared.");
    SCRUB_MISMATCHES = counter("volund_scrub_mismatches_total", "Chunks in which a scrub found replicas to differ.");
    SCRUB_REPAIRED = counter("volund_scrub_repaired_total", "Differing chunks that a scrub made equal.");
    SCRUB_UNREPAIRABLE = counter(
        "volund_scrub_unrepairable_total",
        "Chunks that a scrub left as they were: nobody knows which replica is right, or none can be read."
    );

    QUARANTINED_VOLUMES = gauge("volund_quarantined_volumes", "Removed volumes whose data is still there.");
    ORPHANS = gauge("volund_orphans", "Volumes and files on disk that nobody declares.");
    ORPHAN_BYTES = gauge("volund_orphan_bytes", "Bytes that volumes and files take up that nobody declares.");
    QUARANTINED_BYTES = gauge("volund_quarantined_bytes", "Bytes that the data of removed volumes takes up.");
}
