//! Reality at one moment, as the engine reports it and the planner reads it. Plain data, no behaviour.
//! What a plan depends on is in `/v1/status` too, so that a plan can be made from a saved one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::policy::VolumePolicy;
use super::spec::{BlockSize, ExportSpec, OnRemove, PoolSpec};
use super::status::{ReplicaStatus, ScrubStatus};
use super::time::milliseconds;
use super::{PoolId, PoolName, ReplicaId, VolumeId, VolumeName};
use crate::units::Bytes;

/// Everything that one daemon finds on its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// When it was looked at, seconds since 1970-01-01 UTC. Only the end of a quarantine is decided by it.
    pub at_unix_seconds: u64,
    /// Every pool that was opened, or that somebody tried to open, and that has not been closed since.
    pub pools: BTreeMap<PoolName, ObservedPool>,
    /// Every volume that runs, or of which a replica lies in an opened pool outside its quarantine, by the name in
    /// the labels.
    pub volumes: BTreeMap<VolumeName, ObservedVolume>,
    /// Every volume of which a replica lies in the quarantine of an opened pool.
    pub quarantine: Vec<ObservedQuarantine>,
    /// Every file in an opened pool that is no replica of any volume here.
    pub strays: Vec<Stray>,
}

/// A file in a pool that is no replica of any volume: nobody reads or writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// The pool.
    pub pool: PoolName,
    /// The file.
    pub path: PathBuf,
    /// The replica that its name says it is, if it is one.
    pub replica: Option<ReplicaId>,
    /// Why it belongs to nothing.
    pub why: Problem,
    /// Bytes that it takes up.
    pub allocated: Bytes,
}

/// Why something does not serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// One CamelCase word that programs can match: a condition's reason.
    pub reason: String,
    /// A sentence that names the place and the next step.
    pub message: String,
}

/// A pool that was opened, or that somebody tried to open.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedPool {
    /// What it was opened with.
    pub spec: PoolSpec,
    /// From its marker; none while it has not been read.
    pub id: Option<PoolId>,
    /// Why it does not serve; none when it does.
    pub problem: Option<Problem>,
    /// Size of the filesystem or of the memory.
    pub capacity: Bytes,
    /// Bytes that its replicas take up now.
    pub allocated: Bytes,
    /// Sum of its replicas' full sizes.
    pub committed: Bytes,
    /// Bytes that can still be handed out, the reserve already taken off.
    pub available: Bytes,
}

/// A volume that exists on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedVolume {
    /// Every volume id that labels under this name carry. More than one: nobody can know which is meant.
    pub ids: BTreeSet<VolumeId>,
    /// How it was made.
    pub applied: AppliedVolume,
    /// Whether this node has a record of it: it was made or opened here once. Of others no table can have vanished.
    pub known: bool,
    /// Whether its nexus is assembled and takes I/O.
    pub serving: bool,
    /// Why it does not take I/O or why its last assembly failed; none when all is well.
    pub problem: Option<Problem>,
    /// A replica that is not rebuilt for the time being, because that failed too often; none when there is none.
    pub given_up: Option<Problem>,
    /// The export that exists now.
    pub export: Option<ObservedExport>,
    /// Generation of the membership table; 0 while not assembled.
    pub nexus_generation: u64,
    /// Its copies, in the order in which the membership table has them.
    pub replicas: Vec<ReplicaStatus>,
    /// What is broken on purpose on its copies, by pool.
    pub injected: BTreeMap<PoolName, Vec<Fault>>,
    /// Bytes that may differ between its copies after a crash (spec R3).
    pub unresolved: Bytes,
    /// Bytes that might have differed when it was assembled: what the last crash has left.
    pub resolved: Bytes,
    /// What comparing its copies has shown; none before the first time.
    pub scrub: Option<ScrubStatus>,
}

impl ObservedVolume {
    /// Whether a client has the volume open.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.export.as_ref().is_some_and(|export| export.in_use)
    }
}

/// What is known of how a volume was made and what was last applied to it: from its labels and, where they don't say,
/// from `state/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppliedVolume {
    /// Size of its data.
    pub size: Bytes,
    /// Logical block size shown to clients.
    pub block_size: BlockSize,
    /// Whether its replicas are sparse; none when `state/` was lost, as labels don't say.
    pub thin: Option<bool>,
    /// The local pools that are known to have a replica of it.
    pub replicas: BTreeSet<PoolName>,
    /// Number of members in its membership table; may exceed `replicas` while a pool is closed and `state/` was lost.
    pub members: usize,
    /// What was last applied about its removal; the default (retain) when nothing was.
    pub removal: RemovalPolicy,
    /// How it is looked after; the default while it does not run.
    pub policy: VolumePolicy,
}

/// What becomes of a volume's data once its table is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovalPolicy {
    /// Kept until purged by hand, or purged when the quarantine is over.
    pub on_remove: OnRemove,
    /// How long the quarantine is.
    #[serde(rename = "quarantineForMilliseconds", with = "milliseconds")]
    pub quarantine_for: Duration,
}

impl Default for RemovalPolicy {
    fn default() -> Self {
        Self {
            on_remove: OnRemove::Retain,
            quarantine_for: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// An export that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedExport {
    /// What it was made from, as given to the engine.
    pub spec: ExportSpec,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether a client is connected (vhost-user) or holds the device open or mounted (ublk).
    pub in_use: bool,
    /// For people: `vhost-user /run/volund/db.sock`, `ublk /dev/volund/db`.
    pub address: String,
    /// Why it does not work although it exists; none when it does.
    pub problem: Option<Problem>,
}

/// Data of a removed volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedQuarantine {
    /// What the commands take: `db@2026-11-21T09:14:03Z`.
    pub id: String,
    /// The volume's name when it was removed.
    pub volume: VolumeName,
    /// Its id.
    pub uuid: VolumeId,
    /// When it was removed, seconds since 1970-01-01 UTC.
    pub removed_at_unix_seconds: u64,
    /// How it was made, and what was last applied about its removal.
    pub applied: AppliedVolume,
    /// Bytes that its replicas take up, all together.
    pub allocated: Bytes,
}
