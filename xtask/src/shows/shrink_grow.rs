//! Show: two replicas, one goes stale, 1 GiB of random writes, kill -9, rebuild; then the volume is shrunk to one replica
//! while the other's pool is offline, written on the fast path, and the same file is listed again: a full rebuild is chosen,
//! and `volund why` says why. A power cut of the source right after the target turned in sync loses nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::client::{Load, only_replica};
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use super::rebuilds::{copied_bytes, ensure_equal, replica, wait_for};
use crate::daemon::{self, Daemon, Site};
use crate::shell;

const VOLUME_MIB: u64 = 2048;
const POOL_BYTES: u64 = 4 << 30;
/// 1 GiB in writes of 64 KiB.
const WRITES: u64 = 1 << 14;
const WRITE_BLOCKS: u64 = 16;
const BOTH: [(&str, &str); 2] = [("a", "InSync"), ("b", "InSync")];

struct Parts {
    site: Site,
    a: LoopPool,
    b: LoopPool,
    load: Load,
}

pub(super) fn round(seed: u64) -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    let mut parts = Parts {
        load: Load::new(&site, "db", seed).on(VOLUME_MIB),
        a: LoopPool::sized(Filesystem::Xfs, POOL_BYTES)?,
        b: LoopPool::sized(Filesystem::Xfs, POOL_BYTES)?,
        site,
    };
    parts.list("\"a\", \"b\"")?;
    let running = parts.site.start()?;
    wait_for(&running, &BOTH)?;
    let (running, partial) = parts.stale_and_back(running)?;
    let running = parts.shrink(running)?;
    let (why, full) = parts.grow(&running)?;
    parts.cut_source(running)?;
    Ok(format!(
        "{partial} MiB copied after going stale, {full} MiB after being listed again; why: {why}"
    ))
}

impl Parts {
    fn list(&self, replicas: &str) -> Result<()> {
        self.site.configure(&format!(
            "version = 1\n{}{}[volume.db]\nsize = \"{VOLUME_MIB}MiB\"\nreplicas = [{replicas}]\n\
             export = {{ vhost-user = {{}} }}\n",
            pool_table("a", &self.a.pool()),
            pool_table("b", &self.b.pool())
        ))
    }

    fn files(&self) -> Result<[PathBuf; 2]> {
        Ok([only_replica(&self.a.pool())?, only_replica(&self.b.pool())?])
    }

    /// Replica b goes stale under load; the daemon is killed; b comes back. Gives the MiB that were copied.
    fn stale_and_back(&mut self, running: Daemon) -> Result<(Daemon, u64)> {
        self.b.cut_power()?;
        self.load.scatter(WRITES, WRITE_BLOCKS)?;
        wait_for(&running, &[("b", "Stale")])?;
        running.kill()?;
        self.b.restore_power()?;
        let running = self.site.start()?;
        // So many writes leave no region alone, but that is known.
        running.wait_status("rebuilding what b missed", |status| {
            replica(status, "b")["rebuild"]["kind"] == "Partial"
        })?;
        wait_for(&running, &BOTH)?;
        let copied = copied_bytes(&running)? >> 20;
        self.load.scatter(0, WRITE_BLOCKS)?;
        running.stop()?;
        let [a, b] = self.files()?;
        ensure_equal(&a, &b).context("after the first rebuild")?;
        Ok((self.site.start()?, copied))
    }

    /// To one replica, while b's pool is away; then 1 GiB on the fast path.
    fn shrink(&mut self, running: Daemon) -> Result<Daemon> {
        wait_for(&running, &BOTH)?;
        running.stop()?;
        self.b.unmount()?;
        let running = self.site.start()?;
        wait_for(&running, &[("a", "InSync")])?;
        self.list("\"a\"")?;
        running.wait_status("with one replica", |status| {
            let replicas = daemon::volume(status, "db")["replicas"].as_array();
            replicas.is_some_and(|replicas| replicas.len() == 1)
        })?;
        self.load.scatter(WRITES, WRITE_BLOCKS)?;
        Ok(running)
    }

    /// The same file is listed again. Gives what `why` says of it, and the MiB that were copied.
    fn grow(&mut self, running: &Daemon) -> Result<(String, u64)> {
        self.b.mount()?;
        let before = only_replica(&self.b.pool())?;
        self.list("\"a\", \"b\"")?;
        running.wait_status("rebuilding in full", |status| {
            replica(status, "b")["rebuild"]["kind"] == "Full"
        })?;
        let why = shell::capture(&mut self.site.volund(&["why", "db"]))?;
        let reason = why
            .lines()
            .find(|line| line.contains("rebuild: Full, because"));
        let reason = reason.with_context(|| format!("why does not say why:\n{why}"))?;
        wait_for(running, &BOTH)?;
        let copied = copied_bytes(running)? >> 20;
        ensure!(copied >= VOLUME_MIB, "only {copied} MiB were copied");
        let after = only_replica(&self.b.pool())?;
        ensure!(name(&before) == name(&after), "another file is used");
        Ok((reason.trim().to_owned(), copied))
    }

    /// Replica b has just turned in sync: now a's disk loses its power.
    fn cut_source(&mut self, running: Daemon) -> Result<()> {
        self.a.cut_power()?;
        self.load.scatter(0, WRITE_BLOCKS)?;
        self.load.scatter(10, WRITE_BLOCKS)?;
        running.kill()?;
        self.a.restore_power()?;
        let running = self.site.start()?;
        wait_for(&running, &BOTH)?;
        self.load.scatter(0, WRITE_BLOCKS)?;
        running.stop()?;
        let [a, b] = self.files()?;
        ensure_equal(&a, &b).context("after the power cut of the source")
    }
}

fn name(path: &Path) -> Option<&std::ffi::OsStr> {
    path.file_name()
}
