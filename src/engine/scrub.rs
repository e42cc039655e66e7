//! Comparing all replicas of a volume (spec section 10): on demand, and when it is due.

use std::sync::Arc;
use std::time::Duration;

use super::assemble::no_such_volume;
use super::attempts::{random, stretch};
use super::engine::Engine;
use super::error::EngineError;
use super::history::Happened;
use super::live::{self, Live};
use crate::io::clock::wall;
use crate::model::scrub::{ScrubFinding, ScrubOutcome};
use crate::model::{PoolName, ReplicaId, VolumeName};
use crate::nexus::{Health, ScrubReport, ScrubRequest};
use crate::units::Bytes;

/// The first scheduled scrub of a volume comes within this, at a random time: after a start with many volumes they are
/// not all due at once.
const FIRST_WITHIN: Duration = Duration::from_secs(3600);

impl Engine {
    /// Compares all replicas of a running volume, one volume of the node at a time, and repairs what a majority decides
    /// or `repair_from` is believed in. Goes on when the caller gives up.
    ///
    /// # Errors
    /// `Busy` while it is being scrubbed; `NotFound` without such a volume, or such a replica.
    pub async fn scrub_volume(
        &self,
        name: &VolumeName,
        repair_from: Option<&PoolName>,
    ) -> Result<ScrubOutcome, EngineError> {
        let live = self.live(name).ok_or_else(|| no_such_volume(name))?;
        let wanted = repair_from
            .cloned()
            .or(live.applied().policy.scrub_repair_from);
        let repair_from = match wanted {
            None => None,
            Some(pool) => Some(self.member_in(&live, &pool).await?.ok_or_else(|| {
                let message = format!("volume \"{name}\" has no replica in pool \"{pool}\"");
                EngineError::new("NotFound", message)
            })?),
        };
        let (engine, name) = (self.clone(), name.clone());
        let scrub = tokio::spawn(async move { engine.scrub(&live, name, repair_from).await });
        scrub.await.map_err(|_| EngineError::stopping())?
    }

    async fn scrub(
        &self,
        live: &Arc<Live>,
        name: VolumeName,
        repair_from: Option<ReplicaId>,
    ) -> Result<ScrubOutcome, EngineError> {
        let _permit = self.shared.scrubs.take().await;
        let id = live.id;
        let request = ScrubRequest {
            repair_from,
            bandwidth: 0,
        };
        let done = live.reactor.run(move |local| async move {
            let volume = live::find(&local, id).ok_or_else(EngineError::stopping)?;
            let scrubbed = volume.device().scrub(request).await;
            scrubbed.map_err(EngineError::from)
        });
        let report = done.await.map_err(|_| EngineError::stopping())??;
        let mut record = self.shared.store.volume(id).unwrap_or_default();
        let now = wall().duration_since(std::time::UNIX_EPOCH);
        record.scrubbed_at_unix_seconds = Some(now.unwrap_or_default().as_secs());
        self.shared.store.set_volume(id, record).await?;
        let outcome = self.outcome(live, name, &report);
        let summary = summary(&outcome);
        if outcome.mismatches + outcome.unreadable > 0 {
            tracing::warn!(volume = %outcome.volume, "scrubbed: {summary}");
        } else {
            tracing::info!(volume = %outcome.volume, "scrubbed: {summary}");
        }
        let generation = live.status.borrow().generation;
        self.note(
            id,
            generation,
            vec![Happened::to_volume("Scrubbed", summary)],
        );
        self.touch();
        Ok(outcome)
    }

    fn outcome(&self, live: &Live, volume: VolumeName, report: &ScrubReport) -> ScrubOutcome {
        let status = live.status.borrow().clone();
        let pool = |replica: &ReplicaId| {
            let mut children = status.children.iter();
            let child = children.find(|child| child.replica == Some(*replica))?;
            self.pool_of(live, child, *replica)
        };
        let found = report.found.iter().map(|chunk| ScrubFinding {
            offset: chunk.offset,
            len: chunk.len,
            finding: format!("{:?}", chunk.finding),
            replicas: chunk.replicas.clone(),
            pools: chunk.replicas.iter().filter_map(pool).collect(),
        });
        ScrubOutcome {
            volume,
            compared: report.compared,
            scrubbed_bytes: report.totals.scrubbed_bytes,
            mismatches: report.totals.mismatches,
            repaired: report.totals.repaired,
            unrepairable: report.totals.unrepairable,
            unreadable: report.totals.unreadable,
            found: found.collect(),
        }
    }

    /// How long until a volume's next scheduled scrub; none when there is no schedule, or nothing to compare.
    pub(super) fn scrub_due(&self, live: &Live) -> Option<Duration> {
        let every = live.applied().policy.scrub_every?;
        if live.status.borrow().health != Health::Online {
            return None;
        }
        let record = self.shared.store.volume(live.id).unwrap_or_default();
        let now = wall()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let last = record.scrubbed_at_unix_seconds.map(Duration::from_secs);
        Some(match last {
            Some(last) => last.saturating_add(every).saturating_sub(now),
            None => Duration::ZERO,
        })
    }
}

/// When a scrub that is due after `wait` is begun: not in step with other volumes'.
pub(super) fn spread(wait: Duration, every: Duration) -> Duration {
    let within = FIRST_WITHIN.min(every / 4);
    let part = u32::try_from(random() % 1000).unwrap_or(0);
    stretch(wait, random()).saturating_add(within / 1000 * part)
}

fn summary(outcome: &ScrubOutcome) -> String {
    format!(
        "{} compared on {} replicas: {} chunks differed, {} repaired, {} not, {} unreadable",
        Bytes(outcome.scrubbed_bytes),
        outcome.compared,
        outcome.mismatches,
        outcome.repaired,
        outcome.unrepairable,
        outcome.unreadable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrubs_of_many_volumes_are_spread() {
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        let begins: Vec<Duration> = (0..50).map(|_| spread(Duration::ZERO, day)).collect();
        assert!(begins.iter().all(|begin| *begin <= hour));
        let distinct: std::collections::BTreeSet<_> = begins.iter().collect();
        assert!(distinct.len() > 10);
        let short = Duration::from_secs(4);
        assert!((0..50).all(|_| spread(Duration::ZERO, short) <= Duration::from_secs(1)));
    }
}
