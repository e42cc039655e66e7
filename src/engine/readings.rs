//! What the volumes have counted, for the metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::engine::Engine;
use super::exports::LiveExport;
use super::live::Live;
use crate::metrics::VolumeReading;
use crate::metrics::latency::{LATENCY_BUCKETS_SECONDS, Latencies};
use crate::metrics::reading::{CopiesReading, HistogramReading, OperationReading, ReplicaReading};
use crate::model::VolumeName;
use crate::nexus::{ChildStatus, NexusStatus};
use crate::volume::Operation;

impl Engine {
    /// The counters of every running volume. Never waits.
    #[must_use]
    pub fn readings(&self) -> Vec<VolumeReading> {
        self.volumes()
            .iter()
            .map(|(name, live)| reading(name, live))
            .collect()
    }
}

fn reading(name: &VolumeName, live: &Arc<Live>) -> VolumeReading {
    // While somebody changes the export, what was last seen of it.
    if let Ok(export) = live.export.try_lock() {
        let reconnects = export.as_ref().map_or(0, LiveExport::reconnects);
        live.reconnects.store(reconnects, Ordering::Relaxed);
    }
    let operations = Operation::ALL.iter().map(|operation| {
        let counted = live.counters.read(*operation);
        OperationReading {
            operation: operation.label(),
            completed: counted.completed,
            errors: counted.errors,
            bytes: counted.bytes,
            durations: HistogramReading {
                bounds: LATENCY_BUCKETS_SECONDS.to_vec(),
                buckets: counted.buckets.to_vec(),
                sum: counted.seconds,
            },
        }
    });
    VolumeReading {
        volume: name.clone(),
        operations: operations.collect(),
        inflight: live.counters.inflight(),
        reconnects: live.reconnects.load(Ordering::Relaxed),
        copies: copies(&live.status.borrow()),
    }
}

fn copies(status: &NexusStatus) -> CopiesReading {
    let scrubbed = &status.scrubbed;
    // A copy that is alone is not timed: its latency is the volume's.
    let is_mirror = status
        .children
        .iter()
        .filter(|child| child.is_member)
        .count()
        > 1;
    let replicas = status.children.iter().map(|child| (child, is_mirror));
    CopiesReading {
        hedged_reads: status.hedged_reads,
        intent_regions: status.intent_regions,
        rebuilds_ok: status.rebuilds.finished,
        rebuilds_failed: status.rebuilds.failed,
        rebuild_copied_bytes: status.rebuilds.copied_bytes,
        scrubbed_bytes: scrubbed.scrubbed_bytes,
        scrub_mismatches: scrubbed.mismatches,
        scrub_repaired: scrubbed.repaired,
        scrub_unrepairable: scrubbed.unrepairable + scrubbed.unreadable,
        replicas: replicas.filter_map(replica).collect(),
    }
}

/// None for a member whose pool nobody knows.
fn replica((child, is_mirror): (&ChildStatus, bool)) -> Option<ReplicaReading> {
    let errors = child.errors;
    Some(ReplicaReading {
        pool: child.pool.clone()?,
        corrected_reads: child.corrected_reads,
        latencies: if is_mirror {
            latencies(child)
        } else {
            Vec::new()
        },
        errors: [
            ("read", errors.reads),
            ("write", errors.writes),
            ("discard", errors.discards),
            ("flush", errors.flushes),
            ("label", errors.labels),
        ],
    })
}

fn latencies(child: &ChildStatus) -> Vec<(&'static str, HistogramReading)> {
    let reading = |latencies: &Latencies| HistogramReading {
        bounds: LATENCY_BUCKETS_SECONDS.to_vec(),
        buckets: latencies.buckets().to_vec(),
        sum: latencies.seconds(),
    };
    let each = child.latencies.each();
    each.map(|(label, latencies)| (label, reading(latencies)))
        .collect()
}
