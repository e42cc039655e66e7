//! [`Pool`]: what the rest of the daemon holds of a pool, of either kind.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::directory::Directory;
use super::error::{Fault, PoolError};
use super::files::{self, Discarded, FileStat, OpenedFile};
use super::listing::{self, FoundReplica, Listing, Place};
use super::memory::MemoryPool;
use super::quarantine::QuarantineName;
use super::rename;
use super::worker::Worker;
use crate::model::{PoolId, PoolName, ReplicaId, VolumeId, VolumeName};
use crate::units::Bytes;

/// How long an operation may take that moves no data.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long preallocation and deletion may take.
const DEADLINE_LONG: Duration = Duration::from_secs(600);
/// How long the lock of a replica that was just closed is waited for: its last I/O may be under way.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open pool. Clones share it; it is closed by [`Pool::close`] or when the last clone goes.
///
/// All calls may be made from any thread of a tokio runtime and are idempotent. All of them fail with
/// [`Fault::Deadline`] when the disk hangs; then the operation may still take effect later.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: PoolName,
    id: PoolId,
    backing: Backing,
    reserve: AtomicU64,
}

#[derive(Debug)]
enum Backing {
    Directory { path: PathBuf, worker: Worker },
    Memory(MemoryPool),
}

/// What opening a replica gives.
#[derive(Debug)]
pub enum Opened {
    /// A locked file.
    File(OpenedFile),
    /// Nothing yet: anonymous memory of this size, bytes, is to be made on the reactor, and is blank.
    Memory {
        /// Bytes, labels and bitmaps included.
        size: u64,
    },
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Size of the filesystem or of the memory.
    pub size: Bytes,
    /// What the replicas take up, quarantined ones included.
    pub allocated: Bytes,
    /// What they would take up if they were all written to, quarantined ones included.
    pub committed: Bytes,
    /// What can still be handed out, the reserve taken off.
    pub available: Bytes,
}

/// How full a pool is, and how large its files are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The pool as a whole.
    pub capacity: Capacity,
    /// Every file of a replica in use, as its name says. Memory has none.
    pub sizes: Vec<(ReplicaId, FileStat)>,
}

impl Pool {
    /// Opens the pool in a directory, or makes it (spec A0). `known` is the id that `state/` remembers for this name:
    /// with one, nothing is ever created, and the pool there must be that one. An absent directory is created if its
    /// parent exists.
    ///
    /// # Errors
    /// Every [`Fault`] about pools; nothing was created then, but perhaps an empty directory.
    pub async fn open_directory(
        name: PoolName,
        path: PathBuf,
        reserve: Bytes,
        known: Option<PoolId>,
    ) -> Result<Self, PoolError> {
        let (worker, id) = Worker::start(name.clone(), path.clone(), known, DEADLINE).await?;
        let backing = Backing::Directory { path, worker };
        Ok(Self::new(name, id, backing, reserve))
    }

    /// Makes a pool of `size` bytes of memory, with a new id. Its replicas vanish with it.
    #[must_use]
    pub fn memory(name: PoolName, size: Bytes, reserve: Bytes) -> Self {
        let backing = Backing::Memory(MemoryPool::new(size));
        Self::new(name, PoolId::generate(), backing, reserve)
    }

