//! `volund wait`.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;

use super::args::{Format, Global};
use super::client::{Client, ClientError};
use super::plan::json;
use super::{CliError, EXIT_NOT_READY, Outcome};
use crate::io::clock;
use crate::model::VolumeName;
use crate::model::status::{NodeStatus, Truth, VolumeStatus};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Arguments of `volund wait`.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Which volumes.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub volumes: Vec<VolumeName>,
    /// All volumes.
    #[arg(long)]
    pub all: bool,
    /// What for: a condition (`Ready`, `Degraded=False`), `InPlace` (as the files want it) or `Removed`.
    #[arg(long = "for", value_name = "CONDITION", default_value = "Ready")]
    pub goal: Goal,
    /// How long: `30s`, `5m`. Exits with 4 when it is over.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub timeout: Patience,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A condition with this status. One that is not there is false.
    Condition(String, Truth),
    /// Nothing about it differs from the files.
    InPlace,
    /// It is there no more.
    Removed,
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, status) = text.split_once('=').unwrap_or((text, "True"));
        let status = match status {
            "True" | "true" => Truth::True,
            "False" | "false" => Truth::False,
            "Unknown" | "unknown" => Truth::Unknown,
            _ => return Err("after `=` comes True, False or Unknown".to_owned()),
        };
        match kind {
            "InPlace" if text == kind => Ok(Self::InPlace),
            "Removed" if text == kind => Ok(Self::Removed),
            _ if kind.is_empty() || !kind.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                Err("a condition is one word, as in Ready or Degraded=False".to_owned())
            }
            _ => Ok(Self::Condition(kind.to_owned(), status)),
        }
    }
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(pub Duration);

impl FromStr for Patience {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = SignedDuration::from_str(text).ok();
        let span = span.and_then(|span| Duration::try_from(span).ok());
        span.map(Self)
            .ok_or_else(|| "a time looks like 30s, 5m or 1h".to_owned())
    }
}

/// Waits until it holds for all of them. A daemon that is not there yet is waited for as well.
pub(super) fn run(global: &Global, args: &WaitArgs) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    let began = clock::monotonic();
    loop {
        let left = match client.get::<NodeStatus>("/v1/status") {
            Ok(status) => missing(args, &status),
            Err(error @ (ClientError::Connect { .. } | ClientError::Http(_))) => {
                vec![error.to_string()]
            }
            Err(error) => return Err(error.into()),
        };
        if left.is_empty() {
            return Ok(Outcome::default());
        }
        let is_over = began.elapsed() >= args.timeout.0;
        if is_over {
            return Ok(Outcome {
                text: match global.output {
                    Format::Human => left.iter().map(|line| format!("{line}\n")).collect(),
                    Format::Json => json(&left)?,
                },
                code: EXIT_NOT_READY,
            });
        }
        client.wait(LOOK.min(args.timeout.0.saturating_sub(began.elapsed())));
    }
}

/// What it does not hold for yet, and why.
fn missing(args: &WaitArgs, status: &NodeStatus) -> Vec<String> {
    if status.revisions.applied.is_none() {
        return vec!["the daemon has not looked at its volumes yet".to_owned()];
    }
    let mut names: Vec<&VolumeName> = args.volumes.iter().collect();
    if args.all {
        names.extend(status.volumes.iter().map(|volume| &volume.name));
    }
    let missing = names.into_iter().filter_map(|name| {
        let mut volumes = status.volumes.iter();
        let volume = volumes.find(|volume| volume.name == *name);
        let why = lacks(&args.goal, name, volume, status)?;
        Some(format!("volume {name}: {why}"))
    });
    missing.collect()
}

/// Why the goal is not met; none when it is.
fn lacks(
    goal: &Goal,
    name: &VolumeName,
    volume: Option<&VolumeStatus>,
    status: &NodeStatus,
) -> Option<String> {
    let Some(volume) = volume else {
        return (*goal != Goal::Removed).then(|| "there is no such volume".to_owned());
    };
    match goal {
        Goal::Removed => Some(format!("it is still there, {}", volume.state)),
        Goal::InPlace => {
            let object = format!("volume.{name}");
            let mut drift = status.drift.iter();
            let found = drift.find(|drift| drift.object == object)?;
            Some(format!("{} ({})", found.message, found.reason))
        }
        Goal::Condition(kind, wanted) => {
            let mut conditions = volume.conditions.iter();
            match conditions.find(|condition| condition.kind == *kind) {
                Some(found) if found.status == *wanted => None,
                Some(found) => Some(format!("{} ({})", found.message, found.reason)),
                None if *wanted == Truth::False => None,
                None => Some(format!("it has no condition {kind}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_and_times_are_read_or_refused() {
        let check = |text: &str, expected: Option<Goal>| {
            assert_eq!(text.parse::<Goal>().ok(), expected, "{text}");
        };
        let condition = |kind: &str, status| Some(Goal::Condition(kind.to_owned(), status));
        check("Ready", condition("Ready", Truth::True));
        check("Degraded=False", condition("Degraded", Truth::False));
        check("Ready=unknown", condition("Ready", Truth::Unknown));
        check("InPlace", Some(Goal::InPlace));
        check("Removed", Some(Goal::Removed));
        check("Ready=maybe", None);
        check("=True", None);
        check("condition/Ready", None);
        let time = |text: &str| text.parse::<Patience>().ok().map(|patience| patience.0);
        assert_eq!(time("30s"), Some(Duration::from_secs(30)));
        assert_eq!(time("1h 5m"), Some(Duration::from_secs(3900)));
        assert_eq!(time("30"), None);
        assert_eq!(time("-1s"), None);
    }
}
