//! Show: the daemon is killed at random moments, again and again, under a client that remembers everything. After each
//! restart every acknowledged write is there, no read goes back in time, both copies are in sync under a newer generation
//! and epoch, and no more is resolved than what the client wrote lately.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Random;
use super::client::only_replica;
use super::crash_client::{CrashClient, number};
use super::label::{self, Label};
use super::loop_pool::pool_table;
use crate::daemon::{self, Daemon, Site};

/// Kills in one round.
const KILLS: u32 = 50;
/// Size of the volume: thin, so that it costs only what is written.
const VOLUME_MIB: u64 = 4096;
/// Regions that may be resolved besides those that the client wrote lately: set ahead of a sequential stream.
const AHEAD: u64 = 16;
/// The unit of the bitmaps.
const REGION: u64 = 1 << 20;

/// When a kill comes.
enum Moment {
    /// So long after the start, whether it serves by then or not.
    AfterStart(Duration),
    /// So long after the client is back: it reads what is in doubt.
    AfterConnect(Duration),
    /// So long into the client's random work.
    AtWork(Duration),
}

/// What the kills of a round came to.
#[derive(Default)]
struct Figures {
    served: u32,
    restart_ms: Vec<u64>,
    resolved: Vec<u64>,
    allowed: Vec<u64>,
    writes: u64,
    reads: u64,
    flushes: u64,
    in_flight: u64,
}

struct Round {
    site: Site,
    client: CrashClient,
    files: [PathBuf; 2],
    /// What the labels said last.
    before: Label,
    /// Regions that the client had written lately when the daemon died.
    recent: u64,
    figures: Figures,
}

pub(super) fn round(seed: u64) -> Result<String> {
    let mut random = Random::new(seed);
    let started = Instant::now();
    let mut round = Round::begin(seed)?;
    for kill in 1..=KILLS {
        let moment = Moment::any(&mut random);
        round
            .kill_once(&moment)
            .with_context(|| format!("kill {kill} of {KILLS}"))?;
    }
    let figures = round.end().context("after the last kill")?;
    Ok(figures.tell(started.elapsed()).to_string())
}

impl Moment {
    fn any(random: &mut Random) -> Moment {
        let mut ms = |limit| Duration::from_millis(random.below(limit));
        let at = ms(250);
        match random.below(10) {
            0 => Moment::AfterStart(at),
            1 | 2 => Moment::AfterConnect(at / 4),
            _ => Moment::AtWork(at),
        }
    }
}

impl Round {
    /// Creates the volume and lets the client write for a moment.
    fn begin(seed: u64) -> Result<Round> {
        let site = Site::new(&daemon::build()?)?;
        let pools = ["p0", "p1"].map(|name| site.path(name));
        let tables = pool_table("p0", &pools[0]) + &pool_table("p1", &pools[1]);
        site.configure(&format!(
            "version = 1\n{tables}[volume.db]\nsize = \"{VOLUME_MIB}MiB\"\nreplicas = [\"p0\", \"p1\"]\nthin = true\n\
             export = {{ vhost-user = {{}} }}\n"
        ))?;
        let running = site.start()?;
        serving(&running)?;
        let files = [only_replica(&pools[0])?, only_replica(&pools[1])?];
        running.kill()?;
        let before = newest(&files)?;
        Ok(Round {
            client: CrashClient::start(seed, VOLUME_MIB)?,
            site,
            files,
            before,
            recent: 0,
            figures: Figures::default(),
        })
    }

    fn kill_once(&mut self, moment: &Moment) -> Result<()> {
        let started = Instant::now();
        let running = self.site.spawn(&[])?;
        let socket = self.site.socket("db");
        self.client.run(&socket)?;
        let serves = match moment {
            Moment::AfterStart(pause) => {
                std::thread::sleep(*pause);
                false
            }
            Moment::AfterConnect(pause) => {
                self.client_is_back(&running, started)?;
                std::thread::sleep(*pause);
                true
            }
            Moment::AtWork(pause) => {
                self.client_is_back(&running, started)?;
                self.client.expect("verified")?;
                std::thread::sleep(*pause);
                true
            }
        };
        let log = running.log_tail();
        running.kill()?;
        self.client.tell("killed")?;
        let down = self.client.expect("down").context(log)?;
        self.recent = number(&down, "recentRegions")?;
        self.figures.add(&down)?;
        self.check_labels(serves)
    }

