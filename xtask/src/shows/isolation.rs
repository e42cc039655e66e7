//! Show: what one volume's front end does is not felt by another volume. On one reactor, a client reads at depth 1 from a pool on
//! disk; in every other measurement a front end of another volume sends malformed chains, breaks its ring, shrinks its memory under
//! writes and connects again, all on a pool that is full. The second client's p99 may double, not more.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::loop_pool::{Filesystem, LoopPool, pool_table};
use crate::bench::stats::{Line, Ratio, judge};
use crate::bench::{Build, build};
use crate::daemon::{self, Site};
use crate::shell;

const ROUNDS: u64 = 15;
/// Of a measurement, and of the load before it.
const SECONDS: &str = "0.8";
const WARM: &str = "0.2";
/// The other front end begins before the measurement and ends after it.
const ABUSED_SECONDS: &str = "1.3";
const P99_MAX: f64 = 2.0;
/// The volume that is read, written whole before.
const READ_BYTES: u64 = 256 << 20;
/// Pieces that fill a pool, ever smaller.
const PIECES: [u64; 5] = [64 << 20, 8 << 20, 1 << 20, 128 << 10, 4 << 10];

/// What the other front end must have done in all rounds together.
const DEEDS: [&str; 4] = ["malformed", "broken", "shrunk", "refused"];

pub(super) fn round(seed: u64) -> Result<String> {
    let (volund, client) = build(Build::Release)?;
    let full = LoopPool::in_memory(Filesystem::Xfs)?;
    let site = Site::new(&volund)?;
    site.configure(&config(&site, &full))?;
    let running = site.start()?;
    running.wait_status("serving both volumes", |status| {
        ["quiet", "abused"]
            .iter()
            .all(|name| daemon::is_true(daemon::volume(status, name), "Ready"))
    })?;
    let rig = Rig {
        client,
        quiet: site.socket("quiet"),
        abused: site.socket("abused"),
        pid: running.pid(),
    };
    rig.write_whole()?;
    fill(&full.mountpoint())?;
    let figures = rig.measure(seed)?;
    running.stop()?;
    figures.judged()
}

fn config(site: &Site, full: &LoopPool) -> String {
    format!(
        "version = 1\n{}{}[volume.quiet]\nsize = \"{}MiB\"\npool = \"disk\"\nexport = {{ vhost-user = {{}} }}\n\
         [volume.abused]\nsize = \"4GiB\"\npool = \"full\"\nexport = {{ vhost-user = {{}} }}\n",
        pool_table("disk", &site.path("pool")),
        pool_table("full", &full.pool()),
        READ_BYTES >> 20,
    )
}

/// Takes all room of a filesystem.
fn fill(mountpoint: &Path) -> Result<()> {
    let mut taken = 0;
    for piece in PIECES {
        loop {
            let mut fallocate = shell::command("fallocate");
            fallocate.args([
                "--offset",
                &taken.to_string(),
                "--length",
                &piece.to_string(),
            ]);
            if shell::capture(fallocate.arg(mountpoint.join("junk"))).is_err() {
                break;
            }
            taken += piece;
        }
    }
    ensure!(
        taken > 0,
        "nothing could be taken of {}",
        mountpoint.display()
    );
    Ok(())
}

struct Rig {
    client: PathBuf,
    quiet: PathBuf,
    abused: PathBuf,
    pid: u32,
}

/// Figures round by round.
#[derive(Debug, Default)]
struct Figures {
    quiet_p99: Vec<f64>,
    abused_p99: Vec<f64>,
    quiet_p50: Vec<f64>,
    abused_p50: Vec<f64>,
    deeds: [u64; DEEDS.len()],
}

impl Rig {
    fn command(&self, socket: &Path, args: &[&str]) -> Command {
        let mut command = shell::command(&self.client);
        command.arg("--socket").arg(socket).args(args);
        command
    }

