//! The operations journal: each thing that is done or was asked for, from planned to done or failed.
//!
//! ```text
//!            Begin              Succeed
//!  pending --------> executing --------> completed
//!     |  ^              |
//!     |  | Retry        | Fail
//!     |  +--- failed <--+
//!     |          ^
//!     +----------+ Fail: its turn never comes
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::Instrument as _;

use super::apply::{Failure, Job, Task, Work};
use super::naming::{Named, name};
use crate::model::journal::{Cause, Operation, OperationState, Revision, first_after};
use crate::model::time::Times;

/// How many are kept; those under way are kept in any case.
pub const OPERATIONS_MAX: usize = 1000;

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Its turn has come.
    Begin,
    /// Its goal is met.
    Succeed,
    /// It has failed, or its turn will not come.
    Fail,
    /// It is planned again.
    Retry,
}

/// The table: where an event leads to; none when it can't happen in that state.
pub(super) const fn next(state: OperationState, event: Event) -> Option<OperationState> {
    use OperationState as S;
    match (state, event) {
        (S::Pending, Event::Begin) => Some(S::Executing),
        (S::Pending | S::Executing, Event::Fail) => Some(S::Failed),
        (S::Executing, Event::Succeed) => Some(S::Completed),
        (S::Failed, Event::Retry) => Some(S::Pending),
        (S::Pending, Event::Succeed | Event::Retry)
        | (S::Executing, Event::Begin | Event::Retry)
        | (S::Completed, Event::Begin | Event::Succeed | Event::Fail | Event::Retry)
        | (S::Failed, Event::Begin | Event::Succeed | Event::Fail) => None,
    }
}

/// The newest operations. Clones share them.
#[derive(Clone, Debug)]
pub struct Operations {
    times: Times,
    kept: Arc<Mutex<Kept>>,
    changes: watch::Sender<u64>,
}

/// Object and what is done to it: the same step again is the same operation.
type Key = (String, String);

#[derive(Debug, Default)]
struct Kept {
    newest: u64,
    /// By id, ascending.
    all: VecDeque<Operation>,
    /// Steps that are planned and whose turn has not come.
    pending: BTreeMap<Key, u64>,
    /// Steps that failed under the configuration in force.
    failed: BTreeMap<Key, u64>,
    /// When those under way were begun.
    begun: BTreeMap<u64, Instant>,
    revision: Option<Revision>,
    /// Configurations that were put in force since the daemon started.
    configurations: u32,
    /// Objects that were as wanted under the configuration in force.
    in_place: BTreeSet<String>,
    unsaved: BTreeSet<u64>,
}

impl Operations {
    /// An empty journal.
    #[must_use]
    pub fn new(times: Times) -> Self {
        Self {
            times,
            kept: Arc::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// All that are kept, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Operation> {
        self.lock().all.iter().cloned().collect()
    }

    /// The one with this id.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Operation> {
        self.lock().find(id).cloned()
    }

    /// Whether the journal says that this was done to an object, and nothing was done to it since.
    #[must_use]
    pub fn was_done(&self, object: &str, summary: &str) -> bool {
        let kept = self.lock();
        let mut its = kept.all.iter().rev().filter(|op| op.object == object);
        its.find(|op| op.state == OperationState::Completed)
            .is_some_and(|op| op.summary == summary)
    }

    /// Changes with each step of each operation.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Begins what someone has asked for; `by` says who.
    #[must_use]
    pub fn request(&self, named: Named, by: Option<String>) -> Ticket {
        let time = self.times.now_text();
        let id = self.change(|kept| {
            let id = kept.add(named, Cause::Request, by, &time);
            kept.step(id, Event::Begin, &time);
            id
        });
        self.ticket(id)
    }

    /// Takes up what was kept over a restart, before anything is added.
    pub(super) fn resume(&self, saved: Vec<Operation>) {
        let time = self.times.now_text();
        self.change(|kept| {
            let newest = saved.last().map_or(0, |operation| operation.id);
            kept.newest = first_after(newest) - 1;
            kept.all = saved.into();
            let all = kept.all.iter().filter(|op| !op.state.has_ended());
            let unfinished: Vec<u64> = all.map(|operation| operation.id).collect();
            for id in unfinished {
                let message =
                    "the daemon ended before this did; what is left of it is planned anew";
                kept.fail(id, &Failure::new("Interrupted", message), &time);
            }
            kept.trim();
        });
    }

