//! `volund status`.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use super::args::{Format, Global, StatusArgs};
use super::client::Client;
use super::table::Table;
use super::{CliError, EXIT_NOT_READY, EXIT_OK, Outcome, print};
use crate::io::clock;
use crate::model::status::{
    Condition, NodeStatus, PoolState, RebuildStatus, ReplicaState, ReplicaStatus, Truth,
    VolumeStatus, wrong,
};
use crate::model::time::{ago, span};
use crate::units::Bytes;

/// Time between two looks with `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Clears a terminal and goes to its top left corner (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Asks once, or again and again.
pub(super) fn run(global: &Global, args: &StatusArgs) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    if args.watch {
        return watch(&client, global, args);
    }
    let status = ask(&client, args)?;
    Ok(Outcome {
        text: render(global, &status)?,
        code: exit_code(args, &status),
    })
}

fn exit_code(args: &StatusArgs, status: &NodeStatus) -> u8 {
    let volumes = status.volumes.iter().map(|volume| &volume.conditions);
    let pools = status.pools.iter().map(|pool| &pool.conditions);
    let is_ready = |conditions: &Vec<Condition>| {
        let ready = conditions
            .iter()
            .find(|condition| condition.kind == "Ready");
        ready.is_some_and(|ready| ready.status == Truth::True)
    };
    if args.exit_code && !volumes.chain(pools).all(is_ready) {
        return EXIT_NOT_READY;
    }
    EXIT_OK
}

fn ask(client: &Client, args: &StatusArgs) -> Result<NodeStatus, CliError> {
    let mut status: NodeStatus = client.get("/v1/status")?;
    if args.volumes.is_empty() {
        return Ok(status);
    }
    for name in &args.volumes {
        if !status.volumes.iter().any(|volume| volume.name == *name) {
            return Err(CliError::Failed(format!("there is no volume \"{name}\"")));
        }
    }
    status
        .volumes
        .retain(|volume| args.volumes.contains(&volume.name));
    Ok(status)
}

/// On a terminal a picture that is redrawn; else a line for what changed.
fn watch(client: &Client, global: &Global, args: &StatusArgs) -> Result<Outcome, CliError> {
    let terminal = std::io::stdout().is_terminal();
    let mut before = Vec::new();
    loop {
        let status = ask(client, args)?;
        if terminal && global.output == Format::Human {
            print(&format!("{CLEAR}{}", render(global, &status)?))?;
        } else {
            let lines = change_lines(global, &status)?;
            let new = lines.iter().filter(|line| !before.contains(*line));
            let new: String = new.map(|line| format!("{line}\n")).collect();
            print(&new)?;
            before = lines;
        }
        client.wait(WATCH_INTERVAL);
    }
}

/// A line per volume that says all that can change about it.
fn change_lines(global: &Global, status: &NodeStatus) -> Result<Vec<String>, CliError> {
    let lines = status.volumes.iter().map(|volume| match global.output {
        Format::Json => serde_json::to_string(volume).map_err(|e| CliError::Failed(e.to_string())),
        Format::Human => {
            let client = if volume.client_connected {
                "connected"
            } else {
                "-"
            };
            Ok(format!(
                "{} {} {client} {}",
                volume.name,
                volume.word(),
                reason(&volume.conditions)
            ))
        }
    });
    lines.collect()
}

fn render(global: &Global, status: &NodeStatus) -> Result<String, CliError> {
    match global.output {
        Format::Human => Ok(human(status, clock::wall())),
        Format::Json => serde_json::to_string_pretty(status)
            .map(|text| text + "\n")
            .map_err(|error| CliError::Failed(error.to_string())),
    }
}

