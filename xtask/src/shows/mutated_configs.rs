//! Show: hundreds of mutated configurations, one after the other, against nodes with data. Whatever they say, no byte is
//! lost and no client sees an error: in the end every volume is found by its id, whatever became of its table. A node waits
//! most of the time for a file to be at rest, so several are at it side by side.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::Random;
use super::client::{Load, Running};
use crate::daemon::{self, Daemon, Site};

/// Nodes side by side, each with a daemon, volumes and configurations of its own.
const NODES: u64 = 4;
/// Configurations a node; a soak of 25 rounds has 10,000.
const CONFIGS: u32 = 100;
/// Volumes with data that nobody has open.
const DATA: [&str; 4] = ["d0", "d1", "d2", "d3"];
/// What a line may be replaced by, or get as its neighbour. No quarantine here is short: a purge after a second would be
/// what the text asked for.
const LINES: [&str; 24] = [
    "pool = \"a\"",
    "replicas = [\"a\", \"b\"]",
    "replicas = [\"b\"]",
    "size = \"8MiB\"",
    "size = \"24MiB\"",
    "size = \"4KiB\"",
    "thin = false",
    "block_size = 512",
    "read_only = true",
    "on_remove = \"delete\"",
    "export = \"none\"",
    "export = { vhost-user = {} }",
    "renamed_from = \"d0\"",
    "renamed_from = \"d1\"",
    "on_create_fail = \"leave\"",
    "io_timeout = \"3s\"",
    "[volume.d1]",
    "[volume.x]",
    "[volume.y]",
    "[pool.a]",
    "[safety]",
    "max_removals = 0",
    "memory = \"64MiB\"",
    "node = \"n2\"",
];

#[derive(Debug, Default)]
struct Tally {
    in_force: u32,
    refused: u32,
}

