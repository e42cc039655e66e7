//! Show: bytes flip behind the back of a running volume. With three replicas a scrub reports exactly the chunks that were
//! hit, and repairs them; with two it only reports them, until it is told whom to believe.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Random;
use super::client::{Load, only_replica};
use super::loop_pool::pool_table;
use crate::daemon::{self, Daemon, Site};

const MIB: u64 = 1 << 20;
/// Where data begins in a replica's file.
const DATA_OFFSET: u64 = MIB;
const VOLUME_BYTES: u64 = 64 * MIB;
/// What a scrub reports: the unit of comparing.
const CHUNK: u64 = 64 << 10;
const POOLS: [&str; 3] = ["a", "b", "c"];
/// Chunks that are hit in a round.
const FLIPS: u64 = 40;

/// What a scrub said.
#[derive(Debug)]
struct Report {
    /// Whether everything is as it should be now.
    is_well: bool,
    /// The addresses of the chunks that it names.
    chunks: BTreeSet<u64>,
    repaired: u64,
    /// The pools whose copies it calls wrong, or different.
    pools: BTreeSet<String>,
}

pub(super) fn round(seed: u64) -> Result<String> {
    three(seed).context("three replicas")?;
    two(seed).context("two replicas")?;
    Ok(format!(
        "{FLIPS} chunks hit: reported and repaired with three replicas, only reported with two"
    ))
}

fn three(seed: u64) -> Result<()> {
    let site = Site::new(&daemon::build()?)?;
    configure(&site, &POOLS)?;
    let running = site.start()?;
    serving(&running)?;
    let load = Load::new(&site, "db", seed);
    load.run(30)?;
    ensure!(
        scrub(&site, &[])?.chunks.is_empty(),
        "nothing was wrong yet"
    );

    let mut random = Random::new(seed);
    let victim = usize::try_from(random.below(3))?;
    let files = replicas(&site, &POOLS)?;
    let hit = flip(&files[victim], &mut random)?;
    let report = scrub(&site, &[])?;
    ensure!(report.chunks == hit, "hit {hit:?}, reported {report:?}");
    let blamed = BTreeSet::from([POOLS[victim].to_owned()]);
    ensure!(
        report.is_well && report.repaired == FLIPS && report.pools == blamed,
        "the copy in {blamed:?} was hit: {report:?}"
    );
    running.wait_status("showing what was repaired", |status| {
        let scrub = &daemon::volume(status, "db")["scrub"];
        scrub["mismatches"] == FLIPS && scrub["repaired"] == FLIPS && scrub["unrepairable"] == 0
    })?;
    ensure!(
        scrub(&site, &[])?.chunks.is_empty(),
        "something is still wrong after the repair"
    );
    load.check().context("after the repair")?;
    running.stop()?;
    let copies = files.iter().map(|file| data(file));
    let copies = copies.collect::<Result<Vec<_>>>()?;
    ensure!(
        copies.iter().all(|copy| *copy == copies[0]),
        "the data areas differ after the repair"
    );
    Ok(())
}

fn two(seed: u64) -> Result<()> {
    let site = Site::new(&daemon::build()?)?;
    configure(&site, &POOLS[..2])?;
    let running = site.start()?;
    serving(&running)?;
    let load = Load::new(&site, "db", seed);
    load.run(30)?;

    let files = replicas(&site, &POOLS[..2])?;
    let hit = flip(&files[1], &mut Random::new(seed ^ 0x5c))?;
    let before = [data(&files[0])?, data(&files[1])?];
    for _ in 0..2 {
        let report = scrub(&site, &[])?;
        ensure!(report.chunks == hit, "hit {hit:?}, reported {report:?}");
        ensure!(
            !report.is_well && report.repaired == 0 && report.pools.len() == 2,
            "nobody knows which copy is right: {report:?}"
        );
    }
    let status = running.wait_status("complaining", |status| {
        daemon::volume(status, "db")["scrub"]["unrepairable"] == FLIPS
    })?;
    let states = daemon::volume(&status, "db")["replicas"].as_array();
    let in_sync = states.is_some_and(|all| all.iter().all(|one| one["state"] == "InSync"));
    ensure!(in_sync, "nobody may be blamed: {status:#}");
    ensure!(
        [data(&files[0])?, data(&files[1])?] == before,
        "something was written although nobody knows which copy is right"
    );

    let report = scrub(&site, &["--repair-from", "a"])?;
    ensure!(
        report.is_well && report.chunks == hit && report.repaired == FLIPS,
        "the copy in a is to be believed: {report:?}"
    );
    load.check().context("after the repair")?;
    running.stop()?;
    ensure!(
        data(&files[0])? == before[0] && data(&files[1])? == before[0],
        "the second copy was not made like the first"
    );
    Ok(())
}

