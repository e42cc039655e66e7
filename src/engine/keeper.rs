//! The keeper: one task per running volume that brings back members which are out of sync.
//!
//! The nexus has the mechanisms and never starts them by itself; when, in which order, how often and how many at a time
//! is decided here. Wakes for what the nexus says, for pools that come and go, and for retries that are due; a healthy
//! volume's keeper sleeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bring::Back;
use super::engine::{Engine, Shared};
use super::error::EngineError;
use super::history::{Happened, difference};
use super::live::{Live, Nudges, Outlook};
use super::outlook::{Target, Turn};
use super::scrub;
use crate::model::ReplicaId;
use crate::model::status::ReplicaState;
use crate::nexus::{ChildStatus, Health, NexusStatus};

/// How long a volume whose scheduled scrub ended early is left alone.
const SCRUB_PAUSE: Duration = Duration::from_secs(600);

/// What the keeper of one volume remembers.
struct Keeper {
    shared: Weak<Shared>,
    live: Weak<Live>,
    status: watch::Receiver<NexusStatus>,
    nudges: Arc<Nudges>,
    started: Instant,
    /// What the nexus said last.
    told: Option<NexusStatus>,
    targets: BTreeMap<ReplicaId, Target>,
    /// The rebuild under way, or waiting for its permit: at most one.
    rebuilds: JoinSet<(ReplicaId, Result<String, EngineError>)>,
    /// The member that it is for.
    rebuilt_now: Option<ReplicaId>,
    /// When the next scheduled scrub begins; none while nothing is planned.
    scrub_at: Option<Duration>,
    /// The scheduled scrub under way, or waiting for its permit: at most one.
    scrubs: JoinSet<()>,
}

