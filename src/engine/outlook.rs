//! What is done next about a member that is out of sync, in words: as the keeper knows it, for `volund status`.

use std::time::Duration;

use super::attempts::Attempts;
use super::error::EngineError;
use super::live::Outlook;
use crate::io::clock::wall;
use crate::model::ReplicaId;
use crate::model::observed::Problem;
use crate::model::policy::RetryPolicy;
use crate::model::status::ReplicaState;
use crate::model::time::rfc3339;
use crate::nexus::ChildStatus;

/// A member that is out of sync.
#[derive(Debug, Default)]
pub(super) struct Target {
    pub(super) attempts: Attempts,
    /// What it waits for, when that is nothing that trying again would help.
    pub(super) waits_for: Option<String>,
    /// When the next attempt is due, RFC 3339, after one has failed.
    again_at: String,
    /// Failures in a row after which it rests; none when it never does.
    failures_max: Option<u32>,
}

/// What the rebuilds of the volume are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// None is under way, nor waits for its permit.
    Free,
    /// This member's own.
    Own,
    /// Another member's.
    Other,
}

impl Target {
    /// Notes a failure. `may_rest`: it counts towards giving up.
    pub(super) fn fail(
        &mut self,
        now: Duration,
        error: EngineError,
        retry: &RetryPolicy,
        may_rest: bool,
    ) {
        self.attempts.fail(now, error, retry, may_rest);
        self.failures_max = may_rest.then_some(retry.max_attempts);
        let wait = self.attempts.due().unwrap_or(now).saturating_sub(now);
        let since_epoch = wall().duration_since(std::time::UNIX_EPOCH);
        let at = since_epoch.unwrap_or_default().saturating_add(wait);
        self.again_at = rfc3339(at.as_secs());
    }

    /// What happens to the member next.
    pub(super) fn outlook(&self, child: &ChildStatus, turn: Turn) -> Option<Outlook> {
        let replica = child.replica?;
        if self.attempts.is_resting() {
            return Some(self.rests(replica));
        }
        Some(Outlook {
            text: self.next(child, turn)?,
            given_up: None,
        })
    }

    fn next(&self, child: &ChildStatus, turn: Turn) -> Option<String> {
        if child.state == ReplicaState::InSync {
            return None;
        }
        if let Some(what) = &self.waits_for {
            return Some(format!(
                "is opened again and gets what it missed, by itself, once {what}"
            ));
        }
        if child.rebuild.is_some() {
            return Some("is a full copy again, by itself, when its rebuild is done".to_owned());
        }
        if let (Some(last), true) = (self.attempts.last(), self.attempts.due().is_some()) {
            let (failures, at) = (self.attempts.failures(), &self.again_at);
            let rest = self.failures_max.map_or_else(String::new, |most| {
                format!(", after {most} it rests for an hour")
            });
            return Some(format!(
                "is tried again at {at}; failures in a row: {failures}{rest}; the last one: {last}"
            ));
        }
        if !child.wants_attach && !child.wants_rebuild {
            return Some(
                "is opened again and gets what it missed, by itself, once its disk has answered what is still under way"
                    .to_owned(),
            );
        }
        let text = match turn {
            Turn::Free => "is opened again and gets what it missed, by itself and at once",
            Turn::Own => {
                "is rebuilt, by itself, when it is its turn: a node rebuilds `rebuild_max` copies at a time"
            }
            Turn::Other => {
                "is rebuilt, by itself, after another copy: a volume rebuilds one at a time"
            }
        };
        Some(text.to_owned())
    }

    fn rests(&self, replica: ReplicaId) -> Outlook {
        let (failures, at) = (self.attempts.failures(), &self.again_at);
        let last = self.attempts.last();
        let last = last.map_or_else(String::new, ToString::to_string);
        let message = format!(
            "replica {replica} could not be rebuilt {failures} times in a row, the last time because: {last}. Replace its \
             disk, or take its pool out of `replicas`"
        );
        Outlook {
            text: format!(
                "rests after {failures} failures and is tried again at {at}, or at once when its pool comes back or the \
                 volume's table in the files changes"
            ),
            given_up: Some(Problem {
                reason: "RebuildGivenUp".to_owned(),
                message,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nexus::{ChildLatencies, RebuildKind, RebuildProgress};
    use crate::replica::ErrorCounts;

    fn stale() -> ChildStatus {
        ChildStatus {
            pool: Some("b".parse().unwrap()),
            replica: Some(ReplicaId::from_uuid(uuid::Uuid::from_u128(1))),
            state: ReplicaState::Stale,
            reason: None,
            corrected_reads: 0,
            errors: ErrorCounts::default(),
            is_member: true,
            wants_attach: true,
            wants_rebuild: false,
            rebuild: None,
            hung: false,
            latencies: ChildLatencies::default(),
        }
    }

    fn text(target: &Target, child: &ChildStatus, turn: Turn) -> String {
        target.outlook(child, turn).unwrap().text
    }

    fn failed(times: u32, may_rest: bool) -> Target {
        let mut target = Target::default();
        let retry = RetryPolicy {
            max_attempts: 3,
            ..RetryPolicy::default()
        };
        for _ in 0..times {
            let error = EngineError::new("Test", "no device");
            target.fail(Duration::ZERO, error, &retry, may_rest);
        }
        target
    }

    #[test]
    fn what_a_member_waits_for_is_said() {
        let target = Target {
            waits_for: Some("pool \"b\" is back".to_owned()),
            ..Target::default()
        };
        let said = text(&target, &stale(), Turn::Free);
        assert!(said.ends_with("once pool \"b\" is back"), "{said}");
        let target = Target::default();
        let here = ChildStatus {
            wants_attach: false,
            wants_rebuild: true,
            ..stale()
        };
        assert!(text(&target, &here, Turn::Own).contains("`rebuild_max`"));
        assert!(text(&target, &here, Turn::Other).contains("one at a time"));
        let hung = ChildStatus {
            wants_rebuild: false,
            ..here
        };
        assert!(text(&target, &hung, Turn::Free).contains("still under way"));
    }

    #[test]
    fn a_failure_is_said_with_the_next_attempt_and_what_is_left() {
        let said = text(&failed(1, true), &stale(), Turn::Free);
        assert!(said.starts_with("is tried again at 20"), "{said}");
        assert!(
            said.ends_with(
                "; failures in a row: 1, after 3 it rests for an hour; the last one: no device"
            ),
            "{said}"
        );
        let said = text(&failed(5, false), &stale(), Turn::Free);
        assert!(said.contains("in a row: 5;"), "{said}");
        let outlook = failed(3, true).outlook(&stale(), Turn::Free).unwrap();
        assert!(
            outlook.text.starts_with("rests after 3 failures"),
            "{outlook:?}"
        );
        let given_up = outlook.given_up.unwrap();
        assert!(given_up.message.contains("no device"), "{given_up:?}");
    }

    #[test]
    fn a_rebuild_under_way_outweighs_the_failures_before_it() {
        let rebuild = RebuildProgress {
            kind: RebuildKind::Full,
            reason: String::new(),
            total_bytes: 2,
            remaining_bytes: 1,
            copied_bytes: 1,
            bytes_per_second: 1,
        };
        let child = ChildStatus {
            state: ReplicaState::Rebuilding,
            rebuild: Some(rebuild),
            ..stale()
        };
        let said = text(&failed(1, true), &child, Turn::Own);
        assert!(said.contains("when its rebuild is done"), "{said}");
        let synced = ChildStatus {
            state: ReplicaState::InSync,
            ..stale()
        };
        assert_eq!(Target::default().outlook(&synced, Turn::Free), None);
    }
}
