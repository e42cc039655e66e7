//! A running volume: what of it lives on its reactor, and what the control thread holds of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::error::EngineError;
use super::exports::LiveExport;
use crate::io::{Disk, Local, ReactorHandle};
use crate::model::observed::{AppliedVolume, ObservedExport, Problem};
use crate::model::{PoolName, ReplicaId, VolumeId};
use crate::nexus::{Health, Nexus, NexusEnv, NexusStatus};
use crate::state::WitnessFile;
use crate::volume::{Counters, Volume};

/// How long a clean stop may take before the caller is told that it hangs.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// The parts that a nexus is built from in production.
#[derive(Debug)]
pub(super) enum LiveEnv {}

impl NexusEnv for LiveEnv {
    type Disk = Disk;
    type Clock = Local;
    type Rng = Local;
    type Spawn = Local;
    type Witness = WitnessFile<Disk>;
}

/// A volume as frontends serve it.
pub(super) type LiveVolume = Volume<Nexus<LiveEnv>, Local>;

/// The volumes of one reactor.
#[derive(Default)]
struct Registry {
    volumes: RefCell<BTreeMap<VolumeId, Rc<LiveVolume>>>,
}

/// The volume with this id, if it runs on this reactor.
pub(super) fn find(local: &Local, id: VolumeId) -> Option<Rc<LiveVolume>> {
    let registry = local.extension(Registry::default);
    registry.volumes.borrow().get(&id).cloned()
}

/// Adds a volume to its reactor.
pub(super) fn insert(local: &Local, volume: LiveVolume) {
    let registry = local.extension(Registry::default);
    registry
        .volumes
        .borrow_mut()
        .insert(volume.id(), Rc::new(volume));
}

/// Takes a volume off its reactor.
fn remove(local: &Local, id: VolumeId) -> Option<Rc<LiveVolume>> {
    let registry = local.extension(Registry::default);
    registry.volumes.borrow_mut().remove(&id)
}

/// What changes with a running volume's members.
#[derive(Clone, Debug)]
pub(super) struct Books {
    /// How it was made, and what was last applied to it.
    pub(super) applied: AppliedVolume,
    /// Its replicas in files.
    pub(super) files: Vec<(PoolName, ReplicaId)>,
}

impl Books {
    /// Notes a replica in a file.
    pub(super) fn add_file(&mut self, pool: &PoolName, replica: ReplicaId) {
        if !self.files.iter().any(|(_, known)| *known == replica) {
            self.files.push((pool.clone(), replica));
        }
    }
}

/// What is being done about a member that is out of sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outlook {
    /// The end of a sentence that starts with the member.
    pub(super) text: String,
    /// It rests after too many failures.
    pub(super) given_up: Option<Problem>,
}

/// Tells a volume's keeper that something may be worth another try.
#[derive(Debug, Default)]
pub(super) struct Nudges {
    afresh: AtomicBool,
    notify: tokio::sync::Notify,
}

impl Nudges {
    /// What failed before is forgotten.
    pub(super) fn afresh(&self) {
        self.afresh.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }

    /// Waits for the next. True: what failed before is to be forgotten.
    pub(super) async fn next(&self) -> bool {
        self.notify.notified().await;
        self.afresh.swap(false, Ordering::Relaxed)
    }
}

/// A running volume, as the control thread holds it.
pub(super) struct Live {
    pub(super) id: VolumeId,
    pub(super) reactor: ReactorHandle,
    pub(super) counters: Arc<Counters>,
    /// What the nexus last said of itself.
    pub(super) status: watch::Receiver<NexusStatus>,
    books: Mutex<Books>,
    outlooks: Mutex<BTreeMap<ReplicaId, Outlook>>,
    /// Wakes its keeper.
    pub(super) nudges: Arc<Nudges>,
    /// Whether every replica is in memory: then it is parked when its table goes, because there is no file to move.
    pub(super) is_memory_only: bool,
    pub(super) export: tokio::sync::Mutex<Option<LiveExport>>,
    /// How often clients came back to the export, as last seen.
    pub(super) reconnects: AtomicU64,
    /// What was last seen of the export.
    pub(super) export_seen: Mutex<Option<ObservedExport>>,
}

impl Live {
    pub(super) fn new(
        id: VolumeId,
        (reactor, counters): (ReactorHandle, Arc<Counters>),
        status: watch::Receiver<NexusStatus>,
        books: Books,
        is_memory_only: bool,
    ) -> Self {
        Self {
            id,
            reactor,
            counters,
            status,
            books: Mutex::new(books),
            outlooks: Mutex::default(),
            nudges: Arc::default(),
            is_memory_only,
            export: tokio::sync::Mutex::default(),
            reconnects: AtomicU64::new(0),
            export_seen: Mutex::default(),
        }
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its keeper does about members that are out of sync.
    pub(super) fn outlooks(&self) -> BTreeMap<ReplicaId, Outlook> {
        let outlooks = self.outlooks.lock();
        outlooks.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True when they are others than before.
    pub(super) fn set_outlooks(&self, new: BTreeMap<ReplicaId, Outlook>) -> bool {
        let mut outlooks = self.outlooks.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *outlooks != new;
        *outlooks = new;
        changed
    }

    /// How it was made, and what was last applied to it.
    pub(super) fn applied(&self) -> AppliedVolume {
        self.books().applied.clone()
    }

    /// Whether it was stopped, or is being stopped: it does not serve again.
    pub(super) fn has_stopped(&self) -> bool {
        self.status.borrow().health == Health::Stopped
    }

    /// Stops the volume cleanly (spec A10) and lets go of its replicas. Its export must be gone.
    ///
    /// # Errors
    /// When requests hang on a disk.
    pub(super) async fn stop(&self) -> Result<(), EngineError> {
        let id = self.id;
        let stopped = self.reactor.run(move |local| async move {
            match find(&local, id) {
                Some(volume) => {
                    let clean = volume.device().stop().await;
                    remove(&local, id);
                    clean
                }
                None => true,
            }
        });
        match tokio::time::timeout(STOP_DEADLINE, stopped).await {
            Ok(Ok(clean)) => {
                tracing::info!(volume = %id, clean, "stopped");
                Ok(())
            }
            Ok(Err(_)) => Err(EngineError::stopping()),
            Err(_) => Err(EngineError::new(
                "StopTimeout",
                format!(
                    "requests of volume {id} did not end within {} s: a disk hangs",
                    STOP_DEADLINE.as_secs()
                ),
            )),
        }
    }
}

/// Of a volume whose nexus has not said anything yet.
pub(super) fn initial_status() -> NexusStatus {
    NexusStatus {
        version: 0,
        health: Health::Stopped,
        generation: 0,
        epoch: 0,
        size_bytes: 0,
        children: Vec::new(),
        unresolved_bytes: 0,
        hedged_reads: 0,
        scrub: None,
        last_scrub: None,
        scrubbed: crate::nexus::ScrubTotals::default(),
        resolved_bytes: 0,
        intent_regions: 0,
        lost_unflushed: false,
        rebuilds: crate::nexus::RebuildTotals::default(),
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
