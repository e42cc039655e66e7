//! `volund why`.

use super::args::{Format, Global};
use super::client::Client;
use super::plan::json;
use super::table::Table;
use super::{CliError, Outcome};
use crate::model::VolumeName;
use crate::model::why::{HistoryEvent, LabelView, MemberView, Relation, Why, WitnessView};

pub(super) fn run(global: &Global, volume: &VolumeName) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let why: Why = client.get(&format!("/v1/volumes/{volume}/why"))?;
    Ok(Outcome::ok(match global.output {
        Format::Human => text(&why),
        Format::Json => json(&why)?,
    }))
}

fn text(why: &Why) -> String {
    let id = why
        .uuid
        .map_or_else(|| "no id".to_owned(), |id| id.to_string());
    let mut text = format!("{} ({id})\n  {}\n", why.volume, why.summary);
    text.push_str(&section(
        "Recorded outside the replicas",
        &witness(why.witness.as_ref()),
    ));
    text.push_str(&section("Members", &members(&why.members)));
    text.push_str(&section("Labels found", &labels(&why.labels)));
    if !why.history.is_empty() {
        text.push_str(&section("What happened", &history(&why.history)));
    }
    if !why.next.is_empty() {
        let steps = why.next.iter().map(|step| format!("- {step}\n"));
        text.push_str(&section("What to do", &steps.collect::<String>()));
    }
    text
}

fn section(title: &str, body: &str) -> String {
    let lines = body.lines().map(|line| format!("  {line}\n"));
    format!("\n{title}\n{}", lines.collect::<String>())
}

fn witness(witness: Option<&WitnessView>) -> String {
    match witness {
        None => "nothing: the record is lost, or there never was one".to_owned(),
        Some(witness) => {
            let in_sync = witness.in_sync.iter().map(ToString::to_string);
            format!(
                "generation {} is committed (epoch {}); in sync: {}",
                witness.generation,
                witness.epoch,
                in_sync.collect::<Vec<_>>().join(", ")
            )
        }
    }
}

fn members(members: &[MemberView]) -> String {
    if members.is_empty() {
        return "none known".to_owned();
    }
    let mut table = Table::new(&["POOL", "REPLICA", "STATE"]);
    for member in members {
        let pool = member.pool.as_ref().map_or("?", |pool| pool.as_str());
        let outlook = member
            .outlook
            .as_ref()
            .map(|outlook| format!("it {outlook}"));
        let rebuild = member.rebuild.as_ref().map(|r| format!("rebuild: {r}"));
        let notes = [member.reason.clone(), rebuild, outlook];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        let cells = vec![
            pool.to_owned(),
            member.replica.to_string(),
            format!("{:?}", member.state),
        ];
        table.row_with(cells, notes.join("; "));
    }
    table.text()
}

fn labels(labels: &[LabelView]) -> String {
    if labels.is_empty() {
        return "none".to_owned();
    }
    let mut table = Table::new(&[
        "POOL",
        "REPLICA",
        "GENERATION",
        "HISTORY",
        "CALLS ITSELF",
        "WRITTEN",
    ]);
    for label in labels {
        let unknown = || "?".to_owned();
        let mut notes = Vec::new();
        if !label.is_member {
            notes.push("not a member".to_owned());
        }
        if label.quarantined {
            notes.push("in quarantine".to_owned());
        }
        notes.extend(label.fault.clone());
        let cells = vec![
            label.pool.to_string(),
            label.replica.to_string(),
            label
                .generation
                .map_or_else(unknown, |generation| generation.to_string()),
            label.relation.map_or_else(unknown, relation),
            label
                .own_state
                .map_or_else(unknown, |state| format!("{state:?}")),
            label.written_at.clone().unwrap_or_else(unknown),
        ];
        table.row_with(cells, notes.join("; "));
    }
    table.text()
}

fn relation(relation: Relation) -> String {
    match relation {
        Relation::Same => "same".to_owned(),
        Relation::Behind(count) => format!("{count} behind"),
        Relation::Ahead(count) => format!("{count} ahead"),
        Relation::Before(count) => format!("{count} behind, or other"),
        Relation::Other => "other history".to_owned(),
    }
}

fn history(events: &[HistoryEvent]) -> String {
    let mut table = Table::new(&["TIME", "GENERATION", "WHAT", "POOL"]);
    for event in events {
        let pool = event.pool.as_ref().map_or("", |pool| pool.as_str());
        let cells = vec![
            event.time.clone(),
            event.generation.to_string(),
            event.what.clone(),
            pool.to_owned(),
        ];
        table.row_with(cells, event.detail.clone());
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ReplicaId;
    use crate::model::status::ReplicaState;

    #[test]
    fn what_blocks_a_volume_and_what_to_do_can_be_read() {
        let replica = ReplicaId::from_uuid(uuid::Uuid::from_u128(1));
        let why = Why {
            volume: "db".parse().unwrap(),
            uuid: None,
            serving: false,
            summary: "Blocked: none of the 1 replicas has the committed generation 7".to_owned(),
            witness: Some(WitnessView {
                generation: 7,
                epoch: 3,
                in_sync: vec![replica],
            }),
            members: vec![MemberView {
                replica,
                pool: None,
                state: ReplicaState::Absent,
                reason: Some("its file is gone".to_owned()),
                rebuild: None,
                outlook: None,
            }],
            labels: vec![LabelView {
                pool: "b".parse().unwrap(),
                replica,
                quarantined: false,
                generation: Some(5),
                relation: Some(Relation::Behind(2)),
                own_state: Some(ReplicaState::InSync),
                is_member: true,
                written_at: Some("2026-11-21T09:14:03Z".to_owned()),
                fault: None,
            }],
            history: Vec::new(),
            next: vec!["bring pool \"a\" back: it is gone".to_owned()],
        };
        let text = text(&why);
        for expected in [
            "db (no id)\n  Blocked: none of the 1",
            "generation 7 is committed (epoch 3)",
            "Absent  its file is gone",
            "5           2 behind  InSync",
            "What to do\n  - bring pool \"a\" back",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }
}