/// Starts the keeper of a volume that has just begun to serve.
pub(super) fn start(engine: &Engine, live: &Arc<Live>) {
    let keeper = Keeper {
        shared: Arc::downgrade(&engine.shared),
        live: Arc::downgrade(live),
        status: live.status.clone(),
        nudges: Arc::clone(&live.nudges),
        started: Instant::now(),
        told: None,
        targets: BTreeMap::new(),
        rebuilds: JoinSet::new(),
        rebuilt_now: None,
        scrub_at: None,
        scrubs: JoinSet::new(),
    };
    tokio::spawn(keeper.run());
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let Some(wait) = self.look().await else {
                return;
            };
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.status.changed() => if changed.is_err() {
                    return;
                },
                afresh = self.nudges.next() => self.hurry(afresh),
                Some(ended) = self.rebuilds.join_next() => self.rebuilt(ended.ok()),
                Some(_) = self.scrubs.join_next() => self.scrub_at = None,
                () = timer => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Does what can be done now. Returns how long nothing has to be done unless something happens; none at the end.
    async fn look(&mut self) -> Option<Option<Duration>> {
        let looked = self.now();
        let status = self.status.borrow_and_update().clone();
        if status.health == Health::Stopped {
            return None;
        }
        let shared = self.shared.upgrade()?;
        let engine = Engine { shared };
        let live = self.live.upgrade()?;
        let happened = difference(self.told.as_ref(), &status);
        engine.note(live.id, status.generation, happened);
        let out: Vec<ChildStatus> = status
            .children
            .iter()
            .filter(|child| child.wants_attach || child.wants_rebuild)
            .cloned()
            .collect();
        let known = out_of_sync(&status);
        self.told = Some(status);
        self.targets.retain(|replica, _| known.contains(replica));
        for child in &out {
            let Some(replica) = child.replica else {
                continue;
            };
            self.targets.entry(replica).or_default();
            if child.wants_attach {
                self.bring_back(&engine, &live, child, replica).await;
            } else {
                self.start_rebuild(&engine, &live, replica);
            }
        }
        self.publish(&engine, &live);
        let scrub = self.plan_scrub(&engine, &live);
        let due = self.next_due(looked).into_iter().chain(scrub).min();
        Some(due)
    }

    /// Begins the scheduled scrub if its time has come. Returns how long that is not so.
    fn plan_scrub(&mut self, engine: &Engine, live: &Arc<Live>) -> Option<Duration> {
        if !self.scrubs.is_empty() {
            return None;
        }
        let every = live.applied().policy.scrub_every;
        let (Some(wait), Some(every)) = (engine.scrub_due(live), every) else {
            self.scrub_at = None;
            return None;
        };
        let now = self.now();
        let at = *self
            .scrub_at
            .get_or_insert_with(|| now + scrub::spread(wait, every));
        // One that was asked for meanwhile counts.
        let at = at.max(now + wait);
        if at > now {
            return Some(at - now);
        }
        let (engine, live) = (engine.clone(), Arc::clone(live));
        self.scrubs.spawn(async move {
            let Some(name) = engine.name_of_live(&live) else {
                return;
            };
            if let Err(error) = engine.scrub_volume(&name, None).await {
                tracing::warn!(volume = %name, %error, "the scheduled scrub ended early");
                // Not at once again.
                tokio::time::sleep(SCRUB_PAUSE).await;
            }
        });
        None
    }

    /// Opens a member that is not here, if that is due.
    async fn bring_back(
        &mut self,
        engine: &Engine,
        live: &Arc<Live>,
        child: &ChildStatus,
        replica: ReplicaId,
    ) {
        let now = self.now();
        let target = self.targets.entry(replica).or_default();
        if !target.attempts.is_due(now) {
            return;
        }
        target.waits_for = None;
        let result = engine.bring_back(live, child, replica).await;
        let now = self.now();
        let retry = engine.shared.policy.borrow().retry;
        let target = self.targets.entry(replica).or_default();
        match result {
            Ok(Back::Here) => {
                tracing::info!(volume = %live.id, %replica, "a replica is back and waits for its rebuild");
            }
            Ok(Back::Waits(what)) => target.waits_for = Some(what),
            Err(error) => {
                tracing::warn!(volume = %live.id, %replica, %error, "a replica could not be opened");
                target.fail(now, error, &retry, false);
            }
        }
    }

    /// Starts to rebuild a member that is here, if that is due and no other is being rebuilt.
    fn start_rebuild(&mut self, engine: &Engine, live: &Arc<Live>, replica: ReplicaId) {
        let now = self.now();
        let target = self.targets.entry(replica).or_default();
        target.waits_for = None;
        if !self.rebuilds.is_empty() || !target.attempts.is_due(now) {
            return;
        }
        self.rebuilt_now = Some(replica);
        let (engine, live) = (engine.clone(), Arc::clone(live));
        self.rebuilds.spawn(async move {
            let result = engine.rebuild(&live, replica).await;
            (replica, result)
        });
    }

    /// Notes how a rebuild ended.
    fn rebuilt(&mut self, ended: Option<(ReplicaId, Result<String, EngineError>)>) {
        let now = self.now();
        self.rebuilt_now = None;
        let (Some((replica, result)), Some(shared), Some(live)) =
            (ended, self.shared.upgrade(), self.live.upgrade())
        else {
            return;
        };
        let engine = Engine { shared };
        let status = self.status.borrow().clone();
        let child = status.children.iter().find(|c| c.replica == Some(replica));
        let place = (child.and_then(|c| c.pool.clone()), Some(replica));
        let happened = match result {
            Ok(report) => {
                tracing::info!(volume = %live.id, %replica, %report, "rebuilt");
                self.targets.remove(&replica);
                Happened::to("Rebuilt", place, report)
            }
            Err(error) if status.health == Health::Stopped => {
                tracing::debug!(volume = %live.id, %replica, %error, "a rebuild ended with its volume");
                return;
            }
            Err(error) => {
                let retry = engine.shared.policy.borrow().retry;
                let target = self.targets.entry(replica).or_default();
                let detail = error.to_string();
                target.fail(now, error, &retry, true);
                tracing::warn!(volume = %live.id, %replica, error = detail, "a rebuild failed");
                let what = if target.attempts.is_resting() {
                    "RebuildGivenUp"
                } else {
                    "RebuildFailed"
                };
                Happened::to(what, place, detail)
            }
        };
        engine.note(live.id, status.generation, vec![happened]);
    }

    /// Something changed that may help: everything is tried at once; `afresh`: also what rests.
    fn hurry(&mut self, afresh: bool) {
        if afresh {
            self.scrub_at = None;
        }
        for target in self.targets.values_mut() {
            if afresh {
                target.attempts.reset();
            } else {
                target.attempts.hurry();
            }
        }
    }

    /// How long nothing is due that was not when it was last `looked`.
    fn next_due(&self, looked: Duration) -> Option<Duration> {
        let waiting = self.targets.values().filter(|t| t.waits_for.is_none());
        let due = waiting.filter_map(|target| target.attempts.due());
        // What was due by then waits for something to happen: its disk to answer, or another's rebuild to end.
        let next = due.filter(|due| *due > looked).min()?;
        Some(next.saturating_sub(self.now()))
    }

    /// Shows what is being done about each member that is out of sync.
    fn publish(&self, engine: &Engine, live: &Live) {
        let told = self.told.as_ref();
        let children = told.map_or(&[][..], |status| &status.children);
        let nothing_known = Target::default();
        let outlooks = children.iter().filter(|child| child.is_member);
        let outlooks = outlooks.filter_map(|child| {
            let replica = child.replica?;
            let target = self.targets.get(&replica).unwrap_or(&nothing_known);
            Some((replica, target.outlook(child, self.turn_of(replica))?))
        });
        let outlooks: BTreeMap<ReplicaId, Outlook> = outlooks.collect();
        if live.set_outlooks(outlooks) {
            engine.touch();
        }
    }

    fn turn_of(&self, replica: ReplicaId) -> Turn {
        match self.rebuilt_now {
            None => Turn::Free,
            Some(other) if other == replica => Turn::Own,
            Some(_) => Turn::Other,
        }
    }
}