fn configure(site: &Site, pools: &[&str]) -> Result<()> {
    let mut text = "version = 1\n".to_owned();
    for pool in pools {
        let path = site.path(pool);
        fs::create_dir_all(&path)?;
        text.push_str(&pool_table(pool, &path));
    }
    site.configure(&format!(
        "{text}[volume.db]\nsize = \"{}MiB\"\nreplicas = {pools:?}\n\
         export = {{ vhost-user = {{ queues = 2 }} }}\n",
        VOLUME_BYTES / MIB
    ))
}

fn serving(running: &Daemon) -> Result<()> {
    running.wait_status("serving", |status| {
        daemon::is_true(daemon::volume(status, "db"), "Ready")
    })?;
    Ok(())
}

fn replicas(site: &Site, pools: &[&str]) -> Result<Vec<PathBuf>> {
    pools
        .iter()
        .map(|pool| only_replica(&site.path(pool)))
        .collect()
}

/// Flips one byte in each of [`FLIPS`] chunks of a replica's data; the chunks' addresses in the volume.
pub(super) fn flip(file: &Path, random: &mut Random) -> Result<BTreeSet<u64>> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(file)?;
    let mut hit = BTreeSet::new();
    while (hit.len() as u64) < FLIPS {
        let chunk = random.below(VOLUME_BYTES / CHUNK) * CHUNK;
        if !hit.insert(chunk) {
            continue;
        }
        let at = SeekFrom::Start(DATA_OFFSET + chunk + random.below(CHUNK));
        let mut byte = [0];
        file.seek(at)?;
        file.read_exact(&mut byte)?;
        file.seek(at)?;
        file.write_all(&[byte[0] ^ 0x10])?;
    }
    file.sync_all()?;
    Ok(hit)
}

/// A replica's data area, as it is on disk.
fn data(file: &Path) -> Result<Vec<u8>> {
    let mut file = fs::File::open(file)?;
    file.seek(SeekFrom::Start(DATA_OFFSET))?;
    let mut data = Vec::new();
    file.take(VOLUME_BYTES).read_to_end(&mut data)?;
    Ok(data)
}

/// `volund scrub db`: the chunks that it names.
fn scrub(site: &Site, more: &[&str]) -> Result<Report> {
    let output = site
        .volund(&["scrub", "db", "--output", "json"])
        .args(more)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).with_context(|| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        format!("{}: {text}{complaint}", output.status)
    })?;
    ensure!(
        report["scrubbedBytes"] == VOLUME_BYTES,
        "not everything was looked at: {report:#}"
    );
    let found = report["found"].as_array().map_or(&[][..], Vec::as_slice);
    let offset = |one: &Value| one["offset"].as_u64();
    Ok(Report {
        is_well: output.status.success(),
        chunks: found.iter().filter_map(offset).collect(),
        repaired: report["repaired"].as_u64().unwrap_or_default(),
        pools: found
            .iter()
            .flat_map(|one| one["pools"].as_array().cloned().unwrap_or_default())
            .filter_map(|pool| pool.as_str().map(str::to_owned))
            .collect(),
    })
}
