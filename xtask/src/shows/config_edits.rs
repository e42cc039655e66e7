//! Show: random edits of the configuration while a client writes and verifies. No I/O error, a broken file changes
//! nothing, and in the end the daemon is as the last file says.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Random;
use super::client::Load;
use super::text::{WAYS, Way, put, spoil};
use crate::daemon::{self, Daemon, Site};

const EDITS: u32 = 20;
const EXTRA: [&str; 4] = ["v0", "v1", "v2", "v3"];

pub(super) fn round(seed: u64) -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    let mut random = Random::new(seed);
    let mut wanted = BTreeSet::new();
    site.configure(&text(&site, &wanted, &mut random))?;
    let running = site.start()?;
    running.wait_status("serving", |status| {
        daemon::is_true(daemon::volume(status, "keep"), "Ready")
    })?;
    let mut client = Load::new(&site, "keep", seed).start()?;

    let mut broken = 0;
    for count in 0..EDITS {
        toggle(&mut wanted, EXTRA[usize::try_from(random.below(4))?]);
        let good = text(&site, &wanted, &mut random);
        let way = WAYS[usize::try_from(random.below(5))?];
        let is_broken = random.below(3) == 0;
        if is_broken {
            broken += 1;
            put(&site.config(), &spoil(&good, random.below(6)), way, count)?;
        } else {
            put(&site.config(), &good, way, count)?;
        }
        if is_broken && random.below(2) == 0 {
            refused(&running).with_context(|| format!("edit {count}, {way:?}"))?;
        } else {
            std::thread::sleep(Duration::from_millis(random.below(600)));
        }
        ensure!(
            client.is_running()?,
            "edit {count}, {way:?}: the client failed: {:?}",
            client.stop()
        );
    }

    let last = text(&site, &wanted, &mut random);
    put(&site.config(), &last, Way::Rename, EDITS)?;
    settled(&running, &wanted).context("after the last edit")?;
    client.stop().context("a client saw an error")?;
    running.stop()?;
    Ok(format!(
        "{EDITS} edits, {broken} of them broken, no I/O error"
    ))
}

/// The configuration with the volume that is always there and these others. A comment makes each text new.
fn text(site: &Site, extra: &BTreeSet<&str>, random: &mut Random) -> String {
    let mut text = format!(
        "# {}\nversion = 1\n[safety]\nmax_removals = 100\n[pool.main]\npath = \"{}\"\nreserve = \"0MiB\"\n\
         [defaults.volume]\nthin = true\non_remove = \"{}\"\n\
         [volume.keep]\npool = \"main\"\nsize = \"64MiB\"\nexport = {{ vhost-user = {{ queues = 2 }} }}\n",
        random.below(1 << 30),
        site.path("pool").display(),
        ["retain", "delete"][usize::from(random.below(2) == 0)],
    );
    for volume in extra {
        text.push_str(&format!(
            "[volume.{volume}]\npool = \"main\"\nsize = \"16MiB\"\n"
        ));
        if random.below(2) == 0 {
            text.push_str("export = { vhost-user = {} }\n");
        }
    }
    text
}

fn toggle<'a>(set: &mut BTreeSet<&'a str>, name: &'a str) {
    if !set.remove(name) {
        set.insert(name);
    }
}

/// A broken file is reported, and the volume goes on.
fn refused(running: &Daemon) -> Result<()> {
    running.wait("reporting the broken file", Duration::from_secs(20), || {
        Ok(running.metric("volund_config_last_reload_successful")? == Some(0.0))
    })?;
    let status = running.status()?;
    ensure!(
        !daemon::volume(&status, "keep").is_null(),
        "a broken file removed a volume: {status:#}"
    );
    Ok(())
}

fn settled(running: &Daemon, wanted: &BTreeSet<&str>) -> Result<()> {
    let mut names: BTreeSet<&str> = wanted.clone();
    names.insert("keep");
    running.wait_status("as the last file says", |status| {
        let volumes = status["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        let found: BTreeSet<&str> = volumes
            .iter()
            .filter_map(|volume| volume["name"].as_str())
            .collect();
        found == names
            && volumes
                .iter()
                .all(|volume| daemon::is_true(volume, "Ready"))
            && status["configError"] == Value::Null
    })?;
    Ok(())
}
