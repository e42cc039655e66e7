//! How others talk to the reconciler: commands in, a snapshot out. Nobody waits for a pool here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::events::Events;
use super::operations::Operations;
use super::report::PlanReport;
use crate::model::fault::Fault;
use crate::model::journal::{Revision, Saved, Unsaved};
use crate::model::spec::DesiredState;
use crate::model::status::NodeStatus;
use crate::model::{PoolName, VolumeName};

/// Upper bounds of the duration buckets of a pass, seconds.
pub const PASS_BUCKETS_SECONDS: [f64; 8] = [0.001, 0.004, 0.016, 0.064, 0.256, 1.0, 4.0, 16.0];

/// A configuration to be put in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it asks for.
    pub desired: DesiredState,
    /// Its number since the state folder was made.
    pub generation: u64,
    /// SHA-256 over its files, hexadecimal.
    pub hash: String,
    /// The commit that is checked out, if its files are in a git work tree.
    pub commit: Option<String>,
    /// When it was accepted, RFC 3339.
    pub applied_at: String,
}

impl Config {
    /// Which state of the files it is.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision {
            generation: Some(self.generation),
            hash: self.hash.clone(),
            commit: self.commit.clone(),
        }
    }
}

/// Everything that may be known about the reconciler, taken after a pass.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// For `/v1/status`.
    pub status: Arc<NodeStatus>,
    /// What is left to do.
    pub plan: PlanReport,
    /// Whether a pass has ended with nothing under way since the daemon started.
    pub settled: bool,
    /// For the metrics.
    pub stats: Stats,
}

/// Counts of the reconciler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Passes after which no object was in failure.
    pub passes_ok: u64,
    /// Passes after which some object was.
    pub passes_failed: u64,
    /// Passes per duration bucket, not cumulative; the last exceeds every bound.
    pub durations: [u64; PASS_BUCKETS_SECONDS.len() + 1],
    /// Time that all passes took, seconds.
    pub seconds: f64,
    /// Changes left to do, by action: `add`, `change`, `remove`, `blocked`.
    pub pending: BTreeMap<&'static str, u64>,
    /// When a pass last ended with nothing left to do and nothing failed, seconds since 1970.
    pub last_success_unix_seconds: Option<u64>,
}

impl Stats {
    /// Counts a pass that took so long and left `report` to be done. `done_at`: it ended with nothing left to do.
    pub(super) fn note(
        &mut self,
        took: Duration,
        report: &PlanReport,
        failed: bool,
        done_at: Option<u64>,
    ) {
        let seconds = took.as_secs_f64();
        let bucket = PASS_BUCKETS_SECONDS
            .iter()
            .position(|bound| seconds <= *bound);
        self.durations[bucket.unwrap_or(PASS_BUCKETS_SECONDS.len())] += 1;
        self.seconds += seconds;
        let pending = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.pending = BTreeMap::from([
            ("add", pending(report.to_add)),
            ("change", pending(report.to_change)),
            ("remove", pending(report.to_remove)),
            ("blocked", pending(report.blocked)),
        ]);
        if failed {
            self.passes_failed += 1;
        } else {
            self.passes_ok += 1;
        }
        self.last_success_unix_seconds = done_at.or(self.last_success_unix_seconds);
    }
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such plan or entry.
    #[error("{0}")]
    NotFound(String),
    /// It can't be done as things are.
    #[error("{0}")]
    Conflict(String),
    /// The engine failed.
    #[error("{0}")]
    Failed(String),
    /// The daemon is on its way out.
    #[error("the daemon is stopping")]
    Stopping,
}

impl Refusal {
    /// One CamelCase word for the journal.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "NotFound",
            Self::Conflict(_) => "Conflict",
            Self::Failed(_) => "Failed",
            Self::Stopping => "Stopping",
        }
    }
}

/// Answer to a command.
pub type Answer<T> = Result<T, Refusal>;

pub(super) enum Command {
    /// With what is wrong with the files on disk, if those are others.
    Apply(Box<Config>, Option<(String, Revision)>),
    ConfigError(Option<String>, Option<Revision>),
    Commit(Option<String>),
    Resume(Box<Saved>),
    Kick,
    Plan(Option<Box<DesiredState>>, oneshot::Sender<PlanReport>),
    Approve(String, oneshot::Sender<Answer<Vec<VolumeName>>>),
    Restore(
        String,
        Option<VolumeName>,
        oneshot::Sender<Answer<VolumeName>>,
    ),
    Purge(String, oneshot::Sender<Answer<()>>),
    PurgeOrphan(Uuid, oneshot::Sender<Answer<()>>),
    Inject(
        VolumeName,
        PoolName,
        Vec<Fault>,
        oneshot::Sender<Answer<()>>,
    ),
    Stop(oneshot::Sender<()>),
}