pub(super) fn round(seed: u64) -> Result<String> {
    let binary = daemon::build()?;
    let tallies = std::thread::scope(|scope| {
        let binary = &binary;
        let start = |at: u64| scope.spawn(move || node(binary, seed * NODES + at));
        let nodes: Vec<_> = (0..NODES).map(start).collect();
        let join = |node: std::thread::ScopedJoinHandle<'_, Result<Tally>>| {
            node.join()
                .map_err(|_| anyhow!("a node's thread panicked"))?
        };
        nodes.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let (in_force, refused) = tallies.iter().fold((0, 0), |sum, tally| {
        (sum.0 + tally.in_force, sum.1 + tally.refused)
    });
    Ok(format!(
        "{} configurations, {in_force} in force and {refused} refused; the data of {} volumes is all there, no I/O error",
        in_force + refused,
        tallies.len() * (DATA.len() + 1)
    ))
}

/// One node's share of a round.
fn node(binary: &Path, seed: u64) -> Result<Tally> {
    let site = Site::new(binary)?;
    let mut random = Random::new(seed);
    let base = base(&site);
    site.configure(&base)?;
    let running = site.start()?;
    let ready = running.wait_status("serving", |status| {
        let mut names = DATA.iter().chain(&["keep"]);
        names.all(|name| daemon::is_true(daemon::volume(status, name), "Ready"))
    })?;
    let loads = DATA.map(|name| Load::new(&site, name, seed).on(4));
    for load in &loads {
        load.run(5)?;
    }
    let uuids = DATA.map(|name| {
        daemon::volume(&ready, name)["uuid"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    let mut client = Load::new(&site, "keep", seed).on(16).start()?;

    let mut tally = Tally::default();
    for count in 0..CONFIGS {
        // Now and then all is as it should be, so that there is again something to lose.
        let text = if count % 10 == 9 {
            base.clone()
        } else {
            mutate(&base, &mut random)
        };
        put(
            &site,
            &running,
            &mut client,
            &format!("# {count}\n{text}"),
            &mut tally,
        )
        .with_context(|| format!("configuration {count}:\n{text}"))?;
    }

    site.configure(&found_again(&site, &uuids))?;
    running.wait_status("all data found by its id", |status| {
        uuids.iter().enumerate().all(|(index, uuid)| {
            let volume = daemon::volume(status, &format!("f{index}"));
            volume["uuid"] == uuid.as_str() && daemon::is_true(volume, "Ready")
        })
    })?;
    for (index, load) in loads.iter().enumerate() {
        let name = format!("f{index}");
        load.renamed(&site, &name)
            .check()
            .with_context(|| format!("{} as {name}", DATA[index]))?;
    }
    client.stop().context("a client saw an error")?;
    running.stop()?;
    Ok(tally)
}

/// Puts a text in place and waits until the daemon has taken note of it.
fn put(
    site: &Site,
    running: &Daemon,
    client: &mut Running,
    text: &str,
    tally: &mut Tally,
) -> Result<()> {
    let before = reloads(running)?;
    site.configure(text)?;
    let mut after = before;
    running.wait("taking note of the file", Duration::from_secs(30), || {
        after = reloads(running)?;
        Ok(after != before)
    })?;
    tally.in_force += u32::from(after.0 != before.0);
    tally.refused += u32::from(after.0 == before.0);
    ensure!(client.is_running()?, "the client failed");
    Ok(())
}

/// Reloads that put files in force, and those that refused them.
fn reloads(running: &Daemon) -> Result<(u64, u64)> {
    let text = running.get("/metrics")?;
    let count = |result: &str| {
        let series = format!("volund_config_reloads_total{{result=\"{result}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    Ok((count("success"), count("failure")))
}

fn pools(site: &Site) -> String {
    let mut text = String::from("version = 1\n[safety]\nmax_removals = 100\n");
    for pool in ["a", "b"] {
        let path = site.path(pool);
        text.push_str(&format!(
            "[pool.{pool}]\npath = \"{}\"\nreserve = \"0MiB\"\n",
            path.display()
        ));
    }
    text
}

fn volume(name: &str, size: &str, more: &str) -> String {
    let replicas = if name == "d3" || name == "f3" {
        "\"a\", \"b\""
    } else {
        "\"a\""
    };
    let export = "export = { vhost-user = { queues = 2 } }";
    format!("[volume.{name}]\nreplicas = [{replicas}]\nsize = \"{size}\"\n{export}\n{more}")
}

fn base(site: &Site) -> String {
    let data = DATA.map(|name| volume(name, "8MiB", ""));
    format!(
        "{}{}{}",
        pools(site),
        volume("keep", "64MiB", ""),
        data.concat()
    )
}

/// Only the volumes whose data it is, by their ids, under names that nobody had. A mutation may have grown any of them, to
/// the size of `keep` at most, and no volume becomes smaller again.
fn found_again(site: &Site, uuids: &[String; 4]) -> String {
    let mut text = pools(site) + &volume("keep", "64MiB", "");
    for (index, uuid) in uuids.iter().enumerate() {
        text.push_str(&volume(
            &format!("f{index}"),
            "64MiB",
            &format!("uuid = \"{uuid}\"\n"),
        ));
    }
    text
}

/// One to four mutations of the text.
fn mutate(base: &str, random: &mut Random) -> String {
    let mut lines: Vec<String> = base.lines().map(str::to_owned).collect();
    for _ in 0..=random.below(4) {
        let at = pick(lines.len(), random);
        let line = LINES[pick(LINES.len(), random)].to_owned();
        match random.below(8) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, line),
            2 => lines[at] = line,
            3 => {
                let other = pick(lines.len(), random);
                lines.swap(at, other);
            }
            4 => lines[at] = spoilt(&lines[at], random),
            5 => lines.truncate(at.max(1)),
            _ => remove_table(&mut lines, at),
        }
        if lines.is_empty() {
            lines.push(String::new());
        }
    }
    lines.join("\n") + "\n"
}

fn pick(len: usize, random: &mut Random) -> usize {
    let len = u64::try_from(len.max(1)).unwrap_or(1);
    usize::try_from(random.below(len)).unwrap_or(0)
}

/// The line with one character replaced.
fn spoilt(line: &str, random: &mut Random) -> String {
    const WITH: &[u8] = b"abx019[]{}=\"'.#- \\";
    let mut bytes = line.as_bytes().to_vec();
    let at = pick(bytes.len(), random);
    if let Some(byte) = bytes.get_mut(at) {
        *byte = WITH[pick(WITH.len(), random)];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes the table out that the line at `at` is in.
fn remove_table(lines: &mut Vec<String>, at: usize) {
    let is_header = |line: &String| line.starts_with('[');
    let begin = lines[..=at].iter().rposition(is_header).unwrap_or(0);
    let rest = lines[begin + 1..].iter().position(is_header);
    let end = rest.map_or(lines.len(), |rest| begin + 1 + rest);
    lines.drain(begin..end);
}
