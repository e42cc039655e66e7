//! What the scenarios play on: a daemon with a mirror, a volume with one copy on a disk that can be cut off, and a small pool.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::super::Random;
use super::super::client::{Load, Running, only_replica};
use super::super::loop_pool::{Filesystem, LoopPool, pool_table};
use super::super::scrub;
use crate::daemon::{self, Daemon, Site};
use crate::shell;

pub(in super::super) struct Stage {
    site: Site,
    running: Option<Daemon>,
    /// The disk of pool `c`, in memory, so that its times are not those of this machine's disk.
    disk: LoopPool,
    client: Option<Running>,
    seed: u64,
}

impl Stage {
    pub(in super::super) fn new(seed: u64) -> Result<Stage> {
        let site = Site::new(&daemon::build()?)?;
        let disk = LoopPool::in_memory(Filesystem::Xfs)?;
        let mut stage = Stage {
            site,
            running: None,
            disk,
            client: None,
            seed,
        };
        stage.configure("")?;
        stage.start()?;
        stage.wait("whole", whole)?;
        Ok(stage)
    }

    pub(in super::super) fn http(&self) -> &str {
        self.site.http()
    }

    pub(in super::super) fn log_tail(&self) -> String {
        self.running
            .as_ref()
            .map_or_else(String::new, Daemon::log_tail)
    }

    /// The usual configuration and this.
    pub(in super::super) fn configure(&self, more: &str) -> Result<()> {
        let mut text = "version = 1\n[danger_zone]\nfault_injection = true\n".to_owned();
        text.push_str(&pool_table("a", &self.site.path("a")));
        text.push_str(&pool_table("b", &self.site.path("b")));
        text.push_str(&pool_table("c", &self.disk.pool()));
        text.push_str("[pool.small]\nmemory = \"18MiB\"\n");
        text.push_str(
            "[volume.db]\nsize = \"64MiB\"\nreplicas = [\"a\", \"b\"]\nio_timeout = \"60s\"\n\
             rebuild_bandwidth = \"1MiB/s\"\nexport = { vhost-user = { queues = 2 } }\n\
             [volume.alone]\nsize = \"64MiB\"\npool = \"c\"\nio_timeout = \"2s\"\n\
             export = { vhost-user = { queues = 2 } }\n",
        );
        self.site.configure(&(text + more))
    }

    /// A file that is not TOML in place of it.
    pub(in super::super) fn spoil(&self) -> Result<()> {
        self.site.configure("version = ")
    }

    pub(in super::super) fn start(&mut self) -> Result<()> {
        self.running = Some(self.site.start()?);
        Ok(())
    }

    pub(in super::super) fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), Daemon::stop)
    }

    fn daemon(&self) -> Result<&Daemon> {
        self.running.as_ref().context("the daemon is not running")
    }

    pub(in super::super) fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        self.daemon()?.wait_status(what, is_so).map(drop)
    }

    pub(in super::super) fn inject(&self, volume: &str, pool: &str, fault: &str) -> Result<()> {
        self.volund(&["inject", volume, pool, fault])
    }

    /// Runs `volund` and expects success.
    pub(in super::super) fn volund(&self, args: &[&str]) -> Result<()> {
        shell::capture(&mut self.command(args)).map(drop)
    }

    pub(in super::super) fn command(&self, args: &[&str]) -> Command {
        self.site.volund(args)
    }

    pub(in super::super) fn load(&self, volume: &str) -> Load {
        Load::new(&self.site, volume, self.seed)
    }

    /// A client that works on the volume until [`Stage::rest`], and is past its first writes.
    pub(in super::super) fn work(&mut self, volume: &str) -> Result<()> {
        self.client = Some(self.load(volume).start()?);
        let series = format!("volund_volume_reads_completed_total{{volume=\"{volume}\"}}");
        let before = self.daemon()?.metric(&series)?.unwrap_or_default();
        self.daemon()?
            .wait("at work", std::time::Duration::from_secs(60), || {
                let now = self.daemon()?.metric(&series)?.unwrap_or_default();
                Ok(now > before + 20.0)
            })
    }

    /// The client verifies what it wrote and ends.
    pub(in super::super) fn rest(&mut self) -> Result<()> {
        self.client.take().map_or(Ok(()), Running::stop)
    }

    /// The client, if there is one, for those who expect it to fail.
    pub(in super::super) fn client(&mut self) -> Option<Running> {
        self.client.take()
    }

    /// The disk of pool `c` goes away.
    pub(in super::super) fn cut(&mut self) -> Result<()> {
        self.disk.cut_power()
    }

    /// It is back, with the daemon started anew: a volume's only copy is kept open whatever happens to its disk.
    pub(in super::super) fn replug(&mut self) -> Result<()> {
        let daemon = self.running.take().context("the daemon is not running")?;
        daemon.kill()?;
        self.disk.restore_power()?;
        self.start()
    }

    /// Bytes of the mirror's copy in pool `b` change behind the daemon's back.
    pub(in super::super) fn flip(&self) -> Result<()> {
        let file = only_replica(&self.site.path("b"))?;
        scrub::flip(&file, &mut Random::new(self.seed)).map(drop)
    }
}

/// Both copies of the mirror are in sync, and the volume with one copy is served.
pub(in super::super) fn whole(status: &Value) -> bool {
    copy(status, "a")["state"] == "InSync"
        && copy(status, "b")["state"] == "InSync"
        && daemon::is_true(daemon::volume(status, "alone"), "Ready")
}

/// The mirror's copy in a pool.
pub(in super::super) fn copy<'a>(status: &'a Value, pool: &str) -> &'a Value {
    let replicas = daemon::volume(status, "db")["replicas"].as_array();
    let replicas = replicas.map_or(&[][..], Vec::as_slice);
    let found = replicas.iter().find(|replica| replica["pool"] == pool);
    found.unwrap_or(&Value::Null)
}
