//! The loop: look, plan, start actors, say how things are; then wait for a reason to look again.
//!
//! Level-triggered: whatever woke it, a pass works from what is there and what is wanted now. A missed or doubled
//! wake-up changes nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::apply::{self, Report, Task, Work};
use super::drift::Drifts;
use super::events::Events;
use super::handle::{Answer, Command, Config, Handle, Refusal, Snapshot, Stats};
use super::operations::Operations;
use super::plan::{Removals, plan};
use super::records::Records;
use super::report::PlanReport;
use super::state::Event;
use super::step::{Goal, Plan, VolumePlan};
use crate::model::journal::{Revision, Revisions};
use crate::model::observed::Observed;
use crate::model::policy::NodePolicy;
use crate::model::spec::DesiredState;
use crate::model::status::NodeStatus;
use crate::model::time::Times;
use crate::model::{NodeName, VolumeName};

/// Time between passes that nothing else has caused.
const POLL: Duration = Duration::from_secs(10);

/// How many approved plans are remembered.
const APPROVED_MAX: usize = 16;

/// Starts the reconciler on the current tokio runtime. It does nothing before the first [`Handle::apply`].
#[must_use]
pub fn start(node: &NodeName, work: Work, times: Times) -> Handle {
    let status = NodeStatus {
        generation: 0,
        config_hash: String::new(),
        config_applied_at: None,
        config_error: None,
        revisions: Revisions::default(),
        drift: Vec::new(),
        node: node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pools: Vec::new(),
        volumes: Vec::new(),
        quarantine: Vec::new(),
        orphans: Vec::new(),
    };
    let snapshot = Snapshot {
        status: Arc::new(status),
        plan: PlanReport::default(),
        settled: false,
        stats: Stats::default(),
    };
    let (commands, inbox) = mpsc::unbounded_channel();
    let (reports, outcomes) = mpsc::unbounded_channel();
    let (publish, snapshots) = watch::channel(Arc::new(snapshot.clone()));
    let events = Events::default();
    let operations = Operations::new(times);
    let reconciler = Reconciler {
        work: operations.record(work),
        operations: operations.clone(),
        times,
        started: (times.monotonic)(),
        config: None,
        config_error: None,
        refused: None,
        last_good: None,
        drifts: Drifts::default(),
        approved: VecDeque::new(),
        generation: watch::Sender::new(0),
        removals: Removals::default(),
        records: Records {
            events: events.clone(),
            ..Records::default()
        },
        last: (Plan::default(), Observed::default()),
        snapshot,
        reports,
        publish,
        stopping: None,
    };
    tokio::spawn(reconciler.run(inbox, outcomes));
    Handle {
        commands,
        snapshots,
        events,
        operations,
    }
}

struct Reconciler {
    work: Work,
    operations: Operations,
    times: Times,
    started: Instant,
    config: Option<Arc<Config>>,
    /// What is wrong with the files on disk.
    config_error: Option<String>,
    /// Which files those are.
    refused: Option<Revision>,
    /// The last revision of which everything was in place.
    last_good: Option<Revision>,
    drifts: Drifts,
    /// Plans that were approved lately, oldest first: approving one again is no mistake.
    approved: VecDeque<(String, Vec<VolumeName>)>,
    /// Counts configurations and commands; an actor that sees it move stops between two steps.
    generation: watch::Sender<u64>,
    removals: Removals,
    records: Records,
    /// The last plan and what it was made from.
    last: (Plan, Observed),
    snapshot: Snapshot,
    reports: mpsc::UnboundedSender<Report>,
    publish: watch::Sender<Arc<Snapshot>>,
    stopping: Option<oneshot::Sender<()>>,
}

