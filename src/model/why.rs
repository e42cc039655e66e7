//! What `volund why` answers: everything that bears on which copy of a volume is the newest, and what happened to it.
//! Serialised; fields are only ever added.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::status::ReplicaState;
use super::{PoolName, ReplicaId, VolumeId, VolumeName};

/// Why a volume is as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// Its name.
    pub volume: VolumeName,
    /// Its id; none when labels of several volumes carry the name, or none does.
    pub uuid: Option<VolumeId>,
    /// Whether it runs.
    pub serving: bool,
    /// What all of it comes to, in a sentence.
    pub summary: String,
    /// The newest committed generation as recorded outside the replicas; none when that record is lost.
    pub witness: Option<WitnessView>,
    /// Members of the table in force, while it runs; else those of the newest label.
    pub members: Vec<MemberView>,
    /// Every label that was found.
    pub labels: Vec<LabelView>,
    /// What happened to it, oldest first.
    pub history: Vec<HistoryEvent>,
    /// What to do next, most promising first; empty when nothing is wrong.
    pub next: Vec<String>,
}

/// The record outside the replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WitnessView {
    /// The committed generation.
    pub generation: u64,
    /// Its ownership term.
    pub epoch: u64,
    /// The members that it calls in sync.
    pub in_sync: Vec<ReplicaId>,
}

/// A member of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// The replica.
    pub replica: ReplicaId,
    /// Where it is, if known.
    pub pool: Option<PoolName>,
    /// What it is.
    pub state: ReplicaState,
    /// Why it is in that state.
    pub reason: Option<String>,
    /// How it is being rebuilt: which kind of copy was chosen, and why.
    pub rebuild: Option<String>,
    /// What the keeper does about it: waits for a pool, tries again, rests.
    pub outlook: Option<String>,
}

/// A label that was found in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelView {
    /// The pool.
    pub pool: PoolName,
    /// The replica.
    pub replica: ReplicaId,
    /// Whether it is in the quarantine.
    pub quarantined: bool,
    /// The label's generation; none when the label can't be read.
    pub generation: Option<u64>,
    /// How its history relates to the committed one.
    pub relation: Option<Relation>,
    /// What its own table calls it.
    pub own_state: Option<ReplicaState>,
    /// Whether the table in force, or the newest label's, lists it.
    pub is_member: bool,
    /// When the label was written, RFC 3339; by the clock of that time.
    pub written_at: Option<String>,
    /// Why the file can't be used.
    pub fault: Option<String>,
}

/// How a label's generation relates to the committed one, or to the newest label's where that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Relation {
    /// It is the same.
    Same,
    /// It is an ancestor, so many generations before.
    Behind(u64),
    /// It is a descendant that was attempted and not committed, so many generations after.
    Ahead(u64),
    /// Its number is so many generations before, but nothing here has the committed history, so that nobody can tell
    /// whether it is an ancestor.
    Before(u64),
    /// Neither descends from the other, as far as their last 32 ancestors tell.
    Other,
}

/// Something that happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEvent {
    /// When, RFC 3339.
    pub time: String,
    /// The committed generation at that moment.
    pub generation: u64,
    /// What, one CamelCase word.
    pub what: String,
    /// The pool whose replica it happened to.
    pub pool: Option<PoolName>,
    /// The replica it happened to.
    pub replica: Option<ReplicaId>,
    /// More, in words: the operation that failed, what a rebuild copied.
    pub detail: String,
}
