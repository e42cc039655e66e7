//! Show: 50 volumes come in one edit, and one of them can't be made. The others do not wait for it; it is tried again and
//! again, says why, and is made once there is room.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::client::Load;
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use crate::daemon::{self, Daemon, Site};
use crate::shell;

const VOLUMES: usize = 50;
/// Takes all of the small pool but less than the one volume needs, bytes.
const FILLER_BYTES: u64 = 300 << 20;

pub(super) fn round(seed: u64) -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    let small = LoopPool::new(Filesystem::Xfs)?;
    let unlucky = usize::try_from(seed)? % VOLUMES;
    let filler = small.mountpoint().join("filler");
    let allocate = ["-f", "-c", &format!("falloc 0 {FILLER_BYTES}")];
    shell::capture(shell::command("xfs_io").args(allocate).arg(&filler))?;

    let text = |volumes: usize| text(&site, &small, volumes, unlucky);
    site.configure(&text(0))?;
    let running = site.start()?;
    site.configure(&text(VOLUMES))?;
    let name = format!("v{unlucky:02}");
    running.wait_status("49 volumes attached", |status| {
        count(status, "Attached") == VOLUMES - 1
    })?;
    let first = attempts(&running, &name)?;
    running.wait("trying again", Duration::from_secs(30), || {
        Ok(attempts(&running, &name)? >= first + 2)
    })?;
    let status = running.status()?;
    ensure!(
        count(&status, "Attached") == VOLUMES - 1,
        "the others are attached: {status:#}"
    );
    let left = fs::read_dir(small.pool().join("replicas"))?.count();
    ensure!(left <= 1, "{left} files of attempts that failed");

    fs::remove_file(&filler)?;
    running.wait_status("50 volumes attached", |status| {
        count(status, "Attached") == VOLUMES
    })?;
    Load::new(&site, &name, seed)
        .on(8)
        .run(20)
        .context("the volume that was late")?;
    let found = shell::capture(&mut site.volund(&["fsck"]))?;
    running.stop()?;
    Ok(format!(
        "49 attached, {name} creating_failed and tried {} times, attached once there was room; {}",
        first + 2,
        found.lines().last().unwrap_or_default()
    ))
}

fn text(site: &Site, small: &LoopPool, volumes: usize, unlucky: usize) -> String {
    let mut text = format!(
        "version = 1\n[retry]\ninitial_wait = \"200ms\"\nmax_wait = \"1s\"\nmax_attempts = 1000\n[safety]\nmax_removals = 100\n\
         [pool.main]\npath = \"{}\"\nreserve = \"0MiB\"\n{}",
        site.path("main").display(),
        pool_table("small", &small.pool())
    );
    for number in 0..volumes {
        let body = if number == unlucky {
            "pool = \"small\"\nsize = \"256MiB\"\nthin = false\n"
        } else {
            "pool = \"main\"\nsize = \"4MiB\"\n"
        };
        text.push_str(&format!(
            "[volume.v{number:02}]\n{body}export = {{ vhost-user = {{ queues = 2 }} }}\n"
        ));
    }
    text
}

fn count(status: &Value, state: &str) -> usize {
    let volumes = status["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    volumes
        .iter()
        .filter(|volume| volume["state"] == state)
        .count()
}

/// How often the volume's creation has failed; that it is in that state, and for want of room, is checked.
fn attempts(running: &Daemon, name: &str) -> Result<u64> {
    let mut found = None;
    running.wait("failing for want of room", Duration::from_secs(30), || {
        let status = running.status()?;
        let volume = daemon::volume(&status, name);
        let ready = &volume["conditions"][0];
        let message = ready["message"].as_str().unwrap_or_default();
        let number = message
            .rsplit_once("(attempt ")
            .and_then(|(_, rest)| rest.split(' ').next());
        if volume["state"] == "CreatingFailed" && ready["reason"] == "NoSpace" {
            found = number.and_then(|number| number.parse().ok());
        }
        Ok(found.is_some())
    })?;
    found.context("the volume says how often it was tried")
}
