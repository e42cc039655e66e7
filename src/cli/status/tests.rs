//! The table, from a status to text.

use std::time::UNIX_EPOCH;

use super::*;
use crate::model::status::{PoolStatus, ReplicaStatus};

fn condition(kind: &str, status: Truth, reason: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: format!("because {reason}"),
        last_transition_time: String::new(),
        observed_generation: 1,
    }
}

fn replica(pool: &str, state: ReplicaState, reason: Option<&str>) -> ReplicaStatus {
    ReplicaStatus {
        pool: pool.parse().unwrap(),
        uuid: None,
        state,
        reason: reason.map(str::to_owned),
        allocated_bytes: 1 << 20,
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
  b     Stale                                                           WriteError: EIO
web     Online    1GiB  1MiB  1/1       vhost-user web.sock  -
! volume db: because ReplicaStale (ReplicaStale)
";
    assert_eq!(text, expected);
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
