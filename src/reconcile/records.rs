//! What the reconciler remembers of each object between passes: state, failures, conditions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::apply::Failure;
use super::backoff::{Backoff, Jitter};
use super::events::Events;
use super::state::{Event, VolumeState, next};
use super::status::{Conditions, Statement};
use super::step::{Goal, Plan};
use crate::model::observed::Observed;
use crate::model::policy::RetryPolicy;
use crate::model::status::Truth;
use crate::model::{PoolName, VolumeName};

/// Pools are tried often: a disk that is mounted late must not make its volumes wait for a minute.
const POOL_WAIT_MAX: Duration = Duration::from_secs(10);

/// What is remembered of one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) busy: bool,
    pub(super) backoff: Backoff,
    pub(super) failure: Option<Failure>,
    pub(super) conditions: Conditions,
}

impl Record {
    pub(super) fn may_start(&self, now: Duration) -> bool {
        !self.busy && self.backoff.is_due(now)
    }

    /// Notes how an attempt ended.
    fn end(
        &mut self,
        result: Result<(), Failure>,
        now: Duration,
        (policy, jitter): (&RetryPolicy, &mut Jitter),
    ) {
        self.busy = false;
        match result {
            Ok(()) => {
                self.backoff.reset();
                self.failure = None;
            }
            Err(failure) => {
                self.backoff.fail(now, policy, jitter);
                self.failure = Some(failure);
            }
        }
    }
}

/// What is remembered of one volume.
#[derive(Clone, Debug)]
pub(super) struct VolumeRecord {
    pub(super) state: VolumeState,
    pub(super) record: Record,
}

impl VolumeRecord {
    /// Whether its steps may be done now: not while some are, nor before its wait is over, nor once it was given up.
    pub(super) fn may_start(&self, now: Duration) -> bool {
        self.state != VolumeState::Error && self.record.may_start(now)
    }
}

impl Default for VolumeRecord {
    fn default() -> Self {
        Self {
            state: VolumeState::Pending,
            record: Record::default(),
        }
    }
}

/// All records, and where their events go.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) pools: BTreeMap<PoolName, Record>,
    pub(super) volumes: BTreeMap<VolumeName, VolumeRecord>,
    pub(super) purges: BTreeMap<String, Record>,
    pub(super) events: Events,
    /// When the last pass looked for what may be tried.
    pub(super) looked_at: Duration,
    /// When what failed is tried again.
    pub(super) retry: RetryPolicy,
    pub(super) jitter: Jitter,
}

impl Records {
    /// Moves a volume's state on and tells it.
    pub(super) fn live(&mut self, name: &VolumeName, event: Event, time: &str) {
        let volume = self.volumes.entry(name.clone()).or_default();
        let old = volume.state;
        match next(old, event) {
            Ok(new) => {
                volume.state = new;
                if new != old {
                    let message = format!("{} -> {}", old.label(), new.label());
                    tracing::info!(volume = %name, old = old.label(), new = new.label(), cause = ?event, "state");
                    let reason = format!("{new:?}");
                    self.tell(format!("volume.{name}"), &reason, &message, time);
                }
            }
            Err(illegal) => {
                // A bug, but no reason to leave guests without their disks.
                debug_assert!(false, "{illegal}");
                tracing::error!(volume = %name, "{illegal}");
            }
        }
    }

    /// Notes the end of a volume's actor.
    pub(super) fn volume_ended(
        &mut self,
        name: &VolumeName,
        result: Result<(), Failure>,
        now: Duration,
        time: &str,
    ) {
        if let Err(failure) = &result {
            tracing::warn!(volume = %name, reason = %failure.reason, "{failure}");
            let (reason, message) = (failure.reason.clone(), failure.message.clone());
            self.tell(format!("volume.{name}"), &reason, &message, time);
        }
        let volume = self.volumes.entry(name.clone()).or_default();
        volume
            .record
            .end(result, now, (&self.retry, &mut self.jitter));
        let too_often = volume.record.backoff.failures() >= self.retry.max_attempts;
        if too_often && volume.state.has_failed() && volume.state != VolumeState::Error {
            self.live(name, Event::Error, time);
        }
    }

    /// Notes the end of a pool's actor. Volumes that failed, perhaps for want of it, are tried again at once.
    pub(super) fn pool_ended(
        &mut self,
        name: &PoolName,
        result: Result<(), Failure>,
        now: Duration,
        time: &str,
    ) {
        let record = self.pools.entry(name.clone()).or_default();
        let news = result.as_ref().err().map(|failure| &failure.reason)
            != record.failure.as_ref().map(|failure| &failure.reason);
        let told = match &result {
            Ok(()) => {
                tracing::info!(pool = %name, "pool is as wanted");
                self.retry_volumes(time);
                None
            }
            Err(failure) if news => {
                tracing::warn!(pool = %name, reason = %failure.reason, "{failure}");
                Some(failure.clone())
            }
            Err(_) => None,
        };
        if let Some(failure) = told {
            self.tell(
                format!("pool.{name}"),
                &failure.reason,
                &failure.message,
                time,
            );
        }
        let record = self.pools.entry(name.clone()).or_default();
        let policy = RetryPolicy {
            max_wait: self.retry.max_wait.min(POOL_WAIT_MAX),
            ..self.retry
        };
        record.end(result, now, (&policy, &mut self.jitter));
    }

