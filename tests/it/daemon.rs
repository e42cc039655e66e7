//! The real daemon, end to end: text can't lose a disk, bad text changes nothing, and what is wrong is said clearly.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::daemon_rig::Node;
use super::vhost_rig::PATIENCE;

const POOLS: &str = "version = 1\n[pool.main]\npath = \"POOL/main\"\n";
const DB: &str = "[volume.db]\nsize = \"16MiB\"\npool = \"main\"\nexport = { vhost-user = {} }\n";

fn started(text: &str) -> Node {
    let mut node = Node::new();
    node.configure(text);
    node.start();
    node
}

#[test]
fn a_disk_survives_restarts_and_a_kill() {
    let mut node = started(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    let uuid = node.uuid("db");
    node.disk("db").write(20, 1);
    node.stop();
    assert!(
        !node.path("run/db.sock").exists(),
        "sockets go with the daemon"
    );
    node.start();
    node.until_attached("db");
    assert!(node.disk("db").holds(20, 1));
    node.kill();
    node.start();
    node.until_attached("db");
    assert!(node.disk("db").holds(20, 1));
    assert_eq!(node.uuid("db"), uuid);
    let mode = |name: &str| fs::metadata(node.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("run/db.sock"), 0o660);
    assert_eq!(mode("run/admin.sock"), 0o660);
}

#[test]
fn a_table_that_goes_and_comes_back_has_its_bytes() {
    let node = started(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    let uuid = node.uuid("db");
    node.disk("db").write(20, 2);

    node.configure(POOLS);
    node.until("db in quarantine", |node| {
        node.status()
            .is_some_and(|s| s.quarantine.len() == 1 && s.volumes.is_empty())
    });
    let listed = node.said(&["quarantine", "list"]);
    assert!(listed.contains("db@") && listed.contains(&uuid), "{listed}");
    assert_eq!(node.metric("volund_quarantined_volumes"), Some(1.0));
    assert_eq!(node.metric("volund_volume_ready{volume=\"db\"}"), None);

    node.configure(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    assert_eq!(node.uuid("db"), uuid);
    assert!(node.disk("db").holds(20, 2));
}

#[test]
fn a_volume_in_use_is_not_removed_before_its_client_has_gone() {
    let node = started(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    let mut disk = node.disk("db");
    disk.write(4, 3);
    node.until("connected", |node| {
        node.volume("db").is_some_and(|v| v.client_connected)
    });
    node.configure(POOLS);
    node.until_condition("db", "RemovalBlocked", "InUse");
    assert!(disk.holds(4, 3), "the disk goes on");
    drop(disk);
    node.until("db in quarantine", |node| {
        node.status().is_some_and(|s| s.quarantine.len() == 1)
    });
}

#[test]
fn a_rename_keeps_the_bytes_even_without_the_state_folder() {
    let mut node = started(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    let uuid = node.uuid("db");
    node.disk("db").write(20, 4);
    node.until("free", |node| {
        node.volume("db").is_some_and(|v| !v.client_connected)
    });

    let renamed = DB.replace("volume.db", "volume.web");
    node.configure(&format!("{POOLS}{renamed}renamed_from = \"db\"\n"));
    node.until_attached("web");
    assert_eq!(node.uuid("web"), uuid);
    node.configure(&format!("{POOLS}{renamed}"));
    node.until("generation 3", |node| {
        node.status().is_some_and(|s| s.generation == 3)
    });
    node.stop();
    fs::remove_dir_all(node.path("state")).unwrap();
    node.start();
    node.until_attached("web");
    assert_eq!(node.uuid("web"), uuid);
    assert!(node.disk("web").holds(20, 4));
}

#[test]
fn a_pool_whose_disk_is_not_mounted_gets_no_new_files() {
    let mut node = started(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    node.disk("db").write(20, 5);
    node.stop();
    // An unmounted filesystem leaves an empty directory behind.
    fs::rename(node.path("pools/main"), node.path("pools/away")).unwrap();
    fs::create_dir(node.path("pools/main")).unwrap();
    node.start();
    let pool = node.status().unwrap().pools.remove(0);
    assert_eq!(pool.conditions[0].reason, "PoolMissing", "{pool:?}");
    node.until_condition("db", "Blocked", "PoolOffline");
    assert_eq!(fs::read_dir(node.path("pools/main")).unwrap().count(), 0);

    fs::remove_dir(node.path("pools/main")).unwrap();
    fs::rename(node.path("pools/away"), node.path("pools/main")).unwrap();
    node.hang_up();
    node.until_attached("db");
    assert!(node.disk("db").holds(20, 5));
}

#[test]
fn bad_files_change_nothing_and_a_restart_boots_the_last_good_ones() {
    let mut node = started(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    let mut disk = node.disk("db");
    disk.write(4, 6);
    for bad in [
        "",
        "version = 1\n[volume.db",
        "version = 1\n[pool.main]\npath = 7\n",
        "\0\u{1}",
    ] {
        let before = node
            .metric("volund_config_reloads_total{result=\"failure\"}")
            .unwrap();
        node.configure(bad);
        node.until(&format!("{bad:?} refused"), |node| {
            let now = node.metric("volund_config_reloads_total{result=\"failure\"}");
            now.is_some_and(|now| now > before)
        });
        assert!(disk.holds(4, 6));
        assert_eq!(
            node.metric("volund_config_last_reload_successful"),
            Some(0.0)
        );
    }
    fs::remove_file(node.path("volund.toml")).unwrap();
    let shown = |node: &Node| node.status().unwrap().config_error.unwrap_or_default();
    node.until("no file refused", |node| {
        shown(node).contains("volund.toml")
    });
    drop(disk);
    node.stop();
    node.start();
    node.until_attached("db");
    assert!(node.disk("db").holds(4, 6));
    assert!(
        !shown(&node).is_empty(),
        "the status says what is wrong with the files"
    );

    node.configure(&format!("{POOLS}{DB}"));
    node.until("accepted", |node| {
        node.metric("volund_config_last_reload_successful") == Some(1.0)
    });
    assert_eq!(shown(&node), "");
    assert_eq!(node.status().unwrap().generation, 1, "nothing was changed");
}

#[test]
fn many_removals_at_once_wait_for_approval() {
    let web = DB.replace("volume.db", "volume.web");
    let node = started(&format!("{POOLS}{DB}{web}"));
    node.until_attached("db");
    node.until_attached("web");
    node.configure(POOLS);
    node.until_condition("db", "RemovalBlocked", "ApprovalNeeded");
    node.until_condition("web", "RemovalBlocked", "ApprovalNeeded");
    let plan = node.said(&["plan"]);
    assert!(plan.contains("volund approve "), "{plan}");
    let id = plan
        .split("volund approve ")
        .nth(1)
        .unwrap()
        .split('`')
        .next()
        .unwrap();
    assert!(!node.volund(&["approve", "nonsense"]).status.success());
    node.said(&["approve", id]);
    node.until("both in quarantine", |node| {
        node.status()
            .is_some_and(|s| s.quarantine.len() == 2 && s.volumes.is_empty())
    });
    // Said again, it is no mistake.
    assert!(node.said(&["approve", id]).contains("db, web"));
}

#[test]
fn commands_say_what_they_did_and_exit_as_documented() {
    let node = started(&format!("{POOLS}{DB}"));
    node.until_attached("db");
    let status = node.said(&["status"]);
    assert!(
        status.contains("db") && status.contains("Online"),
        "{status}"
    );
    let json = node.said(&["status", "--output", "json", "--exit-code"]);
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed["volumes"][0]["sizeBytes"], 16 << 20);
    assert!(
        node.said(&["qemu-args", "db"])
            .contains("run/db.sock,reconnect=1")
    );
    assert!(node.said(&["plan"]).starts_with("No changes"));

    let other = node.path("other.toml");
    let text = format!("{POOLS}[volume.new]\nsize = \"8MiB\"\npool = \"main\"\n");
    fs::write(
        &other,
        text.replace("POOL", node.path("pools").to_str().unwrap()),
    )
    .unwrap();
    let plan = node.volund(&[
        "plan",
        "--detailed-exitcode",
        "--config",
        other.to_str().unwrap(),
    ]);
    let said = String::from_utf8(plan.stdout).unwrap();
    assert_eq!(plan.status.code(), Some(3), "{said}");
    assert!(
        said.contains("+ volume.new") && said.contains("- volume.db"),
        "{said}"
    );
    assert_eq!(node.volund(&["bogus"]).status.code(), Some(64));
    assert_eq!(node.volund(&["status", "nobody"]).status.code(), Some(1));
    let away = node.volund(&["status", "--socket", "/nowhere/admin.sock"]);
    assert_eq!(away.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&away.stderr).contains("/nowhere/admin.sock"));
}

#[test]
fn systemd_is_told_when_the_daemon_is_ready_and_when_it_stops() {
    let mut node = Node::new();
    node.configure(&format!("{POOLS}{DB}"));
    let socket = std::os::unix::net::UnixDatagram::bind(node.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = |expected: &str| {
        let mut buffer = [0; 4096];
        loop {
            let len = socket.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if text.lines().any(|line| line == expected) {
                return;
            }
        }
    };
    node.notify = Some(node.path("notify"));
    node.start();
    told("WATCHDOG=1");
    told("READY=1");
    assert_eq!(
        node.volume("db").unwrap().state,
        "Attached",
        "the first pass has ended"
    );
    node.stop();
    told("STOPPING=1");
}

#[test]
fn what_is_taken_already_is_a_clear_error() {
    let node = started(POOLS);
    let fails = |mut command: std::process::Command, expected: &str| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    fails(node.command(), "one daemon per state folder");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = Node::new();
    other.configure(POOLS);
    let mut command = other.command();
    let address = taken.local_addr().unwrap().to_string();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut port = std::process::Command::new(command.get_program());
    for argument in arguments {
        port.arg(if argument == "127.0.0.1:0" {
            address.clone().into()
        } else {
            argument
        });
    }
    fails(port, "--http takes another address");

    fs::write(other.path("volund.toml"), "version = 2\n").unwrap();
    command = other.command();
    fails(command, "no good one is known");
}
