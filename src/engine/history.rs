//! What happened to a volume, for `volund why`: told by comparing what its nexus says with what it said before, and kept in
//! the node's database. Never on the way of an I/O.

use jiff::Timestamp;

use super::engine::Engine;
use crate::io::clock::wall;
use crate::model::status::ReplicaState;
use crate::model::why::HistoryEvent;
use crate::model::{PoolName, ReplicaId, VolumeId};
use crate::nexus::{ChildStatus, NexusStatus};

/// An event that is not dated yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) what: &'static str,
    pub(super) pool: Option<PoolName>,
    pub(super) replica: Option<ReplicaId>,
    pub(super) detail: String,
}

impl Happened {
    /// To the volume as a whole.
    pub(super) fn to_volume(what: &'static str, detail: impl Into<String>) -> Self {
        Self {
            what,
            pool: None,
            replica: None,
            detail: detail.into(),
        }
    }

    /// To one replica.
    pub(super) fn to(
        what: &'static str,
        (pool, replica): (Option<PoolName>, Option<ReplicaId>),
        detail: impl Into<String>,
    ) -> Self {
        Self {
            what,
            pool,
            replica,
            detail: detail.into(),
        }
    }
}

impl Happened {
    /// Changes of members' states go to the log, too; all else is told where it is done.
    fn log(&self, volume: VolumeId, generation: u64) {
        let Self { what, detail, .. } = self;
        let pool = self.pool.as_ref().map(tracing::field::display);
        let replica = self.replica.map(tracing::field::display);
        match *what {
            "LeftBehind" | "RebuildFailed" | "LastCopyFailing" | "LostUnflushed" => {
                tracing::warn!(%volume, pool, replica, generation, "{what}: {detail}");
            }
            "InSync" | "Rebuilding" | "Blank" => {
                tracing::info!(%volume, pool, replica, generation, "{what}: {detail}");
            }
            _ => {}
        }
    }
}

impl Engine {
    /// Adds to a volume's history, which is written in the background.
    pub(super) fn note(&self, id: VolumeId, generation: u64, happened: Vec<Happened>) {
        if happened.is_empty() {
            return;
        }
        let time = Timestamp::try_from(wall()).unwrap_or_default();
        let time = Timestamp::from_second(time.as_second())
            .unwrap_or(time)
            .to_string();
        for happened in &happened {
            happened.log(id, generation);
        }
        let events = happened.into_iter().map(|happened| HistoryEvent {
            time: time.clone(),
            generation,
            what: happened.what.to_owned(),
            pool: happened.pool,
            replica: happened.replica,
            detail: happened.detail,
        });
        // It is added here and now: one that came after the volume was forgotten would be kept for ever.
        let written = self.shared.store.add_history(id, events.collect());
        tokio::spawn(async move {
            if let Err(error) = written.await {
                tracing::warn!(volume = %id, %error, "what happened to it could not be remembered");
            }
        });
    }
}

/// What lies between two things that a nexus said; `before` is none for the first.
pub(super) fn difference(before: Option<&NexusStatus>, now: &NexusStatus) -> Vec<Happened> {
    let Some(before) = before else {
        return started(now);
    };
    let find = |status: &NexusStatus, child: &ChildStatus| {
        let mut children = status.children.iter().filter(|c| c.is_member);
        children.find(|c| c.replica == child.replica).cloned()
    };
    let mut happened = Vec::new();
    for child in now.children.iter().filter(|c| c.is_member) {
        let place = (child.pool.clone(), child.replica);
        match find(before, child) {
            None => happened.push(Happened::to("Added", place, "it is a member now")),
            Some(old) => happened.extend(change(&old, child, place)),
        }
    }
    for child in before.children.iter().filter(|c| c.is_member) {
        if find(now, child).is_none() {
            let place = (child.pool.clone(), child.replica);
            happened.push(Happened::to("Removed", place, "it is no member any more"));
        }
    }
    if now.lost_unflushed && !before.lost_unflushed {
        let detail = "acknowledged writes that were never flushed may be lost";
        happened.push(Happened::to_volume("LostUnflushed", detail));
    }
    if now.size_bytes != before.size_bytes {
        let detail = format!("from {} to {} bytes", before.size_bytes, now.size_bytes);
        happened.push(Happened::to_volume("Grown", detail));
    }
    happened
}

