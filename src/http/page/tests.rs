//! The page, from a status to HTML.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::model::journal::{Drift, Revision, Revisions};
use crate::model::status::RebuildKind;

/// What would run if it were not escaped.
const EVIL: &str = "</pre><script>\"'&";

fn condition(kind: &str, status: Truth) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: "ReplicaStale".to_owned(),
        message: EVIL.to_owned(),
        next: Some(format!("it is rebuilt {EVIL}")),
        last_transition_time: "1970-01-01T00:00:00Z".to_owned(),
        observed_generation: 1,
    }
}

fn status() -> NodeStatus {
    let replica = ReplicaStatus {
        since: Some("1970-01-01T00:01:00Z".to_owned()),
        reason: Some(EVIL.to_owned()),
        rebuild: Some(RebuildStatus {
            kind: RebuildKind::Partial,
            reason: EVIL.to_owned(),
            total_bytes: 100 << 20,
            remaining_bytes: 42 << 20,
            copied_bytes: 58 << 20,
            bytes_per_second: 1 << 20,
            eta_seconds: Some(42),
        }),
        ..ReplicaStatus::new("b".parse().unwrap(), None, ReplicaState::Rebuilding)
    };
    let volume = VolumeStatus {
        name: "db".parse().unwrap(),
        uuid: None,
        size_bytes: 1 << 30,
        allocated_bytes: 0,
        state: EVIL.to_owned(),
        nexus_generation: 1,
        export: EVIL.to_owned(),
        export_socket: None,
        export_queues: None,
        client_connected: true,
        replicas: vec![replica],
        resolving: None,
        resolved_bytes: 0,
        scrub: None,
        serving: true,
        uuids: Vec::new(),
        applied: None,
        exported: None,
        conditions: vec![
            condition("Ready", Truth::False),
            condition("Degraded", Truth::True),
            condition("Rebuilding", Truth::True),
        ],
    };
    NodeStatus {
        generation: 7,
        config_hash: "9f2c41aaaabbbbcccc".to_owned(),
        config_applied_at: Some("1970-01-01T00:00:00Z".to_owned()),
        config_error: Some(EVIL.to_owned()),
        node: EVIL.to_owned(),
        version: EVIL.to_owned(),
        pools: Vec::new(),
        volumes: vec![volume],
        quarantine: Vec::new(),
        orphans: Vec::new(),
        revisions: Revisions {
            applied: Some(Revision {
                generation: Some(7),
                hash: String::new(),
                commit: Some(EVIL.to_owned()),
            }),
            ..Revisions::default()
        },
        drift: vec![
            drift("volume.db", "NoSpace"),
            drift("volume.web", "Applying"),
        ],
    }
}

fn drift(object: &str, reason: &str) -> Drift {
    Drift {
        object: object.to_owned(),
        since: "1970-01-01T00:00:00Z".to_owned(),
        reason: reason.to_owned(),
        message: EVIL.to_owned(),
    }
}

fn page(status: &NodeStatus) -> String {
    let event = EventRecord {
        number: 1,
        time: EVIL.to_owned(),
        object: EVIL.to_owned(),
        reason: EVIL.to_owned(),
        message: EVIL.to_owned(),
    };
    render(status, &[event], UNIX_EPOCH + Duration::from_secs(180)).into_string()
}

#[test]
fn nothing_that_others_wrote_is_taken_for_html() {
    let text = page(&status());
    assert!(
        !text.contains("<script>") && !text.contains("\"'&\""),
        "{text}"
    );
    assert!(
        text.matches("&lt;/pre&gt;&lt;script&gt;").count() > 10,
        "{text}"
    );
}

#[test]
fn a_rebuild_has_its_bar_with_rate_and_end() {
    let text = page(&status());
    for part in [
        "data-pool=\"b\" data-state=\"Rebuilding\"",
        "<progress max=\"100\" value=\"58\">",
        "42MiB of 100MiB left",
        "1MiB/s",
        "done in about 42s",
        "2m ago, 00:01:00Z",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn what_is_wrong_says_since_when_and_what_comes_next() {
    let text = page(&status());
    let degraded = text.split("not Ready: ReplicaStale").nth(1).unwrap();
    let next = degraded.find("it is rebuilt").unwrap();
    let since = degraded.find("3m ago, 00:00:00Z").unwrap();
    assert!(since < next, "{degraded}");
    assert!(text.contains("href=\"#volume-db\""), "{text}");
    assert!(
        !text.contains("All is well") && !text.contains("Rebuilding: "),
        "{text}"
    );
}

#[test]
fn what_differs_from_the_files_is_told_but_not_what_is_being_done() {
    let text = page(&status());
    let drift = text.split("id=\"drift\"").nth(1).unwrap();
    let drift = drift.split("</article>").next().unwrap();
    assert!(drift.contains("<b>volume.db</b> NoSpace, "), "{drift}");
    assert!(!drift.contains("volume.web"), "{drift}");
    let mut status = status();
    status.drift.remove(0);
    assert!(!page(&status).contains("id=\"drift\""));
}

#[test]
fn a_node_where_all_is_well_says_so() {
    let mut status = status();
    status.config_error = None;
    status.volumes[0].conditions = vec![condition("Ready", Truth::True)];
    status.drift.clear();
    let text = page(&status);
    assert!(
        text.contains("All is well") && text.contains("revision 7"),
        "{text}"
    );
    assert!(!text.contains("<article class"), "{text}");
}

#[test]
fn what_does_not_work_comes_before_what_works_in_part() {
    let mut status = status();
    let bad = status.volumes.remove(0);
    for (name, conditions) in [
        ("well", vec![condition("Ready", Truth::True)]),
        ("degraded", vec![condition("Degraded", Truth::True)]),
        ("down", bad.conditions.clone()),
    ] {
        status.volumes.push(VolumeStatus {
            name: name.parse().unwrap(),
            conditions,
            ..bad.clone()
        });
    }
    let text = page(&status);
    let at = |name: &str| text.find(&format!("id=\"volume-{name}\"")).unwrap();
    assert!(
        at("down") < at("degraded") && at("degraded") < at("well"),
        "{text}"
    );
}
