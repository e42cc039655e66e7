//! Show: the daemon is killed at every step of making a volume, removing it and purging it. After each death a start
//! without a kill ends where it should: nothing leaked, nothing lost.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::client::Load;
use super::loop_pool::pool_table;
use crate::daemon::{self, Daemon, Site};
use crate::shell;

/// Far more steps than there are.
const STEPS_MAX: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done while the daemon may be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Create,
    Remove,
    Purge,
}

pub(super) fn round(seed: u64) -> Result<String> {
    let binary = daemon::build_mutants()?;
    let mut deaths = Vec::new();
    for deed in [Deed::Create, Deed::Remove, Deed::Purge] {
        let mut step = 1;
        while one(&binary, deed, step, seed)
            .with_context(|| format!("{deed:?}, killed at step {step}"))?
        {
            step += 1;
            ensure!(step < STEPS_MAX, "{deed:?} never ends");
        }
        ensure!(step > 3, "{deed:?} was over before anybody was killed");
        deaths.push(format!("{} at steps of {deed:?}", step - 1));
    }
    Ok(format!(
        "killed {}; nothing leaked, nothing lost",
        deaths.join(", ")
    ))
}

/// Answers whether the daemon came to that step, and so was killed.
fn one(binary: &Path, deed: Deed, step: u64, seed: u64) -> Result<bool> {
    let mut site = Site::new(binary)?;
    let load = Load::new(&site, "db", seed).on(4);
    if deed != Deed::Create {
        site.configure(&text(&site, true))?;
        let running = site.start()?;
        attached(&running)?;
        load.run(5)?;
        running.stop()?;
    }
    site.configure(&text(&site, true))?;
    site.kill_at(Some(step));
    let mut running = site.spawn(&[])?;
    let mut died = until(&mut running, |status| {
        daemon::volume(status, "db")["state"] == "Attached"
    })?;
    if !died && deed != Deed::Create {
        site.configure(&text(&site, false))?;
        died = until(&mut running, |status| is_gone(status, 1))?;
    }
    if !died && deed == Deed::Purge {
        purge(&site, &running.status()?);
        died = until(&mut running, |status| is_gone(status, 0))?;
    }
    drop(running);
    site.kill_at(None);

    let is_there = deed == Deed::Create;
    site.configure(&text(&site, is_there))?;
    let running = site.start()?;
    match deed {
        Deed::Create => {
            attached(&running)?;
            ensure!(files(&site, "replicas")? == 2, "a replica in each pool");
            load.run(5)?;
        }
        Deed::Remove => {
            running.wait_status("in quarantine", |status| is_gone(status, 1))?;
            ensure!(files(&site, "replicas")? == 0 && files(&site, "quarantine")? == 2);
            site.configure(&text(&site, true))?;
            attached(&running)?;
            load.check().context("the data came back")?;
        }
        Deed::Purge => {
            let looked = running.wait_status("done with the removal", |status| {
                is_gone(status, 0) || is_gone(status, 1)
            })?;
            // Whoever asked was not answered, and asks again.
            purge(&site, &looked);
            running.wait_status("purged", |status| is_gone(status, 0))?;
            ensure!(files(&site, "replicas")? + files(&site, "quarantine")? == 0);
            // What a purge that was cut short has left of its books goes in the background.
            running.wait("rid of the witness", PATIENCE, || {
                Ok(fs::read_dir(site.path("state/witness"))?.count() == 0)
            })?;
        }
    }
    clean(&site, &running)?;
    running.stop()?;
    Ok(died)
}

/// Nothing is left over, and the integrity check agrees.
fn clean(site: &Site, running: &Daemon) -> Result<()> {
    ensure!(files(site, "garbage")? == 0, "something was put aside");
    let status = running.status()?;
    ensure!(
        status["orphans"] == Value::Array(Vec::new()),
        "orphans: {status:#}"
    );
    // The socket's file is all that a killed daemon may leave: nobody has a use for it, and `--repair` removes it.
    for finding in findings(site, &["fsck", "--repair", "--output", "json"])? {
        ensure!(
            finding["reason"] == "SocketDead" && finding["repaired"] == true,
            "{finding:#}"
        );
    }
    let left = findings(site, &["fsck", "--output", "json"])?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn findings(site: &Site, command: &[&str]) -> Result<Vec<Value>> {
    let found = shell::capture(&mut site.volund(command))?;
    let found: Value = serde_json::from_str(&found)?;
    found["findings"].as_array().cloned().context("findings")
}

fn text(site: &Site, is_there: bool) -> String {
    let pools = ["a", "b"].map(|pool| pool_table(pool, &site.path(pool)));
    let volume = "[volume.db]\nreplicas = [\"a\", \"b\"]\nsize = \"8MiB\"\nexport = { vhost-user = { queues = 2 } }\n";
    format!(
        "version = 1\n{}{}",
        pools.concat(),
        if is_there { volume } else { "" }
    )
}

/// Purges whatever is in quarantine. The daemon may be killed meanwhile, so nobody minds the answer.
fn purge(site: &Site, status: &Value) {
    for entry in status["quarantine"].as_array().into_iter().flatten() {
        let id = entry["id"].as_str().unwrap_or_default();
        let _it_may_be_killed =
            shell::capture(&mut site.volund(&["quarantine", "purge", id, "--yes"]));
    }
}

/// Waits until the daemon has been killed, which is answered, or until `is_done`.
fn until(running: &mut Daemon, is_done: impl Fn(&Value) -> bool) -> Result<bool> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if running.has_ended()? {
            return Ok(true);
        }
        // Not answering is one way of not being done.
        if running.status().is_ok_and(|status| is_done(&status)) {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("neither killed nor done\n{}", running.log_tail())
}

fn attached(running: &Daemon) -> Result<()> {
    let waited = running.wait_status("attached", |status| {
        daemon::volume(status, "db")["state"] == "Attached"
    });
    waited.map(drop)
}

/// Whether the volume is none any more, and so many entries are in quarantine.
fn is_gone(status: &Value, entries: usize) -> bool {
    let quarantined = status["quarantine"].as_array().map_or(0, Vec::len);
    // Before the first look there is nothing at all.
    let has_looked = status["pools"].as_array().is_some_and(|pools| {
        pools.len() == 2 && pools.iter().all(|pool| pool["state"] == "Online")
    });
    has_looked && daemon::volume(status, "db").is_null() && quarantined == entries
}

/// Files in this folder of both pools.
fn files(site: &Site, folder: &str) -> Result<usize> {
    let count =
        |pool: &str| Ok::<_, anyhow::Error>(fs::read_dir(site.path(pool).join(folder))?.count());
    Ok(count("a")? + count("b")?)
}