/// The members whose failures count: also those that can't be tried at the moment, such as one that has just failed and
/// lets go of its file.
fn out_of_sync(status: &NexusStatus) -> BTreeSet<ReplicaId> {
    let members = status.children.iter().filter(|child| child.is_member);
    let out = members.filter(|child| child.state != ReplicaState::InSync);
    out.filter_map(|child| child.replica).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::live::initial_status;
    use crate::model::policy::RetryPolicy;
    use crate::nexus::ChildLatencies;
    use crate::replica::ErrorCounts;

    #[test]
    fn failures_are_remembered_while_a_member_can_not_be_tried() {
        let replica = ReplicaId::from_uuid(uuid::Uuid::from_u128(1));
        let check = |state: ReplicaState, is_member: bool, remembered: bool| {
            let child = ChildStatus {
                pool: None,
                replica: Some(replica),
                state,
                reason: None,
                is_member,
                // Faulted or draining: neither can be done.
                wants_attach: false,
                wants_rebuild: false,
                hung: false,
                corrected_reads: 0,
                latencies: ChildLatencies::default(),
                errors: ErrorCounts::default(),
                rebuild: None,
            };
            let children = vec![child];
            let status = NexusStatus {
                children,
                ..initial_status()
            };
            assert_eq!(
                out_of_sync(&status).contains(&replica),
                remembered,
                "{state:?}"
            );
        };
        check(ReplicaState::Stale, true, true);
        check(ReplicaState::Rebuilding, true, true);
        check(ReplicaState::Absent, true, true);
        check(ReplicaState::Absent, false, false);
        check(ReplicaState::InSync, true, false);
    }

    /// A target that was due at the last look waits for something to happen, such as its disk's answer.
    #[test]
    fn what_could_not_be_tried_does_not_hide_what_is_due_later() {
        let (_told, status) = watch::channel(initial_status());
        let seconds = Duration::from_secs;
        let mut keeper = Keeper {
            shared: Weak::new(),
            live: Weak::new(),
            status,
            nudges: Arc::default(),
            started: Instant::now().checked_sub(seconds(10)).unwrap(),
            told: None,
            targets: BTreeMap::new(),
            rebuilds: JoinSet::new(),
            rebuilt_now: None,
            scrub_at: None,
            scrubs: JoinSet::new(),
        };
        for (number, failed_at) in [(1, 0), (2, 10)] {
            let mut target = Target::default();
            let failed = EngineError::new("Test", "it failed");
            let (now, retry) = (seconds(failed_at), RetryPolicy::default());
            target.attempts.fail(now, failed, &retry, false);
            let replica = ReplicaId::from_uuid(uuid::Uuid::from_u128(number));
            keeper.targets.insert(replica, target);
        }
        // The first was due after 1 s, the second is after 11 s, up to a quarter of a second later.
        let due = keeper.next_due(seconds(10));
        let expected = Duration::from_millis(100)..=Duration::from_millis(1250);
        assert!(due.is_some_and(|due| expected.contains(&due)), "{due:?}");
        let at_the_end = keeper.next_due(seconds(12));
        assert_eq!(at_the_end, None, "nothing is due but what was");
    }
}
