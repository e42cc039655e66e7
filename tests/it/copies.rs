//! The real daemon: copies come, go and are replaced as the text says, under a client that keeps its data.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::fs;

use volund::model::status::ReplicaState;

use super::daemon_rig::Node;

const POOLS: &str = "version = 1\n[pool.a]\npath = \"POOL/a\"\n[pool.b]\npath = \"POOL/b\"\n\
                     [pool.c]\npath = \"POOL/c\"\nreserve = \"0GiB\"\n";

fn text(size: &str, pools: &str) -> String {
    format!(
        "{POOLS}[volume.db]\nsize = \"{size}\"\nreplicas = [{pools}]\nexport = {{ vhost-user = {{}} }}\n"
    )
}

/// The volume's pools, if every copy is in sync.
fn in_sync(node: &Node) -> Option<Vec<String>> {
    let replicas = node.volume("db")?.replicas;
    let all = replicas
        .iter()
        .all(|replica| replica.state == ReplicaState::InSync);
    all.then(|| {
        replicas
            .iter()
            .map(|replica| replica.pool.to_string())
            .collect()
    })
}

fn until_in_sync(node: &Node, pools: &[&str]) {
    node.until(&format!("in sync in {pools:?}"), |node| {
        in_sync(node).is_some_and(|found| found == pools)
    });
}

fn replica_files(node: &Node, pool: &str) -> usize {
    let folder = node.path("pools").join(pool).join("replicas");
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn copies_come_and_go_and_the_volume_grows_under_a_client() {
    let mut node = Node::new();
    node.configure(&text("16MiB", "\"a\""));
    node.start();
    node.until_attached("db");
    let mut disk = node.disk("db");
    disk.write(20, 1);

    node.configure(&text("16MiB", "\"a\", \"b\""));
    until_in_sync(&node, &["a", "b"]);
    disk.write(20, 2);
    node.configure(&text("16MiB", "\"a\", \"b\", \"c\""));
    until_in_sync(&node, &["a", "b", "c"]);
    // A rebuild is counted once it has tidied up, just after its member is in sync.
    node.until("two rebuilds are counted", |node| {
        let series = "volund_rebuilds_total{volume=\"db\",result=\"success\"}";
        node.metric(series) == Some(2.0)
    });

    // Two of three go at once, and the one that was first with them.
    node.configure(&text("16MiB", "\"c\""));
    until_in_sync(&node, &["c"]);
    assert!(disk.holds(20, 2));
    node.until("the files of the others are gone", |node| {
        replica_files(node, "a") == 0 && replica_files(node, "b") == 0
    });
    assert_eq!(
        node.metric("volund_replica_state{volume=\"db\",pool=\"a\",state=\"in_sync\"}"),
        None
    );

    node.configure(&text("32MiB", "\"c\", \"a\""));
    until_in_sync(&node, &["c", "a"]);
    node.until("grown", |node| {
        node.volume("db")
            .is_some_and(|volume| volume.size_bytes == 32 << 20)
    });
    assert!(disk.holds(20, 2));
    drop(disk);
    node.kill();
    node.start();
    node.until_attached("db");
    until_in_sync(&node, &["c", "a"]);
    assert!(node.disk("db").holds(20, 2));
    let plan = node.said(&["plan"]);
    assert!(plan.starts_with("No changes"), "{plan}");
}

#[test]
fn a_replica_is_replaced_by_one_edit() {
    let mut node = Node::new();
    node.configure(&text("16MiB", "\"a\", \"b\""));
    node.start();
    node.until_attached("db");
    let mut disk = node.disk("db");
    disk.write(20, 7);
    // The pool of one copy is gone for good.
    drop(disk);
    node.stop();
    fs::remove_dir_all(node.path("pools/b")).unwrap();
    node.configure(&format!(
        "{}[defaults.volume]\ndegraded_wait = \"0s\"\n",
        text("16MiB", "\"a\", \"c\"")
    ));
    node.start();
    node.until_attached("db");
    until_in_sync(&node, &["a", "c"]);
    assert!(node.disk("db").holds(20, 7));
}

#[test]
fn a_copy_stays_until_the_others_are_in_sync() {
    let mut node = Node::new();
    node.configure(&text("16MiB", "\"a\""));
    node.start();
    node.until_attached("db");
    node.disk("db").write(20, 3);
    // There is no room for the new one, so the old one stays.
    let full = text("16MiB", "\"c\"").replace("\"0GiB\"", "\"900TiB\"");
    node.configure(&full);
    let waiting = node.until_condition("db", "ChangePending", "ReplicaRemovalWaiting");
    assert!(waiting.message.contains("\"a\""), "{}", waiting.message);
    node.until_condition("db", "ChangeFailed", "NoSpace");
    let volume = node.volume("db").unwrap();
    assert_eq!(volume.state, "Attached");
    node.configure(&text("16MiB", "\"c\""));
    until_in_sync(&node, &["c"]);
    assert!(node.disk("db").holds(20, 3));
}
