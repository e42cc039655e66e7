//! Observed state, as `/v1/status`, the CLI and the metrics show it. Serialised; fields are only ever added.
//! Bytes are integers, times RFC 3339 texts in UTC.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::journal::{Drift, Revisions};
use super::observed::{AppliedVolume, ObservedExport};
use super::spec::PoolSpec;
use super::{PoolId, PoolName, ReplicaId, VolumeId, VolumeName};

/// One statement about an object, in the form of a Kubernetes `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the statement is about, CamelCase: `Ready`, `RemovalBlocked`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: Truth,
    /// Why, in one CamelCase word that programs can match.
    pub reason: String,
    /// Why, in a sentence that names the place and the next step.
    pub message: String,
    /// What the daemon does about it next, or waits for; none when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// When `status` last changed, RFC 3339.
    pub last_transition_time: String,
    /// The generation of the configuration that this was observed under.
    pub observed_generation: u64,
}

impl Condition {
    /// Whether it is bad news. What waits or is so by choice is none, nor is a rebuild, which is the remedy.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        match self.kind.as_str() {
            "Ready" => self.status != Truth::True,
            "Waiting" | "MemoryOnly" | "Rebuilding" => false,
            _ => self.status != Truth::False,
        }
    }
}

/// What is wrong, worst first, each message once (a blocked volume is not ready for the same reason); empty when nothing is.
#[must_use]
pub fn wrong(conditions: &[Condition]) -> Vec<&Condition> {
    let wrong = conditions.iter().filter(|condition| condition.is_wrong());
    let mut wrong: Vec<&Condition> = wrong.collect();
    wrong.sort_by_key(|condition| match condition.kind.as_str() {
        "Ready" => 0,
        "Degraded" => 1,
        _ => 2,
    });
    let mut said = BTreeSet::new();
    wrong.retain(|condition| said.insert(condition.message.as_str()));
    wrong
}

/// Whether a [`Condition`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows at the moment.
    Unknown,
}

/// Everything that one daemon knows about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Counts applied configurations since the state folder was made.
    pub generation: u64,
    /// SHA-256 over names and contents of the configuration in force, hexadecimal.
    pub config_hash: String,
    /// When that configuration was applied, RFC 3339.
    pub config_applied_at: Option<String>,
    /// What is wrong with the files on disk, when they are not the ones in force.
    pub config_error: Option<String>,
    /// The revisions of the configuration: in force, refused, and the last one of which everything was in place.
    #[serde(default)]
    pub revisions: Revisions,
    /// What is not as the files want it.
    #[serde(default)]
    pub drift: Vec<Drift>,
    /// This node's name.
    pub node: String,
    /// The daemon's version.
    pub version: String,
    /// Pools, by name.
    pub pools: Vec<PoolStatus>,
    /// Volumes, by name.
    pub volumes: Vec<VolumeStatus>,
    /// Removed data that is still there, by volume name and time.
    pub quarantine: Vec<QuarantineEntry>,
    /// Data on disk that nobody declares: kept, until it is adopted or purged.
    #[serde(default)]
    pub orphans: Vec<Orphan>,
}

/// What is known of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Its name in the files.
    pub name: PoolName,
    /// From its marker; none while it can't be opened.
    pub id: Option<PoolId>,
    /// Where it is: a path, or `memory`.
    pub backing: String,
    /// Whether it serves.
    pub state: PoolState,
    /// Size of the filesystem or of the memory, bytes.
    pub capacity_bytes: u64,
    /// Bytes of it that replicas take up now.
    pub allocated_bytes: u64,
    /// Sum of its replicas' full sizes, bytes.
    pub committed_bytes: u64,
    /// Bytes that can still be handed out, the reserve already taken off.
    pub available_bytes: u64,
    /// What it was opened with.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub spec: Option<PoolSpec>,
    /// Statements about it; `Ready` is always there.
    pub conditions: Vec<Condition>,
}

/// Whether a pool serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum PoolState {
    /// Opened, marker as expected.
    Online,
    /// It can't be used; its conditions say why.
    Offline,
}