fn human(status: &NodeStatus, now: SystemTime) -> String {
    let mut text = summary(status, now);
    if let Some(error) = &status.config_error {
        // Writing to a String can't fail; so below.
        let _ = writeln!(
            text,
            "! the files on disk were refused, the configuration above stays in force:\n{}",
            error.trim_end()
        );
    }
    text.push_str(&drift(status, now));
    text.push_str(&volumes(status, now));
    for pool in &status.pools {
        let object = format!("pool {}", pool.name);
        text.push_str(&complaints(&object, &pool.conditions, now));
    }
    for volume in &status.volumes {
        let object = format!("volume {}", volume.name);
        text.push_str(&complaints(&object, &volume.conditions, now));
    }
    if !status.quarantine.is_empty() {
        let bytes = status
            .quarantine
            .iter()
            .map(|entry| entry.allocated_bytes)
            .sum();
        let _ = writeln!(
            text,
            "{} removed volumes in quarantine, {}: `volund quarantine list`",
            status.quarantine.len(),
            Bytes(bytes)
        );
    }
    if !status.orphans.is_empty() {
        let bytes = status.orphans.iter().map(|orphan| orphan.allocated_bytes);
        let _ = writeln!(
            text,
            "{} orphans that nobody declares, {}: `volund orphans list`",
            status.orphans.len(),
            Bytes(bytes.sum())
        );
    }
    text
}

/// `CONFIG  9f2c41 applied 2m ago   NODE n1   POOLS 2 online   VOLUMES 2 online, 1 degraded`
fn summary(status: &NodeStatus, now: SystemTime) -> String {
    let hash = status.config_hash.get(..6).unwrap_or("none");
    let applied = status
        .config_applied_at
        .as_deref()
        .and_then(|at| ago(at, now))
        .map_or_else(String::new, |ago| format!(" applied {ago} ago"));
    let pools = tally(status.pools.iter().map(|pool| match pool.state {
        PoolState::Online => "online".to_owned(),
        PoolState::Offline => "offline".to_owned(),
    }));
    let volumes = tally(
        status
            .volumes
            .iter()
            .map(|volume| volume.word().to_lowercase()),
    );
    format!(
        "CONFIG  {hash}{applied}   NODE {}   POOLS {pools}   VOLUMES {volumes}\n",
        status.node
    )
}

/// `DRIFT   volume.db for 5m (NoSpace), pool.b for 2h (PathMissing)`: what is not as the files want it. Nothing when all
/// is, or will be in a moment.
fn drift(status: &NodeStatus, now: SystemTime) -> String {
    let lasting = status.drift.iter().filter(|drift| !drift.is_under_way());
    let texts = lasting.map(|drift| {
        let since = ago(&drift.since, now).map_or_else(String::new, |ago| format!(" for {ago}"));
        format!("{}{since} ({})", drift.object, drift.reason)
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() {
        return String::new();
    }
    format!("DRIFT   {}\n", texts.join(", "))
}

/// `2 online, 1 degraded`, in the order of first appearance.
fn tally(words: impl Iterator<Item = String>) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for word in words {
        match counts.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => counts.push((word, 1)),
        }
    }
    if counts.is_empty() {
        return "none".to_owned();
    }
    let texts = counts.iter().map(|(word, count)| format!("{count} {word}"));
    texts.collect::<Vec<_>>().join(", ")
}

fn volumes(status: &NodeStatus, now: SystemTime) -> String {
    if status.volumes.is_empty() {
        return String::new();
    }
    let header = [
        "VOLUME", "STATE", "SIZE", "USED", "REPLICAS", "EXPORT", "CLIENT", "REASON",
    ];
    let mut table = Table::new(&header);
    for volume in &status.volumes {
        let healthy = volume
            .replicas
            .iter()
            .filter(|r| r.state == ReplicaState::InSync);
        table.row(vec![
            volume.name.to_string(),
            volume.word(),
            Bytes(volume.size_bytes).to_string(),
            Bytes(volume.allocated_bytes).to_string(),
            format!("{}/{}", healthy.count(), volume.replicas.len()),
            export(volume),
            if volume.client_connected {
                "connected"
            } else {
                "-"
            }
            .to_owned(),
            reason(&volume.conditions),
        ]);
        let is_whole = |replica: &ReplicaStatus| replica.state == ReplicaState::InSync;
        if volume.replicas.len() > 1 || !volume.replicas.iter().all(is_whole) {
            for replica in &volume.replicas {
                let row = vec![
                    format!("  {}", replica.pool),
                    format!("{:?}", replica.state),
                ];
                table.row_with(row, replica_news(replica, now));
            }
        }
        for (work, tail) in background(volume) {
            table.row_with(vec![format!("  ({work})"), String::new()], tail);
        }
    }
    table.text()
}

