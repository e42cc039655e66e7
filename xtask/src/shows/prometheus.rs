//! Show: Debian's Prometheus scrapes the daemon, and a PromQL query gives the volume's IOPS; promtool finds nothing to say.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::client::Load;
use crate::daemon::{self, Site};
use crate::shell::{self, TempDir};

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
    let server = Server::start(site.http())?;
    let iops = server.wait_for_positive(IOPS)?;
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

/// Prometheus on a free port of this machine, with its data in a folder of its own; ended when dropped.
struct Server {
    child: Child,
    url: String,
    folder: TempDir,
}

impl Server {
    fn start(target: &str) -> Result<Server> {
        let folder = TempDir::new("prometheus")?;
        let config = folder.path().join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: volund\n  \
                 static_configs: [{{targets: ['{target}']}}]\n"
            ),
        )?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = shell::command("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log"))?)
            .spawn()
            .context("cannot start prometheus")?;
        Ok(Server {
            child,
            url: format!("http://{address}"),
            folder,
        })
    }

    /// Asks until the answer is above zero.
    fn wait_for_positive(&self, query: &str) -> Result<f64> {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < Duration::from_secs(60) {
            let asked = shell::capture(
                shell::command("promtool").args(["query", "instant", &self.url, query]),
            );
            // `{} => 123.4 @[1700000000]`
            last = asked.unwrap_or_else(|error| error.to_string());
            let value = last
                .split("=> ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            if let Some(Ok(value)) = value.map(str::parse::<f64>)
                && value > 0.0
            {
                return Ok(value);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        bail!("no positive answer to {query:?}, the last was {last:?}\n{log}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
