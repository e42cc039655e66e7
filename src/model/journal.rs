//! What happened and what was done: events, operations, and the revisions of the configuration they were done for.
//! Serialised and kept in the node's database; fields are only ever added.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// Counts up; each start of the daemon leaves some out. Otherwise a gap means that older ones were dropped.
    pub number: u64,
    /// When, RFC 3339.
    pub time: String,
    /// To what: `volume.db`, `pool.main`, `config`.
    pub object: String,
    /// Why, one CamelCase word.
    pub reason: String,
    /// What, in a sentence.
    pub message: String,
}

/// One state of the configuration's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Its number among the configurations that were in force here; none for one that never was.
    pub generation: Option<u64>,
    /// SHA-256 over names and contents of the files, hexadecimal.
    pub hash: String,
    /// The commit that was checked out when the files were last looked at, if they are in a git work tree.
    pub commit: Option<String>,
}

/// The configuration's three revisions that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revisions {
    /// The one in force: what the daemon works towards.
    pub applied: Option<Revision>,
    /// The one on disk, when it is not in force because it was refused.
    pub pending: Option<Revision>,
    /// The last one of which everything was in place, nothing left to do and nothing blocked.
    pub last_good: Option<Revision>,
}

/// Something that is not as the files want it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// What: `volume.db`, `pool.main`, `config`.
    pub object: String,
    /// Since when the object is not as wanted, RFC 3339; known across restarts.
    pub since: String,
    /// Why, one CamelCase word: `Applying`, `Pending`, or what keeps it from being as wanted.
    pub reason: String,
    /// What differs or what is in the way, in a sentence.
    pub message: String,
}

impl Drift {
    /// Whether it is only being done just now.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.reason == "Applying"
    }
}

/// One thing that the daemon did, or was asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Counts up; each start of the daemon leaves some out.
    pub id: u64,
    /// To what: `volume.db`, `pool.main`, `quarantine.db@2026-11-21T09:14:03Z`.
    pub object: String,
    /// What, one CamelCase word: `Create`, `Export`, `Scrub`, ...
    pub action: String,
    /// What, in words.
    pub summary: String,
    /// How far it is.
    pub state: OperationState,
    /// What it was begun for.
    pub cause: Cause,
    /// Who asked for it, if someone did: `uid 0, pid 4711`.
    pub requested_by: Option<String>,
    /// The configuration that was in force when it was planned.
    pub revision: Option<Revision>,
    /// How often it was begun. A step that failed and is tried again is the same operation.
    pub attempts: u32,
    /// When it was planned or asked for, RFC 3339.
    pub created_at: String,
    /// When it was last begun, RFC 3339.
    pub started_at: Option<String>,
    /// When it last ended, RFC 3339.
    pub ended_at: Option<String>,
    /// How long the last attempt took, milliseconds; none while it runs.
    pub duration_ms: Option<u64>,
    /// Why it failed, one CamelCase word; none when it has not.
    pub reason: Option<String>,
    /// Why it failed: the error, then what caused it, down to the first cause.
    pub errors: Vec<String>,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OperationState {
    /// Planned; its turn has not come.
    Pending,
    /// Under way.
    Executing,
    /// Done.
    Completed,
    /// Not done; `reason` and `errors` say why.
    Failed,
}

impl OperationState {
    /// The word for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Executing => "executing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing more happens unless it is tried again.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// What an operation was begun for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// The daemon has started.
    Start,
    /// The files have changed.
    Configuration,
    /// The object was as the files want it, and is not any more.
    Drift,
    /// Someone has asked for it.
    Request,
}

impl Cause {
    /// The word for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Configuration => "configuration",
            Self::Drift => "drift",
            Self::Request => "request",
        }
    }
}

/// What is kept of all this over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Events, oldest first.
    pub events: Vec<EventRecord>,
    /// Operations, oldest first.
    pub operations: Vec<Operation>,
    /// The last revision of which everything was in place.
    pub last_good: Option<Revision>,
    /// Since when objects are not as wanted.
    pub drift_since: std::collections::BTreeMap<String, String>,
}

/// What has changed of [`Saved`] and is still to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// By number: an event, or none for one that is not kept any more.
    pub events: Vec<(u64, Option<EventRecord>)>,
    /// By id: an operation, or none for one that is not kept any more.
    pub operations: Vec<(u64, Option<Operation>)>,
}

impl Unsaved {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.operations.is_empty()
    }
}

/// The first number that a start of the daemon gives out, when `newest` is the newest that is known from before: some
/// that were given out may not have been written, and must not mean something else now.
#[must_use]
pub fn first_after(newest: u64) -> u64 {
    const STEP: u64 = 1000;
    match newest {
        0 => 1,
        _ => (newest / STEP).saturating_add(2).saturating_mul(STEP) + 1,
    }
}

/// Longest text of an event or an operation, bytes: a thousand are kept in memory, and someone may have sent them.
pub const TEXT_BYTES_MAX: usize = 4096;

/// A text as the journal keeps it: cut off with an ellipsis when it is too long.
#[must_use]
pub fn clipped(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(TEXT_BYTES_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let fits = "x".repeat(TEXT_BYTES_MAX);
        assert_eq!(clipped(&fits), fits);
        let odd = format!("x{}", "\u{e4}".repeat(TEXT_BYTES_MAX));
        let cut = clipped(&odd);
        assert!(odd.starts_with(cut.strip_suffix("...").unwrap()));
        assert!(cut.len() <= TEXT_BYTES_MAX + 3, "{}", cut.len());
    }
}