/// `[#########.......] 58%  17.2GiB left  412MiB/s  ETA 43s`.
fn progress(rebuild: &RebuildStatus) -> String {
    let mut text = format!(
        "{}  {} left  {}/s",
        bar(rebuild.percent()),
        Bytes(rebuild.remaining_bytes),
        Bytes(rebuild.bytes_per_second)
    );
    if let Some(eta) = rebuild.eta_seconds {
        // Writing to a String can't fail.
        let _ = write!(text, "  ETA {}", span(eta));
    }
    text
}

fn bar(percent: u64) -> String {
    const WIDTH: usize = 16;
    let done = usize::try_from(percent).unwrap_or(100).min(100) * WIDTH / 100;
    format!(
        "[{}{}] {percent}%",
        "#".repeat(done),
        ".".repeat(WIDTH - done)
    )
}

/// What is done to a volume's copies beside rebuilds, and how far that is.
fn background(volume: &VolumeStatus) -> Vec<(&'static str, String)> {
    let mut work = Vec::new();
    if let Some(resolving) = &volume.resolving {
        let left = Bytes(resolving.unresolved_bytes);
        work.push((
            "resolving",
            format!("{left} left to be made equal after a crash"),
        ));
    }
    let run = volume
        .scrub
        .as_ref()
        .and_then(|scrub| scrub.running.as_ref());
    if let Some(run) = run {
        let percent = u128::from(run.done_bytes) * 100 / u128::from(run.total_bytes.max(1));
        let left = run.total_bytes.saturating_sub(run.done_bytes);
        let percent = u64::try_from(percent).unwrap_or(100);
        work.push(("scrub", format!("{}  {} left", bar(percent), Bytes(left))));
    }
    work
}

/// A socket in full would be wider than all the rest; `--output json` has it.
fn export(volume: &VolumeStatus) -> String {
    match (volume.export.split_once(' '), &volume.export_socket) {
        (Some((kind, path)), Some(_)) => {
            let file = path.rsplit('/').next().unwrap_or(path);
            format!("{kind} {file}")
        }
        _ => volume.export.clone(),
    }
}

fn reason(conditions: &[Condition]) -> String {
    wrong(conditions)
        .first()
        .map_or_else(String::new, |condition| condition.reason.clone())
}

/// Per thing that is wrong: since when and why, and what happens next.
fn complaints(object: &str, conditions: &[Condition], now: SystemTime) -> String {
    let mut text = String::new();
    for condition in wrong(conditions) {
        let kind = match condition.kind.as_str() {
            "Ready" => "not Ready",
            kind => kind,
        };
        let _ = writeln!(
            text,
            "! {object}: {kind} ({}){}: {}",
            condition.reason,
            since(&condition.last_transition_time, now),
            condition.message
        );
        if let Some(next) = &condition.next {
            let _ = writeln!(text, "  next: {next}");
        }
    }
    text
}

/// ` since 2026-11-21T09:14:03Z, 5m`; empty when the time can't be read.
fn since(time: &str, now: SystemTime) -> String {
    ago(time, now).map_or_else(String::new, |ago| format!(" since {time}, {ago}"))
}

/// How far a copy's rebuild is, or since when and why it is out of sync.
fn replica_news(replica: &ReplicaStatus, now: SystemTime) -> String {
    if let Some(rebuild) = &replica.rebuild {
        return progress(rebuild);
    }
    let since = replica.since.as_deref().and_then(|time| ago(time, now));
    let since = since.map(|ago| format!("for {ago}"));
    let parts = [since, replica.reason.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