    /// A configuration is in force from now on.
    pub(super) fn configured(&self, revision: Revision) {
        self.change(|kept| {
            kept.revision = Some(revision);
            kept.configurations = kept.configurations.saturating_add(1);
            kept.failed.clear();
            kept.in_place.clear();
        });
    }

    /// Objects that are as wanted: what is done to them from now on is about drift.
    pub(super) fn in_place(&self, objects: impl Iterator<Item = String>) {
        self.lock().in_place.extend(objects);
    }

    /// Steps whose turn comes now, one after the other.
    pub(super) fn planned(&self, tasks: impl Iterator<Item = Task>) {
        let time = self.times.now_text();
        self.change(|kept| {
            for named in tasks.filter_map(|task| name(&task)) {
                let key = (named.object.clone(), named.summary.clone());
                if kept.pending.contains_key(&key) {
                    continue;
                }
                let id = match kept.failed.remove(&key) {
                    Some(id) if kept.find(id).is_some() => {
                        kept.step(id, Event::Retry, &time);
                        id
                    }
                    _ => {
                        let cause = kept.cause(&key.0);
                        kept.add(named, cause, None, &time)
                    }
                };
                kept.pending.insert(key, id);
            }
        });
    }

    /// Nothing is done to an object any more: steps of it whose turn has not come are given up. `why` is what ended it.
    pub(super) fn settled(&self, object: &str, why: Option<&Failure>) {
        let time = self.times.now_text();
        let failure = match why {
            Some(why) => Failure::new("Skipped", format!("a step before it failed: {why}")),
            None => Failure::new("Superseded", "another configuration came before its turn"),
        };
        let left = {
            let kept = self.lock();
            let its = kept.pending.range((object.to_owned(), String::new())..);
            let its = its.take_while(|(key, _)| key.0 == object);
            its.map(|(key, id)| (key.clone(), *id)).collect::<Vec<_>>()
        };
        if left.is_empty() {
            return;
        }
        self.change(|kept| {
            for (key, id) in left {
                kept.pending.remove(&key);
                kept.fail(id, &failure, &time);
                if why.is_some() {
                    kept.failed.insert(key, id);
                }
            }
        });
    }

    /// The turn of a step has come. None for what was not planned: whoever asked for it has the ticket.
    pub(super) fn begin(&self, task: &Task) -> Option<Ticket> {
        let named = name(task)?;
        let time = self.times.now_text();
        let key = (named.object, named.summary);
        let id = self.lock().pending.remove(&key)?;
        self.change(|kept| kept.step(id, Event::Begin, &time));
        let mut ticket = self.ticket(id);
        ticket.key = Some(key);
        Some(ticket)
    }

    /// The same work, of which the journal is kept. Everything that the log says of a step has its operation's id.
    pub(super) fn record(&self, work: Work) -> Work {
        let (operations, execute) = (self.clone(), work.execute);
        let execute = move |task: Task| -> Job<Result<(), Failure>> {
            let ticket = operations.begin(&task);
            let job = execute(task);
            let Some(ticket) = ticket else { return job };
            let span = tracing::info_span!("operation", id = ticket.id);
            let job = async move {
                let result = job.await;
                if let Err(failure) = &result {
                    tracing::info!(reason = failure.reason, "failed: {failure}");
                }
                ticket.end(result.as_ref().copied());
                result
            };
            Box::pin(job.instrument(span))
        };
        Work {
            execute: Arc::new(execute),
            ..work
        }
    }

    /// What is to be written; it counts as written from now on.
    pub(super) fn take_unsaved(&self) -> Vec<(u64, Option<Operation>)> {
        let mut kept = self.lock();
        let ids = std::mem::take(&mut kept.unsaved);
        ids.into_iter()
            .map(|id| (id, kept.find(id).cloned()))
            .collect()
    }

    fn ticket(&self, id: u64) -> Ticket {
        let began = (self.times.monotonic)();
        self.lock().begun.insert(id, began);
        Ticket {
            operations: self.clone(),
            id,
            key: None,
            ended: false,
        }
    }

