//! The real daemon with replicas that break on command.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::time::Duration;

use volund::io::clock::monotonic;

use super::daemon_rig::Node;

const MIRROR: &str = "version = 1\n[pool.a]\npath = \"POOL/a\"\n[pool.b]\npath = \"POOL/b\"\n\
                      [volume.db]\nsize = \"16MiB\"\nreplicas = [\"a\", \"b\"]\nexport = { vhost-user = {} }\n\
                      io_timeout = \"1s\"\n";
const SWITCH: &str = "[danger_zone]\nfault_injection = true\n";

fn started(text: &str) -> Node {
    let mut node = Node::new();
    node.configure(text);
    node.start();
    node.until_attached("db");
    node
}

fn is_injected(node: &Node) -> bool {
    let volume = node.volume("db").unwrap();
    volume.conditions.iter().any(|c| c.kind == "FaultInjected")
}

#[test]
fn without_the_switch_nothing_is_broken() {
    let node = started(MIRROR);
    let refused = node.volund(&["inject", "db", "a", "lost-device"]);
    assert!(!refused.status.success());
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("fault_injection = true"), "{message}");
    // Not before a restart either: replicas that are open can't be broken.
    node.configure(&format!("{MIRROR}{SWITCH}"));
    node.until("told to restart", |node| {
        let refused = node.volund(&["inject", "db", "a", "lost-device"]);
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("started before")
    });
    node.disk("db").write(8, 1);
    assert!(!is_injected(&node));
}

#[test]
fn a_replica_that_is_broken_on_purpose_is_left_and_said_to_be() {
    let mut node = started(&format!("{MIRROR}{SWITCH}"));
    let mut disk = node.disk("db");
    disk.write(8, 1);
    let said = node.said(&["inject", "db", "b", "error=write:ENXIO,count=1"]);
    assert!(said.contains("error=write:ENXIO,count=1"), "{said}");
    let condition = node.until_condition("db", "FaultInjected", "Injected");
    assert!(
        condition.message.contains("pool \"b\""),
        "{}",
        condition.message
    );
    // Faults that come to nothing change nothing, and an unknown pool is told.
    assert!(!node.volund(&["inject", "db", "c", "hang"]).status.success());
    disk.write(8, 2);
    node.until("left behind", |node| {
        node.log().contains("ENXIO") || node.log().contains("No such device or address")
    });
    assert!(disk.holds(8, 2));
    node.said(&["inject", "db", "b", "clear"]);
    node.until("cleared", |node| !is_injected(node));
    node.said(&["inject", "db", "b", "delay=1ms"]);
    drop(disk);
    node.kill();
    node.start();
    node.until_attached("db");
    assert!(!is_injected(&node), "faults end with the daemon");
    assert!(node.disk("db").holds(8, 2));
}

/// Spec G11, on real files: `io_timeout` is 1 s here, and the commit takes a second at most.
#[test]
fn a_replica_that_hangs_holds_its_volume_up_for_io_timeout_and_comes_back() {
    let node = started(&format!("{MIRROR}{SWITCH}"));
    let mut disk = node.disk("db");
    disk.write(8, 1);
    node.said(&["inject", "db", "b", "hang"]);
    let started = monotonic();
    disk.write(8, 2);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(disk.holds(8, 2));
    node.until_condition("db", "Degraded", "ReplicaStale");
    node.said(&["inject", "db", "b", "clear"]);
    node.until_condition("db", "Degraded", "AllInSync");
    assert!(disk.holds(8, 2));
}
