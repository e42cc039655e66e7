//! Show: the Grafana dashboard's expressions against Debian's Prometheus, which scrapes a daemon with a mirror that is being
//! rebuilt under load, a volume with errors, and a volume in quarantine. Each has data, or a reason here why it has none; and every
//! name in it is one that the daemon serves.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::alerts::stage::{Stage, copy, whole};
use super::server::Server;
use crate::{daemon, shell};

const DASHBOARD: &str = "contrib/grafana/volund.json";

/// Expressions that rightly have no data here, by a part of them, and why.
const EMPTY: [(&str, &str); 0] = [];

/// What Grafana puts in: everything of each variable, and four scrapes.
const VARIABLES: [(&str, &str); 4] = [
    ("$__rate_interval", "10s"),
    ("$instance", ".*"),
    ("$volume", ".*"),
    ("${datasource}", "prometheus"),
];

pub(super) fn round(seed: u64) -> Result<String> {
    let text = fs::read_to_string(shell::root().join(DASHBOARD))?;
    let dashboard: Value = serde_json::from_str(&text).context(DASHBOARD)?;
    let expressions = expressions(&dashboard)?;
    let mut stage = Stage::new(seed)?;
    let server = Server::start(stage.http(), None)?;
    busy(&mut stage)?;
    names(&expressions, &daemon::get(stage.http(), "/metrics")?)?;
    let mut empty = 0;
    for (title, expression) in &expressions {
        let expression = filled(expression);
        let reason = EMPTY.iter().find(|(part, _)| expression.contains(part));
        let has_data = |series: &[(Value, f64)]| {
            series.iter().any(|(_, value)| value.is_finite()) == reason.is_none()
        };
        server
            .wait(&expression, Duration::from_secs(30), has_data)
            .with_context(|| format!("panel {title:?}: {reason:?}"))?;
        empty += usize::from(reason.is_some());
    }
    let rebuilding = server.query("volund_rebuild_remaining_bytes > 0")?;
    ensure!(
        !rebuilding.is_empty(),
        "the rebuild ended before the last expression was tried"
    );
    stage.rest()?;
    stage.stop()?;
    Ok(format!(
        "{} expressions have data, {empty} rightly have none",
        expressions.len() - empty
    ))
}

/// Brings about everything that the dashboard shows.
fn busy(stage: &mut Stage) -> Result<()> {
    stage.configure("[volume.more]\nsize = \"16MiB\"\npool = \"c\"\n")?;
    stage.wait("serving one more", |status| {
        !daemon::volume(status, "more")["uuid"].is_null()
    })?;
    stage.configure("")?;
    stage.wait("with something in quarantine", |status| {
        status["quarantine"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    })?;
    stage.load("alone").run(20)?;
    stage.load("alone").discard()?;
    stage.wait("whole", whole)?;
    stage.inject("db", "b", "lost-device")?;
    // A minute's worth of rebuilding.
    stage.load("db").on(60).run(20)?;
    stage.wait("degraded", |status| copy(status, "b")["state"] == "Stale")?;
    stage.inject("db", "b", "clear")?;
    stage.work("db")?;
    stage.wait("rebuilding", |status| {
        copy(status, "b")["state"] == "Rebuilding"
    })
}

/// Every expression, with its panel's title, and what the variables are asked by.
fn expressions(dashboard: &Value) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().unwrap_or_default().to_owned();
        for target in panel["targets"].as_array().map_or(&[][..], Vec::as_slice) {
            let expression = target["expr"].as_str();
            let expression = expression.with_context(|| format!("panel {title:?}: no expr"))?;
            found.push((title.clone(), expression.to_owned()));
        }
    }
    let variables = dashboard["templating"]["list"].as_array();
    for variable in variables.context("no variables")? {
        // label_values(SERIES, LABEL)
        let query = variable["query"]["query"].as_str().unwrap_or_default();
        let inner = query.strip_prefix("label_values(");
        if let Some((series, label)) =
            inner.and_then(|rest| rest.trim_end_matches(')').rsplit_once(", "))
        {
            found.push((query.to_owned(), format!("count by ({label}) ({series})")));
        }
    }
    ensure!(
        found.len() > 40,
        "only {} expressions were found",
        found.len()
    );
    Ok(found)
}

fn filled(expression: &str) -> String {
    let mut text = expression.to_owned();
    for (variable, value) in VARIABLES {
        text = text.replace(variable, value);
    }
    text
}

/// Whether every family that they name is one of `/metrics`.
fn names(expressions: &[(String, String)], metrics: &str) -> Result<()> {
    let served: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for (title, expression) in expressions {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = expression.split(|c| !is_name(c));
        for word in words.filter(|word| word.starts_with("volund_") || word.starts_with("process_"))
        {
            let base = word.trim_end_matches("_bucket");
            ensure!(
                served.contains(base),
                "panel {title:?} names {word:?}, which the daemon does not serve"
            );
        }
    }
    Ok(())
}
