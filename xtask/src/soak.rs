//! `cargo xtask soak [--only NAME]`: every show with its full count. It can be stopped at any time and goes on where it
//! was: each round that passed is one JSON line in `target/soak.jsonl`, with the commit and the seed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::shell;
use crate::shows::{self, SHOWS};

/// One finished round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    item: String,
    seed: u64,
    commit: String,
    passed: bool,
    seconds: u64,
    finished_at: u64,
    result: String,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let only = match args {
        [] => None,
        [flag, name] if flag == "--only" => Some(name.as_str()),
        _ => bail!("soak takes --only NAME, found {}", args.join(" ")),
    };
    if only.is_some_and(|name| !SHOWS.iter().any(|show| show.name == name)) {
        bail!(
            "no such item; there are {}",
            SHOWS.map(|show| show.name).join(", ")
        );
    }
    let file = shell::root().join("target/soak.jsonl");
    let commit = commit()?;
    let done = done(&file, &commit);
    shows::prepare()?;
    let (mut passed, mut failed) = (0, 0);
    for show in SHOWS
        .iter()
        .filter(|show| only.is_none_or(|name| name == show.name))
    {
        for seed in 1..=u64::from(show.rounds_in_soak) {
            if done.contains(&(show.name.to_owned(), seed)) {
                passed += 1;
                continue;
            }
            let started = Instant::now();
            let result = show.run(seed);
            let line = Line {
                item: show.name.to_owned(),
                seed,
                commit: commit.clone(),
                passed: result.is_ok(),
                seconds: started.elapsed().as_secs(),
                finished_at: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs(),
                result: result.unwrap_or_else(|error| format!("{error:#}")),
            };
            if line.passed {
                passed += 1;
            } else {
                failed += 1;
            }
            append(&file, &line)?;
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("see {}", file.display())
    } else {
        Ok(())
    }
}

/// The commit, marked when the tree differs from it.
fn commit() -> Result<String> {
    let head = shell::capture(shell::command("git").args(["rev-parse", "HEAD"]))?;
    let changed = shell::capture(shell::command("git").args(["status", "--porcelain"]))?;
    let mark = if changed.is_empty() { "" } else { "+changes" };
    Ok(format!("{}{mark}", head.trim()))
}

/// The rounds that passed on this commit. A line that was cut off by the end of a session counts for nothing.
fn done(file: &Path, commit: &str) -> BTreeSet<(String, u64)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .filter(|line| line.passed && line.commit == commit)
        .map(|line| (line.item, line.seed))
        .collect()
}

fn append(file: &Path, line: &Line) -> Result<()> {
    let text = serde_json::to_string(line)?;
    println!("{text}");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)?;
    writeln!(file, "{text}").context("cannot append to target/soak.jsonl")?;
    file.sync_data()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_goes_on_after_the_rounds_that_passed_on_the_same_commit() {
        let file = shell::temp_path("soak");
        let line = |seed, commit: &str, passed| Line {
            item: "idle".to_owned(),
            seed,
            commit: commit.to_owned(),
            passed,
            seconds: 1,
            finished_at: 1,
            result: String::new(),
        };
        for line in [line(1, "a", true), line(2, "a", false), line(3, "b", true)] {
            append(&file, &line).unwrap();
        }
        let mut cut_off = fs::OpenOptions::new().append(true).open(&file).unwrap();
        cut_off.write_all(b"{\"item\":\"idle\",\"seed\":4").unwrap();
        assert_eq!(done(&file, "a"), BTreeSet::from([("idle".to_owned(), 1)]));
        fs::remove_file(&file).unwrap();
    }
}
