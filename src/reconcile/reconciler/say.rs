//! What the reconciler says after a pass: conditions, status, and the plan that is left.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Reconciler;
use crate::model::VolumeName;
use crate::model::journal::{Drift, Revisions};
use crate::model::observed::Observed;
use crate::model::status::{NodeStatus, Orphan, PoolStatus, VolumeStatus};
use crate::reconcile::drift;
use crate::reconcile::handle::Config;
use crate::reconcile::leftover;
use crate::reconcile::report::PlanReport;
use crate::reconcile::state::VolumeState;
use crate::reconcile::status::{self, Moment, VolumeFacts};
use crate::reconcile::step::{Goal, Plan};

impl Reconciler {
    /// Conditions and status.
    pub(super) fn say(&mut self, config: &Config, plan: &Plan, observed: &Observed) {
        let moment = Moment {
            time: self.times.now_text(),
            generation: config.generation,
        };
        let pools = self.say_pools(config, plan, observed, &moment);
        let volumes = self.say_volumes(config, plan, observed, &moment);
        let report = PlanReport::new(plan, observed);
        let drift = self.say_drift(plan, &report, &moment);
        let mut of_objects = drift.iter().filter(|drift| drift.object != "config");
        if of_objects.next().is_none() && !self.records.has_failures() && !self.records.is_busy() {
            self.last_good = Some(config.revision());
        }
        // Made anew and shared: who reads it keeps the one that was there.
        let before = Arc::clone(&self.snapshot.status);
        self.snapshot.status = Arc::new(NodeStatus {
            generation: config.generation,
            config_hash: config.hash.clone(),
            config_applied_at: Some(config.applied_at.clone()),
            config_error: self.config_error.clone(),
            revisions: Revisions {
                applied: Some(config.revision()),
                pending: self.refused.clone(),
                last_good: self.last_good.clone(),
            },
            drift,
            node: before.node.clone(),
            version: before.version.clone(),
            pools,
            volumes,
            quarantine: leftover::quarantine(observed),
            orphans: leftover::orphans(plan, observed),
        });
        self.tell_orphans(&before.orphans, &moment.time);
        self.snapshot.plan = report;
    }

    /// What is not as the files want it. What is, is noted to be in place.
    fn say_drift(&mut self, plan: &Plan, report: &PlanReport, moment: &Moment) -> Vec<Drift> {
        let found = drift::differences(report, &self.records, self.config_error.as_deref());
        let wanted = plan.volumes.iter();
        let wanted = wanted.filter(|(_, volume)| volume.goal == Goal::Present);
        let objects = wanted.map(|(name, _)| format!("volume.{name}"));
        let objects = objects.chain(plan.pools.keys().map(|name| format!("pool.{name}")));
        let differ: BTreeSet<&str> = found.iter().map(|drift| drift.object.as_str()).collect();
        let in_place = objects.filter(|object| !differ.contains(object.as_str()));
        self.operations.in_place(in_place);
        self.drifts.note(found, &moment.time)
    }

    /// What nobody declares is told once.
    fn tell_orphans(&self, before: &[Orphan], time: &str) {
        for orphan in &self.snapshot.status.orphans {
            if before.iter().any(|known| known.message == orphan.message) {
                continue;
            }
            tracing::warn!(reason = %orphan.reason, "orphan: {}", orphan.message);
            let object = match &orphan.volume {
                Some(volume) => format!("volume.{volume}"),
                None => orphan
                    .pools
                    .first()
                    .map_or_else(String::new, |pool| format!("pool.{pool}")),
            };
            self.records
                .tell(object, &orphan.reason, &orphan.message, time);
        }
    }

    fn say_pools(
        &mut self,
        config: &Config,
        plan: &Plan,
        observed: &Observed,
        moment: &Moment,
    ) -> Vec<PoolStatus> {
        let mut pools = Vec::new();
        for (name, planned) in &plan.pools {
            let mut record = self.records.pools.remove(name).unwrap_or_default();
            let there = observed.pools.get(name);
            let failure = record.failure.as_ref();
            let statements = status::pool_statements(there, failure, &planned.blocked);
            let changed = record.conditions.set(statements, moment);
            self.records
                .tell_statements(&format!("pool.{name}"), &changed, &moment.time);
            let conditions = record.conditions.list();
            pools.push(status::pool_status(
                name,
                &config.desired,
                there,
                conditions,
            ));
            self.records.pools.insert(name.clone(), record);
        }
        pools
    }

    fn say_volumes(
        &mut self,
        config: &Config,
        plan: &Plan,
        observed: &Observed,
        moment: &Moment,
    ) -> Vec<VolumeStatus> {
        let mut volumes = Vec::new();
        let now = self.now();
        let names: Vec<VolumeName> = self.records.volumes.keys().cloned().collect();
        for name in names {
            let mut record = self.records.volumes.remove(&name).unwrap_or_default();
            let due = record.record.backoff.due();
            let facts = VolumeFacts {
                name: &name,
                wanted: config.desired.volumes.get(&name),
                observed: observed.volumes.get(&name),
                plan: plan.volumes.get(&name),
                state: record.state,
                failure: record.record.failure.as_ref(),
                failures: record.record.backoff.failures(),
                again_at: due.map(|due| self.times.text_in(due.saturating_sub(now))),
            };
            let changed = record.record.conditions.set(facts.statements(), moment);
            self.records
                .tell_statements(&format!("volume.{name}"), &changed, &moment.time);
            if record.state != VolumeState::Deleted {
                volumes.push(facts.status(record.record.conditions.list()));
            }
            self.records.volumes.insert(name, record);
        }
        volumes
    }
}
