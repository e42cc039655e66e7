//! Show: a two-replica volume whose second pool dies under load. The client sees no error, the replica is stale with its
//! reason in status and metrics, and after kill -9 and a restart the stale copy is not read. A truncated replica is
//! refused at start, and faulted by the first read that comes up short.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::client::{Load, only_replica};
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use crate::daemon::{self, Daemon, Site};

pub(super) fn round(seed: u64) -> Result<String> {
    dying_pool(seed)?;
    pool_that_comes_back(seed)?;
    truncated_replica(seed)?;
    Ok("no client saw an error, no stale copy was read".to_owned())
}

fn configure(site: &Site, a: &LoopPool, b: &LoopPool) -> Result<()> {
    site.configure(&format!(
        "version = 1\n{}{}[volume.db]\nsize = \"64MiB\"\nreplicas = [\"a\", \"b\"]\n\
         export = {{ vhost-user = {{ queues = 2 }} }}\n",
        pool_table("a", &a.pool()),
        pool_table("b", &b.pool())
    ))
}

fn dying_pool(seed: u64) -> Result<()> {
    let site = Site::new(&daemon::build()?)?;
    let a = LoopPool::new(Filesystem::Xfs)?;
    let mut b = LoopPool::new(Filesystem::Xfs)?;
    configure(&site, &a, &b)?;
    let load = Load::new(&site, "db", seed);
    let running = site.start()?;
    both_in_sync(&running)?;

    let mut client = load.start()?;
    std::thread::sleep(Duration::from_millis(500 + seed % 7 * 200));
    ensure!(
        client.is_running()?,
        "the client failed before the pool did"
    );
    b.cut_power()?;
    let status = running.wait_status("degraded", |status| {
        replica(status, "b")["state"] == "Stale"
    })?;
    let reason = replica(&status, "b")["reason"].as_str().unwrap_or_default();
    ensure!(
        !reason.is_empty(),
        "the stale replica has no reason: {status:#}"
    );
    let series = "volund_replica_state{volume=\"db\",pool=\"b\",state=\"stale\"}";
    let metric = running.metric(series)?;
    ensure!(metric == Some(1.0), "{series} is {metric:?}");
    std::thread::sleep(Duration::from_millis(500));
    client
        .stop()
        .context("the client saw the failure of one pool of two")?;

    running.kill()?;
    b.restore_power()?;
    let running = site.start()?;
    load.check().context("after kill -9 and a restart")?;
    both_in_sync(&running).context("the stale replica is rebuilt by itself")?;
    load.check()
        .context("read once more, from whichever copy")?;
    running.stop()
}

/// The daemon lets go of a filesystem that was shut down, so that it can be unmounted, and takes it back by itself.
fn pool_that_comes_back(seed: u64) -> Result<()> {
    let site = Site::new(&daemon::build()?)?;
    let a = LoopPool::new(Filesystem::Xfs)?;
    let mut b = LoopPool::new(Filesystem::Xfs)?;
    configure(&site, &a, &b)?;
    let load = Load::new(&site, "db", seed);
    let running = site.start()?;
    both_in_sync(&running)?;
    b.cut_power()?;
    load.run(20).context("with one pool of two")?;
    running.wait(
        "done with the dead filesystem",
        Duration::from_secs(60),
        || {
            // Busy until then.
            Ok(b.restore_power().is_ok())
        },
    )?;
    both_in_sync(&running).context("the pool is mounted again")?;
    load.check().context("after the pool came back")?;
    running.stop()
}

fn truncated_replica(seed: u64) -> Result<()> {
    let site = Site::new(&daemon::build()?)?;
    let a = LoopPool::new(Filesystem::Xfs)?;
    let b = LoopPool::new(Filesystem::Xfs)?;
    configure(&site, &a, &b)?;
    let load = Load::new(&site, "db", seed);

    let running = site.start()?;
    both_in_sync(&running)?;
    load.run(20)?;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(only_replica(&b.pool())?)?;
    let whole = file.metadata()?.len();
    file.set_len(2 << 20)?;
    for _ in 0..10 {
        load.check().context("while a replica is short")?;
        if replica(&running.status()?, "b")["state"] == "Stale" {
            break;
        }
    }
    running.wait_status("degraded by a short read", |status| {
        replica(status, "b")["state"] == "Stale"
    })?;
    running.stop()?;

    // At its old length again but empty: it was faulted, so nobody may believe its zeroes.
    file.set_len(whole)?;
    let running = site.start()?;
    running.wait_status("back with one replica", |status| {
        replica(status, "a")["state"] == "InSync"
    })?;
    load.check()
        .context("after a short replica got its length back")?;
    running.stop()?;

    file.set_len(2 << 20)?;
    let running = site.start()?;
    let status = running.wait_status("started beside a truncated replica", |status| {
        let replica = replica(status, "b");
        replica["state"] != "InSync" && replica["reason"].is_string()
    })?;
    let reason = replica(&status, "b")["reason"].as_str().unwrap_or_default();
    ensure!(
        reason.contains("runcated"),
        "the reason does not name the truncation: {reason:?}"
    );
    load.check().context("beside a truncated replica")?;
    running.stop()
}

fn both_in_sync(running: &Daemon) -> Result<()> {
    running.wait_status("serving with two replicas", |status| {
        ["a", "b"]
            .iter()
            .all(|pool| replica(status, pool)["state"] == "InSync")
    })?;
    Ok(())
}

/// The status of the volume's replica in a pool.
fn replica<'a>(status: &'a Value, pool: &str) -> &'a Value {
    let replicas = daemon::volume(status, "db")["replicas"].as_array();
    let replicas = replicas.map_or(&[][..], Vec::as_slice);
    replicas
        .iter()
        .find(|replica| replica["pool"] == pool)
        .unwrap_or(&Value::Null)
}
