//! Doing what a plan says: one actor per volume that has something to do, each going through its steps in order.
//!
//! Thin on purpose: what to do is the planner's, how is the engine's. Actors of different volumes run at the same
//! time, so a hung disk holds up its own volumes only.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::state::{Event, Phase};
use super::step::{PoolAction, VolumeAction, VolumeStep};
use crate::engine::{Engine, EngineError};
use crate::model::fault::Fault;
use crate::model::observed::Observed;
use crate::model::policy::NodePolicy;
use crate::model::{PoolName, VolumeName};

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One CamelCase word that programs can match.
    pub reason: String,
    /// Why, in a sentence with the next step.
    pub message: String,
    /// The error and then what caused it, down to the first cause: the parts of the message.
    pub chain: Vec<String>,
}

impl Failure {
    /// A failure that nothing else has caused.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            reason: reason.into(),
            chain: vec![message.clone()],
            message,
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self {
            reason: error.reason().to_owned(),
            message: error.to_string(),
            chain: error.chain().to_vec(),
        }
    }
}

/// One call of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// To a pool.
    Pool(PoolName, PoolAction),
    /// To a volume.
    Volume(VolumeName, VolumeAction),
    /// Quarantined data, back under a name.
    Restore {
        /// The entry's id.
        entry: String,
        /// The name it gets.
        name: VolumeName,
    },
    /// Quarantined data, gone for ever.
    Purge(String),
    /// Data that nobody declares, gone for ever.
    PurgeOrphan(Uuid),
    /// To the node.
    Node(NodePolicy),
    /// What is to go wrong on a volume's copy in a pool; nothing ends it.
    Inject(VolumeName, PoolName, Vec<Fault>),
}

/// A call of the engine under way.
pub type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The engine as the reconciler sees it: three closures, so that the loop can be tested without one.
#[derive(Clone)]
pub struct Work {
    /// Looks at what is there.
    pub observe: Arc<dyn Fn() -> Job<Observed> + Send + Sync>,
    /// Does one thing.
    pub execute: Arc<dyn Fn(Task) -> Job<Result<(), Failure>> + Send + Sync>,
    /// Bumped when what is there may have changed.
    pub changes: watch::Receiver<u64>,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}

impl Work {
    /// The work of a real engine.
    #[must_use]
    pub fn of(engine: &Engine) -> Self {
        let (observing, executing) = (engine.clone(), engine.clone());
        Self {
            observe: Arc::new(move || {
                let engine = observing.clone();
                Box::pin(async move { engine.observe().await })
            }),
            execute: Arc::new(move |task| {
                let engine = executing.clone();
                Box::pin(async move { execute(&engine, task).await.map_err(Failure::from) })
            }),
            changes: engine.changes(),
        }
    }
}

/// One call of the engine.
async fn execute(engine: &Engine, task: Task) -> Result<(), EngineError> {
    match task {
        Task::Pool(name, PoolAction::Open(spec)) => engine.open_pool(&name, &spec).await,
        Task::Pool(name, PoolAction::Close) => engine.close_pool(&name).await,
        Task::Volume(name, action) => change(engine, &name, action).await,
        Task::Restore { entry, name } => engine.restore_volume(&entry, &name).await,
        Task::Purge(entry) => engine.purge(&entry).await,
        Task::PurgeOrphan(id) => engine.purge_orphan(id).await,
        Task::Node(policy) => {
            engine.configure_node(policy);
            Ok(())
        }
        Task::Inject(name, pool, faults) => engine.inject(&name, &pool, &faults),
    }
}