/// A line to the reconciler; clones share it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) events: Events,
    pub(super) operations: Operations,
}

impl Handle {
    /// The newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Changes with every pass.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// What happened lately.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// What was done lately.
    #[must_use]
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Takes up what was kept over a restart. Before the first [`Handle::apply`], and before anything has happened.
    pub fn resume(&self, mut saved: Saved) {
        self.events.resume(std::mem::take(&mut saved.events));
        let operations = std::mem::take(&mut saved.operations);
        self.operations.resume(operations);
        self.send(Command::Resume(Box::new(saved)));
    }

    /// Events and operations that are to be written; they count as written from now on.
    #[must_use]
    pub fn take_unsaved(&self) -> Unsaved {
        Unsaved {
            events: self.events.take_unsaved(),
            operations: self.operations.take_unsaved(),
        }
    }

    /// Puts a configuration in force.
    pub fn apply(&self, config: Config) {
        self.send(Command::Apply(Box::new(config), None));
    }

    /// As [`Handle::apply`], for what was in force before the start: the files on disk were refused. `error` says why,
    /// `refused` which they are.
    pub fn apply_last_good(&self, config: Config, error: String, refused: Revision) {
        let wrong = Some((error, refused));
        self.send(Command::Apply(Box::new(config), wrong));
    }

    /// Notes what is wrong with the files on disk and which they are, or that nothing is any more. What is in force
    /// stays.
    pub fn set_config_error(&self, error: Option<String>, refused: Option<Revision>) {
        self.send(Command::ConfigError(error, refused));
    }

    /// Notes that another commit is checked out, with the same files.
    pub fn set_commit(&self, commit: Option<String>) {
        self.send(Command::Commit(commit));
    }

    /// Tries everything again at once, whatever failed before.
    pub fn kick(&self) {
        self.send(Command::Kick);
    }

    /// What would have to change for `candidate`, or is left to do for the configuration in force. Changes nothing.
    ///
    /// # Errors
    /// [`Refusal::Stopping`].
    pub async fn plan(&self, candidate: Option<DesiredState>) -> Answer<PlanReport> {
        let candidate = candidate.map(Box::new);
        self.ask(|answer| Command::Plan(candidate, answer)).await
    }

    /// Lets the removals go that wait under a plan's id. Answers their names.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] when no plan of that id waits.
    pub async fn approve(&self, id: String) -> Answer<Vec<VolumeName>> {
        self.ask(|answer| Command::Approve(id, answer)).await?
    }

    /// Brings quarantined data back, under its old name or another. Answers the name.
    ///
    /// # Errors
    /// Any [`Refusal`].
    pub async fn restore(&self, entry: String, name: Option<VolumeName>) -> Answer<VolumeName> {
        self.ask(|answer| Command::Restore(entry, name, answer))
            .await?
    }

    /// Deletes quarantined data for ever.
    ///
    /// # Errors
    /// Any [`Refusal`].
    pub async fn purge(&self, entry: String) -> Answer<()> {
        self.ask(|answer| Command::Purge(entry, answer)).await?
    }

    /// Deletes what nobody declares for ever.
    ///
    /// # Errors
    /// Any [`Refusal`].
    pub async fn purge_orphan(&self, id: Uuid) -> Answer<()> {
        self.ask(|answer| Command::PurgeOrphan(id, answer)).await?
    }

    /// Breaks a volume's copy in a pool on purpose; without faults, ends that.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when the configuration in force does not allow it, else what the engine says.
    pub async fn inject(
        &self,
        volume: VolumeName,
        pool: PoolName,
        faults: Vec<Fault>,
    ) -> Answer<()> {
        self.ask(|answer| Command::Inject(volume, pool, faults, answer))
            .await?
    }

    /// Starts nothing new and returns when nothing is under way any more.
    pub async fn stop(&self) {
        // An error means that it has stopped already.
        let _ = self.ask(Command::Stop).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Answer<T> {
        let (sender, receiver) = oneshot::channel();
        self.send(command(sender));
        receiver.await.map_err(|_| Refusal::Stopping)
    }

    fn send(&self, command: Command) {
        // When the reconciler has stopped there is nothing left to be told.
        let _ = self.commands.send(command);
    }
}