    fn end(&self, ticket: &Ticket, result: Result<(), &Failure>) {
        let (now, time) = ((self.times.monotonic)(), self.times.now_text());
        self.change(|kept| {
            let began = kept.begun.remove(&ticket.id);
            let took = began.map_or(Duration::ZERO, |began| now.duration_since(began));
            match result {
                Ok(()) => kept.step(ticket.id, Event::Succeed, &time),
                Err(failure) => {
                    kept.fail(ticket.id, failure, &time);
                    if let Some(key) = &ticket.key {
                        kept.failed.insert(key.clone(), ticket.id);
                    }
                }
            }
            if let Some(operation) = kept.find_mut(ticket.id) {
                operation.duration_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
            kept.trim();
        });
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        let answer = change(&mut self.lock());
        self.changes.send_modify(|changes| *changes += 1);
        answer
    }
}

impl Kept {
    fn find(&self, id: u64) -> Option<&Operation> {
        let found = self.all.binary_search_by_key(&id, |operation| operation.id);
        found.ok().map(|at| &self.all[at])
    }

    fn find_mut(&mut self, id: u64) -> Option<&mut Operation> {
        let found = self.all.binary_search_by_key(&id, |operation| operation.id);
        found.ok().map(|at| &mut self.all[at])
    }

    fn cause(&self, object: &str) -> Cause {
        if self.in_place.contains(object) {
            Cause::Drift
        } else if self.configurations > 1 {
            Cause::Configuration
        } else {
            Cause::Start
        }
    }

    fn add(&mut self, named: Named, cause: Cause, by: Option<String>, time: &str) -> u64 {
        self.newest += 1;
        let id = self.newest;
        self.all.push_back(Operation {
            id,
            object: named.object,
            action: named.action.to_owned(),
            summary: named.summary,
            state: OperationState::Pending,
            cause,
            requested_by: by,
            revision: self.revision.clone(),
            attempts: 0,
            created_at: time.to_owned(),
            started_at: None,
            ended_at: None,
            duration_ms: None,
            reason: None,
            errors: Vec::new(),
        });
        self.unsaved.insert(id);
        self.trim();
        id
    }

    /// Moves an operation on. What the table does not allow is a bug of the caller, and changes nothing.
    fn step(&mut self, id: u64, event: Event, time: &str) {
        let Some(operation) = self.find_mut(id) else {
            return;
        };
        let Some(state) = next(operation.state, event) else {
            debug_assert!(false, "{event:?} of {operation:?}");
            return;
        };
        operation.state = state;
        match event {
            Event::Begin => {
                operation.attempts = operation.attempts.saturating_add(1);
                operation.started_at = Some(time.to_owned());
                operation.ended_at = None;
                operation.duration_ms = None;
            }
            Event::Succeed => {
                operation.reason = None;
                operation.errors.clear();
                operation.ended_at = Some(time.to_owned());
            }
            Event::Fail => operation.ended_at = Some(time.to_owned()),
            Event::Retry => {}
        }
        self.unsaved.insert(id);
    }

    fn fail(&mut self, id: u64, failure: &Failure, time: &str) {
        self.step(id, Event::Fail, time);
        if let Some(operation) = self.find_mut(id) {
            operation.reason = Some(failure.reason.clone());
            operation.errors = failure.chain.clone();
        }
    }

    /// Drops the oldest that have ended when there are too many.
    fn trim(&mut self) {
        let mut excess = self.all.len().saturating_sub(OPERATIONS_MAX);
        while excess > 0 {
            excess -= 1;
            let Some(at) = self.all.iter().position(|op| op.state.has_ended()) else {
                return;
            };
            let dropped = self.all.remove(at).map(|operation| operation.id);
            self.failed.retain(|_, id| Some(*id) != dropped);
            self.unsaved.extend(dropped);
        }
    }
}

/// An operation under way. Dropped without an end, it has failed.
#[derive(Debug)]
pub struct Ticket {
    operations: Operations,
    id: u64,
    /// Of a step that may be tried again.
    key: Option<Key>,
    ended: bool,
}

impl Ticket {
    /// The operation's id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Notes how it ended.
    pub fn end(mut self, result: Result<(), &Failure>) {
        self.ended = true;
        self.operations.end(&self, result);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            let lost = Failure::new("Abandoned", "what did this has ended without a result");
            self.operations.end(self, Err(&lost));
        }
    }
}

#[cfg(test)]
mod tests;
