//! Shows in which the daemon dies, and the power with it, under a client that remembers every block: [`kill_nine`],
//! [`power_cuts`], and [`mutants`], which must not pass. What they share is here: a two-replica volume, its client, and
//! what is judged after every restart.

mod client;
pub(super) mod kill_nine;
mod label;
pub(super) mod mutants;
pub(super) mod power_cuts;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::client::only_replica;
use super::loop_pool::pool_table;
use crate::daemon::{self, Daemon, Site};
use client::{CrashClient, number};
use label::Label;

/// Regions that may be resolved besides those that the client wrote lately: set ahead of a sequential stream.
const AHEAD: u64 = 16;
/// The unit of the bitmaps.
const REGION: u64 = 1 << 20;

/// A volume with two replicas in two pools, and its client.
struct Bench {
    site: Site,
    client: CrashClient,
    files: [PathBuf; 2],
    /// What the labels said last.
    before: Label,
    /// Regions that the client had written lately when the daemon died.
    recent: u64,
    figures: Figures,
}

/// What the deaths of a round came to.
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

/// Writes the configuration of the volume.
fn configure(site: &Site, pools: &[PathBuf; 2], volume_mib: u64) -> Result<()> {
    let tables = pool_table("p0", &pools[0]) + &pool_table("p1", &pools[1]);
    site.configure(&format!(
        "version = 1\n{tables}[volume.db]\nsize = \"{volume_mib}MiB\"\nreplicas = [\"p0\", \"p1\"]\nthin = true\n\
         export = {{ vhost-user = {{}} }}\n"
    ))
}

/// Waits until the volume serves with both copies in sync.
fn serving(running: &Daemon) -> Result<Value> {
    running.wait_status("serving with both copies in sync", |status| {
        let volume = daemon::volume(status, "db");
        daemon::is_true(volume, "Ready")
            && states(volume).len() == 2
            && states(volume).iter().all(|state| *state == "InSync")
    })
}

/// The states of a volume's replicas.
fn states(volume: &Value) -> Vec<&str> {
    let replicas = volume["replicas"].as_array().into_iter().flatten();
    replicas.filter_map(|one| one["state"].as_str()).collect()
}

/// The newest label of the two files, both of which must have a valid one. A write of the dead daemon may still be under
/// way, so it is looked at twice before something is wrong.
fn newest(files: &[PathBuf; 2]) -> Result<Label> {
    let look = || {
        let (a, b) = (Label::newest(&files[0])?, Label::newest(&files[1])?);
        ensure!(a.volume == b.volume, "labels of two volumes");
        Ok(if a.generation >= b.generation { a } else { b })
    };
    look().or_else(|_| {
        std::thread::sleep(Duration::from_millis(300));
        look()
    })
}

impl Bench {
    /// The volume is there, and the daemon is not running.
    fn new(site: Site, pools: &[PathBuf; 2], volume_mib: u64, seed: u64) -> Result<Bench> {
        let files = [only_replica(&pools[0])?, only_replica(&pools[1])?];
        Ok(Bench {
            client: CrashClient::start(seed, volume_mib)?,
            site,
            before: newest(&files)?,
            files,
            recent: 0,
            figures: Figures::default(),
        })
    }

    /// Starts the daemon, and the client with it; neither is waited for.
    fn start(&mut self) -> Result<(Daemon, Instant)> {
        let started = Instant::now();
        let running = self.site.spawn(&[])?;
        self.client.run(&self.site.socket("db"))?;
        Ok((running, started))
    }

    /// Waits for the client, then for both copies, and looks at what the daemon says of itself.
    fn client_is_back(&mut self, (running, started): (&Daemon, Instant)) -> Result<()> {
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
        let resolved = volume["resolvedBytes"].as_u64().unwrap_or(0);
        let allowed = (self.recent + AHEAD) * REGION;
        ensure!(
            resolved <= allowed,
            "{} MiB are resolved after the restart, but the client wrote only {} regions in the last 30 s",
            resolved / REGION,
            self.recent
        );
        self.figures.served += 1;
        self.figures
            .restart_ms
            .push(u64::try_from(taken.as_millis())?);
        self.figures.resolved.push(resolved / REGION);
        self.figures.allowed.push(allowed / REGION);
        Ok(())
    }

    /// Tells the client what happened to the daemon, which is dead.
    fn is_down(&mut self, how: &str, log: String) -> Result<()> {
        self.client.tell(how)?;
        let down = self.client.expect("down").context(log)?;
        self.recent = number(&down, "recentRegions")?;
        self.figures.add(&down)
    }

    /// The labels after a death: whole, of one volume, and newer than those before if it had served.
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

    /// Starts it once more, lets the client read everything, stops it well, and compares the copies (spec G9).
    fn settle(&mut self) -> Result<()> {
        let (running, started) = self.start()?;
        self.client_is_back((&running, started))?;
        self.client.expect("verified")?;
        self.client.tell("drain")?;
        let drained = self.client.expect("drained")?;
        running.stop()?;
        self.recent = number(&drained, "recentRegions")?;
        let regions = drained["regions"].as_array().into_iter().flatten();
        let regions: Vec<u64> = regions.filter_map(Value::as_u64).collect();
        label::data_is_equal(&self.files[0], &self.files[1], &regions)
    }
}

impl Bench {
    /// What each file holds of the block that an error names, for whoever looks into it. What a client has ended with comes
    /// first: whatever failed after it only waited for that client's requests.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let error = match self.client.failed() {
            Some(failure) => error.context(failure),
            None => error,
        };
        let text = format!("{error:#}");
        let words = text.split_once("block ").map_or("", |(_, rest)| rest);
        let block = words.split(' ').next().and_then(|word| word.parse().ok());
        let Some(block) = block else { return error };
        let versions = self
            .files
            .each_ref()
            .map(|file| label::version(file, block).ok());
        let states = &self.before.states;
        error.context(format!(
            "the files hold versions {versions:?} of block {block}; states before were {states:?}"
        ))
    }
}

impl Figures {
    fn add(&mut self, down: &Value) -> Result<()> {
        self.writes += number(down, "writes")?;
        self.reads += number(down, "reads")?;
        self.flushes += number(down, "flushes")?;
        self.in_flight += number(down, "inFlight")?;
        Ok(())
    }

    fn tell(mut self, deaths: u32, volume_mib: u64, taken: Duration) -> Value {
        let spread = |values: &mut Vec<u64>| {
            values.sort_unstable();
            json!({ "median": values.get(values.len() / 2), "max": values.last() })
        };
        json!({
            "deaths": deaths,
            "served": self.served,
            "seconds": taken.as_secs(),
            "writes": self.writes,
            "reads": self.reads,
            "flushes": self.flushes,
            "inFlightAtDeaths": self.in_flight,
            "restartMilliseconds": spread(&mut self.restart_ms),
            "resolvedMiB": spread(&mut self.resolved),
            "allowedMiB": spread(&mut self.allowed),
            "fullRebuildMiB": volume_mib,
        })
    }
}
