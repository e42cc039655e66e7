//! [`Engine`]: the handle, its start and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, watch};

use super::error::EngineError;
use super::inject::FaultBoard;
use super::live::Live;
use super::permits::Permits;
use super::pools::PoolEntry;
use super::tick;
use crate::frontend::ublk::{Links, UblkControl};
use crate::io::ReactorHandle;
use crate::model::observed::Problem;
use crate::model::policy::NodePolicy;
use crate::model::{Polling, PoolName, VolumeId, VolumeName};
use crate::state::{Contents, StateDir, Store};

/// How long a volume may take to stop when the daemon ends, clients included: less than systemd waits (90 s).
const STOP_MAX: Duration = Duration::from_secs(60);

/// How many volumes are scrubbed at a time.
const SCRUBS_MAX: u32 = 1;

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where sockets go that the configuration does not place.
    pub runtime_dir: PathBuf,
    /// Number of reactors, at least 1.
    pub io_threads: usize,
    /// How long they look around before they sleep.
    pub poll: Polling,
    /// Whether replicas may be broken on purpose, as long as the engine runs.
    pub fault_injection: bool,
}

/// The node's pools, volumes and exports. Clones share them.
#[derive(Clone)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: EngineConfig,
    pub(super) state: StateDir,
    pub(super) store: Store,
    pub(super) reactors: Vec<ReactorHandle>,
    /// What is broken on purpose; none when nothing may be.
    pub(super) faults: Option<Arc<FaultBoard>>,
    pub(super) ublk: UblkControl,
    pub(super) links: Links,
    pools: Mutex<BTreeMap<PoolName, PoolEntry>>,
    volumes: Mutex<BTreeMap<VolumeName, Arc<Live>>>,
    /// Removed volumes that live in memory only: they go on running, unreachable, until restored or purged.
    parked: Mutex<BTreeMap<VolumeId, Parked>>,
    /// Volumes that are being brought up, and the pools that they use for it.
    coming: Mutex<BTreeMap<VolumeName, Vec<PoolName>>>,
    /// Why a volume's last assembly failed.
    problems: Mutex<BTreeMap<VolumeName, Problem>>,
    /// The name that each volume's witness has, for replicas whose labels disagree after a rename that was cut short.
    witness_names: Mutex<BTreeMap<VolumeId, VolumeName>>,
    turns: Mutex<BTreeMap<VolumeName, Arc<tokio::sync::Mutex<()>>>>,
    claims: Mutex<Claims>,
    pub(super) changes: Arc<watch::Sender<u64>>,
    /// How this node looks after its volumes.
    pub(super) policy: watch::Sender<NodePolicy>,
    pub(super) rebuilds: Permits,
    pub(super) scrubs: Permits,
    /// Counts volumes that were placed on a reactor.
    placed: AtomicUsize,
}

/// Held by whoever works on a volume's files.
pub(super) type Claims = BTreeMap<VolumeId, Arc<tokio::sync::Mutex<()>>>;

