//! What needs no daemon: a plan against a saved status, the integrity check, a replica's dump.

use std::path::Path;
use std::process::{Command, Output};

fn volund(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_volund"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .output()
        .expect("the program starts")
}

fn text(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    format!("{}{complaint}", String::from_utf8_lossy(&output.stdout))
}

/// As `volund status --output json` prints it, with one volume that is attached.
const STATE: &str = r#"{
  "generation": 3, "configHash": "", "configAppliedAt": null, "configError": null, "node": "n1", "version": "0",
  "pools": [{
    "name": "main", "id": null, "backing": "/srv/main", "state": "Online", "capacityBytes": 1099511627776,
    "allocatedBytes": 0, "committedBytes": 0, "availableBytes": 1099511627776, "conditions": [],
    "spec": { "node": "n1", "backing": { "directory": "/srv/main" }, "reserve": 1073741824 }
  }],
  "volumes": [{
    "name": "db", "uuid": "0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10", "sizeBytes": 1073741824, "allocatedBytes": 0,
    "state": "Available", "nexusGeneration": 1, "export": "none", "clientConnected": false, "replicas": [],
    "conditions": [], "serving": true,
    "applied": {
      "size": 1073741824, "blockSize": "b4096", "thin": true, "replicas": ["main"], "members": 1,
      "removal": { "onRemove": "retain", "quarantineForMilliseconds": 604800000 },
      "policy": {
        "ioTimeoutMilliseconds": 10000, "commitTimeoutMilliseconds": 30000, "readHedgeMilliseconds": 500,
        "degradedWaitMilliseconds": 10000, "intentMax": 16384, "rebuildBandwidth": 0,
        "scrubEveryMilliseconds": null, "scrubRepairFrom": null
      }
    }
  }],
  "quarantine": []
}"#;

const FILES: &str = "version = 1\n[pool.main]\npath = \"/srv/main\"\n";

fn plan(files: &str) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("state.json"), STATE).expect("the state");
    std::fs::write(folder.path().join("new.toml"), files).expect("the files");
    let arguments = [
        "plan",
        "--config",
        "new.toml",
        "--against",
        "state.json",
        "--detailed-exitcode",
    ];
    let output = volund(folder.path(), &arguments);
    (text(&output), output.status.code())
}

#[test]
fn a_plan_is_made_from_a_saved_status() {
    let grown = format!("{FILES}[volume.db]\npool = \"main\"\nsize = \"2GiB\"\n");
    let (said, code) = plan(&grown);
    assert!(
        said.starts_with("  ~ volume.db  size 1GiB -> 2GiB (online) [none]\n"),
        "{said}"
    );
    assert_eq!(code, Some(2));
    let (said, code) = plan(FILES);
    let removed = "  - volume.db  data kept in quarantine (retain), 0B [none]\n";
    assert!(said.starts_with(removed), "{said}");
    assert_eq!(code, Some(3));
    let same = format!("{FILES}[volume.db]\npool = \"main\"\nsize = \"1GiB\"\n");
    assert_eq!(plan(&same).1, Some(0));
}

#[test]
fn the_check_of_an_empty_node_makes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    let files = format!("version = 1\n[pool.main]\npath = \"{path}/main\"\n");
    std::fs::write(folder.path().join("new.toml"), files).expect("the files");
    std::fs::create_dir(folder.path().join("state")).expect("a folder");
    let arguments = [
        "fsck",
        "--config",
        "new.toml",
        "--state-dir",
        "state",
        "--runtime-dir",
        "run",
        "--repair",
    ];
    let output = volund(folder.path(), &arguments);
    assert!(text(&output).contains("(PoolNew)"), "{}", text(&output));
    assert_eq!(output.status.code(), Some(0));
    let left = std::fs::read_dir(folder.path())
        .expect("the folder")
        .count();
    assert_eq!(left, 2, "neither a pool nor a runtime folder");
    assert_eq!(
        std::fs::read_dir(folder.path().join("state"))
            .expect("the folder")
            .count(),
        0
    );
}

#[test]
fn a_file_that_is_no_replica_is_dumped_and_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "anything").expect("a file");
    let output = volund(
        folder.path(),
        &["replica", "dump", "file", "--output", "json"],
    );
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        dump["label"].is_null() && dump["problem"].is_string(),
        "{dump:#}"
    );
    assert_eq!(output.status.code(), Some(1));
}
