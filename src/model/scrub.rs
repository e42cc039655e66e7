//! What `volund scrub` answers. Serialised; fields are only ever added.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{PoolName, ReplicaId, VolumeName};

/// What a finished scrub found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScrubOutcome {
    /// The volume.
    pub volume: VolumeName,
    /// The most replicas that were compared; with one, only what can't be read is found.
    pub compared: usize,
    /// Bytes of the volume that were looked at.
    pub scrubbed_bytes: u64,
    /// Chunks in which replicas differed.
    pub mismatches: u64,
    /// Of those, chunks that are equal now.
    pub repaired: u64,
    /// Of those, chunks that are as they were, because nothing says which replica is right.
    pub unrepairable: u64,
    /// Chunks that no replica can read.
    pub unreadable: u64,
    /// The chunks, in address order; at most 1000.
    pub found: Vec<ScrubFinding>,
}

/// A chunk that is not as it should be, or was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScrubFinding {
    /// Where it is in the volume, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub len: u64,
    /// `Repaired`, `Differs`, `Unreadable`.
    pub finding: String,
    /// The replicas that were wrong; if nobody knows, all that differ.
    pub replicas: Vec<ReplicaId>,
    /// Their pools.
    pub pools: Vec<PoolName>,
}
