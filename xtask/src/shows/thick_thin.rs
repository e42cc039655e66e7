//! Show: a thick volume on a pool that others have filled takes every write, also after it was discarded whole; a full
//! rebuild of a thin volume that is filled to 1 % leaves a replica as small as its source.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Result, ensure};

use super::client::{Load, only_replica};
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use super::rebuilds::{ensure_equal, wait_for};
use crate::daemon::{self, Site};

const THICK_MIB: u64 = 64;
const THIN_MIB: u64 = 1024;

pub(super) fn round(seed: u64) -> Result<String> {
    for filesystem in [Filesystem::Xfs, Filesystem::Ext4] {
        thick(seed, filesystem)?;
    }
    let (source, target) = thin(seed)?;
    Ok(format!(
        "every write after a full discard on full pools; {source} blocks of 512 bytes became {target}"
    ))
}

fn thick(seed: u64, filesystem: Filesystem) -> Result<()> {
    let site = Site::new(&daemon::build()?)?;
    let pool = LoopPool::new(filesystem)?;
    site.configure(&format!(
        "version = 1\n{}[volume.db]\nsize = \"{THICK_MIB}MiB\"\nreplicas = [\"full\"]\nthin = false\n\
         export = {{ vhost-user = {{}} }}\n",
        pool_table("full", &pool.pool())
    ))?;
    let load = Load::new(&site, "db", seed).on(THICK_MIB);
    let running = site.start()?;
    wait_for(&running, &[("full", "InSync")])?;
    fill(&pool.mountpoint().join("others"))?;
    load.run(100)?;
    load.discard()?;
    load.run(100)?;
    load.check()?;
    running.stop()
}

/// Writes a file until there is no room left.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    for size in [1 << 20, 4096] {
        let junk = vec![0x5a; size];
        while file.write_all(&junk).is_ok() {}
    }
    // Delayed allocation may find the end only now.
    let _no_room_for_the_last_bytes = file.sync_all();
    Ok(())
}

fn thin(seed: u64) -> Result<(u64, u64)> {
    let site = Site::new(&daemon::build()?)?;
    let (old, new) = (
        LoopPool::new(Filesystem::Xfs)?,
        LoopPool::new(Filesystem::Xfs)?,
    );
    let list = |replicas: &str| {
        site.configure(&format!(
            "version = 1\n{}{}[volume.db]\nsize = \"{THIN_MIB}MiB\"\nreplicas = [{replicas}]\n\
             export = {{ vhost-user = {{}} }}\n",
            pool_table("old", &old.pool()),
            pool_table("new", &new.pool())
        ))
    };
    list("\"old\"")?;
    let load = Load::new(&site, "db", seed).on(THIN_MIB);
    let running = site.start()?;
    wait_for(&running, &[("old", "InSync")])?;
    // 1 %: half of it in writes of 64 KiB, half in single blocks.
    let blocks = THIN_MIB * 256 / 200;
    load.scatter(blocks / 16, 16)?;
    load.scatter(blocks, 1)?;
    list("\"old\", \"new\"")?;
    wait_for(&running, &[("old", "InSync"), ("new", "InSync")])?;
    load.scatter(0, 1)?;
    running.stop()?;
    let files = [only_replica(&old.pool())?, only_replica(&new.pool())?];
    ensure_equal(&files[0], &files[1])?;
    let used = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.blocks());
    let (source, target) = (used(&files[0])?, used(&files[1])?);
    ensure!(
        target.abs_diff(source) * 10 <= source,
        "the source takes {source} blocks, its copy {target}"
    );
    Ok((source, target))
}