    /// What was never written would be read without the disk.
    fn write_whole(&self) -> Result<()> {
        for seconds in ["2", "8", "32"] {
            let args = [
                "--op", "write", "--block", "1048576", "--depth", "4", "--warm", "0",
            ];
            let mut command = self.command(&self.quiet, &args);
            let said = json(&shell::capture(command.args(["--seconds", seconds]))?)?;
            if said["bytes"].as_u64() >= Some(READ_BYTES) {
                return Ok(());
            }
        }
        anyhow::bail!("the disk takes less than {READ_BYTES} bytes in 32 s");
    }

    fn measure(&self, seed: u64) -> Result<Figures> {
        let mut figures = Figures::default();
        for round in 0..ROUNDS {
            // Each goes first in every other round.
            let is_abused_first = (seed + round).is_multiple_of(2);
            for is_abused in [is_abused_first, !is_abused_first] {
                let seed = seed + round;
                let other = is_abused.then(|| self.abuse(seed)).transpose()?;
                let said = self.read(seed)?;
                let (p99, p50) = match is_abused {
                    true => (&mut figures.abused_p99, &mut figures.abused_p50),
                    false => (&mut figures.quiet_p99, &mut figures.quiet_p50),
                };
                p99.push(said["p99_us"].as_f64().context("no p99")?);
                p50.push(said["p50_us"].as_f64().context("no p50")?);
                if let Some(other) = other {
                    figures.add(other)?;
                }
            }
        }
        Ok(figures)
    }

    fn read(&self, seed: u64) -> Result<Value> {
        let pid = self.pid.to_string();
        let seed = seed.to_string();
        let args = [
            "--op",
            "randread",
            "--depth",
            "1",
            "--seconds",
            SECONDS,
            "--warm",
            WARM,
            "--pid",
            &pid,
            "--seed",
            &seed,
        ];
        let said = json(&shell::capture(&mut self.command(&self.quiet, &args))?)?;
        ensure!(
            said["errors"] == 0 && said["requests"].as_u64() > Some(0),
            "the quiet volume's client had errors: {said}"
        );
        Ok(said)
    }

    fn abuse(&self, seed: u64) -> Result<Child> {
        let seed = seed.to_string();
        let args = [
            "--abuse",
            "both",
            "--warm",
            "0",
            "--seconds",
            ABUSED_SECONDS,
            "--seed",
            &seed,
        ];
        let mut command = self.command(&self.abused, &args);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().context("cannot start bench_client")
    }
}

impl Figures {
    /// Adds up what the other front end did.
    fn add(&mut self, other: Child) -> Result<()> {
        let output = other.wait_with_output()?;
        ensure!(
            output.status.success(),
            "the abusing client ended with {}",
            output.status
        );
        let said = json(&String::from_utf8_lossy(&output.stdout))?;
        for (sum, deed) in self.deeds.iter_mut().zip(DEEDS) {
            *sum += said[deed]
                .as_u64()
                .with_context(|| format!("{said} has no {deed}"))?;
        }
        Ok(())
    }

    fn judged(&self) -> Result<String> {
        for (count, deed) in self.deeds.iter().zip(DEEDS) {
            ensure!(*count > 0, "the abusing client had nothing {deed}");
        }
        let p99 = Ratio::paired(&self.abused_p99, &self.quiet_p99);
        let p50 = Ratio::paired(&self.abused_p50, &self.quiet_p50);
        let judged = judge("p99 beside an abused volume", p99, Line::AtMost(P99_MAX));
        let deeds = DEEDS.iter().zip(&self.deeds);
        let deeds: Vec<String> = deeds
            .map(|(deed, count)| format!("{count} {deed}"))
            .collect();
        let text = format!("{judged}; p50 {p50}; meanwhile {}", deeds.join(", "));
        ensure!(judged.verdict.holds(), "{text}");
        Ok(text)
    }
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text.trim()).with_context(|| format!("bench_client said {text:?}"))
}
