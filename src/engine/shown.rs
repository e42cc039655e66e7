//! What a nexus says about its own work, as the status shows it.

use crate::model::status::{RebuildKind, RebuildStatus, ScrubRun, ScrubStatus};
use crate::model::time::rfc3339;
use crate::nexus::{self, NexusStatus, RebuildProgress};

/// How far a rebuild is, and how long it still takes.
pub(super) fn rebuild(progress: &RebuildProgress) -> RebuildStatus {
    let kind = match progress.kind {
        nexus::RebuildKind::Full => RebuildKind::Full,
        nexus::RebuildKind::Partial => RebuildKind::Partial,
        nexus::RebuildKind::Resumed | nexus::RebuildKind::ResumedAfterAbsence => {
            RebuildKind::Resumed
        }
    };
    let seconds = progress
        .remaining_bytes
        .div_ceil(progress.bytes_per_second.max(1));
    RebuildStatus {
        kind,
        reason: progress.reason.clone(),
        total_bytes: progress.total_bytes,
        remaining_bytes: progress.remaining_bytes,
        copied_bytes: progress.copied_bytes,
        bytes_per_second: progress.bytes_per_second,
        eta_seconds: (progress.bytes_per_second > 0).then_some(seconds),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuild_that_stands_still_has_no_end() {
        let mut progress = RebuildProgress {
            kind: nexus::RebuildKind::Resumed,
            reason: String::new(),
            total_bytes: 100,
            remaining_bytes: 41,
            copied_bytes: 50,
            bytes_per_second: 20,
        };
        let shown = rebuild(&progress);
        assert_eq!((shown.kind, shown.percent()), (RebuildKind::Resumed, 59));
        assert_eq!(shown.eta_seconds, Some(3));
        progress.bytes_per_second = 0;
        assert_eq!(rebuild(&progress).eta_seconds, None);
    }
}