    /// Waits for the client and looks at what the daemon says of itself.
    fn client_is_back(&mut self, running: &Daemon, started: Instant) -> Result<()> {
        let connected = self.client.expect("connected");
        connected.with_context(|| running.log_tail())?;
        let taken = started.elapsed();
        let status = serving(running)?;
        let volume = daemon::volume(&status, "db");
        let generation = number(volume, "nexusGeneration")?;
        ensure!(
            generation > self.before.generation,
            "generation {generation} is not newer than {}",
            self.before.generation
        );
        let resolved = [&volume["resolvedBytes"], &volume["unresolvedBytes"]];
        let resolved: u64 = resolved.iter().filter_map(|bytes| bytes.as_u64()).sum();
        let allowed = (self.recent + AHEAD) * REGION;
        ensure!(
            resolved <= allowed,
            "{} MiB are resolved after the kill, but the client wrote only {} regions in the last 30 s",
            resolved / REGION,
            self.recent
        );
        let ms = u64::try_from(taken.as_millis())?;
        self.figures.served += 1;
        self.figures.restart_ms.push(ms);
        self.figures.resolved.push(resolved / REGION);
        self.figures.allowed.push(allowed / REGION);
        Ok(())
    }

    /// The labels after a death: whole, of one volume, nobody out of sync, and newer than those before if it had served.
    fn check_labels(&mut self, served: bool) -> Result<()> {
        let label = newest(&self.files)?;
        let before = &self.before;
        ensure!(label.volume == before.volume, "another volume's label");
        let numbers = |label: &Label| (label.generation, label.epoch);
        let (now, then) = (numbers(&label), numbers(before));
        let is_newer = now.0 > then.0 && now.1 > then.1;
        ensure!(
            is_newer || !served && now.0 >= then.0 && now.1 >= then.1,
            "generation and epoch went from {then:?} to {now:?}"
        );
        self.before = label;
        Ok(())
    }

    /// Starts it once more, lets the client read everything, stops it well, and compares the copies.
    fn end(mut self) -> Result<Figures> {
        let running = self.site.spawn(&[])?;
        let socket = self.site.socket("db");
        self.client.run(&socket)?;
        self.client_is_back(&running, Instant::now())?;
        self.client.expect("verified")?;
        self.client.tell("drain")?;
        let drained = self.client.expect("drained")?;
        running.stop()?;
        let regions = drained["regions"].as_array();
        let regions: Vec<u64> = regions
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .collect();
        label::data_is_equal(&self.files[0], &self.files[1], &regions)?;
        Ok(self.figures)
    }
}

/// Waits until the volume serves with both copies in sync.
pub(super) fn serving(running: &Daemon) -> Result<Value> {
    running.wait_status("serving with both copies in sync", |status| {
        let volume = daemon::volume(status, "db");
        let replicas = volume["replicas"].as_array();
        daemon::is_true(volume, "Ready")
            && replicas.is_some_and(|replicas| {
                replicas.len() == 2 && replicas.iter().all(|one| one["state"] == "InSync")
            })
    })
}

/// The newest label of the two files, both of which must have a valid one and call everybody in sync. A write of the
/// dead daemon may still be under way, so it is looked at twice before something is wrong.
fn newest(files: &[PathBuf; 2]) -> Result<Label> {
    let look = || {
        let (a, b) = (Label::newest(&files[0])?, Label::newest(&files[1])?);
        for label in [&a, &b] {
            ensure!(
                label.is_in_sync_everywhere(),
                "not in sync everywhere: {label:?}"
            );
        }
        Ok(if a.generation >= b.generation { a } else { b })
    };
    look().or_else(|_| {
        std::thread::sleep(Duration::from_millis(300));
        look()
    })
}

impl Figures {
    fn add(&mut self, down: &Value) -> Result<()> {
        self.writes += number(down, "writes")?;
        self.reads += number(down, "reads")?;
        self.flushes += number(down, "flushes")?;
        self.in_flight += number(down, "inFlight")?;
        Ok(())
    }

    fn tell(mut self, taken: Duration) -> Value {
        let spread = |values: &mut Vec<u64>| {
            values.sort_unstable();
            json!({ "median": values.get(values.len() / 2), "max": values.last() })
        };
        json!({
            "kills": KILLS,
            "served": self.served,
            "seconds": taken.as_secs(),
            "writes": self.writes,
            "reads": self.reads,
            "flushes": self.flushes,
            "inFlightAtKills": self.in_flight,
            "restartMilliseconds": spread(&mut self.restart_ms),
            "resolvedMiB": spread(&mut self.resolved),
            "allowedMiB": spread(&mut self.allowed),
            "fullRebuildMiB": VOLUME_MIB,
        })
    }
}
