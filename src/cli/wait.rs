//! `volund wait`.

use std::io::ErrorKind;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hyper::body::Bytes;
use jiff::SignedDuration;

use super::args::{Format, Global};
use super::client::{Client, ClientError};
use super::plan::json;
use super::{CliError, EXIT_NOT_READY, Outcome};
use crate::http::problem::Code;
use crate::io::clock;
use crate::model::VolumeName;
use crate::model::status::{NodeStatus, Truth, VolumeStatus};
use crate::reconcile::report::PlanReport;

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
    let rest = || args.timeout.0.saturating_sub(began.elapsed());
    loop {
        let get = |path: &str| client.get_within(path, rest().max(LOOK));
        let left = match look(args, get) {
            Ok(left) => left,
            Err(error) if may_pass(&error) => vec![error.to_string()],
            Err(error) => return Err(error.into()),
        };
        if left.is_empty() {
            return Ok(Outcome::default());
        }
        if rest().is_zero() {
            return Ok(Outcome {
                text: match global.output {
                    Format::Human => left.iter().map(|line| format!("{line}\n")).collect(),
                    Format::Json => json(&left)?,
                },
                code: EXIT_NOT_READY,
            });
        }
        client.wait(LOOK.min(rest()));
    }
}

/// Whether waiting may help against an error.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { source, .. } => source.kind() != ErrorKind::PermissionDenied,
        ClientError::Refused { code, .. } => matches!(
            code,
            Some(Code::Starting | Code::Stopping | Code::ConfigInvalid)
        ),
        ClientError::Http(_) | ClientError::Deadline(_) => true,
        ClientError::Body(_) | ClientError::Output(_) | ClientError::Runtime(_) => false,
    }
}

/// What it does not hold for yet, by all that the daemon is asked with `get`.
fn look(
    args: &WaitArgs,
    get: impl Fn(&str) -> Result<Bytes, ClientError>,
) -> Result<Vec<String>, ClientError> {
    let status: NodeStatus = serde_json::from_slice(&get("/v1/status")?)?;
    let left = missing(args, &status);
    if !left.is_empty() {
        return Ok(left);
    }
    // What is not there yet, because the daemon has only just started, is neither removed nor without fault.
    if matches!(args.goal, Goal::Removed | Goal::Condition(_, Truth::False)) {
        get("/readyz")?;
    }
    // Files that have changed a moment ago are in no status yet.
    if args.goal == Goal::InPlace || args.all {
        let plan: PlanReport = serde_json::from_slice(&get("/v1/plan")?)?;
        return Ok(to_come(args, &status, &plan));
    }
    Ok(left)
}

/// What the files on disk would still change about the volumes: with `--all` new ones too, for any goal but `Removed`.
fn to_come(args: &WaitArgs, status: &NodeStatus, plan: &PlanReport) -> Vec<String> {
    let known = |name: &str| {
        let mut volumes = status.volumes.iter();
        volumes.any(|volume| volume.name.as_str() == name)
    };
    let is_asked_for = |name: &str| match args.goal {
        Goal::InPlace => args.all || args.volumes.iter().any(|asked| asked.as_str() == name),
        Goal::Condition(..) => !known(name),
        Goal::Removed => false,
    };
    let changes = plan.changes.iter().filter_map(|change| {
        let name = change.object.strip_prefix("volume.")?;
        let summary = &change.summary;
        is_asked_for(name).then(|| format!("volume {name}: the files change it: {summary}"))
    });
    changes.collect()
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

    fn args(arguments: &[&str]) -> WaitArgs {
        #[derive(clap::Parser)]
        struct Parser {
            #[command(flatten)]
            args: WaitArgs,
        }
        let all = ["wait"].iter().chain(arguments);
        <Parser as clap::Parser>::parse_from(all).args
    }

    /// What is there and ready, in the first moments after a start: nothing.
    #[test]
    fn what_is_not_there_yet_is_neither_removed_nor_well() {
        let status = serde_json::json!({
            "generation": 1, "configHash": "", "node": "n1", "version": "",
            "revisions": {"applied": {"generation": 1, "hash": "", "commit": null}, "pending": null, "lastGood": null},
            "pools": [], "volumes": [], "quarantine": [],
        });
        let get = |path: &str| match path {
            "/v1/status" => Ok(Bytes::from(status.to_string())),
            _ => Err(ClientError::Refused {
                code: Some(Code::Starting),
                message: "the first pass has not ended".to_owned(),
            }),
        };
        let error = look(&args(&["db", "--for", "Removed"]), get).unwrap_err();
        assert!(may_pass(&error), "{error}");
        let left = look(&args(&["db", "--for", "Degraded=False"]), get).unwrap();
        assert_eq!(left, ["volume db: there is no such volume"]);
    }

    #[test]
    fn who_may_not_connect_does_not_wait() {
        let denied = |kind: ErrorKind| ClientError::Connect {
            socket: "admin.sock".into(),
            source: kind.into(),
        };
        assert!(may_pass(&denied(ErrorKind::NotFound)));
        assert!(may_pass(&denied(ErrorKind::ConnectionRefused)));
        assert!(!may_pass(&denied(ErrorKind::PermissionDenied)));
    }

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
