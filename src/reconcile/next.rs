//! What the daemon does next about a condition: where its reason alone decides that, one table.

use super::status::Statement;
use crate::model::status::Truth;

/// What follows from a statement's type and reason; none when nothing happens, or nothing has to.
pub(super) fn usual(statement: &Statement) -> Option<&'static str> {
    let text = match (statement.kind, statement.status, statement.reason.as_str()) {
        ("Ready", Truth::False, "LastCopyFailing") => {
            "every request tries the copy again, so clients go on as soon as it answers; no data is given up"
        }
        ("Ready" | "LostUnflushed", _, "LostUnflushed") => {
            "writes work again once the client has detached and come back, as after a power loss"
        }
        ("Ready" | "Blocked", _, "PoolOffline") => {
            "it is opened by itself once these pools are back; nothing is created or deleted until then"
        }
        ("Ready" | "Blocked", _, "AmbiguousVolume" | "QuarantinedDataExists") => {
            "nothing until somebody decides; no data is touched"
        }
        ("Ready", Truth::False, "Blocked") => {
            "it is assembled by itself once a copy that is proven to be the newest is back; no data is touched until then"
        }
        ("ChildHung", ..) => {
            "requests wait for the disk, as they do on a single disk that hangs, and end when it answers"
        }
        ("ScrubMismatch", ..) => "nothing until a scrub is told which copy to believe",
        ("RebuildGivenUp", ..) => {
            "it is tried again in about an hour, and at once when its pool comes back or the volume's table changes"
        }
        ("RemovalBlocked", _, "InUse") => "it is removed by itself when its client has gone",
        ("RemovalBlocked", _, "ApprovalNeeded") => {
            "nothing until the plan is approved or the tables are back; the volume goes on meanwhile"
        }
        ("RemovalBlocked", _, "PoolOffline") => "it is removed by itself once these pools are back",
        ("ChangePending", _, "InUse") => "the change is made by itself when the client has gone",
        ("ChangePending", _, "ReplicaRemovalWaiting") => {
            "the copy that is to go serves until then, and is removed by itself as soon as all that stay are in sync"
        }
        ("ChangePending", _, "ReplicaAdditionWaiting") => "the copy is added by itself then",
        ("ChangeRefused", ..) => "nothing: what was there stays in force",
        _ => return None,
    };
    Some(text)
}
