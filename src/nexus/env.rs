//! What a nexus is built from, and what it is told.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::oneshot;

use super::fan_out::either;
use super::mutant::Mutant;
use super::witness::Witness;
use crate::io::{BlockDevice, BufferPool, Clock, Rng, Spawn};
use crate::model::{GenerationId, NodeId, PoolId, PoolName, ReplicaId, VolumeId, VolumeName};
use crate::units::GIB;

/// The types that a nexus is built from: the real ones in `engine/`, the simulated ones in tests.
pub trait NexusEnv: 'static {
    /// What holds a replica.
    type Disk: BlockDevice;
    /// Time.
    type Clock: Clock;
    /// Random ids.
    type Rng: Rng;
    /// Background tasks.
    type Spawn: Spawn;
    /// The record outside the replicas.
    type Witness: Witness;

    /// A rebuild does not copy again what it copied this long ago, or so many bytes, whichever is less (spec B5).
    const CHECKPOINT: (Duration, u64) = (Duration::from_secs(5), GIB);
}

/// A disk that has not answered for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its disk has not answered for {} s", .0.as_secs())]
pub struct Silent(pub Duration);

/// The parts that a nexus is built from.
pub struct Parts<E: NexusEnv> {
    pub(super) clock: E::Clock,
    pub(super) rng: E::Rng,
    pub(super) spawn: E::Spawn,
    pub(super) witness: E::Witness,
    pub(super) buffers: BufferPool,
    pub(super) node: NodeId,
    #[cfg(any(test, feature = "mutants"))]
    pub(super) mutant: Option<Mutant>,
}

impl<E: NexusEnv> Parts<E> {
    /// The parts. `node` goes into the labels as writer and owner.
    pub fn new(
        clock: E::Clock,
        rng: E::Rng,
        spawn: E::Spawn,
        witness: E::Witness,
        buffers: BufferPool,
        node: NodeId,
    ) -> Self {
        Self {
            clock,
            rng,
            spawn,
            witness,
            buffers,
            node,
            #[cfg(any(test, feature = "mutants"))]
            mutant: None,
        }
    }

    /// Does something with a disk that is no child's yet, and waits for it no longer than `patience` (spec A1): what
    /// takes longer goes on by itself, and lets go of the disk when it ends.
    pub(super) async fn in_time<T: 'static>(
        &self,
        patience: Duration,
        work: Pin<Box<dyn Future<Output = T>>>,
    ) -> Result<T, Silent> {
        let (done, ended) = oneshot::channel();
        self.spawn.spawn(async move {
            // The caller may have stopped waiting.
            let _ = done.send(work.await);
        });
        let mut answer = None;
        let ended = async { answer = ended.await.ok() };
        either(self.clock.sleep(patience), ended).await;
        answer.ok_or(Silent(patience))
    }

    /// A random id for a generation.
    pub(super) fn generation_id(&self) -> GenerationId {
        let bytes = self.rng.random_u128().to_be_bytes();
        GenerationId::from_uuid(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// Plants a bug.
    #[cfg(any(test, feature = "mutants"))]
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<Mutant>) -> Self {
        self.mutant = mutant;
        self
    }

    /// Whether the bug is planted; never in a build without the feature `mutants`.
    #[cfg(any(test, feature = "mutants"))]
    pub(super) fn breaks(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether the bug is planted; never in a build without the feature `mutants`.
    #[cfg(not(any(test, feature = "mutants")))]
    #[allow(clippy::unused_self, reason = "the test build's twin looks into self")]
    pub(super) const fn breaks(&self, _: Mutant) -> bool {
        false
    }
}

impl<E: NexusEnv> fmt::Debug for Parts<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// What volume a nexus is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexusSpec {
    /// Its name, which goes into labels and witness.
    pub name: VolumeName,
    /// Its id: a fresh one at creation, the labels' at assembly.
    pub id: VolumeId,
    /// Size in bytes, a multiple of 4 KiB. Used at creation; at assembly the labels know.
    pub size: u64,
    /// Logical block size in bytes, 512 or 4096. Used at creation; at assembly the labels know.
    pub block_size: u32,
    /// Whether the replicas keep their reservation. Used at creation; at assembly the labels know.
    pub thick: bool,
    /// What may be changed while it runs.
    pub policy: Policy,
    /// An operator's decision about which replica to start from, when what is here proves nothing (spec A5).
    pub force_start: Option<ForceStart>,
}

/// What may be changed while a volume runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How many regions may be marked as written and not proven flushed (spec W9).
    pub intent_max: u64,
    /// The most that a rebuild copies, bytes per second; 0 for as much as it can.
    pub rebuild_bandwidth: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            intent_max: 16384,
            rebuild_bandwidth: 0,
        }
    }
}

/// Start from this replica although nothing proves that it is the newest (spec A5). Every other member is rebuilt in
/// full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForceStart {
    /// The replica.
    pub from: ReplicaId,
    /// The generation that its label must have: what the operator saw when deciding.
    pub at_generation: u64,
}

/// How long things may take before the nexus gives up on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A child that does not answer an operation, or keeps answering "try again", is faulted after this (spec G11).
    pub io: Duration,
    /// A request that waits for a commit is answered with `EIO` after this (spec F6).
    pub commit: Duration,
    /// A read that is not answered in this time is sent to another member as well (spec R5).
    pub read_hedge: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            io: Duration::from_secs(10),
            commit: Duration::from_secs(30),
            read_hedge: Duration::from_millis(500),
        }
    }
}

/// A replica that may become a child, or a note that it could not be brought.
#[derive(Debug)]
pub struct Candidate<D> {
    /// The pool that the configuration places it in.
    pub pool: PoolName,
    /// That pool's id, from its marker; none when the pool can't be opened.
    pub pool_id: Option<PoolId>,
    /// The replica's id: the name of its file. None when nobody knows.
    pub replica: Option<ReplicaId>,
    /// Whether it is lost on stop. Such a replica never counts as the last copy, and is `Blank` at assembly.
    pub volatile: bool,
    /// Whether it is here.
    pub presence: Presence<D>,
}

/// Whether a candidate is here.
#[derive(Debug)]
pub enum Presence<D> {
    /// Open and locked (spec A1).
    Present(D),
    /// Not here, for this reason: "pool `fast` is offline", "locked by process 4711", ...
    Absent(String),
}
