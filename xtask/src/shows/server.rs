//! Debian's Prometheus beside the daemon: on a free port, with its data in a folder of its own, asked with promtool.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::{self, TempDir};

/// Ended when dropped.
pub(super) struct Server {
    child: Child,
    url: String,
    folder: TempDir,
}

impl Server {
    /// Scrapes `target` every second under the job that the rules and the dashboard know; evaluates `rules` as often.
    pub(super) fn start(target: &str, rules: Option<&str>) -> Result<Server> {
        let folder = TempDir::new("prometheus")?;
        let mut config = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n".to_owned();
        if let Some(rules) = rules {
            fs::write(folder.path().join("rules.yml"), rules)?;
            config.push_str("rule_files: [rules.yml]\n");
        }
        config.push_str(&format!(
            "scrape_configs:\n- job_name: volund\n  static_configs: [{{targets: ['{target}']}}]\n"
        ));
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let data = folder.path().join("data");
        let child = shell::command("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
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

    /// What an expression gives now: labels and value of each series.
    pub(super) fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let mut promtool = shell::command("promtool");
        promtool.args(["query", "instant", "--format=json", &self.url, expression]);
        let said = shell::capture(&mut promtool)?;
        let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let series = match answer.as_array().map(Vec::as_slice) {
            // A scalar is a time and a value.
            Some([time, value]) if time.is_number() => vec![(Value::Null, value.clone())],
            Some(series) => series
                .iter()
                .map(|one| (one["metric"].clone(), one["value"][1].clone()))
                .collect(),
            None => bail!("{expression}: {said}"),
        };
        let number = |(labels, value): (Value, Value)| {
            let number = value.as_str().and_then(|text| text.parse().ok());
            Ok((labels, number.with_context(|| said.clone())?))
        };
        series.into_iter().map(number).collect()
    }

    /// Asks until the answer is as wanted; an error shows the last answer.
    pub(super) fn wait(
        &self,
        expression: &str,
        limit: Duration,
        is_so: impl Fn(&[(Value, f64)]) -> bool,
    ) -> Result<Vec<(Value, f64)>> {
        let started = Instant::now();
        loop {
            // Not listening yet is one way of not being so yet.
            let answer = self.query(expression);
            if let Ok(series) = &answer
                && is_so(series)
            {
                return answer;
            }
            if started.elapsed() > limit {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                bail!(
                    "{expression} is not as wanted after {} s: {answer:?}\n{log}",
                    limit.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
