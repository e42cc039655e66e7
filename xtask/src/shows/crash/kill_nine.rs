//! Show: the daemon is killed at random moments, again and again, under a client that remembers everything. After each
//! restart every acknowledged write is there, no read goes back in time, both copies are in sync under a newer generation
//! and epoch, and no more is resolved than what the client wrote lately.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Bench, configure, serving};
use crate::daemon::{self, Site};
use crate::shows::Random;

/// Kills in one round: so many that it lasts longer than the 30 s within which written regions count.
const KILLS: u32 = 100;
/// Size of the volume: thin, so that it costs only what is written.
const VOLUME_MIB: u64 = 4096;

/// When a kill comes.
enum Moment {
    /// So long after the start, whether it serves by then or not.
    AfterStart(Duration),
    /// So long after the client is back: it reads what is in doubt.
    AfterConnect(Duration),
    /// So long into the client's random work.
    AtWork(Duration),
}

pub(in crate::shows) fn round(seed: u64) -> Result<String> {
    let mut random = Random::new(seed);
    let started = Instant::now();
    let mut bench = begin(seed)?;
    for kill in 1..=KILLS {
        let moment = Moment::any(&mut random);
        kill_once(&mut bench, &moment)
            .map_err(|error| bench.explain(error))
            .with_context(|| format!("kill {kill} of {KILLS}"))?;
    }
    bench.settle().context("after the last kill")?;
    let figures = bench.figures.tell(KILLS, VOLUME_MIB, started.elapsed());
    Ok(figures.to_string())
}

impl Moment {
    fn any(random: &mut Random) -> Moment {
        let at = Duration::from_millis(random.below(250));
        match random.below(10) {
            // Long enough for the daemon to find that regions are idle.
            9 => Moment::AtWork(at * 10),
            0 => Moment::AfterStart(at),
            1 | 2 => Moment::AfterConnect(at / 4),
            _ => Moment::AtWork(at),
        }
    }
}

/// Creates the volume.
fn begin(seed: u64) -> Result<Bench> {
    let site = Site::new(&daemon::build()?)?;
    let pools = ["p0", "p1"].map(|name| site.path(name));
    configure(&site, &pools, VOLUME_MIB)?;
    let running = site.start()?;
    serving(&running)?;
    running.kill()?;
    Bench::new(site, &pools, VOLUME_MIB, seed)
}

fn kill_once(bench: &mut Bench, moment: &Moment) -> Result<()> {
    let (running, started) = bench.start()?;
    let mut serves = true;
    match moment {
        Moment::AfterStart(pause) => {
            std::thread::sleep(*pause);
            serves = false;
        }
        Moment::AfterConnect(pause) => {
            bench.client_is_back((&running, started))?;
            std::thread::sleep(*pause);
        }
        Moment::AtWork(pause) => {
            bench.client_is_back((&running, started))?;
            bench.client.expect("verified")?;
            std::thread::sleep(*pause);
        }
    }
    let log = running.log_tail();
    running.kill()?;
    bench.is_down("killed", log)?;
    bench.check_labels(serves)?;
    // Nobody but the daemon died, so nobody may be out of sync.
    ensure!(
        bench.before.is_in_sync_everywhere(),
        "out of sync: {:?}",
        bench.before
    );
    Ok(())
}
