//! `volund fsck` and `volund replica dump`.

use std::fs::File;
use std::path::Path;

use super::args::{Format, FsckArgs, Global, ReplicaCommand};
use super::client::{Client, ClientError};
use super::plan::json;
use super::{CliError, EXIT_FAILURE, EXIT_OK, Outcome};
use crate::config;
use crate::fsck::{self, Report};
use crate::http::site_of;
use crate::replica::dump;
use crate::state;

/// Asks the daemon if there is one, else looks itself.
pub(super) fn run(global: &Global, args: &FsckArgs) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let asked = if args.repair {
        client.post("/v1/fsck/repair", &())
    } else {
        client.get("/v1/fsck")
    };
    let report = match asked {
        Err(ClientError::Connect { .. }) => offline(global, args)?,
        asked => asked?,
    };
    let text = match global.output {
        Format::Human => report.text(),
        Format::Json => json(&report)?,
    };
    let code = if report.has_errors() {
        EXIT_FAILURE
    } else {
        EXIT_OK
    };
    Ok(Outcome { text, code })
}

fn offline(global: &Global, args: &FsckArgs) -> Result<Report, CliError> {
    let loaded = config::load_for(&global.config_or_default(), global.node.as_ref());
    let Ok((desired, _)) = &loaded.result else {
        return Err(CliError::Failed(loaded.report(false)));
    };
    // Held to the end: no daemon starts meanwhile.
    let peeked = state::peek(&args.state_dir).map_err(CliError::Failed)?;
    let site = site_of(
        Some(desired),
        args.state_dir.clone(),
        global.runtime_dir.clone(),
    );
    let mut report = fsck::examine(site, peeked.database.clone());
    if args.repair {
        fsck::repair(&mut report);
    }
    drop(peeked);
    Ok(report)
}

pub(super) fn replica(global: &Global, command: &ReplicaCommand) -> Result<Outcome, CliError> {
    match command {
        ReplicaCommand::Dump { file } => dump_file(global, file),
    }
}

fn dump_file(global: &Global, path: &Path) -> Result<Outcome, CliError> {
    let failed = |error: std::io::Error| CliError::Failed(format!("can't read {path:?}: {error}"));
    let file = File::open(path).map_err(failed)?;
    let dump = dump::read(&file).map_err(failed)?;
    let text = match global.output {
        Format::Human => dump.text(),
        Format::Json => json(&dump)?,
    };
    let code = if dump.problem.is_some() {
        EXIT_FAILURE
    } else {
        EXIT_OK
    };
    Ok(Outcome { text, code })
}
