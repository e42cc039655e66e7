//! What a nexus says about its own work, as the status shows it.

use crate::model::status::{ScrubRun, ScrubStatus};
use crate::model::time::rfc3339;
use crate::nexus::NexusStatus;

/// What scrubs have shown; none before the first one. `finished_unix_seconds`: when one last looked at everything.
pub(super) fn scrub(
    status: &NexusStatus,
    finished_unix_seconds: Option<u64>,
) -> Option<ScrubStatus> {
    let running = status.scrub.map(|progress| ScrubRun {
        total_bytes: progress.total_bytes,
        done_bytes: progress.done_bytes,
    });
    if running.is_none() && status.last_scrub.is_none() && finished_unix_seconds.is_none() {
        return None;
    }
    let found = status.last_scrub.as_ref();
    let found = found.map(|report| report.totals).unwrap_or_default();
    Some(ScrubStatus {
        running,
        last_finished_at: finished_unix_seconds.map(rfc3339),
        mismatches: found.mismatches,
        repaired: found.repaired,
        unrepairable: found.unrepairable,
        unreadable: found.unreadable,
    })
}