/// What is known of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Its name in the files.
    pub name: VolumeName,
    /// From its replicas' labels; none before it exists.
    pub uuid: Option<VolumeId>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes that its replicas take up on their pools, all together.
    pub allocated_bytes: u64,
    /// Where it is in its life: `Pending`, `Available`, ... (`reconcile/state.rs` has the table).
    pub state: String,
    /// Generation of the membership table.
    pub nexus_generation: u64,
    /// How it is reached, for people: `vhost-user /run/volund/db.sock`, `ublk /dev/volund/db`, `none`.
    pub export: String,
    /// Path of the vhost-user socket, if that is how.
    #[serde(default)]
    pub export_socket: Option<String>,
    /// Virtqueues that a vhost-user export offers.
    #[serde(default)]
    pub export_queues: Option<u16>,
    /// Whether a client is there.
    pub client_connected: bool,
    /// Its copies, in the order of the files.
    pub replicas: Vec<ReplicaStatus>,
    /// What is still to be made equal after a crash; none when all is.
    #[serde(default)]
    pub resolving: Option<ResolveStatus>,
    /// Bytes that might have differed between its copies when the volume was last assembled: what a crash had left to be
    /// made equal. 0 after a clean stop.
    #[serde(default)]
    pub resolved_bytes: u64,
    /// What comparing its copies has shown; none before the first time.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
    /// Whether it takes I/O.
    #[serde(default)]
    pub serving: bool,
    /// Every id that labels of this name carry, when that is more than one.
    #[serde(default)]
    pub uuids: Vec<VolumeId>,
    /// How it was made, and what was last applied to it; none before it exists.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub applied: Option<AppliedVolume>,
    /// The export that exists.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub exported: Option<ObservedExport>,
    /// Statements about it; `Ready` is always there.
    pub conditions: Vec<Condition>,
}

impl VolumeStatus {
    /// One word for people: whether it serves, and with all its copies; else where in its life it is.
    #[must_use]
    pub fn word(&self) -> String {
        let says = |kind: &str| {
            let mut conditions = self.conditions.iter();
            conditions.any(|condition| condition.kind == kind && condition.status == Truth::True)
        };
        match (says("Ready"), says("Degraded")) {
            (true, false) => "Online".to_owned(),
            (true, true) => "Degraded".to_owned(),
            (false, _) => self.state.clone(),
        }
    }
}

/// What is known of one copy of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// The pool that holds it.
    pub pool: PoolName,
    /// From its label; none before it exists.
    pub uuid: Option<ReplicaId>,
    /// What the nexus thinks of it.
    pub state: ReplicaState,
    /// Why it is in that state: `WriteError: Input/output error (os error 5)`, ...
    pub reason: Option<String>,
    /// Since when it has not been in sync, RFC 3339; none while it is, or when nobody remembers.
    #[serde(default)]
    pub since: Option<String>,
    /// What the daemon does about it next, or waits for, as the end of a sentence that begins with the copy; none when
    /// there is nothing to do.
    #[serde(default)]
    pub next: Option<String>,
    /// Bytes that it takes up on its pool.
    pub allocated_bytes: u64,
    /// How far its rebuild is; none when there is none.
    #[serde(default)]
    pub rebuild: Option<RebuildStatus>,
    /// Whether it has not answered for longer than `io_timeout`.
    #[serde(default)]
    pub hung: bool,
}

impl ReplicaStatus {
    /// A copy of which nothing else is known.
    #[must_use]
    pub const fn new(pool: PoolName, uuid: Option<ReplicaId>, state: ReplicaState) -> Self {
        Self {
            pool,
            uuid,
            state,
            reason: None,
            since: None,
            next: None,
            allocated_bytes: 0,
            rebuild: None,
            hung: false,
        }
    }
}

