//! Desired state: what the configuration asks for, validated, with every default filled in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policy::{ForceStart, NodePolicy, VolumePolicy};
use super::{NodeName, PoolName, VolumeId, VolumeName};
use crate::units::Bytes;

/// Everything that the files ask for, of all nodes. Each daemon acts on the part that names its own node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredState {
    /// The node that this daemon is.
    pub this_node: NodeName,
    /// Every node that the files declare; empty in a single-node configuration.
    pub nodes: BTreeMap<NodeName, NodeSpec>,
    /// Every pool of every node.
    pub pools: BTreeMap<PoolName, PoolSpec>,
    /// Every volume of every node.
    pub volumes: BTreeMap<VolumeName, VolumeSpec>,
    /// Limits on what one change of the files may do.
    pub safety: Safety,
    /// How this node looks after its volumes.
    pub policy: NodePolicy,
    /// What is dangerous, and therefore off unless the files say so.
    pub danger_zone: DangerZone,
}

/// A node that the files declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// Where its peers reach it (`host:port`); required once there is more than one node.
    pub address: Option<String>,
}

/// A pool to be opened, and created when it does not exist yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// The node that has it.
    pub node: NodeName,
    /// What its replicas are made of.
    pub backing: PoolBacking,
    /// Free space that replicas are never created from.
    pub reserve: Bytes,
}

/// What a pool's replicas are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolBacking {
    /// A directory on a filesystem, absolute; created when its parent exists.
    Directory(PathBuf),
    /// Anonymous memory of at most this size; lost on stop.
    Memory(Bytes),
}

/// A volume that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// The node that runs its nexus and exports it.
    pub node: NodeName,
    /// Size in bytes, a multiple of 4 KiB.
    pub size: Bytes,
    /// The pools that hold its replicas: 1 to 16, no pool twice.
    pub replicas: Vec<PoolName>,
    /// Sparse (`true`) or preallocated replicas.
    pub thin: bool,
    /// Logical block size shown to the client.
    pub block_size: BlockSize,
    /// Whether clients may only read.
    pub read_only: bool,
    /// How clients reach it.
    pub export: ExportSpec,
    /// What becomes of the data once the table has gone and the quarantine is over.
    pub on_remove: OnRemove,
    /// How long removed data stays in quarantine before `on_remove = "delete"` may purge it.
    pub quarantine_for: Duration,
    /// What becomes of the files of a creation that failed half way.
    pub on_create_fail: OnCreateFail,
    /// The data that it is, whatever name that carries; then nothing is ever created.
    pub uuid: Option<VolumeId>,
    /// The name whose data this volume takes over.
    pub renamed_from: Option<VolumeName>,
    /// How it is looked after; may change while it runs.
    pub policy: VolumePolicy,
    /// Which replica to start from when nothing proves which is the newest (spec A5).
    pub force_start: Option<ForceStart>,
}

/// The logical block sizes that volund serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    #[default]
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// How clients reach a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ExportSpec {
    /// Not at all.
    #[default]
    None,
    /// A vhost-user-blk socket for virtual machines.
    VhostUser {
        /// Absolute path of the socket; `<runtime dir>/<volume>.sock` when not given.
        socket: Option<PathBuf>,
        /// Number of virtqueues offered, 1 to 64.
        queues: u16,
        /// The most requests of a virtqueue that are served at a time, a power of two.
        depth: u16,
        /// Whether the memory of its guest is pinned.
        pin_guest_memory: bool,
    },
    /// A block device on this host.
    Ublk {
        /// The number in `/dev/ublkbN`; chosen by the kernel when not given.
        id: Option<u32>,
        /// Requests in flight, 1 to 4096.
        depth: u16,
    },
}

/// What becomes of a removed volume's data after its quarantine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnRemove {
    /// It stays until someone purges it by hand.
    #[default]
    Retain,
    /// It is purged when `quarantine_for` has passed.
    Delete,
}

/// What is dangerous, and therefore off unless the files say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DangerZone {
    /// Whether `volund inject` may break replicas on purpose.
    pub fault_injection: bool,
}

/// What becomes of the files of a creation that failed half way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCreateFail {
    /// They are deleted before the next attempt; nobody has ever seen the volume.
    #[default]
    Delete,
    /// They are left for inspection, and nothing is attempted meanwhile.
    Leave,
}

/// Limits on what one change of the files may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Safety {
    /// More removed volumes than this in one change are all held back until approved.
    pub max_removals: u32,
}

impl Default for Safety {
    fn default() -> Self {
        Self { max_removals: 1 }
    }
}
