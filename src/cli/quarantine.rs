//! `volund quarantine list|restore|purge`.

use std::io::{BufRead, IsTerminal};

use super::args::{Format, Global, QuarantineCommand};
use super::client::Client;
use super::plan::json;
use super::table::Table;
use super::{CliError, Outcome, print};
use crate::http::{PurgeRequest, RestoreRequest};
use crate::model::VolumeName;
use crate::model::status::{NodeStatus, QuarantineEntry};
use crate::units::Bytes;

pub(super) fn run(global: &Global, command: &QuarantineCommand) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    match command {
        QuarantineCommand::List => {
            let status: NodeStatus = client.get("/v1/status")?;
            Ok(Outcome::ok(match global.output {
                Format::Human => list(&status.quarantine),
                Format::Json => json(&status.quarantine)?,
            }))
        }
        QuarantineCommand::Restore { id, new_name } => {
            let request = RestoreRequest {
                id: id.clone(),
                name: new_name.clone(),
            };
            let name: VolumeName = client.post("/v1/quarantine/restore", &request)?;
            Ok(Outcome::ok(restored(id, &name, new_name.is_some())))
        }
        QuarantineCommand::Purge { id, yes } => {
            if !yes && !confirmed(id)? {
                return Err(CliError::Failed("nothing was deleted".to_owned()));
            }
            client.post::<_, ()>("/v1/quarantine/purge", &PurgeRequest { id: id.clone() })?;
            Ok(Outcome::ok(format!("deleted the data of {id}\n")))
        }
    }
}

fn list(entries: &[QuarantineEntry]) -> String {
    if entries.is_empty() {
        return "the quarantine is empty\n".to_owned();
    }
    let mut table = Table::new(&["ID", "SIZE", "POOLS", "PURGED", "UUID"]);
    for entry in entries {
        let pools = entry.pools.iter().map(ToString::to_string);
        table.row(vec![
            entry.id.clone(),
            Bytes(entry.allocated_bytes).to_string(),
            pools.collect::<Vec<_>>().join(","),
            entry
                .purge_at
                .clone()
                .unwrap_or_else(|| "by hand".to_owned()),
            entry.uuid.to_string(),
        ]);
    }
    table.text()
}

fn restored(id: &str, name: &VolumeName, renamed: bool) -> String {
    if renamed {
        format!(
            "the data of {id} now has the name \"{name}\"; without a table [volume.{name}] it stays in quarantine\n"
        )
    } else {
        format!("the data of {id} is volume \"{name}\" again\n")
    }
}

/// Asks on the terminal; without one, `--yes` must have been said.
pub(super) fn confirmed(id: &str) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Failed(
            "to delete data without being asked, say --yes".to_owned(),
        ));
    }
    print(&format!("Delete the data of {id} for ever? [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_when_data_goes() {
        let entry = |id: &str, purge_at: Option<&str>| QuarantineEntry {
            id: id.to_owned(),
            volume: "db".parse().unwrap(),
            uuid: crate::model::VolumeId::from_uuid(uuid::Uuid::nil()),
            removed_at: String::new(),
            purge_at: purge_at.map(str::to_owned),
            pools: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            allocated_bytes: 4096,
            applied: None,
        };
        let entries = [
            entry("db@1", None),
            entry("db@2", Some("2026-11-28T00:00:00Z")),
        ];
        assert_eq!(
            list(&entries),
            "ID    SIZE  POOLS  PURGED                UUID\n\
             db@1  4KiB  a,b    by hand               00000000-0000-0000-0000-000000000000\n\
             db@2  4KiB  a,b    2026-11-28T00:00:00Z  00000000-0000-0000-0000-000000000000\n"
        );
    }
}
