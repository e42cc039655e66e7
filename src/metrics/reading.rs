//! Plain data that the families are made from.

use std::sync::Arc;

use crate::model::status::NodeStatus;
use crate::model::{PoolName, VolumeName};

/// Everything that one scrape shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Pools, volumes, replicas, quarantine.
    pub status: Arc<NodeStatus>,
    /// Every state that a volume can have: as the status says it, and as the label says it.
    pub volume_states: Vec<(String, &'static str)>,
    /// Counters of the volumes.
    pub volumes: Vec<VolumeReading>,
    /// About the files.
    pub config: ConfigReading,
    /// About the reconciler.
    pub reconcile: ReconcileReading,
    /// When the daemon started, seconds since 1970.
    pub started_unix_seconds: u64,
}

/// What is known of the files' reloads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigReading {
    /// Whether the files on disk are in force.
    pub last_successful: bool,
    /// When files were last put in force, seconds since 1970.
    pub last_success_unix_seconds: u64,
    /// Reloads that put files in force.
    pub reloads_ok: u64,
    /// Reloads that were refused.
    pub reloads_failed: u64,
}

/// What the reconciler counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReconcileReading {
    /// Passes after which nothing was in failure.
    pub passes_ok: u64,
    /// Passes after which something was.
    pub passes_failed: u64,
    /// How long passes took.
    pub durations: HistogramReading,
    /// Changes left to do, by action.
    pub pending: Vec<(&'static str, u64)>,
    /// When a pass last ended with nothing left to do and nothing in failure, seconds since 1970.
    pub last_success_unix_seconds: Option<u64>,
}

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramReading {
    /// Upper bounds, ascending.
    pub bounds: Vec<f64>,
    /// Counts per bucket, not cumulative; one more than bounds, the last for what exceeds them.
    pub buckets: Vec<u64>,
    /// Sum of all observations.
    pub sum: f64,
}

/// Counters of one volume.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeReading {
    /// Which.
    pub volume: VolumeName,
    /// One per kind of request.
    pub operations: Vec<OperationReading>,
    /// Requests taken in and not yet answered.
    pub inflight: u64,
    /// Clients that came after the first one of the present export.
    pub reconnects: u64,
    /// What was done to keep its copies equal.
    pub copies: CopiesReading,
}

/// What was done to keep the copies of a volume equal, since it was last assembled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopiesReading {
    /// Reads that were sent to another copy as well because the first took too long.
    pub hedged_reads: u64,
    /// Regions that are marked as written and not yet proven to be on every copy.
    pub intent_regions: u64,
    /// Rebuilds that ended with a copy in sync.
    pub rebuilds_ok: u64,
    /// Rebuilds that ended in another way.
    pub rebuilds_failed: u64,
    /// Bytes that rebuilds copied.
    pub rebuild_copied_bytes: u64,
    /// Bytes that scrubs looked at.
    pub scrubbed_bytes: u64,
    /// Chunks in which a scrub found copies to differ.
    pub scrub_mismatches: u64,
    /// Those of them that were repaired.
    pub scrub_repaired: u64,
    /// Those of them that were not, and chunks that no copy can read.
    pub scrub_unrepairable: u64,
    /// Its copies on this node.
    pub replicas: Vec<ReplicaReading>,
}

/// Counters of one copy.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaReading {
    /// Where it is.
    pub pool: PoolName,
    /// Reads of it that were corrected from another copy.
    pub corrected_reads: u64,
    /// How long its disk took, by what was asked, of the operations that are timed; none for a copy that is alone.
    pub latencies: Vec<(&'static str, HistogramReading)>,
    /// Errors that its disk answered with, by what was asked.
    pub errors: [(&'static str, u64); 5],
}

/// Counters of one kind of request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperationReading {
    /// `read`, `write`, `flush` or `discard`.
    pub operation: &'static str,
    /// Requests answered with success.
    pub completed: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes moved by the successful ones.
    pub bytes: u64,
    /// How long all of them took, seconds.
    pub durations: HistogramReading,
}
