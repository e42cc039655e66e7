//! What the shows about rebuilds have in common: waiting for replicas, what was copied, whether copies are equal.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::daemon::{self, Daemon};

/// Where the data begins in a replica's file.
const DATA_OFFSET: u64 = 1 << 20;
/// A rebuild of a volume of some GiB, with a daemon built for debugging, takes no longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// The volume `db`'s replica in a pool.
pub(super) fn replica<'a>(status: &'a Value, pool: &str) -> &'a Value {
    let replicas = daemon::volume(status, "db")["replicas"].as_array();
    let replicas = replicas.map_or(&[][..], Vec::as_slice);
    let found = replicas.iter().find(|replica| replica["pool"] == pool);
    found.unwrap_or(&Value::Null)
}

/// Waits until these pools' replicas are in these states.
pub(super) fn wait_for(daemon: &Daemon, wanted: &[(&str, &str)]) -> Result<Value> {
    let mut last = Value::Null;
    let waited = daemon.wait(&format!("at {wanted:?}"), PATIENCE, || {
        last = daemon.status().unwrap_or_default();
        let is_so = |(pool, state): &(&str, &str)| replica(&last, pool)["state"] == *state;
        Ok(wanted.iter().all(is_so))
    });
    waited.with_context(|| format!("{last:#}"))?;
    Ok(last)
}

/// Bytes that rebuilds of the volume `db` have copied since the daemon started.
pub(super) fn copied_bytes(daemon: &Daemon) -> Result<u64> {
    let series = "volund_rebuild_copied_bytes_total{volume=\"db\"}";
    let copied = daemon.metric(series)?.unwrap_or(0.0);
    ensure!(copied >= 0.0, "{series} is {copied}");
    // Whole bytes below 2^53.
    Ok(format!("{copied:.0}").parse()?)
}

/// Compares the data areas of two replicas, whose daemon has stopped.
pub(super) fn ensure_equal(a: &Path, b: &Path) -> Result<()> {
    let mut files = [File::open(a)?, File::open(b)?];
    let lengths = [files[0].metadata()?.len(), files[1].metadata()?.len()];
    ensure!(
        lengths[0] == lengths[1],
        "the replicas have {lengths:?} bytes"
    );
    let mut at = 0;
    let mut parts = [vec![0; 1 << 20], vec![0; 1 << 20]];
    while at < lengths[0] {
        for (file, part) in files.iter_mut().zip(&mut parts) {
            let length = usize::try_from((lengths[0] - at).min(1 << 20))?;
            part.truncate(length);
            file.read_exact(part)?;
        }
        let is_data = at >= DATA_OFFSET;
        ensure!(
            !is_data || parts[0] == parts[1],
            "{} and {} differ in the MiB at byte {} of the data",
            a.display(),
            b.display(),
            at - DATA_OFFSET
        );
        at += parts[0].len() as u64;
    }
    Ok(())
}
