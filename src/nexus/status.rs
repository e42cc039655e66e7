//! What a nexus tells about itself.

use super::child::Child;
use super::env::NexusEnv;
use super::nexus::{Inner, Mode};
use super::state::ChildState;
use crate::io::BlockDevice;
use crate::model::status::ReplicaState;
use crate::model::{PoolName, ReplicaId};

/// A volume's nexus, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexusStatus {
    /// Counts changes; what [`super::Nexus::changed`] returns.
    pub version: u64,
    /// What all of it comes to.
    pub health: Health,
    /// The committed generation's number.
    pub generation: u64,
    /// The ownership term.
    pub epoch: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The members of the table in slot order, then candidates that are not members.
    pub children: Vec<ChildStatus>,
    /// Bytes that are not known to be equal on all in-sync members; they are made so in the background (spec R3).
    pub unresolved_bytes: u64,
    /// Acknowledged writes may be gone: writes and flushes fail until the frontends re-attach (spec F2).
    pub lost_unflushed: bool,
}

/// What the children's states come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Every member of the table is in sync.
    Online,
    /// Requests are served, with fewer copies than the table has.
    Degraded,
    /// Some requests fail: the last copy fails, or unflushed writes were lost, or another owner has the volume.
    Failed,
    /// It does not serve.
    Stopped,
}

/// One child, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildStatus {
    /// The pool that it is in; none for a member that no candidate was brought for.
    pub pool: Option<PoolName>,
    /// The replica.
    pub replica: Option<ReplicaId>,
    /// What the nexus thinks of it.
    pub state: ReplicaState,
    /// Why it is in that state.
    pub reason: Option<String>,
}

impl<E: NexusEnv> Inner<E> {
    pub(super) fn status(&self) -> NexusStatus {
        let committed = self.committed.borrow();
        let children = self.children.iter().map(child_status);
        NexusStatus {
            version: self.version.get(),
            health: self.health(),
            generation: committed.generation,
            epoch: committed.epoch,
            size_bytes: self.geometry.size,
            children: children.chain(self.spares.iter().cloned()).collect(),
            unresolved_bytes: self.unresolved.borrow().bytes(),
            lost_unflushed: self.lost_unflushed.get(),
        }
    }

    fn health(&self) -> Health {
        let failing = |child: &Child<E::Disk>| matches!(child.state(), ChildState::Failing(_));
        match self.mode.get() {
            Mode::Stopping | Mode::Stopped => Health::Stopped,
            Mode::LostOwnership => Health::Failed,
            Mode::Serving if self.lost_unflushed.get() => Health::Failed,
            Mode::Serving if self.children.iter().any(failing) => Health::Failed,
            Mode::Serving if self.is_complete() => Health::Online,
            Mode::Serving => Health::Degraded,
        }
    }
}

fn child_status<D: BlockDevice>(child: &Child<D>) -> ChildStatus {
    let state = match child.state() {
        ChildState::InSync | ChildState::Failing(_) => ReplicaState::InSync,
        ChildState::Faulted(_) | ChildState::Draining { .. } => ReplicaState::Stale,
        ChildState::Stale { .. } if child.is_here() => ReplicaState::Stale,
        ChildState::Stale { .. } => ReplicaState::Absent,
        ChildState::Blank => ReplicaState::Blank,
    };
    let reason = child.state().reason().map(|reason| reason.to_string());
    let reason = match (reason, &child.note) {
        (Some(reason), Some(note)) => Some(format!("{reason}: {note}")),
        (reason, note) => reason.or_else(|| note.clone()),
    };
    ChildStatus {
        pool: child.pool.clone(),
        replica: Some(child.replica_id),
        state,
        reason,
    }
}
