//! The text as promtool and Prometheus see it.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::reading::{
    ConfigReading, CopiesReading, HistogramReading, ReconcileReading, ReplicaReading,
};
use super::{Metrics, OperationReading, Reading, VolumeReading, families};
use crate::model::journal::{Drift, Revision, Revisions};
use crate::model::status::{
    Condition, NodeStatus, Orphan, PoolState, PoolStatus, QuarantineEntry, RebuildKind,
    RebuildStatus, ReplicaState, ReplicaStatus, ResolveStatus, Truth, VolumeStatus,
};

/// A reading in which every family has a series.
fn reading() -> Reading {
    let operations = ["read", "write", "flush", "discard"].map(|operation| OperationReading {
        operation,
        completed: 3,
        errors: 1,
        bytes: 4096,
        durations: HistogramReading {
            bounds: vec![0.001, 0.01],
            buckets: vec![1, 2, 1],
            sum: 0.5,
        },
    });
    Reading {
        status: Arc::new(status()),
        volume_states: vec![
            ("Available".to_owned(), "available"),
            ("Attached".to_owned(), "attached"),
        ],
        volumes: vec![VolumeReading {
            volume: "db".parse().unwrap(),
            operations: operations.to_vec(),
            inflight: 2,
            reconnects: 1,
            copies: CopiesReading {
                hedged_reads: 5,
                intent_regions: 6,
                rebuilds_ok: 7,
                rebuild_copied_bytes: 8,
                scrub_mismatches: 9,
                replicas: vec![ReplicaReading {
                    pool: "main".parse().unwrap(),
                    corrected_reads: 10,
                    latencies: vec![("read", HistogramReading::default())],
                    errors: ["read", "write", "discard", "flush", "label"].map(|op| (op, 11)),
                }],
                ..CopiesReading::default()
            },
        }],
        config: ConfigReading {
            last_successful: true,
            ..ConfigReading::default()
        },
        reconcile: ReconcileReading {
            pending: vec![("add", 0)],
            last_success_unix_seconds: Some(1),
            ..ReconcileReading::default()
        },
        started_unix_seconds: 1,
    }
}

fn replica() -> ReplicaStatus {
    ReplicaStatus {
        allocated_bytes: 1,
        rebuild: Some(RebuildStatus {
            kind: RebuildKind::Partial,
            reason: String::new(),
            total_bytes: 4096,
            remaining_bytes: 1024,
            copied_bytes: 3072,
            bytes_per_second: 1,
            eta_seconds: None,
        }),
        ..ReplicaStatus::new("main".parse().unwrap(), None, ReplicaState::InSync)
    }
}

fn revisions() -> Revisions {
    Revisions {
        applied: Some(Revision {
            generation: Some(2),
            hash: "abc".to_owned(),
            commit: Some("c0ffee".to_owned()),
        }),
        pending: None,
        last_good: Some(Revision::default()),
    }
}

fn drift() -> Vec<Drift> {
    let differing = [
        ("volume.db", "NoSpace"),
        ("volume.db", "InUse"),
        ("config", "Rejected"),
    ];
    let drift = differing.map(|(object, reason)| Drift {
        object: object.to_owned(),
        since: "1970-01-01T00:01:40Z".to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
    });
    drift.to_vec()
}

fn pool() -> PoolStatus {
    PoolStatus {
        name: "main".parse().unwrap(),
        id: None,
        backing: "/var/lib/\"odd\\path\n".to_owned(),
        state: PoolState::Online,
        capacity_bytes: 10,
        allocated_bytes: 1,
        committed_bytes: 2,
        available_bytes: 3,
        spec: None,
        conditions: Vec::new(),
    }
}

fn status() -> NodeStatus {
    let ready = Condition {
        kind: "Ready".to_owned(),
        status: Truth::True,
        reason: "Attached".to_owned(),
        message: String::new(),
        next: None,
        last_transition_time: String::new(),
        observed_generation: 1,
    };
    let volume = VolumeStatus {
        name: "db".parse().unwrap(),
        uuid: None,
        size_bytes: 4096,
        allocated_bytes: 1,
        state: "Attached".to_owned(),
        nexus_generation: 1,
        export: "none".to_owned(),
        export_socket: None,
        export_queues: None,
        client_connected: true,
        replicas: vec![replica()],
        resolved_bytes: 131_072,
        resolving: Some(ResolveStatus {
            unresolved_bytes: 65536,
        }),
        scrub: None,
        serving: true,
        uuids: Vec::new(),
        applied: None,
        exported: None,
        conditions: vec![ready],
    };
    let entry = QuarantineEntry {
        id: "old@1".to_owned(),
        volume: "old".parse().unwrap(),
        uuid: crate::model::VolumeId::generate(),
        removed_at: String::new(),
        purge_at: None,
        pools: Vec::new(),
        allocated_bytes: 77,
        applied: None,
    };
    let orphan = Orphan {
        id: None,
        reason: "Stranger".to_owned(),
        message: String::new(),
        volume: None,
        size_bytes: 0,
        pools: Vec::new(),
        allocated_bytes: 78,
        applied: None,
    };
    NodeStatus {
        generation: 1,
        config_hash: "abc".to_owned(),
        config_applied_at: None,
        config_error: None,
        revisions: revisions(),
        drift: drift(),
        node: "n1".to_owned(),
        version: "0".to_owned(),
        pools: vec![pool()],
        volumes: vec![volume],
        quarantine: vec![entry],
        orphans: vec![orphan],
    }
}

