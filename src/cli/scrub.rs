//! `volund scrub`.

use super::args::{Format, Global};
use super::client::Client;
use super::plan::json;
use super::{CliError, EXIT_FAILURE, Outcome};
use crate::http::ScrubBody;
use crate::model::scrub::ScrubOutcome;
use crate::model::{PoolName, VolumeName};
use crate::units::Bytes;

/// Waits until the scrub has ended; it goes on when this is interrupted. Fails when something was found that it left as
/// it is.
pub(super) fn run(
    global: &Global,
    volume: &VolumeName,
    repair_from: Option<&PoolName>,
) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let body = ScrubBody {
        repair_from: repair_from.cloned(),
    };
    let path = format!("/v1/volumes/{volume}/scrub");
    let outcome: ScrubOutcome = client.post_patiently(&path, &body)?;
    let text = match global.output {
        Format::Human => text(&outcome),
        Format::Json => json(&outcome)?,
    };
    let is_well = outcome.unrepairable + outcome.unreadable == 0;
    Ok(Outcome {
        text,
        code: if is_well { 0 } else { EXIT_FAILURE },
    })
}

fn text(outcome: &ScrubOutcome) -> String {
    let mut text = String::new();
    for chunk in &outcome.found {
        let pools = chunk.pools.iter().map(ToString::to_string);
        text.push_str(&format!(
            "{} at byte {}, {} long: {}\n",
            chunk.finding,
            chunk.offset,
            Bytes(chunk.len),
            pools.collect::<Vec<_>>().join(", ")
        ));
    }
    let replicas = match outcome.compared {
        1 => "1 replica, so there was nothing to compare with".to_owned(),
        count => format!("{count} replicas"),
    };
    text.push_str(&format!(
        "{}: {} compared on {replicas}; {} chunks differed, {} repaired, {} left, {} unreadable\n",
        outcome.volume,
        Bytes(outcome.scrubbed_bytes),
        outcome.mismatches,
        outcome.repaired,
        outcome.unrepairable,
        outcome.unreadable
    ));
    if outcome.unrepairable > 0 {
        text.push_str(
            "Nothing says which replica is right there: look at the data, then `volund scrub VOLUME --repair-from POOL`\n",
        );
    }
    text
}
