//! What happens in the world for each alert, and what ends it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::{Stage, copy, whole};
use crate::shell;

/// One alert.
pub(super) struct Scenario {
    pub(super) alert: &'static str,
    /// What happens, for whoever reads the recorded test.
    pub(super) about: &'static str,
    /// Before anything is wrong.
    pub(super) prepare: fn(&mut Stage) -> Result<()>,
    pub(super) breaks: fn(&mut Stage) -> Result<()>,
    pub(super) mends: fn(&mut Stage) -> Result<()>,
    /// Beginnings of the series that the rule is about, as `/metrics` has them.
    pub(super) series: &'static [&'static str],
    /// What one second of a recording stands for in the rule's unit test.
    pub(super) second: &'static str,
    /// How long a recording goes on after the alert with short times has fired, so that the real one does too; seconds.
    pub(super) hold: u64,
}

/// One that takes most of a pool in memory.
const MOST: &str = "[volume.more]\nsize = \"16MiB\"\npool = \"small\"\n";
/// A thin volume of 600 MiB in a pool of 512 MiB.
const MORE: &str = "[volume.more]\nsize = \"600MiB\"\npool = \"c\"\n";
/// One that its pool has no room for.
const TOO_BIG: &str = "[volume.big]\nsize = \"3GiB\"\npool = \"c\"\nthin = false\n";

pub(super) const SCENARIOS: [Scenario; 14] = [
    Scenario {
        alert: "VolundPoolAlmostFull",
        about: "a volume is added that takes most of its pool, and removed and purged",
        prepare: nothing,
        breaks: |stage| stage.configure(MOST),
        mends: remove_and_purge,
        series: &[
            "volund_pool_allocated_bytes{pool=\"small\"",
            "volund_pool_capacity_bytes{pool=\"small\"",
        ],
        second: "1m",
        hold: 12,
    },
    Scenario {
        alert: "VolundDown",
        about: "the daemon is stopped, and started",
        prepare: nothing,
        breaks: |stage| stage.stop(),
        mends: |stage| stage.start(),
        series: &["up"],
        second: "1m",
        hold: 5,
    },
    Scenario {
        alert: "VolundConfigRejected",
        about: "the configuration is replaced by a file that is not TOML, and put back",
        prepare: nothing,
        breaks: |stage| stage.spoil(),
        mends: |stage| stage.configure(""),
        series: &["volund_config_last_reload_successful"],
        second: "1m",
        hold: 8,
    },
    Scenario {
        alert: "VolundReconcileStuck",
        about: "a volume is declared that its pool has no room for, and taken out",
        prepare: nothing,
        breaks: |stage| stage.configure(TOO_BIG),
        mends: |stage| stage.configure(""),
        series: &["volund_reconcile_last_success_timestamp_seconds"],
        second: "30s",
        hold: 30,
    },
    Scenario {
        alert: "VolundPoolOvercommitted",
        about: "a thin volume larger than what is left of its pool is added, and removed and purged",
        prepare: nothing,
        breaks: |stage| stage.configure(MORE),
        mends: remove_and_purge,
        series: &[
            "volund_pool_committed_bytes{pool=\"c\"",
            "volund_pool_capacity_bytes{pool=\"c\"",
        ],
        second: "10m",
        hold: 10,
    },
    Scenario {
        alert: "VolundQuarantine",
        about: "a volume is taken out of the file, and its data purged",
        prepare: add_more,
        breaks: |stage| stage.configure(""),
        mends: purge,
        series: &["volund_quarantined_volumes"],
        second: "2h",
        hold: 14,
    },
    Scenario {
        alert: "VolundScrubMismatch",
        about: "bytes of one of two copies change on disk and a scrub finds them; another one repairs them from the other copy",
        prepare: |stage| stage.load("db").run(20),
        breaks: scrub_what_was_flipped,
        mends: |stage| stage.volund(&["scrub", "db", "--repair-from", "a"]),
        series: &[
            "volund_scrub_mismatches_total{volume=\"db\"",
            "volund_scrub_unrepairable_total{volume=\"db\"",
        ],
        second: "2h",
        hold: 4,
    },
    Scenario {
        alert: "VolundVolumeDegraded",
        about: "the disk of one of two copies is lost under load, and comes back",
        prepare: |stage| stage.work("db"),
        breaks: |stage| stage.inject("db", "b", "lost-device"),
        mends: |stage| {
            stage.inject("db", "b", "clear")?;
            stage.rest()
        },
        series: &[
            "volund_volume_replicas_healthy{volume=\"db\"",
            "volund_volume_replicas_desired{volume=\"db\"",
        ],
        second: "1m",
        hold: 8,
    },
    Scenario {
        alert: "VolundRebuildStalled",
        about: "the disk that a rebuild copies to hangs half way, and goes on",
        prepare: rebuilding,
        breaks: |stage| stage.inject("db", "b", "hang"),
        mends: |stage| stage.inject("db", "b", "clear"),
        series: &["volund_rebuild_remaining_bytes{volume=\"db\""],
        second: "2m",
        hold: 12,
    },
    Scenario {
        alert: "VolundReplicaHung",
        about: "the disk of a volume's only copy hangs under load, and goes on",
        prepare: |stage| stage.work("alone"),
        breaks: |stage| stage.inject("alone", "c", "hang"),
        mends: |stage| {
            stage.inject("alone", "c", "clear")?;
            stage.rest()
        },
        series: &["volund_replica_hung{volume=\"alone\""],
        second: "1m",
        hold: 4,
    },
    Scenario {
        alert: "VolundLatencyHigh",
        about: "each operation of a volume's disk takes 400 ms longer under load, and no more",
        prepare: |stage| stage.work("alone"),
        breaks: |stage| stage.inject("alone", "c", "delay=400ms"),
        mends: |stage| {
            stage.inject("alone", "c", "clear")?;
            std::thread::sleep(WINDOW);
            stage.rest()
        },
        series: &[
            "volund_volume_io_duration_seconds_bucket{volume=\"alone\",op=\"read\"",
            "volund_volume_io_duration_seconds_bucket{volume=\"alone\",op=\"write\"",
        ],
        second: "1m",
        hold: 14,
    },
    Scenario {
        alert: "VolundVolumeErrors",
        about: "the disk of a volume's only copy fails everything under load, and works again",
        prepare: |stage| stage.work("alone"),
        breaks: fail_everything,
        mends: |stage| {
            stage.inject("alone", "c", "clear")?;
            stage.load("alone").run(20)
        },
        series: &["volund_volume_io_errors_total{volume=\"alone\""],
        second: "30s",
        hold: 2,
    },
    Scenario {
        alert: "VolundVolumeUnavailable",
        about: "the daemon starts while the disk of a volume's only copy is not there; the disk comes back",
        prepare: nothing,
        breaks: lose_disk,
        mends: |stage| stage.replug(),
        series: &["volund_volume_ready{volume=\"alone\""],
        second: "1m",
        hold: 5,
    },
    Scenario {
        alert: "VolundPoolOffline",
        about: "the same, seen from the pool",
        prepare: |stage| stage.wait("whole", whole),
        breaks: lose_disk,
        mends: |stage| stage.replug(),
        series: &["volund_pool_state{pool=\"c\",state=\"offline\""],
        second: "1m",
        hold: 5,
    },
];

