//! Show: a disk that does not answer, by `volund inject ... hang` and without a guest, so that times mean something; the pools
//! are in memory for the same reason. A mirror's client goes on within `io_timeout` and a second, what it was answered stays as
//! it was when the hung operations happen at last, and the replica comes back by itself; a volume with one copy waits; nobody
//! else does.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Pace;
use super::client::only_replica;
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use crate::daemon::{self, Daemon, Site};
use crate::shell;

/// What the configuration says.
const IO_TIMEOUT: Duration = Duration::from_secs(2);
/// Where a replica's data begins.
const DATA_OFFSET: u64 = 1 << 20;

pub(super) fn round(seed: u64, pace: Pace) -> Result<String> {
    let disk = LoopPool::in_memory(Filesystem::Xfs)?;
    let mut site = Site::new(&daemon::build()?)?;
    site.keep_state_in(disk.mountpoint().join("state"));
    configure(&site, &disk)?;
    let running = site.start()?;
    whole(&running)?;
    let mut mirror = Client::start(&site, "mirror", seed)?;
    let mut alone = Client::start(&site, "alone", seed + 1000)?;
    mirror.ask("fill")?;
    alone.ask("fill")?;
    let probe = Probe::start(&site, pace)?;

    inject(&site, "mirror", "hang")?;
    inject(&site, "alone", "hang")?;
    let held = Instant::now();
    mirror.ask("burst")?;
    alone.ask("burst")?;
    let answers = format!("answers {} {}", IO_TIMEOUT.as_millis(), pace.spare_ms());
    let first = mirror.ask(&answers)?;
    mirror.ask("overwrite")?;
    mirror.ask(&answers)?;
    mirror.ask("patterns")?;
    // A second at least is looked at, however slow the machine was until now.
    let left = (IO_TIMEOUT * 3).saturating_sub(held.elapsed());
    let left = left.max(Duration::from_secs(1));
    alone.ask(&format!("silence {}", left.as_millis()))?;
    let status = running.status()?;
    ensure!(
        daemon::is_true(daemon::volume(&status, "alone"), "FaultInjected"),
        "the status does not say that faults are injected: {status:#}"
    );

    inject(&site, "mirror", "clear")?;
    inject(&site, "alone", "clear")?;
    alone.ask("answers")?;
    alone.ask("verify")?;
    alone.ask("patterns")?;
    let others = probe.stop()?;
    whole(&running)?;
    mirror.ask("verify")?;
    let untouched = mirror.ask("patterns")?;
    drop((mirror, alone));
    equal(&disk)?;
    running.stop()?;
    Ok(format!("{first}; {untouched}; {others}"))
}

fn configure(site: &Site, disk: &LoopPool) -> Result<()> {
    let mut text = "version = 1\n[danger_zone]\nfault_injection = true\n".to_owned();
    for pool in ["a", "b", "c"] {
        text.push_str(&pool_table(pool, &disk.mountpoint().join(pool)));
    }
    for (volume, pools) in [
        ("mirror", "\"a\", \"b\""),
        ("alone", "\"c\""),
        ("other", "\"c\""),
    ] {
        text.push_str(&format!(
            "[volume.{volume}]\nsize = \"64MiB\"\nreplicas = [{pools}]\nexport = {{ vhost-user = {{}} }}\n\
             io_timeout = \"{}s\"\n",
            IO_TIMEOUT.as_secs()
        ));
    }
    site.configure(&text)
}

/// Breaks or mends the replica of `mirror` in pool `b`, or that of `alone`.
fn inject(site: &Site, volume: &str, fault: &str) -> Result<()> {
    let pool = if volume == "mirror" { "b" } else { "c" };
    shell::capture(&mut site.volund(&["inject", volume, pool, fault]))?;
    Ok(())
}

/// Waits until both copies of the mirror are in sync.
fn whole(running: &Daemon) -> Result<()> {
    let in_sync = |status: &Value| {
        let replicas = daemon::volume(status, "mirror")["replicas"].as_array();
        replicas.is_some_and(|all| {
            all.len() == 2 && all.iter().all(|replica| replica["state"] == "InSync")
        })
    };
    running.wait_status("whole", in_sync).map(drop)
}

/// Whether the data areas of the mirror are.
fn equal(disk: &LoopPool) -> Result<()> {
    let read = |pool: &str| -> Result<Vec<u8>> {
        let mut file = File::open(only_replica(&disk.mountpoint().join(pool))?)?;
        file.seek(SeekFrom::Start(DATA_OFFSET))?;
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        Ok(data)
    };
    let (a, b) = (read("a")?, read("b")?);
    let differ = a.iter().zip(&b).position(|(a, b)| a != b);
    ensure!(
        a.len() == b.len() && differ.is_none(),
        "the copies differ: {} and {} bytes, first at {differ:?}",
        a.len(),
        b.len()
    );
    Ok(())
}

/// The example `vhost_late`, which does a command a line; ended when dropped.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(site: &Site, volume: &str, seed: u64) -> Result<Client> {
        let mut child = shell::command("target/debug/examples/vhost_late")
            .arg("run")
            .arg(site.socket(volume))
            .arg(seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start vhost_late")?;
        let input = child.stdin.take().context("the pipe was asked for")?;
        let output = child.stdout.take().context("the pipe was asked for")?;
        Ok(Client {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}")?;
        let mut said = String::new();
        self.output.read_line(&mut said)?;
        let answer = said.strip_prefix("ok ");
        let answer = answer.with_context(|| format!("{command}: {}", said.trim()))?;
        Ok(answer.trim().to_owned())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Asks the status page and a volume, again and again.
struct Probe {
    child: Child,
    stop: std::path::PathBuf,
}

impl Probe {
    fn start(site: &Site, pace: Pace) -> Result<Probe> {
        let stop = site.path("probe.stop");
        let child = probe_command(site, &stop, pace)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start vhost_late")?;
        Ok(Probe { child, stop })
    }

    fn stop(self) -> Result<String> {
        std::fs::write(&self.stop, "")?;
        let output = self.child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}{complaint}");
        Ok(said.trim().replace('\n', "; "))
    }
}

fn probe_command(site: &Site, stop: &Path, pace: Pace) -> std::process::Command {
    let mut command = shell::command("target/debug/examples/vhost_late");
    command.arg("probe").arg(site.socket("other"));
    command.arg(site.http()).arg(stop);
    command.arg(pace.others_ms().to_string());
    command
}