    /// Notes the end of a purge.
    pub(super) fn purge_ended(
        &mut self,
        entry: &str,
        result: Result<(), Failure>,
        now: Duration,
        time: &str,
    ) {
        let (reason, message) = match &result {
            Ok(()) => ("Purged".to_owned(), "its data is gone for ever".to_owned()),
            Err(failure) => (failure.reason.clone(), failure.message.clone()),
        };
        tracing::info!(entry, reason, "{message}");
        self.tell(format!("quarantine.{entry}"), &reason, &message, time);
        let done = result.is_ok();
        let record = self.purges.entry(entry.to_owned()).or_default();
        record.end(result, now, (&self.retry, &mut self.jitter));
        if done {
            self.purges.remove(entry);
        }
    }

    /// Everything may be tried at once again, also what was given up.
    pub(super) fn retry_all(&mut self, time: &str) {
        let others = self.pools.values_mut().chain(self.purges.values_mut());
        others.for_each(|record| record.backoff.reset());
        self.retry_volumes(time);
    }

    fn retry_volumes(&mut self, time: &str) {
        let mut failed = Vec::new();
        for (name, volume) in &mut self.volumes {
            volume.record.backoff.reset();
            if volume.state.has_failed() {
                failed.push(name.clone());
            }
        }
        for name in failed {
            self.live(&name, Event::Retry, time);
        }
    }

    /// Whether an actor is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.all().any(|record| record.busy)
    }

    /// Whether some object is in failure.
    pub(super) fn has_failures(&self) -> bool {
        self.all().any(|record| record.failure.is_some())
    }

    /// Forgets failures of what is gone, or has nothing left to do: they are over. Volumes that failed, perhaps for want of
    /// a pool of which that is found, are tried again at once.
    pub(super) fn forget(&mut self, plan: &Plan, observed: &Observed, time: &str) {
        self.volumes.retain(|name, volume| {
            let planned = plan.volumes.get(name);
            let is_here = planned.is_some_and(|planned| planned.goal != Goal::Elsewhere);
            volume.record.busy || is_here || observed.volumes.contains_key(name)
        });
        self.purges
            .retain(|entry, record| record.busy || plan.purges.contains_key(entry));
        self.pools.retain(|name, pool| {
            pool.busy || observed.pools.contains_key(name) || plan.pools.contains_key(name)
        });
        let mut came = false;
        for (name, pool) in self.pools.iter_mut().filter(|(_, pool)| !pool.busy) {
            let planned = plan.pools.get(name);
            if planned.is_none_or(|planned| planned.action.is_none()) {
                came |= pool.failure.take().is_some();
                pool.backoff.reset();
            }
        }
        if came {
            self.retry_volumes(time);
        }
    }

    /// When the first of those that wait may be tried again. What was due at the last pass and was not tried waits for
    /// something else than time.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let volumes = self.volumes.values();
        let volumes = volumes.filter(|volume| volume.state != VolumeState::Error);
        let volumes = volumes.map(|volume| &volume.record);
        let others = self.pools.values().chain(self.purges.values());
        volumes
            .chain(others)
            .filter(|record| !record.busy)
            .filter_map(|record| record.backoff.due())
            .filter(|due| *due > self.looked_at)
            .min()
    }

    fn all(&self) -> impl Iterator<Item = &Record> {
        let volumes = self.volumes.values().map(|volume| &volume.record);
        volumes
            .chain(self.pools.values())
            .chain(self.purges.values())
    }

    /// Tells what conditions changed; a thing that is well from the start is no news.
    pub(super) fn tell_statements(&self, object: &str, changed: &[Statement], time: &str) {
        for statement in changed {
            let state = match statement.status {
                Truth::True => "",
                Truth::False => "not ",
                Truth::Unknown => "maybe ",
            };
            tracing::info!(
                object,
                reason = %statement.reason,
                "{state}{}: {}",
                statement.kind,
                statement.message
            );
            let message = format!("{state}{}: {}", statement.kind, statement.message);
            self.tell(object.to_owned(), &statement.reason, &message, time);
        }
    }

    pub(super) fn tell(&self, object: String, reason: &str, message: &str, time: &str) {
        self.events.push(time.to_owned(), object, reason, message);
    }
}