async fn change(
    engine: &Engine,
    name: &VolumeName,
    action: VolumeAction,
) -> Result<(), EngineError> {
    match action {
        VolumeAction::Rename { from } => engine.rename_volume(&from, name).await,
        VolumeAction::Restore { entry } => engine.restore_volume(&entry, name).await,
        VolumeAction::Ensure {
            spec,
            creates: true,
        } => engine.ensure_volume(name, &spec).await,
        VolumeAction::Ensure { spec, .. } => engine.open_volume(name, &spec).await,
        VolumeAction::SetPolicy(policy) => engine.set_removal_policy(name, policy).await,
        VolumeAction::EnsureExport { export, read_only } => {
            engine.ensure_export(name, &export, read_only).await
        }
        VolumeAction::RemoveExport => engine.remove_export(name).await,
        VolumeAction::Quarantine => {
            let entry = engine.quarantine_volume(name).await?;
            tracing::info!(volume = %name, entry, "data is in quarantine");
            Ok(())
        }
        VolumeAction::Configure(policy) => engine.configure_volume(name, &policy).await,
        VolumeAction::Grow { size } => engine.grow_volume(name, size).await,
        VolumeAction::AddReplica { pool } => engine.add_replica(name, &pool).await,
        VolumeAction::RemoveReplica { pool } => engine.remove_replica(name, &pool).await,
    }
}

/// What an actor tells the reconciler.
#[derive(Debug)]
pub(super) enum Report {
    /// A volume's life goes on.
    Life(VolumeName, Event),
    /// A volume's actor has ended.
    VolumeEnded(VolumeName, Result<(), Failure>),
    /// A pool's actor has ended.
    PoolEnded(PoolName, Result<(), Failure>),
    /// A purge has ended.
    PurgeEnded(String, Result<(), Failure>),
}

/// Starts an actor that goes through `steps`. It stops early, without an error, once `generation` moves on: the rest
/// of the steps belongs to a configuration that is no longer wanted.
pub(super) fn start_volume(
    work: &Work,
    name: VolumeName,
    steps: Vec<VolumeStep>,
    generation: watch::Receiver<u64>,
    reports: mpsc::UnboundedSender<Report>,
) {
    let execute = work.execute.clone();
    tokio::spawn(async move {
        let wanted = *generation.borrow();
        let mut running: Option<Phase> = None;
        let mut result = Ok(());
        let tell = |event| {
            // The reconciler outlives its actors but for the end of the process.
            let _ = reports.send(Report::Life(name.clone(), event));
        };
        for step in steps {
            if *generation.borrow() != wanted {
                break;
            }
            let phase = phase(&step.action);
            if let Some(ended) = running.filter(|_| phase != running) {
                tell(ended.ends());
            }
            if let Some(begun) = phase.filter(|_| phase != running) {
                tell(begun.begins());
            }
            running = phase;
            let is_independent = step.action.is_independent();
            let ended = execute(Task::Volume(name.clone(), step.action)).await;
            let failed = ended.is_err();
            result = result.and(ended);
            if failed && !is_independent {
                tell(Event::Fail);
                running = None;
                break;
            }
        }
        if let Some(ended) = running {
            tell(ended.ends());
        }
        let _ = reports.send(Report::VolumeEnded(name.clone(), result));
    });
}

/// Starts an actor for a pool.
pub(super) fn start_pool(
    work: &Work,
    name: PoolName,
    action: PoolAction,
    reports: mpsc::UnboundedSender<Report>,
) {
    let job = (work.execute)(Task::Pool(name.clone(), action));
    tokio::spawn(async move {
        // The reconciler outlives its actors but for the end of the process.
        let _ = reports.send(Report::PoolEnded(name, job.await));
    });
}

/// Starts the purge of a quarantine entry.
pub(super) fn start_purge(work: &Work, entry: String, reports: mpsc::UnboundedSender<Report>) {
    let job = (work.execute)(Task::Purge(entry.clone()));
    tokio::spawn(async move {
        // The reconciler outlives its actors but for the end of the process.
        let _ = reports.send(Report::PurgeEnded(entry, job.await));
    });
}

/// The part of a volume's life that a step belongs to.
fn phase(action: &VolumeAction) -> Option<Phase> {
    match action {
        VolumeAction::Rename { .. }
        | VolumeAction::Restore { .. }
        | VolumeAction::Ensure { .. } => Some(Phase::Create),
        // Life goes on meanwhile.
        VolumeAction::SetPolicy(_)
        | VolumeAction::Configure(_)
        | VolumeAction::Grow { .. }
        | VolumeAction::AddReplica { .. }
        | VolumeAction::RemoveReplica { .. } => None,
        VolumeAction::EnsureExport { .. } => Some(Phase::Attach),
        VolumeAction::RemoveExport => Some(Phase::Detach),
        VolumeAction::Quarantine => Some(Phase::Delete),
    }
}