/// How far a rebuild is (spec section 7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RebuildStatus {
    /// What is copied.
    pub kind: RebuildKind,
    /// Why that.
    pub reason: String,
    /// Bytes to copy, those already copied included.
    pub total_bytes: u64,
    /// Bytes that are left.
    pub remaining_bytes: u64,
    /// Bytes that this run has copied, zeroes included.
    pub copied_bytes: u64,
    /// How fast it goes at the moment.
    pub bytes_per_second: u64,
    /// How long it takes at this speed; none while it stands still.
    pub eta_seconds: Option<u64>,
}

impl RebuildStatus {
    /// How much of it is done, in hundredths, rounded down.
    #[must_use]
    pub fn percent(&self) -> u64 {
        let done = self.total_bytes.saturating_sub(self.remaining_bytes);
        let percent = u128::from(done) * 100 / u128::from(self.total_bytes.max(1));
        if self.total_bytes == 0 {
            return 100;
        }
        u64::try_from(percent).unwrap_or(100)
    }
}

/// What a rebuild copies (spec B3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum RebuildKind {
    /// The regions that were written while the copy was away.
    Partial,
    /// Everything.
    Full,
    /// What an interrupted rebuild had left.
    Resumed,
}

/// What is still to be made equal after a crash (spec R3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolveStatus {
    /// Bytes that may differ between the copies. Whoever reads them makes them equal first.
    pub unresolved_bytes: u64,
}

/// What comparing the copies has shown (spec section 10).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScrubStatus {
    /// How far the one under way is; none while there is none.
    pub running: Option<ScrubRun>,
    /// When the last one ended that looked at everything, RFC 3339.
    pub last_finished_at: Option<String>,
    /// Chunks (64 KiB) in which copies differed. From here on: by the last one since the daemon started.
    pub mismatches: u64,
    /// Those of them that are equal now.
    pub repaired: u64,
    /// Those of them that are not: nobody knows which copy is right.
    pub unrepairable: u64,
    /// Chunks that no copy can read.
    pub unreadable: u64,
}

/// How far a comparison of copies is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScrubRun {
    /// Bytes to look at.
    pub total_bytes: u64,
    /// Bytes that were looked at.
    pub done_bytes: u64,
}

/// What the nexus thinks of a replica (spec section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum ReplicaState {
    /// Holds every acknowledged write; may be read.
    InSync,
    /// Being copied to.
    Rebuilding,
    /// Missed writes; is not read.
    Stale,
    /// Has no data yet.
    Blank,
    /// Not there: its pool or file is missing or locked by someone else.
    Absent,
    /// Its pool belongs to another node.
    Waiting,
}

/// Data on disk that belongs to nothing that is declared, and that this node has not removed either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// What `volund orphans purge` takes: a volume's or a replica's id. None for a file that is not named like a replica.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub id: Option<Uuid>,
    /// Why nobody uses it, one CamelCase word: `Undeclared`, `FormerMember`, `Unreadable`, ...
    pub reason: String,
    /// The same in a sentence with the next step.
    pub message: String,
    /// The volume's name in the labels, if they can be read.
    pub volume: Option<VolumeName>,
    /// Size of the volume, bytes; 0 when unknown.
    pub size_bytes: u64,
    /// The pools that hold it.
    pub pools: Vec<PoolName>,
    /// Bytes that it takes up.
    pub allocated_bytes: u64,
    /// How the volume was made; none for a single file.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub applied: Option<AppliedVolume>,
}

/// Data of a removed volume that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineEntry {
    /// What the commands take: `db@2026-11-21T09:14:03Z`.
    pub id: String,
    /// The volume's name when it was removed.
    pub volume: VolumeName,
    /// Its id.
    pub uuid: VolumeId,
    /// When it was removed, RFC 3339.
    pub removed_at: String,
    /// When it will be purged; none if it stays until purged by hand.
    pub purge_at: Option<String>,
    /// The pools that hold its replicas.
    pub pools: Vec<PoolName>,
    /// Bytes that it takes up.
    pub allocated_bytes: u64,
    /// How it was made, and what was last applied about its removal.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub applied: Option<AppliedVolume>,
}
