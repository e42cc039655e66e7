//! Show: the state folder is gone. The daemon starts with the same volumes; a stale replica alone is refused, and said to be
//! so; with the newest one back the volume runs again and the stale one is rebuilt.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::client::Load;
use crate::daemon::{self, Daemon, Site};
use crate::shell;

struct Show {
    site: Site,
}

pub(super) fn round(seed: u64) -> Result<String> {
    let show = Show {
        site: Site::new(&daemon::build()?)?,
    };
    let site = &show.site;
    for disk in ["a", "b"] {
        fs::create_dir(show.disk(disk))?;
    }
    show.configure()?;
    let load = Load::new(site, "db", seed);
    let running = site.start()?;
    let uuid = show.in_sync(&running, &["a", "b"])?;
    load.run(30)?;
    running.stop()?;

    show.lose_state()?;
    let running = site.start()?;
    let found = show.in_sync(&running, &["a", "b"])?;
    ensure!(found == uuid, "the UUID is {found}, it was {uuid}");
    load.check().context("without its state folder")?;
    running.stop()?;

    // Only `a` goes on: `b` is stale from now on.
    show.pull("b")?;
    let running = site.spawn(&[])?;
    show.in_sync(&running, &["a"])?;
    load.run(30).context("with one disk pulled")?;
    running.stop()?;
    show.lose_state()?;
    show.pull("a")?;
    show.plug("b")?;
    let running = site.spawn(&[])?;
    show.refused(&running)?;
    running.stop()?;

    show.lose_state()?;
    show.plug("a")?;
    let running = site.start()?;
    let found = show.in_sync(&running, &["a", "b"])?;
    ensure!(found == uuid, "the UUID is {found}, it was {uuid}");
    load.check().context("with the newest replica back")?;
    running.stop()?;
    Ok("same UUID and same bytes without the state folder, and a stale replica was refused".into())
}

impl Show {
    fn disk(&self, name: &str) -> PathBuf {
        self.site.path(&format!("disk-{name}"))
    }

    /// Takes a disk out: not even the folder that its pool is in is there.
    fn pull(&self, name: &str) -> Result<()> {
        let away = self.site.path(&format!("pulled-{name}"));
        Ok(fs::rename(self.disk(name), away)?)
    }

    fn plug(&self, name: &str) -> Result<()> {
        let away = self.site.path(&format!("pulled-{name}"));
        Ok(fs::rename(away, self.disk(name))?)
    }

    fn lose_state(&self) -> Result<()> {
        Ok(fs::remove_dir_all(self.site.path("state"))?)
    }

    fn configure(&self) -> Result<()> {
        let pool = |name: &str| {
            let path = self.disk(name).join("pool");
            format!(
                "[pool.{name}]\npath = \"{}\"\nreserve = \"0MiB\"\n",
                path.display()
            )
        };
        self.site.configure(&format!(
            "version = 1\n{}{}[volume.db]\nsize = \"64MiB\"\nreplicas = [\"a\", \"b\"]\ndegraded_wait = \"1s\"\n\
             export = {{ vhost-user = {{ queues = 2 }} }}\n",
            pool("a"),
            pool("b")
        ))
    }

    /// Waits until the volume serves and its replicas in these pools are in sync; its UUID.
    fn in_sync(&self, running: &Daemon, pools: &[&str]) -> Result<String> {
        let status = running.wait_status("in sync", |status| {
            let volume = daemon::volume(status, "db");
            let in_sync = |pool: &&str| {
                let replicas = volume["replicas"].as_array();
                let mut replicas = replicas.into_iter().flatten();
                replicas.any(|one| one["pool"] == **pool && one["state"] == "InSync")
            };
            let exported = volume["exportSocket"].is_string();
            daemon::is_true(volume, "Ready") && exported && pools.iter().all(in_sync)
        })?;
        let uuid = daemon::volume(&status, "db")["uuid"].as_str();
        Ok(uuid.context("the volume has no UUID")?.to_owned())
    }

    /// Nothing proves that the replica that is here is the newest, so nothing is served; `volund why` says so and how an
    /// operator could decide otherwise.
    fn refused(&self, running: &Daemon) -> Result<()> {
        running.wait_status("blocked", |status| {
            let conditions = daemon::volume(status, "db")["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|one| one["type"] == "Ready" && one["reason"] == "Blocked")
        })?;
        let why = shell::capture(&mut self.site.volund(&["why", "db", "--output", "json"]))?;
        let why: Value = serde_json::from_str(&why)?;
        ensure!(why["serving"] == false, "it serves: {why:#}");
        let labels = why["labels"].as_array().map_or(0, Vec::len);
        ensure!(labels == 1, "one label is here: {why:#}");
        let mut next = why["next"].as_array().into_iter().flatten();
        let advised = next.any(|step| {
            let step = step.as_str().unwrap_or_default();
            step.contains("force_start = { from = \"")
        });
        ensure!(advised, "no force_start is named: {why:#}");
        shell::capture(&mut self.site.volund(&["why", "db"]))?;
        Ok(())
    }
}
