//! The witness: a small durable record outside the replicas that says which generation is the committed one.
//!
//! A membership change is committed when its labels are durable on every member of its own active set *and* the
//! witness records it (spec sections 1 and 5, F6). Implemented by `state/` with a file, later by etcd.

use std::future::Future;

use crate::io::IoError;
use crate::model::{GenerationId, ReplicaId, VolumeId, VolumeName};

/// What the witness knows of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessRecord {
    /// The volume.
    pub volume: VolumeId,
    /// Its name when the record was written; spec A0 refuses to create a volume under a name that a record carries.
    pub name: VolumeName,
    /// The ownership term that wrote the record.
    pub epoch: u64,
    /// The committed generation's number.
    pub generation: u64,
    /// The committed generation's random id: numbers alone are ambiguous (spec A4).
    pub generation_id: GenerationId,
    /// The committed membership table, in slot order; at most 16 entries.
    pub members: Vec<WitnessMember>,
}

/// A row of the committed membership table. For people and for cross-checks: labels are the authority on states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WitnessMember {
    /// The replica.
    pub replica: ReplicaId,
    /// Whether it is in the active set.
    pub in_sync: bool,
}

/// Identifies one state of the record, for the compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WitnessPosition {
    /// The ownership term.
    pub epoch: u64,
    /// The committed generation.
    pub generation: u64,
    /// Its random id.
    pub generation_id: GenerationId,
}

impl WitnessRecord {
    /// What a compare-and-swap that replaces this record must expect.
    #[must_use]
    pub const fn position(&self) -> WitnessPosition {
        WitnessPosition {
            epoch: self.epoch,
            generation: self.generation,
            generation_id: self.generation_id,
        }
    }
}

/// Why the witness did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WitnessError {
    /// The record is not the expected one: another owner has taken over. Final (spec E4).
    #[error("the witness holds epoch {epoch}, generation {generation}, which another owner wrote")]
    Conflict {
        /// The record's epoch.
        epoch: u64,
        /// The record's generation.
        generation: u64,
    },
    /// Nothing is known about the outcome; the same call may be tried again.
    #[error("the witness can't be reached")]
    Unavailable(#[source] IoError),
    /// The record exists but is unreadable in every copy.
    #[error("the witness record is damaged: {0}")]
    Damaged(String),
}

/// Access to one volume's record. Belongs to the volume's reactor.
pub trait Witness: 'static {
    /// The record; `None` when there never was one, or it was lost.
    fn load(&self) -> impl Future<Output = Result<Option<WitnessRecord>, WitnessError>>;

    /// Replaces the record whose position is `expected` (`None`: there is none yet) with `new`. Durable when this
    /// returns `Ok`. When the record already equals `new`, because an earlier try got through although it reported
    /// [`WitnessError::Unavailable`], the answer is `Ok`.
    fn commit(
        &self,
        expected: Option<WitnessPosition>,
        new: &WitnessRecord,
    ) -> impl Future<Output = Result<(), WitnessError>>;
}