/// The event by which a replica that is out of sync became so, as far as its volume's history (oldest first) goes back.
pub(super) fn left_by(events: &[HistoryEvent], replica: ReplicaId) -> Option<&HistoryEvent> {
    let mut left = None;
    for event in events.iter().filter(|e| e.replica == Some(replica)) {
        match event.what.as_str() {
            "LeftBehind" | "Added" => left = Some(event),
            // It was out of sync before, or the daemon that saw it leave could not tell.
            "LeftOut" => left = left.or(Some(event)),
            "InSync" | "Removed" => left = None,
            _ => {}
        }
    }
    left
}

fn started(now: &NexusStatus) -> Vec<Happened> {
    let named = |child: &ChildStatus| {
        let pool = child.pool.as_ref().map(ToString::to_string);
        let replica = child.replica.map(|replica| replica.to_string());
        pool.or(replica).unwrap_or_default()
    };
    let members = || now.children.iter().filter(|child| child.is_member);
    let in_sync: Vec<String> = members()
        .filter(|child| child.state == ReplicaState::InSync)
        .map(named)
        .collect();
    let left: Vec<String> = members()
        .filter(|child| child.state != ReplicaState::InSync)
        .map(|child| {
            let reason = child.reason.as_deref().unwrap_or("no reason known");
            format!("{} is {:?} ({reason})", named(child), child.state)
        })
        .collect();
    let mut detail = format!("in sync: {}", in_sync.join(", "));
    if !left.is_empty() {
        detail = format!("{detail}; left out: {}", left.join(", "));
    }
    let mut happened = vec![Happened::to_volume("Started", detail)];
    for child in members().filter(|child| child.state != ReplicaState::InSync) {
        let place = (child.pool.clone(), child.replica);
        let reason = child.reason.clone().unwrap_or_default();
        happened.push(Happened::to("LeftOut", place, reason));
    }
    happened
}

