//! What the scrape sees: the reconciler's snapshot, the engine's counters and the reloads, put together.

use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::Engine;
use crate::metrics::reading::{ConfigReading, HistogramReading, ReconcileReading};
use crate::metrics::{Metrics, Reading};
use crate::reconcile::handle::PASS_BUCKETS_SECONDS;
use crate::reconcile::state::VolumeState;
use crate::reconcile::{Handle, Stats};

/// The registry over a running daemon.
pub(super) fn metrics(
    handle: Handle,
    engine: Engine,
    config: Arc<Mutex<ConfigReading>>,
    started_unix_seconds: u64,
) -> Metrics {
    let states = VolumeState::ALL.map(|state| (format!("{state:?}"), state.label()));
    Metrics::new(move || {
        let snapshot = handle.snapshot();
        let config = config.lock().unwrap_or_else(PoisonError::into_inner);
        Reading {
            status: snapshot.status.clone(),
            volume_states: states.to_vec(),
            volumes: engine.readings(),
            config: config.clone(),
            reconcile: reconcile(&snapshot.stats),
            started_unix_seconds,
        }
    })
}

fn reconcile(stats: &Stats) -> ReconcileReading {
    ReconcileReading {
        passes_ok: stats.passes_ok,
        passes_failed: stats.passes_failed,
        durations: HistogramReading {
            bounds: PASS_BUCKETS_SECONDS.to_vec(),
            buckets: stats.durations.to_vec(),
            sum: stats.seconds,
        },
        pending: stats
            .pending
            .iter()
            .map(|(action, count)| (*action, *count))
            .collect(),
        last_success_unix_seconds: stats.last_success_unix_seconds,
    }
}
