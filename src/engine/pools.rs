//! Opening and closing pools, and what was last seen in them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::engine::Engine;
use super::error::EngineError;
use super::found::Found;
use super::live::Live;
use super::look::Looks;
use crate::model::observed::Problem;
use crate::model::spec::{PoolBacking, PoolSpec};
use crate::model::{PoolId, PoolName, VolumeName};
use crate::pool::{Capacity, Pool};

/// The reason of a pool whose filesystem answers with errors.
const LOST: &str = "PoolError";

/// A pool that was opened, or that somebody tried to open.
#[derive(Debug)]
pub(super) struct PoolEntry {
    pub(super) spec: PoolSpec,
    /// None when it could not be opened.
    pub(super) pool: Option<Pool>,
    /// Why it does not serve.
    pub(super) problem: Option<Problem>,
    /// Whether a look into it has ended. Before that nobody can say what is not in it.
    pub(super) is_known: bool,
    /// As last seen.
    pub(super) capacity: Capacity,
    /// As last seen.
    pub(super) found: Found,
    /// Files that are not named like replicas, as last seen.
    pub(super) strangers: Vec<PathBuf>,
    /// No other entry has the same.
    pub(super) looks: Arc<Looks>,
}

impl PoolEntry {
    /// Whether these looks were into this pool, not into one that was open under its name before.
    pub(super) fn is_of(&self, looks: &Arc<Looks>) -> bool {
        Arc::ptr_eq(&self.looks, looks)
    }
}

