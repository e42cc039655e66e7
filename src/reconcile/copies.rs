//! What there is to say about a volume's copies: which are out of sync, rebuilt, silent, different, or lost.

use super::compare::list;
use super::status::{Statement, VolumeFacts, statement};
use crate::model::PoolName;
use crate::model::status::{RebuildKind, ReplicaState, ReplicaStatus, Truth};

impl VolumeFacts<'_> {
    /// All of it.
    pub(super) fn about_copies(&self) -> Vec<Statement> {
        let statements = [
            self.degraded(),
            self.rebuilding(),
            self.given_up(),
            self.hung(),
            self.scrub_mismatch(),
            self.lost_unflushed(),
        ];
        statements.into_iter().flatten().collect()
    }

    fn degraded(&self) -> Option<Statement> {
        let observed = self.observed.filter(|volume| volume.serving)?;
        let bad = observed.replicas.iter().filter(|replica| {
            !matches!(replica.state, ReplicaState::InSync | ReplicaState::Waiting)
        });
        let bad: Vec<&ReplicaStatus> = bad.collect();
        let Some(first) = bad.first() else {
            return Some(statement(
                "Degraded",
                Truth::False,
                "AllInSync",
                "every copy holds every write",
            ));
        };
        let texts = bad.iter().map(|replica| {
            let reason = replica.reason.as_ref();
            let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            format!(
                "the copy in pool \"{}\" is {:?}{reason}",
                replica.pool, replica.state
            )
        });
        let message = texts.collect::<Vec<_>>().join("; ");
        let reason = format!("Replica{:?}", first.state);
        let nexts = bad.iter().filter_map(|replica| {
            let next = replica.next.as_ref()?;
            let eta = replica.rebuild.as_ref().and_then(|r| r.eta_seconds);
            let eta = eta.map_or_else(String::new, |seconds| format!(", in about {seconds} s"));
            Some(format!("the copy in pool \"{}\" {next}{eta}", replica.pool))
        });
        let nexts: Vec<String> = nexts.collect();
        Some(Statement {
            since: bad.iter().filter_map(|replica| replica.since.clone()).min(),
            next: (!nexts.is_empty()).then(|| nexts.join("; ")),
            ..statement("Degraded", Truth::True, &reason, &message)
        })
    }

    fn rebuilding(&self) -> Option<Statement> {
        let replicas = self.observed?.replicas.iter();
        let rebuilt =
            replicas.filter_map(|replica| Some((&replica.pool, replica.rebuild.as_ref()?)));
        let texts = rebuilt.map(|(pool, rebuild)| match rebuild.kind {
            RebuildKind::Partial => {
                format!(
                    "the copy in pool \"{pool}\" gets what it has missed ({})",
                    rebuild.reason
                )
            }
            RebuildKind::Resumed => {
                format!(
                    "the copy in pool \"{pool}\" gets what an interrupted rebuild had left ({})",
                    rebuild.reason
                )
            }
            RebuildKind::Full => format!("all is copied to pool \"{pool}\" ({})", rebuild.reason),
        });
        let texts: Vec<String> = texts.collect();
        (!texts.is_empty()).then(|| {
            statement(
                "Rebuilding",
                Truth::True,
                "ReplicaRebuilding",
                &texts.join("; "),
            )
        })
    }

    fn given_up(&self) -> Option<Statement> {
        let problem = self.observed?.given_up.as_ref()?;
        let (reason, message) = (&problem.reason, &problem.message);
        Some(statement("RebuildGivenUp", Truth::True, reason, message))
    }

    fn hung(&self) -> Option<Statement> {
        let volume = self.observed?;
        let hung: Vec<&PoolName> = volume
            .replicas
            .iter()
            .filter(|replica| replica.hung)
            .map(|replica| &replica.pool)
            .collect();
        if hung.is_empty() {
            return None;
        }
        let message = format!(
            "no answer for more than {:?} from the copy in {}: look at its disk",
            volume.applied.policy.io_timeout,
            list(&hung)
        );
        Some(statement("ChildHung", Truth::True, "NoAnswer", &message))
    }

    fn scrub_mismatch(&self) -> Option<Statement> {
        let scrub = self.observed?.scrub.as_ref()?;
        let wrong = scrub.unrepairable + scrub.unreadable;
        if wrong == 0 {
            return None;
        }
        let reason = if scrub.unrepairable > 0 {
            "CopiesDiffer"
        } else {
            "Unreadable"
        };
        let message = format!(
            "the last scrub found {} chunks in which copies differ and nobody knows which one is right, and {} that no \
             copy can read; `volund why {}` lists them, `scrub.repair_from` says which copy to believe",
            scrub.unrepairable, scrub.unreadable, self.name
        );
        Some(statement("ScrubMismatch", Truth::True, reason, &message))
    }

    /// For the client that is a power loss (spec F2).
    fn lost_unflushed(&self) -> Option<Statement> {
        let problem = self.observed?.problem.as_ref()?;
        (problem.reason == "LostUnflushed").then(|| {
            statement(
                "LostUnflushed",
                Truth::True,
                &problem.reason,
                &problem.message,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VolumeName;
    use crate::model::observed::{ObservedVolume, Problem};
    use crate::model::status::{RebuildStatus, ScrubStatus};
    use crate::reconcile::plan::fixture::{in_sync, running, volume_name};
    use crate::reconcile::state::VolumeState;

    fn facts(volume: &ObservedVolume) -> VolumeFacts<'_> {
        static NAME: std::sync::LazyLock<VolumeName> =
            std::sync::LazyLock::new(|| volume_name("db"));
        VolumeFacts {
            name: &NAME,
            wanted: None,
            observed: Some(volume),
            plan: None,
            state: VolumeState::Attached,
            failure: None,
            failures: 0,
            again_at: None,
        }
    }

    /// Kind, reason and message of what is said about a volume's copies besides the routine.
    fn said(volume: &ObservedVolume) -> Vec<(&'static str, String, String)> {
        let statements = facts(volume).about_copies().into_iter();
        let statements = statements.filter(|statement| statement.status == Truth::True);
        statements
            .map(|statement| (statement.kind, statement.reason, statement.message))
            .collect()
    }

    fn mirror() -> ObservedVolume {
        let mut volume = running(&["a", "b"]);
        volume.replicas = ["a", "b"].map(in_sync).to_vec();
        volume
    }

    #[test]
    fn a_mirror_that_is_well_has_nothing_to_say() {
        assert_eq!(said(&mirror()), []);
    }

    #[test]
    fn a_rebuild_is_said_with_its_reason_besides_being_degraded() {
        let mut volume = mirror();
        volume.replicas[1].state = ReplicaState::Rebuilding;
        volume.replicas[1].reason = Some("it is a member now".to_owned());
        volume.replicas[1].rebuild = Some(RebuildStatus {
            kind: RebuildKind::Full,
            reason: "it is new".to_owned(),
            total_bytes: 2,
            remaining_bytes: 1,
            copied_bytes: 1,
            bytes_per_second: 1,
            eta_seconds: Some(1),
        });
        let said = said(&volume);
        assert_eq!(
            said[0].2,
            "the copy in pool \"b\" is Rebuilding: it is a member now"
        );
        assert_eq!(
            (said[0].0, said[0].1.as_str()),
            ("Degraded", "ReplicaRebuilding")
        );
        let expected = "all is copied to pool \"b\" (it is new)";
        assert_eq!((said[1].0, said[1].2.as_str()), ("Rebuilding", expected));
    }

    #[test]
    fn degraded_says_since_when_and_what_comes_next() {
        let mut volume = mirror();
        let copy = &mut volume.replicas[1];
        copy.state = ReplicaState::Stale;
        copy.since = Some("2026-11-21T09:14:03Z".to_owned());
        copy.next = Some("is tried again".to_owned());
        let facts = facts(&volume);
        let degraded = facts.degraded().unwrap();
        assert_eq!(degraded.since, volume.replicas[1].since);
        let expected = "the copy in pool \"b\" is tried again";
        assert_eq!(degraded.next.as_deref(), Some(expected));
    }

    #[test]
    fn trouble_with_copies_has_a_condition_each() {
        let mut volume = mirror();
        volume.replicas[0].hung = true;
        volume.given_up = Some(Problem {
            reason: "RebuildGivenUp".to_owned(),
            message: "eight times".to_owned(),
        });
        volume.problem = Some(Problem {
            reason: "LostUnflushed".to_owned(),
            message: "gone".to_owned(),
        });
        volume.scrub = Some(ScrubStatus {
            mismatches: 3,
            repaired: 2,
            unrepairable: 1,
            ..ScrubStatus::default()
        });
        let said = said(&volume);
        let kinds: Vec<_> = said
            .iter()
            .map(|(kind, reason, _)| (*kind, reason.as_str()))
            .collect();
        let expected = [
            ("RebuildGivenUp", "RebuildGivenUp"),
            ("ChildHung", "NoAnswer"),
            ("ScrubMismatch", "CopiesDiffer"),
            ("LostUnflushed", "LostUnflushed"),
        ];
        assert_eq!(kinds, expected);
        assert!(
            said[1].2.contains("more than 10s from the copy in a"),
            "{}",
            said[1].2
        );
    }

    #[test]
    fn differences_that_a_scrub_repaired_are_no_condition() {
        let mut volume = mirror();
        volume.scrub = Some(ScrubStatus {
            mismatches: 3,
            repaired: 3,
            ..ScrubStatus::default()
        });
        assert_eq!(said(&volume), []);
    }
}