    fn new(name: PoolName, id: PoolId, backing: Backing, reserve: Bytes) -> Self {
        let shared = Shared {
            name,
            id,
            backing,
            reserve: AtomicU64::new(reserve.get()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Its name in the files.
    #[must_use]
    pub fn name(&self) -> &PoolName {
        &self.shared.name
    }

    /// From its marker; new at each start for memory.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.shared.id
    }

    /// Whether its replicas vanish on stop.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        matches!(self.shared.backing, Backing::Memory(_))
    }

    /// Where it is: a path, or `memory`.
    #[must_use]
    pub fn backing(&self) -> String {
        match &self.shared.backing {
            Backing::Directory { path, .. } => path.display().to_string(),
            Backing::Memory(_) => "memory".to_owned(),
        }
    }

    /// Changes what new replicas leave free.
    pub fn set_reserve(&self, reserve: Bytes) {
        self.shared.reserve.store(reserve.get(), Ordering::Relaxed);
    }

    fn reserve(&self) -> Bytes {
        Bytes(self.shared.reserve.load(Ordering::Relaxed))
    }

    fn error(&self, fault: Fault) -> PoolError {
        PoolError {
            pool: self.shared.name.clone(),
            fault,
        }
    }

    fn missing(&self, replica: ReplicaId) -> PoolError {
        let path = PathBuf::from(replica.to_string());
        self.error(Fault::ReplicaMissing { path })
    }

    /// How full it is and how large its files are: what is looked at every 10 s (spec section 5, `Truncated`).
    ///
    /// # Errors
    /// What the filesystem says.
    pub async fn survey(&self) -> Result<Survey, PoolError> {
        let reserve = self.reserve();
        match &self.shared.backing {
            Backing::Memory(memory) => Ok(Survey {
                capacity: Capacity {
                    size: memory.size(),
                    allocated: memory.taken(),
                    committed: memory.taken(),
                    available: memory
                        .size()
                        .saturating_sub(memory.taken())
                        .saturating_sub(reserve),
                },
                sizes: Vec::new(),
            }),
            Backing::Directory { worker, .. } => {
                let work =
                    async move |directory: Rc<Directory>| listing::survey(&directory, reserve);
                worker.call("inspect pool", DEADLINE, work).await
            }
        }
    }

    /// Every replica with its label, and every file that is none. Empty for memory.
    ///
    /// # Errors
    /// When the folders can't be read. Single files that can't be are in the listing.
    pub async fn list(&self) -> Result<Listing, PoolError> {
        match &self.shared.backing {
            Backing::Memory(_) => Ok(Listing::default()),
            Backing::Directory { worker, .. } => {
                worker.call("list replicas", DEADLINE, listing::list).await
            }
        }
    }

    /// One replica of those in use, as [`Pool::list`] shows it; none when it is not there. None for memory.
    ///
    /// # Errors
    /// When it can't be told whether it is there.
    pub async fn find(&self, replica: ReplicaId) -> Result<Option<FoundReplica>, PoolError> {
        match &self.shared.backing {
            Backing::Memory(_) => Ok(None),
            Backing::Directory { worker, .. } => {
                let work = move |directory| listing::look_at(directory, Place::Active(replica));
                worker.call("inspect replica", DEADLINE, work).await
            }
        }
    }

    /// Makes room for a replica whose file or memory has `len` bytes, labels and bitmaps included: a file of that size,
    /// durable, sparse or preallocated. Its label is written afterwards by `Replica::format` (spec L6).
    ///
    /// # Errors
    /// [`Fault::NoSpace`], [`Fault::Exists`], or what the filesystem says; nothing is left behind then.
    pub async fn create(&self, replica: ReplicaId, len: u64, thin: bool) -> Result<(), PoolError> {
        let reserve = self.reserve();
        match &self.shared.backing {
            Backing::Memory(memory) => memory
                .reserve(replica, len, reserve)
                .map_err(|fault| self.error(fault)),
            Backing::Directory { worker, .. } => {
                let work = move |directory| files::create(directory, replica, len, thin, reserve);
                worker.call("create replica", DEADLINE_LONG, work).await
            }
        }
    }

    /// Opens and locks a replica. Waits up to `patience` for the lock (spec A1, `degraded_wait`). Dropping the answer's
    /// fd gives the lock back.
    ///
    /// # Errors
    /// [`Fault::ReplicaMissing`], [`Fault::ReplicaInUse`] which names the holder, [`Fault::NoDirectIo`].
    pub async fn open(&self, replica: ReplicaId, patience: Duration) -> Result<Opened, PoolError> {
        match &self.shared.backing {
            Backing::Memory(memory) => memory
                .len_of(replica)
                .map(|size| Opened::Memory { size })
                .ok_or_else(|| self.missing(replica)),
            Backing::Directory { worker, .. } => {
                let work = move |directory| files::open(directory, replica, patience);
                let deadline = DEADLINE.saturating_add(patience);
                let opened = worker.call("open replica", deadline, work).await?;
                Ok(Opened::File(opened))
            }
        }
    }

    /// Makes sure that a replica can become `len` bytes long, labels and bitmaps included. Memory is taken for it at once;
    /// a file is enlarged by who has it open.
    ///
    /// # Errors
    /// [`Fault::NoSpace`], or what the filesystem says.
    pub async fn make_room(
        &self,
        replica: ReplicaId,
        len: u64,
        thin: bool,
    ) -> Result<(), PoolError> {
        let reserve = self.reserve();
        match &self.shared.backing {
            Backing::Memory(memory) => memory
                .enlarge(replica, len, reserve)
                .map_err(|fault| self.error(fault)),
            Backing::Directory { worker, .. } => {
                let work = async move |directory: Rc<Directory>| {
                    files::check_room(&directory, replica, len, thin, reserve)
                };
                worker.call("look for room", DEADLINE, work).await
            }
        }
    }

    /// Deletes the file of a replica that is no member of its volume any more, or never was one. Its label, if it has
    /// one, must be of that volume. Doing it twice is doing it once.
    ///
    /// # Errors
    /// [`Fault::ReplicaInUse`] while someone has it open, [`Fault::Misplaced`], or what the filesystem says.
    pub async fn delete(&self, replica: ReplicaId, volume: VolumeId) -> Result<(), PoolError> {
        match &self.shared.backing {
            Backing::Memory(memory) => {
                memory.release(replica);
                Ok(())
            }
            Backing::Directory { worker, .. } => {
                let work = move |directory| files::delete_of(directory, replica, volume, PATIENCE);
                worker.call("delete replica", DEADLINE_LONG, work).await
            }
        }
    }

    /// Size and allocation of a replica, open or not.
    ///
    /// # Errors
    /// [`Fault::ReplicaMissing`] or what the filesystem says.
    pub async fn stat(&self, replica: ReplicaId) -> Result<FileStat, PoolError> {
        match &self.shared.backing {
            Backing::Memory(memory) => memory
                .len_of(replica)
                .map(|size| FileStat {
                    size,
                    allocated: size,
                })
                .ok_or_else(|| self.missing(replica)),
            Backing::Directory { worker, .. } => {
                let work = async move |directory: Rc<Directory>| {
                    files::stat(directory.replicas(), &replica.to_string())
                };
                worker.call("inspect replica", DEADLINE, work).await
            }
        }
    }

    /// Moves a closed replica into quarantine under `name`. A replica in memory is given up.
    ///
    /// # Errors
    /// [`Fault::ReplicaInUse`] while it is open, [`Fault::ReplicaMissing`], or what the filesystem says.
    pub async fn quarantine(&self, name: QuarantineName) -> Result<(), PoolError> {
        match &self.shared.backing {
            Backing::Memory(memory) => {
                memory.release(name.replica);
                Ok(())
            }
            Backing::Directory { worker, .. } => {
                let work = async move |directory: Rc<Directory>| {
                    let from = (directory.replicas(), name.replica.to_string());
                    let to = (directory.quarantine(), name.to_string());
                    files::relocate((from.0, &from.1), (to.0, &to.1), PATIENCE).await
                };
                worker.call("quarantine replica", DEADLINE, work).await
            }
        }
    }

    /// Moves a quarantined replica back among those in use.
    ///
    /// # Errors
    /// [`Fault::Exists`] when that replica is there already, [`Fault::ReplicaMissing`], or what the filesystem says.
    pub async fn restore(&self, name: QuarantineName) -> Result<(), PoolError> {
        match &self.shared.backing {
            Backing::Memory(_) => Err(self.missing(name.replica)),
            Backing::Directory { worker, .. } => {
                let work = async move |directory: Rc<Directory>| {
                    let from = (directory.quarantine(), name.to_string());
                    let to = (directory.replicas(), name.replica.to_string());
                    files::relocate((from.0, &from.1), (to.0, &to.1), PATIENCE).await
                };
                worker.call("restore replica", DEADLINE, work).await
            }
        }
    }

    /// Deletes a quarantined replica for good.
    ///
    /// # Errors
    /// [`Fault::ReplicaInUse`] while someone has it open, or what the filesystem says.
    pub async fn purge(&self, name: QuarantineName) -> Result<(), PoolError> {
        match &self.shared.backing {
            Backing::Memory(_) => Ok(()),
            Backing::Directory { worker, .. } => {
                let work = move |directory| files::purge(directory, name, PATIENCE);
                worker.call("purge replica", DEADLINE_LONG, work).await
            }
        }
    }

    /// Rewrites the volume's name in the label of a closed replica, in use or quarantined.
    ///
    /// # Errors
    /// [`Fault::ReplicaInUse`] while it is open (rename it through its `Replica` then), [`Fault::Label`], or what the
    /// filesystem says.
    pub async fn rename(&self, place: Place, name: VolumeName) -> Result<(), PoolError> {
        match &self.shared.backing {
            Backing::Memory(_) => Err(self.missing(place.replica())),
            Backing::Directory { worker, .. } => {
                let work = move |directory| rename::rename(directory, place, name, PATIENCE);
                worker.call("rename volume", DEADLINE, work).await
            }
        }
    }

    /// Clears away what an unfinished creation left. Only for a replica whose creation is journalled and whose volume
    /// has no witness record: then no guest ever wrote to it. Deletes a file to whose data area nothing was ever
    /// written, and moves any other to `garbage/`.
    ///
    /// # Errors
    /// [`Fault::ReplicaInUse`] while someone has it open, [`Fault::HasServed`] when it is no leftover, or what the
    /// filesystem says.
    pub async fn discard_creation(&self, replica: ReplicaId) -> Result<Discarded, PoolError> {
        match &self.shared.backing {
            Backing::Memory(memory) => {
                memory.release(replica);
                Ok(Discarded::Deleted)
            }
            Backing::Directory { worker, .. } => {
                let work = move |directory| files::discard(directory, replica, PATIENCE);
                worker.call("discard replica", DEADLINE_LONG, work).await
            }
        }
    }

    /// Runs a test's own work on the pool's thread.
    #[cfg(test)]
    pub(super) async fn on_worker<F, Fut>(&self, work: F)
    where
        F: FnOnce(Rc<Directory>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        if let Backing::Directory { worker, .. } = &self.shared.backing {
            let work = async move |directory: Rc<Directory>| {
                work(directory).await;
                Ok(())
            };
            let done = worker.call("test", DEADLINE, work).await;
            done.expect("the test's work ends well");
        }
    }

    /// Lets go of the pool and its lock. Other clones are of no use afterwards. Replicas that are open stay open.
    ///
    /// # Errors
    /// [`Fault::Deadline`] when the disk hangs; the lock is given back once it answers.
    pub async fn close(&self) -> Result<(), PoolError> {
        match &self.shared.backing {
            Backing::Memory(_) => Ok(()),
            Backing::Directory { worker, .. } => worker.stop(DEADLINE).await,
        }
    }
}
