//! Show: each alert fires in a real Prometheus when what it is about happens to a real daemon, and clears when that is over.
//! The rules are the shipped ones, with shorter times; `scenarios.rs` has what happens. `cargo xtask record-alerts` plays the same
//! and writes what it saw as the rules' unit tests, with the times as they are: `record.rs`.

mod record;
mod scenarios;
pub(super) mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::server::Server;
use crate::shell;
use record::Recorder;
use scenarios::{SCENARIOS, Scenario};
use stage::Stage;

const RULES: &str = "contrib/prometheus/volund-alerts.yml";
/// Until an alert is there, or gone.
const PATIENCE: Duration = Duration::from_secs(90);

pub(super) fn round(seed: u64) -> Result<String> {
    play(seed, &[], None)
}

/// `cargo xtask record-alerts [ALERT...]`.
pub(crate) fn record(args: &[String]) -> Result<()> {
    for name in args {
        let known = SCENARIOS.iter().any(|scenario| scenario.alert == name);
        ensure!(known, "there is no alert {name:?}");
    }
    super::prepare()?;
    let folder = shell::root().join("contrib/prometheus/recorded");
    fs::create_dir_all(&folder)?;
    println!("{}", play(1, args, Some(&folder))?);
    Ok(())
}

/// Plays the scenarios of these alerts, or all.
fn play(seed: u64, only: &[String], into: Option<&std::path::Path>) -> Result<String> {
    let rules = fs::read_to_string(shell::root().join(RULES))?;
    complete(&rules)?;
    let mut stage = Stage::new(seed)?;
    let server = Server::start(stage.http(), Some(&shortened(&rules)?))?;
    server.wait("up{job=\"volund\"} == 1", PATIENCE, |up| !up.is_empty())?;
    server.wait(&firing(".*"), PATIENCE, <[_]>::is_empty)?;
    let mut times = Vec::new();
    for scenario in &SCENARIOS {
        if !only.is_empty() && !only.iter().any(|name| name == scenario.alert) {
            continue;
        }
        let recorder = into.map(|_| Recorder::start(stage.http()));
        let seconds = act(scenario, &mut stage, &server, recorder.as_ref())
            .with_context(|| format!("{}\n{}", scenario.alert, stage.log_tail()))?;
        if let (Some(recorder), Some(folder)) = (recorder, into) {
            recorder.stop()?.write(scenario, folder)?;
        }
        println!(
            "{}: fired after {} s, cleared after {}",
            scenario.alert, seconds[0], seconds[1]
        );
        times.push(seconds[0] + seconds[1]);
    }
    stage.stop()?;
    let total: u64 = times.iter().sum();
    Ok(format!(
        "{} alerts fired and cleared in {total} s",
        times.len()
    ))
}

/// One scenario: seconds until the alert fired, and until it was gone.
fn act(
    scenario: &Scenario,
    stage: &mut Stage,
    server: &Server,
    recorder: Option<&Recorder>,
) -> Result<[u64; 2]> {
    let query = firing(scenario.alert);
    (scenario.prepare)(stage).context("while it was prepared")?;
    ensure!(
        server.query(&query)?.is_empty(),
        "it fires although nothing has happened"
    );
    if let Some(recorder) = recorder {
        recorder.quiet();
    }
    let started = Instant::now();
    (scenario.breaks)(stage).context("while something was broken")?;
    server
        .wait(&query, PATIENCE, |series| !series.is_empty())
        .context("it does not fire")?;
    let fired = started.elapsed().as_secs();
    if let Some(recorder) = recorder {
        recorder.hold(scenario.hold);
    }
    let mended = Instant::now();
    (scenario.mends)(stage).context("while it was mended")?;
    server
        .wait(&query, PATIENCE, <[_]>::is_empty)
        .context("it does not clear")?;
    let cleared = mended.elapsed().as_secs();
    if let Some(recorder) = recorder {
        recorder.end();
    }
    Ok([fired, cleared])
}

fn firing(alert: &str) -> String {
    format!("ALERTS{{alertstate=\"firing\",alertname=~\"{alert}\"}}")
}

/// Every rule has a scenario, and every scenario its rule.
fn complete(rules: &str) -> Result<()> {
    let named = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let named: BTreeSet<&str> = named.collect();
    let played: BTreeSet<&str> = SCENARIOS.iter().map(|scenario| scenario.alert).collect();
    ensure!(
        named == played,
        "alerts without a scenario, or the other way round: {:?}",
        named.symmetric_difference(&played)
    );
    Ok(())
}

/// The rules with times that a test can wait for: `for` 2 s, windows 10 s, 5 s back, and 15 s since the last good pass, of which
/// there is one every 10 s.
fn shortened(rules: &str) -> Result<String> {
    let mut text = String::new();
    for line in rules.lines() {
        let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
        if rest.starts_with("for: ") {
            text.push_str(&format!("{indent}for: 2s\n"));
        } else {
            let line = line.replace("> 600", "> 15");
            let line = line.replace("offset 15m", "offset 5s");
            text.push_str(&windows(&line)?);
            text.push('\n');
        }
    }
    for left in ["> 600", "offset 15m"] {
        ensure!(
            rules.contains(left) && !text.contains(left),
            "the rules have no {left:?} to be shortened any more"
        );
    }
    Ok(text)
}

/// The line with every `[5m]` as `[10s]`.
fn windows(line: &str) -> Result<String> {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((window, behind)) = after.split_once(']') else {
            bail!("a window without an end: {line}");
        };
        let is_time = window.ends_with(['s', 'm', 'h', 'd'])
            && window[..window.len() - 1]
                .bytes()
                .all(|b| b.is_ascii_digit());
        ensure!(is_time, "not a window: [{window}] in {line}");
        text.push_str(before);
        text.push_str("[10s]");
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_in_the_rules_is_shortened() {
        let rules = fs::read_to_string(shell::root().join(RULES)).unwrap();
        let short = shortened(&rules).unwrap();
        assert_eq!(short.lines().count(), rules.lines().count());
        for line in short.lines().filter(|line| line.trim().starts_with("for:")) {
            assert!(line.ends_with(" 2s"), "{line}");
        }
        for window in short.split('[').skip(1) {
            assert!(window.starts_with("10s]"), "{window}");
        }
    }

    #[test]
    fn every_rule_has_a_scenario() {
        complete(&fs::read_to_string(shell::root().join(RULES)).unwrap()).unwrap();
        assert!(complete("- alert: VolundUnheardOf").is_err());
    }
}