/// The shortened rules' windows, and a little.
const WINDOW: Duration = Duration::from_secs(12);

fn nothing(_: &mut Stage) -> Result<()> {
    Ok(())
}

fn is_there(status: &Value) -> bool {
    !crate::daemon::volume(status, "more")["uuid"].is_null()
}

fn add_more(stage: &mut Stage) -> Result<()> {
    stage.configure(MORE)?;
    stage.wait("serving one more", is_there)
}

fn remove_and_purge(stage: &mut Stage) -> Result<()> {
    stage.configure("")?;
    stage.wait("without it", |status| {
        !is_there(status)
            && status["quarantine"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
    })?;
    purge(stage)
}

fn purge(stage: &mut Stage) -> Result<()> {
    let list = shell::capture(&mut stage.command(&["quarantine", "list", "--output", "json"]))?;
    let list: Value = serde_json::from_str(&list)?;
    let entries = list.as_array().context("the list is no list")?;
    for entry in entries {
        let id = entry["id"].as_str().context("an entry has no id")?;
        stage.volund(&["quarantine", "purge", id, "--yes"])?;
    }
    Ok(())
}

fn scrub_what_was_flipped(stage: &mut Stage) -> Result<()> {
    stage.flip()?;
    let scrubbed = stage.command(&["scrub", "db"]).output()?;
    ensure!(!scrubbed.status.success(), "the scrub has found nothing");
    Ok(())
}

/// Half of the mirror was away while the other half was written, and is being rebuilt.
fn rebuilding(stage: &mut Stage) -> Result<()> {
    stage.wait("whole", whole)?;
    stage.inject("db", "b", "lost-device")?;
    stage.load("db").run(20)?;
    stage.wait("degraded", |status| copy(status, "b")["state"] == "Stale")?;
    stage.inject("db", "b", "clear")?;
    stage.wait("rebuilding", |status| {
        copy(status, "b")["state"] == "Rebuilding"
    })
}

fn fail_everything(stage: &mut Stage) -> Result<()> {
    stage.inject("alone", "c", "error=all")?;
    let client = stage.client().context("there is no client")?;
    client.fails_within(Duration::from_secs(30)).map(drop)
}

fn lose_disk(stage: &mut Stage) -> Result<()> {
    stage.stop()?;
    stage.cut()?;
    stage.start()
}