impl Engine {
    /// Opens a pool, or makes it when nobody has ever seen it (spec A0). An open one gets its new reserve.
    ///
    /// # Errors
    /// Every [`crate::pool::Fault`] about pools; the pool then stays in [`Engine::observe`] with its problem.
    pub async fn open_pool(&self, name: &PoolName, spec: &PoolSpec) -> Result<(), EngineError> {
        let open = self.pools().get(name).and_then(|entry| entry.pool.clone());
        if let Some(pool) = open {
            pool.set_reserve(spec.reserve);
            if let Some(entry) = self.pools().get_mut(name) {
                entry.spec = spec.clone();
            }
            match self.look_into(name).await {
                // Its filesystem may have been shut down and mounted again, which only a new look at its path can tell.
                Err(error) if error.reason() == LOST => self.retire(name, &pool).await,
                looked => return looked,
            }
        }
        let opened = self.try_open(name, spec).await;
        let problem = opened.as_ref().err().map(EngineError::problem);
        let (pool, result) = match opened {
            Ok(pool) => (Some(pool), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let entry = PoolEntry {
            spec: spec.clone(),
            pool,
            problem,
            is_known: false,
            capacity: Capacity::default(),
            found: Found::default(),
            strangers: Vec::new(),
            looks: Arc::default(),
        };
        self.pools().insert(name.clone(), entry);
        self.touch();
        result?;
        let looked = self.look_into(name).await;
        self.pool_came(name);
        self.collect_unfinished();
        self.collect_purged();
        looked
    }

    /// Lets go of a pool whose filesystem answers with errors, so that it can be unmounted, or opened anew. Replicas that
    /// are open stay open.
    async fn retire(&self, name: &PoolName, pool: &Pool) {
        tracing::warn!(pool = %name, "its filesystem fails: it is closed, and opened anew");
        if let Some(entry) = self.pools().get_mut(name) {
            entry.pool = None;
        }
        if let Err(error) = pool.close().await {
            tracing::warn!(pool = %name, %error, "could not be closed");
        }
    }

    async fn try_open(&self, name: &PoolName, spec: &PoolSpec) -> Result<Pool, EngineError> {
        let path = match &spec.backing {
            PoolBacking::Memory(size) => {
                self.check_not_a_directory(name)?;
                return Ok(Pool::memory(name.clone(), *size, spec.reserve));
            }
            PoolBacking::Directory(path) => path.clone(),
        };
        self.check_not_open(name, &path)?;
        let known = self.shared.store.pool(name);
        let pool = Pool::open_directory(name.clone(), path, spec.reserve, known).await?;
        if known.is_none() {
            // Before the first replica: from now on an empty directory there is a missing pool, not a new one.
            self.shared.store.set_pool(name.clone(), pool.id()).await?;
        }
        Ok(pool)
    }

    /// Memory under a directory's name would hide that the directory, and the data in it, is away.
    fn check_not_a_directory(&self, name: &PoolName) -> Result<(), EngineError> {
        let Some(id) = self.shared.store.pool(name) else {
            return Ok(());
        };
        Err(EngineError::new(
            "Immutable",
            format!(
                "pool \"{name}\" was a directory with the id {id}, whose data may still be there; give the pool in memory another name"
            ),
        ))
    }

    /// The same directory under two names would be locked by ourselves, which reads like a riddle.
    fn check_not_open(&self, name: &PoolName, path: &Path) -> Result<(), EngineError> {
        let backing = PoolBacking::Directory(path.to_owned());
        let pools = self.pools();
        let other = pools
            .iter()
            .find(|(other, e)| *other != name && e.pool.is_some() && e.spec.backing == backing);
        match other {
            None => Ok(()),
            Some((other, _)) => Err(EngineError::new(
                "InUse",
                format!(
                    "{path:?} is open as pool \"{other}\"; a pool that gets another name has to be closed first, \
                     which happens when no volume uses it"
                ),
            )),
        }
    }

    /// The pool itself.
    ///
    /// # Errors
    /// `PoolOffline` with the pool's own problem when it is not open.
    pub(super) fn open_one(&self, name: &PoolName) -> Result<Pool, EngineError> {
        let open = self.pools().get(name).and_then(|entry| entry.pool.clone());
        open.ok_or_else(|| self.offline(name))
    }

    pub(super) fn pool_id(&self, name: &PoolName) -> Option<PoolId> {
        let open = self
            .pools()
            .get(name)
            .and_then(|entry| entry.pool.as_ref().map(Pool::id));
        open.or_else(|| self.shared.store.pool(name))
    }

    /// `PoolOffline` with the pool's own problem.
    pub(super) fn offline(&self, name: &PoolName) -> EngineError {
        let pools = self.pools();
        let problem = pools.get(name).and_then(|entry| entry.problem.clone());
        let why = problem.map_or_else(|| "it is not open".to_owned(), |p| p.message);
        EngineError::new("PoolOffline", format!("pool \"{name}\" is offline: {why}"))
    }

    /// Lets go of a pool. Its data stays where it is.
    ///
    /// # Errors
    /// `InUse` while a volume runs on it.
    pub async fn close_pool(&self, name: &PoolName) -> Result<(), EngineError> {
        let user = self.user_of(name);
        if let Some(volume) = user {
            return Err(EngineError::in_use(format!(
                "volume \"{volume}\" uses pool \"{name}\""
            )));
        }
        let pool = self.pools().get(name).and_then(|entry| entry.pool.clone());
        if let Some(pool) = pool {
            pool.close().await?;
        }
        self.pools().remove(name);
        self.touch();
        Ok(())
    }

    /// A volume that runs on the pool, or is being brought up on it.
    fn user_of(&self, pool: &PoolName) -> Option<VolumeName> {
        let coming = self.coming();
        let mut coming = coming.iter().filter(|(_, pools)| pools.contains(pool));
        let coming = coming.next().map(|(volume, _)| volume.clone());
        coming.or_else(|| {
            let volumes = self.volumes();
            let on = |live: &Live| live.books().applied.replicas.contains(pool);
            let mut users = volumes.iter().filter(|(_, live)| on(live));
            users.next().map(|(volume, _)| volume.clone())
        })
    }

    pub(super) async fn close_all_pools(&self) {
        let entries = std::mem::take(&mut *self.pools());
        for (name, entry) in entries {
            let Some(pool) = entry.pool else { continue };
            if let Err(error) = pool.close().await {
                tracing::error!(pool = %name, %error, "could not be closed");
            }
        }
    }
}
