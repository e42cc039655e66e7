//! Show: no edit of text loses a disk. A volume is removed and brought back, renamed, its daemon loses the state folder,
//! its pool is unmounted: each time the same UUID and the same bytes come back, by no other act than the edit.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::client::Load;
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use crate::daemon::{self, Daemon, Site};

struct Show {
    site: Site,
    pool: std::path::PathBuf,
}

pub(super) fn round(seed: u64) -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    let mut pool = LoopPool::new(Filesystem::Xfs)?;
    let show = Show {
        pool: pool.pool(),
        site,
    };
    let site = &show.site;
    let load = Load::new(site, "db", seed);

    show.write(&["db"], "")?;
    let running = site.start()?;
    let uuid = serving(&running, "db", None)?;
    load.run(30)?;

    show.write(&[], "")?;
    running.wait_status("without the volume", |status| {
        daemon::volume(status, "db").is_null() && quarantined(status) == 1
    })?;
    show.write(&["db"], "")?;
    serving(&running, "db", Some(&uuid)).context("removed and brought back")?;
    load.check().context("removed and brought back")?;

    show.write(&["web"], "renamed_from = \"db\"\n")?;
    serving(&running, "web", Some(&uuid)).context("renamed")?;
    let load = load.renamed(site, "web");
    load.check().context("renamed")?;
    show.write(&["web"], "")?;
    serving(&running, "web", Some(&uuid)).context("`renamed_from` dropped")?;
    running.stop()?;
    fs::remove_dir_all(site.path("state"))?;
    let running = site.start()?;
    serving(&running, "web", Some(&uuid)).context("without its state folder")?;
    load.check().context("without its state folder")?;
    running.stop()?;

    pool.unmount()?;
    let running = site.spawn(&[])?;
    running
        .wait_status("complaining about the pool", has_pool_missing)
        .context("the pool's filesystem is not mounted")?;
    let left: Vec<_> = fs::read_dir(pool.mountpoint())?.flatten().collect();
    ensure!(
        left.is_empty(),
        "files were made on the empty mountpoint: {left:?}"
    );
    pool.mount()?;
    serving(&running, "web", Some(&uuid)).context("the pool is mounted again")?;
    load.check().context("the pool is mounted again")?;
    running.stop()?;
    Ok("same UUID and same bytes five times".to_owned())
}

impl Show {
    /// The configuration with these volumes, and more keys for each.
    fn write(&self, volumes: &[&str], more: &str) -> Result<()> {
        let mut text = format!("version = 1\n{}", table(&self.pool));
        for volume in volumes {
            text.push_str(&format!(
                "[volume.{volume}]\nsize = \"64MiB\"\npool = \"main\"\n\
                 export = {{ vhost-user = {{ queues = 2 }} }}\n{more}"
            ));
        }
        self.site.configure(&text)
    }
}

fn table(pool: &Path) -> String {
    pool_table("main", pool)
}

/// Waits until the volume serves; its UUID, which must be the known one.
fn serving(running: &Daemon, name: &str, known: Option<&str>) -> Result<String> {
    let status = running
        .wait_status("serving the volume", |status| {
            daemon::is_true(daemon::volume(status, name), "Ready")
        })
        .with_context(|| format!("volume {name:?}"))?;
    let uuid = daemon::volume(&status, name)["uuid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(
        known.is_none_or(|known| known == uuid),
        "the UUID is {uuid}, it was {known:?}"
    );
    Ok(uuid)
}

fn quarantined(status: &Value) -> usize {
    status["quarantine"].as_array().map_or(0, Vec::len)
}

fn has_pool_missing(status: &Value) -> bool {
    let pools = status["pools"].as_array().map_or(&[][..], Vec::as_slice);
    pools.iter().any(|pool| {
        let conditions = pool["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        conditions.iter().any(|condition| {
            condition["reason"] == "PoolMissing" || condition["type"] == "PoolMissing"
        })
    })
}
