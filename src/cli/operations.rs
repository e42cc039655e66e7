//! `volund operations`.

use std::fmt::Write;

use clap::Args;

use super::args::{Format, Global};
use super::client::Client;
use super::events::{escaped, object_name};
use super::plan::json;
use super::table::Table;
use super::{CliError, Outcome};
use crate::model::journal::Operation;

/// Arguments of `volund operations`.
#[derive(Clone, Debug, Args)]
pub struct OperationsArgs {
    /// Only this one, with everything that is known of it.
    #[arg(conflicts_with = "object")]
    pub id: Option<u64>,
    /// Only those of this object: a volume, `pool.NAME`, `quarantine.ENTRY`.
    #[arg(long, value_name = "OBJECT")]
    pub object: Option<String>,
}

/// Prints what was done, oldest first.
pub(super) fn run(global: &Global, args: &OperationsArgs) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    if let Some(id) = args.id {
        let operation: Operation = client.get(&format!("/v1/operations/{id}"))?;
        return Ok(Outcome::ok(match global.output {
            Format::Human => detail(&operation),
            Format::Json => json(&operation)?,
        }));
    }
    let path = match &args.object {
        Some(object) => format!("/v1/operations?object={}", escaped(&object_name(object))),
        None => "/v1/operations".to_owned(),
    };
    let operations: Vec<Operation> = client.get(&path)?;
    Ok(Outcome::ok(match global.output {
        Format::Human => list(&operations),
        Format::Json => json(&operations)?,
    }))
}

fn list(operations: &[Operation]) -> String {
    let mut table = Table::new(&[
        "ID", "CREATED", "OBJECT", "ACTION", "STATE", "TOOK", "CAUSE", "REASON",
    ]);
    for operation in operations {
        let tries = match operation.attempts {
            0 | 1 => String::new(),
            attempts => format!(" (attempt {attempts})"),
        };
        table.row(vec![
            operation.id.to_string(),
            operation.created_at.clone(),
            operation.object.clone(),
            operation.action.clone(),
            format!("{}{tries}", operation.state.label()),
            operation.duration_ms.map_or_else(String::new, took),
            operation.cause.label().to_owned(),
            operation.reason.clone().unwrap_or_default(),
        ]);
    }
    table.text()
}

fn took(milliseconds: u64) -> String {
    match milliseconds {
        0..10_000 => format!("{milliseconds}ms"),
        _ => format!("{}s", milliseconds / 1000),
    }
}

fn detail(operation: &Operation) -> String {
    let mut text = format!(
        "operation {}: {} {}\n",
        operation.id, operation.object, operation.action
    );
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {name:9} {value}");
        }
    };
    row("what", Some(operation.summary.clone()));
    let state = operation.state.label();
    row(
        "state",
        Some(format!("{state}, attempts: {}", operation.attempts)),
    );
    row("cause", Some(operation.cause.label().to_owned()));
    row("by", operation.requested_by.clone());
    row(
        "revision",
        operation.revision.as_ref().map(|revision| {
            let commit = revision.commit.as_ref();
            let commit = commit.map_or_else(String::new, |commit| format!(", commit {commit}"));
            format!("{}{commit}", revision.hash)
        }),
    );
    row("created", Some(operation.created_at.clone()));
    row("started", operation.started_at.clone());
    row("ended", operation.ended_at.clone());
    row("took", operation.duration_ms.map(took));
    row("reason", operation.reason.clone());
    for (depth, error) in operation.errors.iter().enumerate() {
        let name = if depth == 0 { "error" } else { "because" };
        row(name, Some(error.clone()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::journal::{Cause, OperationState, Revision};

    #[test]
    fn an_operation_tells_what_failed_and_why() {
        let operation = Operation {
            id: 7,
            object: "volume.db".to_owned(),
            action: "Create".to_owned(),
            summary: "create 1GiB on a".to_owned(),
            state: OperationState::Failed,
            cause: Cause::Configuration,
            requested_by: None,
            revision: Some(Revision {
                generation: Some(3),
                hash: "9f2c".to_owned(),
                commit: Some("0123".to_owned()),
            }),
            attempts: 2,
            created_at: "t1".to_owned(),
            started_at: Some("t2".to_owned()),
            ended_at: Some("t3".to_owned()),
            duration_ms: Some(12_345),
            reason: Some("NoSpace".to_owned()),
            errors: vec!["can't make the replica".to_owned(), "disk full".to_owned()],
        };
        assert_eq!(
            list(std::slice::from_ref(&operation)),
            "ID  CREATED  OBJECT     ACTION  STATE               TOOK  CAUSE          REASON\n\
             7   t1       volume.db  Create  failed (attempt 2)  12s   configuration  NoSpace\n"
        );
        assert_eq!(
            detail(&operation),
            "operation 7: volume.db Create\n\
             \x20 what      create 1GiB on a\n\
             \x20 state     failed, attempts: 2\n\
             \x20 cause     configuration\n\
             \x20 revision  9f2c, commit 0123\n\
             \x20 created   t1\n\
             \x20 started   t2\n\
             \x20 ended     t3\n\
             \x20 took      12s\n\
             \x20 reason    NoSpace\n\
             \x20 error     can't make the replica\n\
             \x20 because   disk full\n"
        );
    }
}