#[test]
fn values_are_what_was_read() {
    let text = Metrics::new(reading).text().unwrap();
    let check = |line: &str| assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
    check("volund_volume_reads_completed_total{volume=\"db\"} 3");
    check("volund_volume_written_bytes_total{volume=\"db\"} 4096");
    check("volund_volume_state{volume=\"db\",state=\"attached\"} 1");
    check("volund_volume_state{volume=\"db\",state=\"available\"} 0");
    check("volund_replica_state{volume=\"db\",pool=\"main\",state=\"in_sync\"} 1");
    check("volund_volume_io_duration_seconds_bucket{volume=\"db\",op=\"read\",le=\"0.01\"} 3");
    check("volund_volume_io_duration_seconds_bucket{volume=\"db\",op=\"read\",le=\"+Inf\"} 4");
    check("volund_volume_io_duration_seconds_count{volume=\"db\",op=\"read\"} 4");
    check("volund_quarantined_bytes 77");
    check("volund_orphans 1");
    check("volund_orphan_bytes 78");
    check(r#"volund_pool_info{pool="main",backing="/var/lib/\"odd\\path\n",uuid=""} 1"#);
    check("volund_volume_io_duration_seconds_sum{volume=\"db\",op=\"read\"} 0.5");
    check("volund_volume_hedged_reads_total{volume=\"db\"} 5");
    check("volund_volume_unresolved_bytes{volume=\"db\"} 65536");
    check("volund_volume_resolved_bytes{volume=\"db\"} 131072");
    check("volund_volume_intent_regions{volume=\"db\"} 6");
    check("volund_rebuilds_total{volume=\"db\",result=\"success\"} 7");
    check("volund_rebuild_remaining_bytes{volume=\"db\",pool=\"main\"} 1024");
    check("volund_scrub_mismatches_total{volume=\"db\"} 9");
    check("volund_replica_read_repairs_total{volume=\"db\",pool=\"main\"} 10");
    check("volund_replica_io_errors_total{volume=\"db\",pool=\"main\",op=\"label\"} 11");
    check("volund_volume_ready{volume=\"db\"} 1");
    check("volund_config_info{revision=\"applied\",sha256=\"abc\",commit=\"c0ffee\"} 1");
    check("volund_config_info{revision=\"last_good\",sha256=\"\",commit=\"\"} 1");
    assert!(!text.contains("revision=\"pending\""), "{text}");
    check("volund_drift{object=\"volume.db\",reason=\"InUse\"} 1");
    check("volund_drift_since_timestamp_seconds{object=\"volume.db\"} 100");
    assert_eq!(
        text.matches("volund_drift_since_timestamp_seconds{")
            .count(),
        2
    );
}

#[test]
fn series_go_with_their_object() {
    let metrics = Metrics::new(|| {
        let mut reading = reading();
        Arc::make_mut(&mut reading.status).volumes.clear();
        reading.volumes.clear();
        reading
    });
    assert!(!metrics.text().unwrap().contains("volume=\"db\""));
}

#[test]
fn promtool_finds_nothing() {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("SKIPPED: promtool is not installed (Debian package prometheus)");
        return;
    };
    let text = Metrics::new(reading).text().unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn every_family_is_documented_with_its_type_and_has_a_series_here() {
    let doc = include_str!("../../docs/metrics.md");
    let text = Metrics::new(reading).text().unwrap();
    let mut names = BTreeSet::new();
    for family in families::ALL {
        assert!(names.insert(family.name), "{} is there twice", family.name);
        let row = doc
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", family.name)));
        let row = row.unwrap_or_else(|| panic!("docs/metrics.md has no row for {}", family.name));
        let kind = format!("{:?}", family.kind).to_lowercase();
        assert!(row.contains(&format!("| {kind} |")), "{row} is a {kind}");
        assert!(
            row.contains(family.help),
            "{row} does not say: {}",
            family.help
        );
        let help = format!("# HELP {} ", family.name);
        assert!(text.contains(&help), "{} has no series", family.name);
    }
    let documented = doc.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(
        documented,
        names.len(),
        "docs/metrics.md has rows without a family"
    );
}

#[test]
fn alert_rules_name_real_families_and_do_what_they_say() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/prometheus");
    let rules = std::fs::read_to_string(format!("{folder}/volund-alerts.yml")).unwrap();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for word in rules
        .split(|c| !is_name(c))
        .filter(|word| word.starts_with("volund_"))
    {
        let base = word.trim_end_matches("_bucket");
        let known = families::ALL.iter().any(|family| family.name == base);
        assert!(known, "no family `{word}`");
    }
    let mut files = vec!["volund-alerts-test.yml".to_owned()];
    let mut alert = "";
    for line in rules.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            alert = name;
            files.push(format!("recorded/{name}.yml"));
        } else if let Some(page) = line.strip_prefix("runbook_url: ") {
            assert_eq!(page, format!("docs/runbooks/{alert}.md"));
        }
    }
    let count = |what: &str| rules.matches(what).count();
    assert_eq!(
        count("runbook_url: "),
        count("- alert: "),
        "a rule has no page"
    );
    let test = Command::new("promtool")
        .args(["test", "rules"])
        .args(files)
        .current_dir(folder)
        .output();
    let Ok(output) = test else {
        eprintln!("SKIPPED: promtool is not installed (Debian package prometheus)");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
