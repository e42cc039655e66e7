//! What a check says, for people and programs. Fields are only ever added.

use std::fmt::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What was looked at, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether a daemon runs on the folders that were looked at.
    pub online: bool,
    /// Pools that were looked at.
    pub pools: usize,
    /// Replicas in them, quarantined ones included.
    pub replicas: usize,
    /// Witness files.
    pub witnesses: usize,
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// `pool.a`, `volume.db`, `socket`, ...
    pub object: String,
    /// One CamelCase word that programs can match.
    pub reason: String,
    /// What was found, in a sentence.
    pub message: String,
    /// What makes it good again: `by` says whose job it is, `what` what there is to do.
    #[schema(value_type = Object)]
    pub repair: Repair,
    /// Whether that was done just now.
    #[serde(default)]
    pub repaired: bool,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Severity {
    /// A volume does not start, or has lost something.
    Error,
    /// Nothing is lost, but something is not as it should be.
    Warning,
    /// Good to know.
    Note,
}

/// What makes something good again, and whose job that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "by", content = "what")]
pub enum Repair {
    /// `volund fsck --repair` removes this file, which holds nothing: a dead socket, a link that leads nowhere, a witness
    /// to which nothing was ever committed.
    Removal(PathBuf),
    /// The daemon does it by itself.
    Daemon(String),
    /// A person has to decide.
    Person(String),
    /// Nothing needs to be done.
    Nothing,
}

impl Report {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        (object, reason): (impl Into<String>, &str),
        message: impl Into<String>,
        repair: Repair,
    ) {
        self.findings.push(Finding {
            severity,
            object: object.into(),
            reason: reason.to_owned(),
            message: message.into(),
            repair,
            repaired: false,
        });
    }

    /// Whether something is wrong that was not mended.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.severity == Severity::Error && !finding.repaired)
    }

    /// For people: findings, each with what to do about it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let word = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            let Finding {
                object,
                reason,
                message,
                ..
            } = finding;
            // Writing to a String can't fail; so below.
            let _ = writeln!(text, "{word:7} {object}: {message} ({reason})");
            let _ = match &finding.repair {
                Repair::Removal(path) if finding.repaired => {
                    writeln!(text, "        repaired: removed {}", path.display())
                }
                Repair::Removal(path) => {
                    writeln!(text, "        repair: --repair removes {}", path.display())
                }
                Repair::Daemon(what) => writeln!(text, "        repair: by the daemon: {what}"),
                Repair::Person(what) => writeln!(text, "        repair: by you: {what}"),
                Repair::Nothing => Ok(()),
            };
        }
        let count = |severity| {
            let findings = self.findings.iter();
            let open = findings.filter(|finding| !finding.repaired && finding.severity == severity);
            open.count()
        };
        let _ = writeln!(
            text,
            "{} pools, {} replicas, {} witnesses looked at {}: {} errors, {} warnings, {} notes",
            self.pools,
            self.replicas,
            self.witnesses,
            if self.online {
                "beside the daemon"
            } else {
                "without a daemon"
            },
            count(Severity::Error),
            count(Severity::Warning),
            count(Severity::Note)
        );
        text
    }
}
