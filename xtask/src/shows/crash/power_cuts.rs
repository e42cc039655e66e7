//! Show: the power goes again and again, for one pool or for all, under a client that remembers everything. Each pool's
//! disk has a volatile cache: what was not flushed is lost. Whatever was flushed is there after every cut; when one pool
//! alone lost its power, so is everything that was acknowledged, and the member comes back and is rebuilt.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Bench, configure, serving, states};
use crate::daemon::{self, Daemon, Site};
use crate::shows::Random;
use crate::shows::loop_pool::{Filesystem, LoopPool};

/// Cuts in one round, the one right after the creation included.
const CUTS: u32 = 10;
/// Size of the volume: thin, and small enough for the pools.
const VOLUME_MIB: u64 = 96;

/// What loses its power.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Everything, the state folder included; the daemon dies at once.
    All,
    /// Both pools, one after the other, under the daemon, which dies a little later.
    BothUnderTheDaemon,
    /// One pool; the daemon goes on with the other, and dies later.
    One(usize),
    /// One pool, and the daemon dies at about the same moment.
    OneAndTheDaemon(usize),
}

pub(super) struct Power {
    pools: [LoopPool; 2],
    state: Option<LoopPool>,
}

pub(in crate::shows) fn round(seed: u64) -> Result<String> {
    cut_again_and_again(Site::new(&daemon::build()?)?, seed)
}

pub(super) fn cut_again_and_again(site: Site, seed: u64) -> Result<String> {
    let mut random = Random::new(seed);
    let started = Instant::now();
    let (mut bench, mut power) = begin(site, seed)?;
    for cut in 2..=CUTS {
        let kind = Cut::any(&mut random);
        power
            .cut_once(&mut bench, kind, &mut random)
            .map_err(|error| bench.explain(error))
            .with_context(|| format!("cut {cut} of {CUTS}, {kind:?}"))?;
    }
    let settled = bench.settle();
    settled
        .map_err(|error| bench.explain(error))
        .context("after the last cut")?;
    let Bench { figures, .. } = bench;
    Ok(figures
        .tell(CUTS, VOLUME_MIB, started.elapsed())
        .to_string())
}

impl Cut {
    fn any(random: &mut Random) -> Cut {
        let pool = usize::from(random.below(2) == 1);
        match random.below(10) {
            0..=4 => Cut::All,
            5 => Cut::BothUnderTheDaemon,
            6..=8 => Cut::One(pool),
            _ => Cut::OneAndTheDaemon(pool),
        }
    }
}

/// Creates the volume, and cuts the power as soon as it is said to serve: it must be there afterwards.
pub(super) fn begin(mut site: Site, seed: u64) -> Result<(Bench, Power)> {
    // Every second round is on XFS, every second on ext4, every fourth on both.
    let filesystems = match seed % 4 {
        0 | 1 => [Filesystem::Xfs, Filesystem::Xfs],
        2 => [Filesystem::Ext4, Filesystem::Ext4],
        _ => [Filesystem::Xfs, Filesystem::Ext4],
    };
    let [first, second] = filesystems;
    let state = LoopPool::volatile(Filesystem::Ext4)?;
    site.keep_state_in(state.pool());
    let mut power = Power {
        pools: [LoopPool::volatile(first)?, LoopPool::volatile(second)?],
        state: Some(state),
    };
    let pools = power.pools();
    configure(&site, &pools, VOLUME_MIB)?;
    let running = site.start()?;
    let id = id_of(&serving(&running)?);
    running.kill()?;
    power.cut_all()?;
    power.restore()?;
    let running = site.start()?;
    let found = serving(&running).context("after a power cut right after the creation")?;
    ensure!(id == id_of(&found), "another volume than the one created");
    running.kill()?;
    Ok((Bench::new(site, &pools, VOLUME_MIB, seed)?, power))
}

fn id_of(status: &serde_json::Value) -> String {
    daemon::volume(status, "db")["uuid"].to_string()
}

impl Power {
    /// The state folder keeps its power.
    pub(super) fn without_state(pools: [LoopPool; 2]) -> Power {
        Power { pools, state: None }
    }

    pub(super) fn pools(&self) -> [PathBuf; 2] {
        [self.pools[0].pool(), self.pools[1].pool()]
    }

    pub(super) fn cut_all(&self) -> Result<()> {
        let mut all = self.pools.iter().chain(&self.state);
        all.try_for_each(LoopPool::cut_power)
    }

    pub(super) fn restore(&mut self) -> Result<()> {
        let mut all = self.pools.iter_mut().chain(&mut self.state);
        all.try_for_each(LoopPool::restore_power)
    }

    /// One pool's disk writes a file back from an offset on, and nothing else.
    pub(super) fn destage(&self, pool: usize, file: &Path, from: u64) -> Result<()> {
        self.pools[pool].destage(file, from)
    }

    fn cut_once(&mut self, bench: &mut Bench, cut: Cut, random: &mut Random) -> Result<()> {
        let mut pause = |ms: u64| std::thread::sleep(Duration::from_millis(random.below(ms)));
        let (running, started) = bench.start()?;
        bench.client_is_back((&running, started))?;
        bench.client.expect("verified")?;
        pause(400);
        let log = running.log_tail();
        match cut {
            Cut::All => {
                running.kill()?;
                self.cut_all()?;
                bench.is_down("cut", log)?;
            }
            Cut::BothUnderTheDaemon => {
                bench.client.tell("errors")?;
                self.pools[0].cut_power()?;
                self.pools[1].cut_power()?;
                pause(100);
                running.kill()?;
                bench.is_down("cut", log)?;
            }
            Cut::One(pool) => {
                let before = generation(&serving(&running)?);
                self.pools[pool].cut_power()?;
                degraded(&running, before)?;
                pause(200);
                running.kill()?;
                bench.is_down("killed", log)?;
            }
            Cut::OneAndTheDaemon(pool) => {
                bench.client.tell("errors")?;
                self.pools[pool].cut_power()?;
                pause(20);
                running.kill()?;
                bench.is_down("cut", log)?;
            }
        }
        self.restore()?;
        bench.check_labels(true)?;
        if matches!(cut, Cut::One(_)) {
            bench.settle().context("after the member came back")?;
        }
        Ok(())
    }
}

/// The client goes on with one copy, and the table without the other one is committed. (A daemon that dies before the
/// commit leaves two members that both count; what one of them had not flushed may then be gone, as after a power cut of
/// all: spec G4.)
fn degraded(running: &Daemon, before: u64) -> Result<()> {
    running.wait_status("going on with one copy", |status| {
        let states = states(daemon::volume(status, "db"));
        generation(status) > before && states.contains(&"InSync") && states.contains(&"Stale")
    })?;
    Ok(())
}

fn generation(status: &serde_json::Value) -> u64 {
    let volume = daemon::volume(status, "db");
    volume["nexusGeneration"].as_u64().unwrap_or(0)
}
