//! A verifying vhost-user client beside the daemon: the example `vhost_blocks` as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::daemon::Site;
use crate::shell;

/// What one client writes and verifies: always the same for one name and seed.
#[derive(Debug, Clone)]
pub(super) struct Load {
    socket: PathBuf,
    state: PathBuf,
    stop: PathBuf,
    log: PathBuf,
    seed: u64,
    mebibytes: u64,
    jobs: u64,
}

/// A client at work; ended when dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    load: Load,
}

impl Load {
    pub(super) fn new(site: &Site, volume: &str, seed: u64) -> Load {
        Load {
            socket: site.socket(volume),
            state: site.path(&format!("{volume}.blocks")),
            stop: site.path(&format!("{volume}.stop")),
            log: site.path(&format!("{volume}.client.log")),
            seed,
            mebibytes: 16,
            jobs: 2,
        }
    }

    /// The same load on what the volume is called now.
    pub(super) fn renamed(&self, site: &Site, volume: &str) -> Load {
        Load {
            socket: site.socket(volume),
            ..self.clone()
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = shell::command("target/debug/examples/vhost_blocks");
        command.arg(verb).arg(&self.socket);
        command.arg("--bytes").arg(format!("{}MiB", self.mebibytes));
        command.arg("--seed").arg(self.seed.to_string());
        command.arg("--jobs").arg(self.jobs.to_string());
        command.arg("--state").arg(&self.state);
        command
    }

    /// Fills the volume, works on it for `ops` operations a job, verifies it.
    pub(super) fn run(&self, ops: u64) -> Result<()> {
        shell::capture(self.command("run").arg("--ops").arg(ops.to_string()))?;
        Ok(())
    }

    /// The same on so much of the volume, by one job.
    pub(super) fn on(self, mebibytes: u64) -> Load {
        Load {
            mebibytes,
            jobs: 1,
            ..self
        }
    }

    /// Writes `ops` times `blocks` blocks of 4 KiB at random places, each time at others, and verifies all of them.
    pub(super) fn scatter(&self, ops: u64, blocks: u64) -> Result<()> {
        let mut command = self.command("scatter");
        command.arg("--ops").arg(ops.to_string());
        shell::capture(command.arg("--per-op").arg(blocks.to_string()))?;
        Ok(())
    }

    /// Discards all of it.
    pub(super) fn discard(&self) -> Result<()> {
        shell::capture(&mut self.command("discard"))?;
        Ok(())
    }

    /// Verifies what the last run wrote.
    pub(super) fn check(&self) -> Result<()> {
        shell::capture(&mut self.command("check"))?;
        Ok(())
    }

    /// Verifies what the last run wrote and flushed.
    pub(super) fn check_after_power_cut(&self) -> Result<()> {
        shell::capture(self.command("check").args(["--after-power-cut", "yes"]))?;
        Ok(())
    }

    /// Starts a run that goes on until it is told to stop.
    pub(super) fn start(&self) -> Result<Running> {
        let _absent_is_fine = fs::remove_file(&self.stop);
        let child = self
            .command("run")
            .arg("--until")
            .arg(&self.stop)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&self.log)?)
            .spawn()
            .context("cannot start vhost_blocks")?;
        Ok(Running {
            child,
            load: self.clone(),
        })
    }
}

impl Running {
    /// Still at work, so without an error so far.
    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Tells it to stop and verify everything; any I/O error since the start is the error here.
    pub(super) fn stop(mut self) -> Result<()> {
        fs::write(&self.load.stop, "")?;
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "the client ended with {status}: {}",
            self.said()
        );
        Ok(())
    }

    /// Waits for it to fail, as it must when its disk went away.
    pub(super) fn fails_within(mut self, limit: Duration) -> Result<String> {
        let started = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => bail!("the client saw no error"),
                Some(_) => return Ok(self.said()),
                None if started.elapsed() > limit => {
                    bail!("the client hangs: no error after {} s", limit.as_secs())
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.load.log)
            .unwrap_or_default()
            .trim()
            .to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The one replica file of a pool that has one.
pub(super) fn only_replica(pool: &Path) -> Result<PathBuf> {
    let files: Vec<PathBuf> = fs::read_dir(pool.join("replicas"))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let [file] = &files[..] else {
        bail!(
            "{} has {} replicas, expected one",
            pool.display(),
            files.len()
        );
    };
    Ok(file.clone())
}
