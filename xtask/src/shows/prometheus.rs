//! Show: Debian's Prometheus scrapes the daemon, and a PromQL query gives the volume's IOPS; promtool finds nothing to say.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::client::Load;
use super::server::Server;
use crate::daemon::{self, Site};
use crate::shell;

const IOPS: &str = "sum(rate(volund_volume_reads_completed_total{volume=\"db\"}[10s]) \
                    + rate(volund_volume_writes_completed_total{volume=\"db\"}[10s]))";

pub(super) fn round(seed: u64) -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    site.configure(&format!(
        "version = 1\n[pool.main]\npath = \"{}\"\nreserve = \"0MiB\"\n\
         [volume.db]\nsize = \"64MiB\"\npool = \"main\"\nexport = {{ vhost-user = {{ queues = 2 }} }}\n",
        site.path("pool").display()
    ))?;
    let running = site.start()?;
    running.wait_status("serving", |status| {
        daemon::is_true(daemon::volume(status, "db"), "Ready")
    })?;
    let client = Load::new(&site, "db", seed).start()?;
    let server = Server::start(site.http(), None)?;
    let positive = |series: &[(Value, f64)]| series.iter().any(|(_, value)| *value > 0.0);
    let found = server.wait(IOPS, Duration::from_secs(60), positive)?;
    let iops: f64 = found.iter().map(|(_, value)| value).sum();
    client.stop()?;
    lint(&running.get("/metrics")?)?;
    running.stop()?;
    Ok(format!("{iops:.0} IOPS by PromQL, promtool is content"))
}

/// `promtool check metrics` on an exposition: any remark is an error.
fn lint(text: &str) -> Result<()> {
    let mut promtool = shell::command("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool
        .stdin
        .take()
        .context("the pipe was asked for")?
        .write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        output.status.success() && said.trim().is_empty(),
        "promtool: {said}"
    );
    Ok(())
}