fn change(
    old: &ChildStatus,
    new: &ChildStatus,
    place: (Option<PoolName>, Option<ReplicaId>),
) -> Option<Happened> {
    let reason = new.reason.clone().unwrap_or_default();
    if old.state == new.state {
        // The last copy stays in although it fails.
        let failing = new.state == ReplicaState::InSync && old.reason != new.reason;
        return (failing && !reason.is_empty())
            .then(|| Happened::to("LastCopyFailing", place, reason));
    }
    let (what, detail) = match new.state {
        ReplicaState::InSync => ("InSync", "it holds every acknowledged write".to_owned()),
        ReplicaState::Rebuilding => (
            "Rebuilding",
            "it takes new writes, and old data is copied".into(),
        ),
        ReplicaState::Stale | ReplicaState::Absent => match old.state {
            ReplicaState::InSync => ("LeftBehind", reason),
            ReplicaState::Rebuilding => ("RebuildFailed", reason),
            _ => return None,
        },
        ReplicaState::Blank => ("Blank", reason),
        ReplicaState::Waiting => return None,
    };
    Some(Happened::to(what, place, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::live::initial_status;
    use crate::nexus::ChildLatencies;

    fn child(state: ReplicaState, reason: Option<&str>) -> ChildStatus {
        ChildStatus {
            pool: Some("a".parse().unwrap()),
            replica: Some(ReplicaId::from_uuid(uuid::Uuid::from_u128(1))),
            state,
            reason: reason.map(str::to_owned),
            is_member: true,
            wants_attach: false,
            wants_rebuild: false,
            hung: false,
            corrected_reads: 0,
            latencies: ChildLatencies::default(),
            errors: crate::replica::ErrorCounts::default(),
            rebuild: None,
        }
    }

    fn status(children: Vec<ChildStatus>) -> NexusStatus {
        NexusStatus {
            children,
            ..initial_status()
        }
    }

    fn check(before: ChildStatus, now: ChildStatus, expected: Option<&str>) {
        let (before, now) = (status(vec![before]), status(vec![now]));
        let found = difference(Some(&before), &now);
        let found: Vec<&str> = found.iter().map(|happened| happened.what).collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_failed_member_is_told_with_the_operation_that_failed() {
        let in_sync = || child(ReplicaState::InSync, None);
        let failed = child(ReplicaState::Stale, Some("WriteError: no"));
        let (before, now) = (status(vec![in_sync()]), status(vec![failed]));
        let found = difference(Some(&before), &now);
        assert_eq!(found[0].what, "LeftBehind");
        assert_eq!(found[0].detail, "WriteError: no");
        assert_eq!(difference(Some(&now), &now), [], "told once");
    }

    #[test]
    fn every_step_of_a_rebuild_is_told() {
        let in_state = |state| child(state, None);
        let (stale, rebuilding) = (ReplicaState::Stale, ReplicaState::Rebuilding);
        check(in_state(stale), in_state(rebuilding), Some("Rebuilding"));
        check(
            in_state(rebuilding),
            in_state(ReplicaState::InSync),
            Some("InSync"),
        );
        check(in_state(rebuilding), in_state(stale), Some("RebuildFailed"));
        check(in_state(ReplicaState::Absent), in_state(stale), None);
        check(in_state(stale), in_state(stale), None);
    }

    #[test]
    fn the_last_copy_failing_is_told_although_it_stays() {
        let failing = child(ReplicaState::InSync, Some("FlushError: no"));
        check(
            child(ReplicaState::InSync, None),
            failing.clone(),
            Some("LastCopyFailing"),
        );
        check(failing, child(ReplicaState::InSync, None), None);
    }

    #[test]
    fn a_start_says_who_was_left_out() {
        let status = status(vec![
            child(ReplicaState::InSync, None),
            child(ReplicaState::Absent, Some("Absent: gone")),
        ]);
        let found = difference(None, &status);
        assert!(
            found[0]
                .detail
                .contains("left out: a is Absent (Absent: gone)"),
            "{found:?}"
        );
    }

    #[test]
    fn a_replica_is_out_of_sync_since_it_left_and_not_since_the_last_start() {
        let replica = ReplicaId::from_uuid(uuid::Uuid::from_u128(1));
        let events = |whats: &[&str]| -> Vec<HistoryEvent> {
            let events = whats.iter().zip(1..).map(|(what, number)| HistoryEvent {
                time: format!("t{number}"),
                generation: 1,
                what: (*what).to_owned(),
                pool: None,
                replica: (*what != "Started").then_some(replica),
                detail: String::new(),
            });
            events.collect()
        };
        let check = |whats: &[&str], expected: Option<&str>| {
            let events = events(whats);
            let left = left_by(&events, replica);
            assert_eq!(left.map(|event| event.time.as_str()), expected, "{whats:?}");
        };
        check(&["Started"], None);
        check(&["Started", "LeftOut", "Started", "LeftOut"], Some("t2"));
        check(
            &["LeftBehind", "RebuildFailed", "Started", "LeftOut"],
            Some("t1"),
        );
        check(&["LeftBehind", "Rebuilding", "InSync"], None);
        check(&["LeftBehind", "InSync", "LeftBehind"], Some("t3"));
        check(&["LeftBehind", "Removed", "Added"], Some("t3"));
    }

    #[test]
    fn members_that_come_and_go_are_told() {
        let (none, one) = (
            status(Vec::new()),
            status(vec![child(ReplicaState::Blank, None)]),
        );
        assert_eq!(difference(Some(&none), &one)[0].what, "Added");
        assert_eq!(difference(Some(&one), &none)[0].what, "Removed");
    }
}
