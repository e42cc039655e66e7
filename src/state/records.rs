//! What the database remembers, as it is stored: JSON, in which fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::why::HistoryEvent;
use crate::model::{PoolName, ReplicaId, VolumeId, VolumeName};

/// How many events a volume's history keeps.
pub const HISTORY_MAX: usize = 64;

/// The configuration that was last applied, whole: what a restart boots from when the files are broken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedConfig {
    /// Counts applied configurations since the state folder was made.
    pub generation: u64,
    /// SHA-256 over names and contents, hexadecimal.
    pub hash: String,
    /// The commit that was last checked out with these files, if they were in a git work tree.
    #[serde(default)]
    pub commit: Option<String>,
    /// When it was applied, seconds since 1970-01-01 UTC.
    pub at_unix_seconds: u64,
    /// The files, as one text that `config` can read back.
    pub text: String,
}

/// What is remembered of a volume beside its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Whether its replicas were made sparse.
    pub thin: Option<bool>,
    /// Whether its data may be purged after the quarantine.
    pub delete_on_remove: bool,
    /// How long the quarantine is, seconds.
    pub quarantine_seconds: u64,
    /// Which local pool holds which replica.
    pub replicas: BTreeMap<PoolName, ReplicaId>,
    /// The number of its ublk device, from before it is started until after it is deleted.
    pub ublk: Option<u32>,
    /// Whether its data is being purged: once no file of it is left, nothing needs to be remembered of it.
    #[serde(default)]
    pub purging: bool,
    /// When all of its replicas were last compared to the end, seconds since 1970-01-01 UTC.
    #[serde(default)]
    pub scrubbed_at_unix_seconds: Option<u64>,
}

/// A volume's creation under way (spec A0): journalled before the first file, closed by the witness commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// The name it gets.
    pub name: VolumeName,
    /// The replicas it is made of.
    pub replicas: Vec<(PoolName, ReplicaId)>,
    /// Why it failed, when its files were left for inspection.
    #[serde(default)]
    pub left: Option<String>,
}

/// A change of a running volume's members (spec section 10) that has touched, or may touch, a file: journalled before
/// the file is made, or before the table without it is committed; closed when file and table agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberChange {
    /// The volume.
    pub volume: VolumeId,
    /// Where the file is.
    pub pool: PoolName,
    /// Whether the replica is to become a member, or to be one no more.
    pub adds: bool,
}

/// What happened to a volume, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// At most [`HISTORY_MAX`].
    pub events: Vec<HistoryEvent>,
}

impl History {
    /// Adds an event; the oldest is dropped when there are too many.
    pub fn push(&mut self, event: HistoryEvent) {
        let excess = (self.events.len() + 1).saturating_sub(HISTORY_MAX);
        self.events.drain(..excess);
        self.events.push(event);
    }
}
