//! `volund plan` and `volund approve`.

use std::path::Path;
use std::time::UNIX_EPOCH;

use super::args::{Format, Global, PlanArgs};
use super::client::{Client, ClientError};
use super::{CliError, EXIT_CHANGES, EXIT_OK, EXIT_REMOVALS, Outcome};
use crate::config;
use crate::http::{ApproveRequest, PlanRequest};
use crate::io::clock;
use crate::model::status::NodeStatus;
use crate::model::{NodeName, VolumeName};
use crate::reconcile::plan_against;
use crate::reconcile::report::PlanReport;

/// What `--against` says for the running daemon.
const LIVE: &str = "LIVE";

/// With `--config`, what those files would change; else what the daemon's own files on disk would.
pub(super) fn run(global: &Global, args: &PlanArgs) -> Result<Outcome, CliError> {
    let report = if args.against.as_os_str() == LIVE {
        live(global)?
    } else {
        saved(global, &args.against)?
    };
    let text = match global.output {
        Format::Human => report.text(),
        Format::Json => json(&report)?,
    };
    Ok(Outcome {
        text,
        code: exit_code(args, &report),
    })
}

fn live(global: &Global) -> Result<PlanReport, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let Some(path) = &global.config else {
        return Ok(client.get("/v1/plan")?);
    };
    let loaded = config::load_for(path, global.node.as_ref());
    if loaded.result.is_err() {
        return Err(CliError::Failed(loaded.report(false)));
    }
    let files = loaded.files;
    Ok(client.post("/v1/plan", &PlanRequest { files })?)
}

/// Against a saved status; the node is the one that it is of.
fn saved(global: &Global, state: &Path) -> Result<PlanReport, CliError> {
    let failed = |why: String| CliError::Failed(format!("{}: {why}", state.display()));
    let text = std::fs::read(state).map_err(|error| failed(format!("can't be read: {error}")))?;
    let status: NodeStatus = serde_json::from_slice(&text).map_err(|error| {
        failed(format!(
            "is not what `volund status --output json` prints: {error}"
        ))
    })?;
    let node = match &global.node {
        Some(node) => node.clone(),
        None => status
            .node
            .parse::<NodeName>()
            .map_err(|error| failed(format!("node: {error}")))?,
    };
    let loaded = config::load(&global.config_or_default(), &node);
    let Ok((desired, _)) = &loaded.result else {
        return Err(CliError::Failed(loaded.report(false)));
    };
    let since_epoch = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    plan_against(desired, &status, since_epoch.as_secs()).map_err(failed)
}

/// Terraform's 0, 1, 2, and 3 for what should make a pipeline stop.
fn exit_code(args: &PlanArgs, report: &PlanReport) -> u8 {
    match (report.has_removals(), report.has_changes()) {
        _ if !args.detailed_exitcode => EXIT_OK,
        (true, _) => EXIT_REMOVALS,
        (false, true) => EXIT_CHANGES,
        (false, false) => EXIT_OK,
    }
}

/// Lets held removals go.
pub(super) fn approve(global: &Global, id: &str) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let names: Vec<VolumeName> =
        client.post("/v1/approve", &ApproveRequest { id: id.to_owned() })?;
    if global.output == Format::Json {
        return Ok(Outcome::ok(json(&names)?));
    }
    let names = names.iter().map(ToString::to_string);
    let names = names.collect::<Vec<_>>().join(", ");
    Ok(Outcome::ok(format!(
        "approved: {names} will go to quarantine as soon as nobody uses them\n"
    )))
}

/// `value` as indented JSON with a line end.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value).map_err(ClientError::Body)?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_changes_from_removals() {
        let check = |detailed_exitcode, to_add, to_remove, expected| {
            let report = PlanReport {
                to_add,
                to_remove,
                ..PlanReport::default()
            };
            let args = PlanArgs {
                detailed_exitcode,
                against: LIVE.into(),
            };
            assert_eq!(exit_code(&args, &report), expected);
        };
        check(true, 0, 0, EXIT_OK);
        check(true, 1, 0, EXIT_CHANGES);
        check(true, 1, 1, EXIT_REMOVALS);
        check(false, 1, 1, EXIT_OK);
    }
}
