//! `volund plan` and `volund approve`.

use super::args::{Format, Global, PlanArgs};
use super::client::{Client, ClientError};
use super::{CliError, EXIT_CHANGES, EXIT_OK, EXIT_REMOVALS, Outcome};
use crate::config;
use crate::http::{ApproveRequest, PlanRequest};
use crate::model::VolumeName;
use crate::reconcile::report::PlanReport;

/// With `--config`, what those files would change; else what the daemon's own files on disk would.
pub(super) fn run(global: &Global, args: PlanArgs) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let report: PlanReport = match &global.config {
        None => client.get("/v1/plan")?,
        Some(path) => {
            let loaded = config::load_for(path, global.node.as_ref());
            if loaded.result.is_err() {
                return Err(CliError::Failed(loaded.report(false)));
            }
            let files = loaded.files;
            client.post("/v1/plan", &PlanRequest { files })?
        }
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

/// Terraform's 0, 1, 2, and 3 for what should make a pipeline stop.
fn exit_code(args: PlanArgs, report: &PlanReport) -> u8 {
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
            assert_eq!(exit_code(PlanArgs { detailed_exitcode }, &report), expected);
        };
        check(true, 0, 0, EXIT_OK);
        check(true, 1, 0, EXIT_CHANGES);
        check(true, 1, 1, EXIT_REMOVALS);
        check(false, 1, 1, EXIT_OK);
    }
}
