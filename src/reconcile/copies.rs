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
            let reason = replica.reason.as_deref().unwrap_or("no reason known");
            format!(
                "the copy in pool \"{}\" is {:?}: {reason}",
                replica.pool, replica.state
            )
        });
        let message = texts.collect::<Vec<_>>().join("; ");
        let reason = format!("Replica{:?}", first.state);
        Some(statement("Degraded", Truth::True, &reason, &message))
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
