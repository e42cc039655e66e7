//! Show: a replica is cut off for 10 s while 80 random writes of 64 KiB go over 4 GiB, and the daemon is killed and started
//! in between. When it is back it gets the regions that it missed, at most two per write, and no more.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::client::{Load, only_replica};
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use super::rebuilds::{copied_bytes, ensure_equal, wait_for};
use crate::daemon::{self, Site};

const VOLUME_MIB: u64 = 4096;
/// Writes before the cut, and on each side of the kill.
const WRITES: u64 = 40;
/// 64 KiB in blocks.
const WRITE_BLOCKS: u64 = 16;
const REGION: u64 = 1 << 20;
/// A write of 64 KiB touches two regions at most.
const REGIONS_MAX: u64 = 2 * 2 * WRITES;
const CUT_OFF: Duration = Duration::from_secs(10);
/// Longer than marks of what was written are kept (spec W9).
const LEFT_ALONE: Duration = Duration::from_secs(10);

pub(super) fn round(seed: u64) -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    let near = site.path("near");
    let mut far = LoopPool::new(Filesystem::Xfs)?;
    site.configure(&format!(
        "version = 1\n{}{}[volume.db]\nsize = \"{VOLUME_MIB}MiB\"\nreplicas = [\"near\", \"far\"]\n\
         export = {{ vhost-user = {{}} }}\n",
        pool_table("near", &near),
        pool_table("far", &far.pool())
    ))?;
    let load = Load::new(&site, "db", seed).on(VOLUME_MIB);
    let both = [("near", "InSync"), ("far", "InSync")];
    let running = site.start()?;
    wait_for(&running, &both)?;
    load.scatter(WRITES, WRITE_BLOCKS)?;
    // What is flushed and left alone for some seconds is not marked any more, so that it is not copied either.
    std::thread::sleep(LEFT_ALONE);
    // A flush, so that the power cut does not bring the marks back.
    load.scatter(0, WRITE_BLOCKS)?;

    far.cut_power()?;
    let cut = Instant::now();
    load.scatter(WRITES, WRITE_BLOCKS)?;
    wait_for(&running, &[("far", "Stale")])?;
    running.kill()?;
    far.unmount()?;
    let running = site.start()?;
    wait_for(&running, &[("near", "InSync")])?;
    load.scatter(WRITES, WRITE_BLOCKS)?;
    std::thread::sleep(CUT_OFF.saturating_sub(cut.elapsed()));
    far.mount()?;

    let started = Instant::now();
    wait_for(&running, &both)?;
    let (regions, took) = (copied_bytes(&running)?.div_ceil(REGION), started.elapsed());
    ensure!(
        (1..=REGIONS_MAX).contains(&regions),
        "{regions} regions were copied for {} writes",
        2 * WRITES
    );
    load.scatter(0, WRITE_BLOCKS)?;
    running.stop()?;
    ensure_equal(&only_replica(&near)?, &only_replica(&far.pool())?)?;
    Ok(format!(
        "{regions} of {} regions copied for {} writes of 64 KiB (at most {REGIONS_MAX}), in sync {:.1} s after the pool was \
         back",
        VOLUME_MIB * (1 << 20) / REGION,
        2 * WRITES,
        took.as_secs_f64()
    ))
}
