//! The table, from a status to text.

use std::time::UNIX_EPOCH;

use super::*;
use crate::model::journal::{Drift, Revisions};
use crate::model::status::{
    PoolStatus, RebuildKind, ReplicaStatus, ResolveStatus, ScrubRun, ScrubStatus,
};

fn condition(kind: &str, status: Truth, reason: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: format!("because {reason}"),
        next: (kind == "Degraded").then(|| "it is rebuilt".to_owned()),
        last_transition_time: "1970-01-01T00:01:00Z".to_owned(),
        observed_generation: 1,
    }
}

fn replica(pool: &str, state: ReplicaState, reason: Option<&str>) -> ReplicaStatus {
    ReplicaStatus {
        reason: reason.map(str::to_owned),
        since: reason.map(|_| "1970-01-01T00:00:00Z".to_owned()),
        allocated_bytes: 1 << 20,
        ..ReplicaStatus::new(pool.parse().unwrap(), None, state)
    }
}

fn volume(name: &str, replicas: Vec<ReplicaStatus>, conditions: Vec<Condition>) -> VolumeStatus {
    VolumeStatus {
        name: name.parse().unwrap(),
        uuid: None,
        size_bytes: 1 << 30,
        allocated_bytes: 1 << 20,
        state: "Attached".to_owned(),
        nexus_generation: 1,
        export: format!("vhost-user /run/volund/{name}.sock"),
        export_socket: Some(format!("/run/volund/{name}.sock")),
        export_queues: Some(16),
        client_connected: name == "db",
        replicas,
        resolved_bytes: 131_072,
        resolving: None,
        scrub: None,
        serving: true,
        uuids: Vec::new(),
        applied: None,
        exported: None,
        conditions,
    }
}

fn status() -> NodeStatus {
    let ready = || condition("Ready", Truth::True, "Attached");
    let pool = PoolStatus {
        name: "a".parse().unwrap(),
        id: None,
        backing: "/pools/a".to_owned(),
        state: PoolState::Online,
        capacity_bytes: 0,
        allocated_bytes: 0,
        committed_bytes: 0,
        available_bytes: 0,
        spec: None,
        conditions: vec![condition("Ready", Truth::True, "Online")],
    };
    let mirror = vec![
        replica("a", ReplicaState::InSync, None),
        replica("b", ReplicaState::Stale, Some("WriteError: EIO")),
    ];
    let degraded = condition("Degraded", Truth::True, "ReplicaStale");
    let whole = condition("Degraded", Truth::False, "AllInSync");
    NodeStatus {
        generation: 1,
        config_hash: "9f2c41aaaa".to_owned(),
        config_applied_at: Some("1970-01-01T00:00:00Z".to_owned()),
        config_error: None,
        revisions: Revisions::default(),
        drift: Vec::new(),
        node: "n1".to_owned(),
        version: "0".to_owned(),
        pools: vec![pool],
        volumes: vec![
            volume("db", mirror, vec![ready(), degraded]),
            volume(
                "web",
                vec![replica("a", ReplicaState::InSync, None)],
                vec![ready(), whole],
            ),
        ],
        quarantine: Vec::new(),
        orphans: Vec::new(),
    }
}

#[test]
fn the_table_says_what_serves_and_what_is_wrong() {
    let text = human(&status(), UNIX_EPOCH + Duration::from_secs(125));
    let expected = "\
CONFIG  9f2c41 applied 2m ago   NODE n1   POOLS 1 online   VOLUMES 1 degraded, 1 online
VOLUME  STATE     SIZE  USED  REPLICAS  EXPORT               CLIENT     REASON
db      Degraded  1GiB  1MiB  1/2       vhost-user db.sock   connected  ReplicaStale
  a     InSync
  b     Stale     for 2m: WriteError: EIO
web     Online    1GiB  1MiB  1/1       vhost-user web.sock  -
! volume db: Degraded (ReplicaStale) since 1970-01-01T00:01:00Z, 1m: because ReplicaStale
  next: it is rebuilt
";
    assert_eq!(text, expected);
}

#[test]
fn what_differs_from_the_files_is_said_with_its_time_unless_it_is_being_done() {
    let mut status = status();
    let drift = |object: &str, reason: &str| Drift {
        object: object.to_owned(),
        since: "1970-01-01T00:00:05Z".to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
    };
    status.drift = vec![
        drift("volume.web", "Applying"),
        drift("volume.db", "NoSpace"),
        drift("pool.b", "PathMissing"),
    ];
    let text = human(&status, UNIX_EPOCH + Duration::from_secs(125));
    let line = "DRIFT   volume.db for 2m (NoSpace), pool.b for 2m (PathMissing)";
    assert_eq!(text.lines().nth(1), Some(line), "{text}");
}

#[test]
fn work_on_the_copies_is_shown_with_its_rate_and_its_end() {
    let mut status = status();
    let volume = &mut status.volumes[0];
    volume.replicas[1] = ReplicaStatus {
        rebuild: Some(RebuildStatus {
            kind: RebuildKind::Partial,
            reason: "it was away".to_owned(),
            total_bytes: 41 << 30,
            remaining_bytes: 172 << 30 >> 4,
            copied_bytes: 0,
            bytes_per_second: 412 << 20,
            eta_seconds: Some(43),
        }),
        ..ReplicaStatus::new("b".parse().unwrap(), None, ReplicaState::Rebuilding)
    };
    volume.conditions[1].reason = "ReplicaRebuilding".to_owned();
    volume.resolving = Some(ResolveStatus {
        unresolved_bytes: 3 << 20,
    });
    volume.scrub = Some(ScrubStatus {
        running: Some(ScrubRun {
            total_bytes: 1 << 30,
            done_bytes: 256 << 20,
        }),
        ..ScrubStatus::default()
    });
    status.volumes.pop();
    let text = human(&status, UNIX_EPOCH + Duration::from_secs(125));
    let expected = "\
VOLUME         STATE       SIZE  USED  REPLICAS  EXPORT              CLIENT     REASON
db             Degraded    1GiB  1MiB  1/2       vhost-user db.sock  connected  ReplicaRebuilding
  a            InSync
  b            Rebuilding  [###########.....] 73%  10.7GiB left  412MiB/s  ETA 43s
  (resolving)              3MiB left to be made equal after a crash
  (scrub)                  [####............] 25%  768MiB left
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn what_bears_on_the_data_comes_before_what_waits() {
    let conditions = [
        condition("ChangePending", Truth::True, "ReplicaRemovalWaiting"),
        condition("Degraded", Truth::True, "ReplicaStale"),
        condition("Ready", Truth::True, "Attached"),
    ];
    assert_eq!(reason(&conditions), "ReplicaStale");
    let said = complaints("volume db", &conditions, UNIX_EPOCH);
    let (first, rest) = said.split_once('\n').unwrap();
    assert!(first.contains("ReplicaStale"), "{said}");
    assert!(rest.contains("ReplicaRemovalWaiting"), "{said}");
}

#[test]
fn the_exit_code_tells_whether_all_is_ready() {
    let args = StatusArgs {
        volumes: Vec::new(),
        watch: false,
        exit_code: true,
    };
    let mut status = status();
    assert_eq!(exit_code(&args, &status), EXIT_OK);
    status.pools[0].conditions[0].status = Truth::False;
    assert_eq!(exit_code(&args, &status), EXIT_NOT_READY);
}
