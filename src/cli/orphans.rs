//! `volund orphans list|purge`.

use uuid::Uuid;

use super::args::{Format, Global, OrphansCommand};
use super::client::Client;
use super::plan::json;
use super::quarantine::confirmed;
use super::table::Table;
use super::{CliError, Outcome};
use crate::http::OrphanRequest;
use crate::model::status::{NodeStatus, Orphan};
use crate::units::Bytes;

pub(super) fn run(global: &Global, command: &OrphansCommand) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    match command {
        OrphansCommand::List => {
            let status: NodeStatus = client.get("/v1/status")?;
            Ok(Outcome::ok(match global.output {
                Format::Human => list(&status.orphans),
                Format::Json => json(&status.orphans)?,
            }))
        }
        OrphansCommand::Purge { id, yes } => purge(&client, *id, *yes),
    }
}

fn purge(client: &Client, id: Uuid, yes: bool) -> Result<Outcome, CliError> {
    if !yes && !confirmed(&id.to_string())? {
        return Err(CliError::Failed("nothing was deleted".to_owned()));
    }
    client.post::<_, ()>("/v1/orphans/purge", &OrphanRequest { id })?;
    Ok(Outcome::ok(format!("deleted the data of {id}\n")))
}

fn list(orphans: &[Orphan]) -> String {
    if orphans.is_empty() {
        return "everything in the pools is declared\n".to_owned();
    }
    let mut table = Table::new(&["ID", "REASON", "VOLUME", "SIZE", "USED", "POOLS"]);
    for orphan in orphans {
        let pools = orphan.pools.iter().map(ToString::to_string);
        table.row(vec![
            orphan
                .id
                .map_or_else(|| "-".to_owned(), |id| id.to_string()),
            orphan.reason.clone(),
            orphan
                .volume
                .as_ref()
                .map_or_else(|| "-".to_owned(), ToString::to_string),
            Bytes(orphan.size_bytes).to_string(),
            Bytes(orphan.allocated_bytes).to_string(),
            pools.collect::<Vec<_>>().join(","),
        ]);
    }
    let mut text = table.text();
    for orphan in orphans {
        text.push_str(&format!("\n{}\n", orphan.message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_what_may_be_done() {
        let orphan = Orphan {
            id: Some(Uuid::from_u128(1)),
            reason: "Undeclared".to_owned(),
            message: "no table declares it".to_owned(),
            volume: Some("db".parse().unwrap()),
            size_bytes: 1 << 20,
            pools: vec!["a".parse().unwrap()],
            allocated_bytes: 4096,
            applied: None,
        };
        assert_eq!(
            list(&[orphan]),
            "ID                                    REASON      VOLUME  SIZE  USED  POOLS\n\
             00000000-0000-0000-0000-000000000001  Undeclared  db      1MiB  4KiB  a\n\
             \nno table declares it\n"
        );
    }
}