/// A removed volume in memory.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) name: VolumeName,
    pub(super) removed_at: jiff::Timestamp,
    pub(super) live: Arc<Live>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Starts the reactors and cleans up ublk devices that an earlier run left behind. To be called inside a tokio
    /// runtime, which the engine's own tasks run on.
    ///
    /// # Errors
    /// When a reactor can't be started: io_uring may be disabled.
    pub async fn start(
        config: EngineConfig,
        state: StateDir,
        store: Store,
    ) -> Result<Self, EngineError> {
        let failed = |error: std::io::Error| {
            let what = "a reactor can't be started; is io_uring disabled (sysctl kernel.io_uring_disabled)?";
            EngineError::new("ReactorFailed", format!("{what} {error}"))
        };
        let reactors = (0..config.io_threads.max(1))
            .map(|index| ReactorHandle::start_polling(index, config.poll))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let ublk = UblkControl::start().map_err(failed)?;
        let names = state
            .witnesses()?
            .into_iter()
            .map(|r| (r.volume, r.name))
            .collect();
        let faults = config.fault_injection.then(|| FaultBoard::post(&reactors));
        let shared = Shared {
            config,
            state,
            store,
            reactors,
            faults,
            ublk,
            links: Links::default(),
            pools: Mutex::default(),
            volumes: Mutex::default(),
            parked: Mutex::default(),
            coming: Mutex::default(),
            problems: Mutex::default(),
            witness_names: Mutex::new(names),
            turns: Mutex::default(),
            claims: Mutex::default(),
            changes: Arc::new(watch::Sender::new(0)),
            policy: watch::Sender::default(),
            rebuilds: Permits::new(NodePolicy::default().rebuild_max),
            scrubs: Permits::new(SCRUBS_MAX),
            placed: AtomicUsize::new(0),
        };
        let engine = Self {
            shared: Arc::new(shared),
        };
        engine.delete_leftovers().await;
        tick::start(&engine);
        Ok(engine)
    }

    /// Bumped when something that [`Engine::observe`] shows may have changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// What the node's database holds.
    #[must_use]
    pub fn database(&self) -> Contents {
        self.shared.store.contents()
    }

    /// The folder of what must survive a restart, and that of sockets.
    #[must_use]
    pub fn folders(&self) -> (PathBuf, PathBuf) {
        let state = self.shared.state.path().to_owned();
        (state, self.shared.config.runtime_dir.clone())
    }

    /// The volumes that run, parked ones included.
    #[must_use]
    pub fn served(&self) -> BTreeSet<VolumeId> {
        let running: BTreeSet<_> = self.volumes().values().map(|live| live.id).collect();
        running
            .into_iter()
            .chain(self.parked().keys().copied())
            .collect()
    }

    pub(super) fn touch(&self) {
        self.shared.touch();
    }

    /// Waits until nobody else changes this volume.
    pub(super) async fn turn(&self, name: &VolumeName) -> OwnedMutexGuard<()> {
        let turn = Arc::clone(lock(&self.shared.turns).entry(name.clone()).or_default());
        turn.lock_owned().await
    }

    pub(super) fn claims(&self) -> MutexGuard<'_, Claims> {
        lock(&self.shared.claims)
    }

    pub(super) fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolName, PoolEntry>> {
        lock(&self.shared.pools)
    }

    pub(super) fn volumes(&self) -> MutexGuard<'_, BTreeMap<VolumeName, Arc<Live>>> {
        lock(&self.shared.volumes)
    }

    pub(super) fn parked(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Parked>> {
        lock(&self.shared.parked)
    }

    pub(super) fn coming(&self) -> MutexGuard<'_, BTreeMap<VolumeName, Vec<PoolName>>> {
        lock(&self.shared.coming)
    }

    pub(super) fn problems(&self) -> MutexGuard<'_, BTreeMap<VolumeName, Problem>> {
        lock(&self.shared.problems)
    }

    pub(super) fn witness_names(&self) -> MutexGuard<'_, BTreeMap<VolumeId, VolumeName>> {
        lock(&self.shared.witness_names)
    }

    pub(super) fn live(&self, name: &VolumeName) -> Option<Arc<Live>> {
        self.volumes().get(name).cloned()
    }

    /// The reactor with the fewest volumes; among equals the next in turn, since volumes that are being started at the
    /// same time are not counted yet.
    pub(super) fn place(&self) -> ReactorHandle {
        let reactors = &self.shared.reactors;
        let mut load = vec![0usize; reactors.len()];
        for live in self.volumes().values() {
            load[live.reactor.index()] += 1;
        }
        let first = self.shared.placed.fetch_add(1, Ordering::Relaxed);
        let turns = (0..reactors.len()).map(|turn| (first + turn) % reactors.len());
        let least = turns.min_by_key(|index| load[*index]).unwrap_or(0);
        reactors[least].clone()
    }

    /// Withdraws every export whether in use or not, stops every volume cleanly (spec A10), closes the pools and ends
    /// the reactors. What hangs is left behind after a deadline: the next start treats it as after a crash.
    pub async fn shutdown(&self) {
        let volumes: Vec<(VolumeName, Arc<Live>)> = self
            .volumes()
            .iter()
            .map(|(n, l)| (n.clone(), Arc::clone(l)))
            .collect();
        let mut stops = tokio::task::JoinSet::new();
        for (name, live) in volumes {
            let engine = self.clone();
            stops.spawn(async move {
                let stopped = async {
                    let _turn = engine.turn(&name).await;
                    let withdrawn = engine.withdraw(&live).await;
                    withdrawn.and(live.stop().await)
                };
                // A client's last requests may wait for a disk that never answers.
                let stopped = tokio::time::timeout(STOP_MAX, stopped).await;
                let hangs = |_| EngineError::new("StopTimeout", "a disk or a client hangs");
                if let Err(error) = stopped.map_err(hangs).flatten() {
                    tracing::error!(volume = %name, %error, "could not be stopped cleanly");
                }
                engine.volumes().remove(&name);
            });
        }
        while stops.join_next().await.is_some() {}
        let parked: Vec<Parked> = std::mem::take(&mut *self.parked()).into_values().collect();
        for volume in parked {
            if let Err(error) = volume.live.stop().await {
                tracing::error!(volume = %volume.name, %error, "could not be stopped cleanly");
            }
        }
        self.close_all_pools().await;
        for reactor in &self.shared.reactors {
            reactor.stop();
        }
    }
}

impl Shared {
    pub(super) fn touch(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}
