//! Show: builds with a planted bug must not pass. A flush that does nothing; a creation of which nothing is made durable;
//! and intent bits that are written, but not durably, before the data (spec W4).

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::power_cuts::{self, Power};
use super::{Bench, configure, serving};
use crate::daemon::{self, Site};
use crate::shows::loop_pool::{Filesystem, LoopPool};

/// A cut may come before the first flush that matters, so that bug gets more chances.
const TRIES: u64 = 4;
/// Small enough to be written whole.
const VOLUME_MIB: u64 = 24;
/// Where the data of a replica begins in its file.
const DATA_OFFSET: u64 = 1 << 20;

pub(in crate::shows) fn all_are_noticed(seed: u64) -> Result<String> {
    let binary = daemon::build_mutants()?;
    // The plain program again, for whoever runs it from the build folder next.
    daemon::build()?;
    let plain = destaged_data(&binary, None, seed);
    plain.context("without a bug, the disk of one member writes data back and the power goes")?;
    let planted = |mutant| -> Result<Site> {
        let mut site = Site::new(&binary)?;
        site.plant(Some(mutant));
        Ok(site)
    };
    let flush =
        (0..TRIES).map(|at| power_cuts::cut_again_and_again(planted("FlushNoop")?, seed + at));
    // A flush that does nothing loses data, or labels.
    let lost = [
        "holds version",
        "the copies differ",
        "is not newer than",
        "generation and epoch went from",
    ];
    let noticed = [
        notice("FlushNoop", &lost, flush)?,
        notice(
            "CreationUnsynced",
            &["right after the creation"],
            [power_cuts::begin(planted("CreationUnsynced")?, seed)],
        )?,
        notice(
            "IntentNotDurable",
            &["the copies differ", "holds version"],
            [destaged_data(&binary, Some("IntentNotDurable"), seed)],
        )?,
    ];
    Ok(noticed.join("; "))
}

/// The first of these tries that fails must fail for one of these reasons.
fn notice<T>(
    mutant: &str,
    reasons: &[&str],
    tries: impl IntoIterator<Item = Result<T>>,
) -> Result<String> {
    for (count, tried) in (1..).zip(tries) {
        let Err(error) = tried else { continue };
        let text = format!("{error:#}");
        ensure!(
            reasons.iter().any(|reason| text.contains(reason)),
            "{mutant} failed, but not as it should: {text}"
        );
        let first = text.lines().next().unwrap_or_default();
        return Ok(format!("{mutant} at try {count}: {first}"));
    }
    bail!("{mutant} went unnoticed")
}

/// A write that was acknowledged and not flushed; the disk of one member writes the data back by itself, as disks may,
/// but not the bitmaps; then the power of both goes. One copy is new and one is old, and only the intent bits, durable
/// before the data was submitted (spec W4), can tell.
fn destaged_data(binary: &Path, mutant: Option<&'static str>, seed: u64) -> Result<()> {
    let mut site = Site::new(binary)?;
    site.plant(mutant);
    let power = [Filesystem::Ext4; 2].map(LoopPool::volatile_and_written);
    let [first, second] = power;
    let mut power = Power::without_state([first?, second?]);
    let pools = power.pools();
    configure(&site, &pools, VOLUME_MIB)?;
    let running = site.start()?;
    serving(&running)?;
    running.stop()?;
    let mut bench = Bench::new(site, &pools, VOLUME_MIB, seed)?;

    // Something flushed everywhere, and a clean stop, so that no intent bit is set.
    let (running, started) = bench.start()?;
    bench.client_is_back((&running, started))?;
    bench.client.expect("verified")?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    bench.client.tell("drain")?;
    bench.client.expect("drained")?;
    running.stop()?;

    let running = bench.site.start()?;
    bench.client.quiet(&bench.site.socket("db"))?;
    bench.client.expect("verified")?;
    bench.client.tell("poke")?;
    bench.client.expect("poked")?;
    power.destage(0, &bench.files[0], DATA_OFFSET)?;
    let log = running.log_tail();
    running.kill()?;
    power.cut_all()?;
    bench.is_down("cut", log)?;
    power.restore()?;
    bench.settle()
}