impl Reconciler {
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Command>,
        mut outcomes: mpsc::UnboundedReceiver<Report>,
    ) {
        let mut changes = self.work.changes.clone();
        loop {
            let took = self.pass().await;
            if self.stopping.is_some() && !self.records.is_busy() {
                break;
            }
            let wait = self.wait();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                Some(report) = outcomes.recv() => {
                    self.on_report(report);
                    rest(took).await;
                }
                // The engine ends after the reconciler; should it end before, the timer is left.
                Ok(()) = changes.changed() => rest(took).await,
                () = tokio::time::sleep(wait) => {}
            }
            // All news at once: a pass per volume would be a square of work at start.
            changes.mark_unchanged();
            while let Ok(report) = outcomes.try_recv() {
                self.on_report(report);
            }
        }
        if let Some(done) = self.stopping.take() {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }

    fn now(&self) -> Duration {
        (self.times.monotonic)().duration_since(self.started)
    }

    fn wait(&self) -> Duration {
        let due = self.records.next_due();
        let wait = due.map_or(POLL, |due| due.saturating_sub(self.now()));
        wait.clamp(Duration::from_millis(10), POLL)
    }

    fn on_report(&mut self, report: Report) {
        let (now, time) = (self.now(), self.times.now_text());
        match report {
            Report::Life(name, event) => self.records.live(&name, event, &time),
            Report::VolumeEnded(name, result) => {
                let object = format!("volume.{name}");
                self.operations.settled(&object, result.as_ref().err());
                self.records.volume_ended(&name, result, now, &time);
            }
            Report::PoolEnded(name, result) => self.records.pool_ended(&name, result, now, &time),
            Report::PurgeEnded(entry, result) => {
                self.records.purge_ended(&entry, result, now, &time);
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Apply(config, wrong) => {
                tracing::info!(generation = config.generation, hash = %config.hash, "configuration is in force");
                self.operations.configured(config.revision());
                self.configure_node(config.desired.policy);
                self.config = Some(Arc::from(config));
                (self.config_error, self.refused) = wrong.unzip();
                self.restart();
            }
            Command::ConfigError(error, refused) => {
                (self.config_error, self.refused) = (error, refused);
            }
            Command::Commit(commit) => {
                if let Some(config) = &mut self.config {
                    Arc::make_mut(config).commit = commit;
                    self.operations.checked_out(config.revision());
                }
            }
            Command::Resume(saved) => {
                self.last_good = saved.last_good;
                self.drifts = Drifts::new(saved.drift_since);
            }
            Command::Kick => self.records.retry_all(&self.times.now_text()),
            Command::Plan(candidate, answer) => {
                // Whoever asked may have gone; so below.
                let _ = answer.send(self.plan_for(candidate.as_deref()));
            }
            Command::Approve(id, answer) => drop(answer.send(self.approve(&id))),
            Command::Restore(entry, name, answer) => match self.restorable(&entry, name) {
                Ok(name) => {
                    let task = Task::Restore {
                        entry,
                        name: name.clone(),
                    };
                    self.execute(task, name, answer);
                }
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Command::Purge(entry, answer) => match self.quarantined(&entry) {
                Ok(_) => self.execute(Task::Purge(entry), (), answer),
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Command::PurgeOrphan(id, answer) => match self.orphaned(id) {
                Ok(()) => self.execute(Task::PurgeOrphan(id), (), answer),
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Command::Inject(name, pool, faults, answer) => match self.injectable(&faults) {
                Ok(()) => self.execute(Task::Inject(name, pool, faults), (), answer),
                Err(refusal) => drop(answer.send(Err(refusal))),
            },
            Command::Stop(done) => {
                self.generation.send_modify(|generation| *generation += 1);
                self.stopping = Some(done);
            }
        }
    }

    fn configure_node(&mut self, policy: NodePolicy) {
        self.records.retry = policy.retry;
        let job = (self.work.execute)(Task::Node(policy));
        tokio::spawn(async move {
            if let Err(failure) = job.await {
                tracing::error!(reason = %failure.reason, "{failure}");
            }
        });
    }

    /// What was wanted before is not wanted any more: failures are forgotten, actors stop after their step.
    fn restart(&mut self) {
        self.records.retry_all(&self.times.now_text());
        self.generation.send_modify(|generation| *generation += 1);
    }

    fn plan_for(&self, candidate: Option<&DesiredState>) -> PlanReport {
        let (last, observed) = &self.last;
        let Some(candidate) = candidate else {
            return PlanReport::new(last, observed);
        };
        let mut removals = self.removals.clone();
        removals.note(candidate, observed, self.removals.generation + 1);
        PlanReport::new(&plan(candidate, observed, &removals), observed)
    }

    fn approve(&mut self, id: &str) -> Answer<Vec<VolumeName>> {
        let (last, _) = &self.last;
        if let Some((_, names)) = self.approved.iter().find(|(known, _)| known == id)
            && (last.held.is_empty() || last.id != id)
        {
            return Ok(names.clone());
        }
        if last.held.is_empty() {
            return Err(Refusal::NotFound(
                "no removal waits for approval".to_owned(),
            ));
        }
        if last.id != id {
            return Err(Refusal::NotFound(format!(
                "no plan \"{id}\" waits for approval, but plan \"{}\" does: look at `volund plan` first",
                last.id
            )));
        }
        let names: Vec<VolumeName> = last.held.iter().cloned().collect();
        self.removals.approved.extend(names.iter().cloned());
        tracing::info!(id, volumes = ?names, "removals approved");
        self.approved.retain(|(known, _)| known != id);
        self.approved.push_back((id.to_owned(), names.clone()));
        if self.approved.len() > APPROVED_MAX {
            self.approved.pop_front();
        }
        Ok(names)
    }

    /// Does one thing beside the loop, which goes on, and answers `value` once it is done.
    fn execute<T: Send + 'static>(&self, task: Task, value: T, answer: oneshot::Sender<Answer<T>>) {
        let job = (self.work.execute)(task);
        tokio::spawn(async move {
            let result = job.await;
            // Whoever asked may have gone.
            let _ = answer.send(match result {
                Ok(()) => Ok(value),
                Err(failure) if failure.reason == "NotFound" => {
                    Err(Refusal::NotFound(failure.message))
                }
                Err(failure) => Err(Refusal::Failed(failure.message)),
            });
        });
    }

    /// Looks, plans, starts what can be started, and says how things are. Returns how long that took.
    async fn pass(&mut self) -> Duration {
        let begin = (self.times.monotonic)();
        let observed = (self.work.observe)().await;
        let Some(config) = self.config.clone() else {
            return Duration::ZERO;
        };
        self.removals
            .note(&config.desired, &observed, config.generation);
        let plan = plan(&config.desired, &observed, &self.removals);
        self.settle(&plan, &observed);
        if self.stopping.is_none() {
            self.start_actors(&plan);
        }
        self.say(&config, &plan, &observed);
        let took = (self.times.monotonic)().duration_since(begin);
        self.count(took);
        self.last = (plan, observed);
        self.publish.send_replace(Arc::new(self.snapshot.clone()));
        took
    }

    /// Where no actor is at work, what is observed decides the state; a failure only once nothing is left to do.
    fn settle(&mut self, plan: &Plan, observed: &Observed) {
        let time = self.times.now_text();
        self.records.forget(plan, observed, &time);
        for (name, volume) in &plan.volumes {
            if volume.goal == Goal::Elsewhere && !observed.volumes.contains_key(name) {
                continue;
            }
            let record = self.records.volumes.entry(name.clone()).or_default();
            if record.record.busy || (record.state.has_failed() && !volume.steps.is_empty()) {
                continue;
            }
            if volume.steps.is_empty() {
                record.record.failure = None;
                record.record.backoff.reset();
            }
            let event = match observed.volumes.get(name) {
                Some(volume) if volume.serving && volume.export.is_some() => Event::Attached,
                Some(volume) if volume.serving => Event::Ready,
                _ => Event::Stopped,
            };
            self.records.live(name, event, &time);
        }
    }

    fn start_actors(&mut self, plan: &Plan) {
        let now = self.now();
        self.records.looked_at = now;
        for (name, pool) in &plan.pools {
            let record = self.records.pools.entry(name.clone()).or_default();
            if let Some(action) = &pool.action
                && record.may_start(now)
            {
                record.busy = true;
                let task = Task::Pool(name.clone(), action.clone());
                self.operations.planned(std::iter::once(task));
                apply::start_pool(
                    &self.work,
                    name.clone(),
                    action.clone(),
                    self.reports.clone(),
                );
            }
        }
        for (name, volume) in &plan.volumes {
            if volume.steps.is_empty() || !volume.unknown_until.is_empty() || waits(volume, plan) {
                continue;
            }
            let record = self.records.volumes.entry(name.clone()).or_default();
            if record.may_start(now) {
                record.record.busy = true;
                let steps = volume.steps.iter().map(|step| step.action.clone());
                let tasks = steps.map(|action| Task::Volume(name.clone(), action));
                self.operations.planned(tasks);
                apply::start_volume(
                    &self.work,
                    name.clone(),
                    volume.steps.clone(),
                    self.generation.subscribe(),
                    self.reports.clone(),
                );
            }
        }
        for entry in plan.purges.keys() {
            let record = self.records.purges.entry(entry.clone()).or_default();
            if record.may_start(now) {
                record.busy = true;
                self.operations
                    .planned(std::iter::once(Task::Purge(entry.clone())));
                apply::start_purge(&self.work, entry.clone(), self.reports.clone());
            }
        }
    }

    fn count(&mut self, took: Duration) {
        let failed = self.records.has_failures();
        let busy = self.records.is_busy();
        let report = &self.snapshot.plan;
        let done = !failed && !busy && !report.has_changes();
        let done_at = done.then(|| self.times.unix_seconds());
        self.snapshot.stats.note(took, report, failed, done_at);
        if !busy {
            self.snapshot.settled = true;
        }
    }
}

/// Waits as long as the last pass took. A pass looks at every volume: when they all bring news one after the other, at a start,
/// half of the thread's time is left for those who bring it.
async fn rest(took: Duration) {
    if took >= Duration::from_millis(1) {
        tokio::time::sleep(took).await;
    }
}

/// Whether a volume that this one takes something over from is not done with it yet.
fn waits(volume: &VolumePlan, plan: &Plan) -> bool {
    let mut before = volume
        .after
        .iter()
        .filter_map(|name| plan.volumes.get(name));
    before.any(|other| !other.steps.is_empty())
}

mod checks;
mod say;
#[cfg(test)]
mod tests;
