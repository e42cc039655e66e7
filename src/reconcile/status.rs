//! Conditions, and the status of pools and volumes made from what is observed, planned and known of failures.

use std::collections::BTreeMap;

use super::apply::Failure;
use super::next;
use super::report;
use super::state::VolumeState;
use super::step::{Blocked, BlockedKind, Goal, VolumePlan};
use crate::model::observed::{ObservedExport, ObservedPool, ObservedVolume};
use crate::model::spec::{DesiredState, ExportSpec, VolumeSpec};
use crate::model::status::{
    Condition, PoolState, PoolStatus, ReplicaState, ReplicaStatus, ResolveStatus, Truth,
    VolumeStatus,
};
use crate::model::{PoolName, VolumeName};

/// When and under which configuration a statement is made.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) time: String,
    pub(super) generation: u64,
}

/// What is said about one object, and since when.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    by_kind: BTreeMap<String, Condition>,
}

/// A statement before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) kind: &'static str,
    pub(super) status: Truth,
    pub(super) reason: String,
    pub(super) message: String,
    /// Since when it has been so, if that is known better than from when it was first seen.
    pub(super) since: Option<String>,
    /// What is done next, where the reason alone does not decide that.
    pub(super) next: Option<String>,
}

impl Statement {
    /// The same with what is done next.
    pub(super) fn then(self, next: Option<String>) -> Self {
        Self { next, ..self }
    }

    /// Whether nobody needs to be told: the states of a life are told on their own, and what is well from the start is
    /// no news.
    fn is_routine(&self, is_first: bool) -> bool {
        match (self.kind, self.status) {
            ("Ready", Truth::False) => UNDER_WAY.contains(&self.message.as_str()),
            ("Degraded", Truth::False) => is_first,
            _ => false,
        }
    }
}

/// Messages of volumes and pools that are not ready and of which nothing bad is known.
const UNDER_WAY: [&str; 3] = [
    "it is not there yet",
    "it is on its way",
    "it is being opened",
];

impl Conditions {
    /// Replaces all that is said. Answers what is news.
    pub(super) fn set(&mut self, statements: Vec<Statement>, moment: &Moment) -> Vec<Statement> {
        let mut old = std::mem::take(&mut self.by_kind);
        let mut changed = Vec::new();
        for statement in statements {
            let before = old.remove(statement.kind);
            let same_status = before.as_ref().filter(|old| old.status == statement.status);
            let first_seen = || statement.since.as_ref().unwrap_or(&moment.time).clone();
            let since = same_status.map_or_else(first_seen, |old| old.last_transition_time.clone());
            let is_new = same_status.is_none_or(|old| old.reason != statement.reason);
            if is_new && !statement.is_routine(before.is_none()) {
                changed.push(statement.clone());
            }
            let usual = || next::usual(&statement).map(str::to_owned);
            let condition = Condition {
                next: statement.next.clone().or_else(usual),
                kind: statement.kind.to_owned(),
                status: statement.status,
                reason: statement.reason,
                message: statement.message,
                last_transition_time: since,
                observed_generation: moment.generation,
            };
            self.by_kind.insert(condition.kind.clone(), condition);
        }
        changed
    }

    pub(super) fn list(&self) -> Vec<Condition> {
        // Ready first: it sums the others up.
        let (ready, rest): (Vec<_>, Vec<_>) = self
            .by_kind
            .values()
            .cloned()
            .partition(|condition| condition.kind == "Ready");
        ready.into_iter().chain(rest).collect()
    }
}

pub(super) fn statement(
    kind: &'static str,
    status: Truth,
    reason: &str,
    message: &str,
) -> Statement {
    Statement {
        kind,
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
        since: None,
        next: None,
    }
}

/// What there is to say about a volume.
pub(super) struct VolumeFacts<'a> {
    pub(super) name: &'a VolumeName,
    pub(super) wanted: Option<&'a VolumeSpec>,
    pub(super) observed: Option<&'a ObservedVolume>,
    pub(super) plan: Option<&'a VolumePlan>,
    pub(super) state: VolumeState,
    pub(super) failure: Option<&'a Failure>,
    pub(super) failures: u32,
    /// When what failed is tried again, RFC 3339; none when at once.
    pub(super) again_at: Option<String>,
}

impl VolumeFacts<'_> {
    /// All statements about the volume.
    pub(super) fn statements(&self) -> Vec<Statement> {
        let mut statements = vec![self.ready()];
        statements.extend(self.change_failed());
        statements.extend(self.about_copies());
        let empty = Vec::new();
        let blocked = self.plan.map_or(&empty, |plan| &plan.blocked);
        let notes = self.plan.map_or(&empty, |plan| &plan.notes);
        statements.extend(merge(blocked.iter().chain(notes)));
        statements.extend(self.injected());
        statements
    }

    fn ready(&self) -> Statement {
        if let Some(failure) = self.failure.filter(|_| !self.is_reachable()) {
            let message = self.attempts(failure);
            return statement("Ready", Truth::False, &failure.reason, &message)
                .then(Some(self.tried_again()));
        }
        let blocked = self.plan.into_iter().flat_map(|plan| &plan.blocked);
        if let Some(blocked) = blocked
            .into_iter()
            .find(|blocked| blocked.kind == BlockedKind::Blocked)
        {
            return statement("Ready", Truth::False, &blocked.reason, &blocked.message);
        }
        let Some(observed) = self.observed else {
            let reason = format!("{:?}", self.state);
            return statement("Ready", Truth::False, &reason, UNDER_WAY[0]);
        };
        let export = observed.export.as_ref();
        let problem = observed.problem.as_ref();
        if let Some(problem) = problem.or_else(|| export.and_then(|e| e.problem.as_ref())) {
            return statement("Ready", Truth::False, &problem.reason, &problem.message);
        }
        let reason = format!("{:?}", self.state);
        if self.is_reachable() {
            statement("Ready", Truth::True, &reason, "it takes I/O")
        } else {
            statement("Ready", Truth::False, &reason, UNDER_WAY[1])
        }
    }

    /// Whether it serves, and has an export if one is asked for.
    fn is_reachable(&self) -> bool {
        // What another node's table wants is not made here.
        let here = self.plan.is_none_or(|plan| plan.goal == Goal::Present);
        let wanted = self.wanted.filter(|_| here).map(|wanted| &wanted.export);
        let suffices = match self.state {
            VolumeState::Attached => true,
            VolumeState::Available => wanted.is_none_or(|export| *export == ExportSpec::None),
            _ => false,
        };
        suffices && self.observed.is_some_and(|volume| volume.serving)
    }

    /// When what failed is tried again, if it is.
    fn tried_again(&self) -> String {
        if self.state == VolumeState::Error {
            return "nothing is tried until the files change, a pool comes back, the daemon is reloaded or someone asks \
                    for it with POST /v1/reconcile"
                .to_owned();
        }
        if self.state.is_busy() {
            return "it is being tried again".to_owned();
        }
        let when = self.again_at.as_deref();
        let when = when.map_or_else(|| "at once".to_owned(), |at| format!("at {at}"));
        format!("it is tried again {when}, or when the files change or a pool comes back")
    }

    /// Why an attempt failed, and how often it did.
    fn attempts(&self, failure: &Failure) -> String {
        let Failure { message, .. } = failure;
        if self.state == VolumeState::Error {
            return format!("{message} (given up after {} attempts)", self.failures);
        }
        format!("{message} (attempt {} failed)", self.failures)
    }

    /// A change of a volume that goes on as before without it.
    fn change_failed(&self) -> Option<Statement> {
        let failure = self.failure.filter(|_| self.is_reachable())?;
        let message = self.attempts(failure);
        let failed = statement("ChangeFailed", Truth::True, &failure.reason, &message);
        Some(failed.then(Some(self.tried_again())))
    }

    /// What is broken on purpose.
    fn injected(&self) -> Option<Statement> {
        let injected = &self.observed?.injected;
        let texts = injected.iter().map(|(pool, faults)| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("in pool \"{pool}\": {}", faults.join(" "))
        });
        let message = texts.collect::<Vec<_>>().join("; ");
        let lasts = "until `volund inject VOLUME POOL clear` or a restart";
        (!injected.is_empty()).then(|| {
            let message = format!("{message}; {lasts}");
            statement("FaultInjected", Truth::True, "Injected", &message)
        })
    }

    /// The volume as `/v1/status` shows it.
    pub(super) fn status(&self, conditions: Vec<Condition>) -> VolumeStatus {
        let observed = self.observed;
        let export = observed.and_then(|volume| volume.export.as_ref());
        let size = observed
            .map(|volume| volume.applied.size)
            .or(self.wanted.map(|wanted| wanted.size));
        let replicas = self.replicas();
        VolumeStatus {
            name: self.name.clone(),
            uuid: observed.and_then(|volume| volume.ids.first().copied()),
            size_bytes: size.unwrap_or_default().get(),
            allocated_bytes: replicas.iter().map(|replica| replica.allocated_bytes).sum(),
            state: format!("{:?}", self.state),
            nexus_generation: observed.map_or(0, |volume| volume.nexus_generation),
            export: export.map_or_else(|| "none".to_owned(), |export| export.address.clone()),
            export_socket: export.and_then(vhost_user_socket),
            export_queues: export.and_then(|export| match export.spec {
                ExportSpec::VhostUser { queues, .. } => Some(queues),
                ExportSpec::None | ExportSpec::Ublk { .. } => None,
            }),
            client_connected: export.is_some_and(|export| export.in_use),
            replicas,
            resolving: observed.and_then(resolving),
            resolved_bytes: observed.map_or(0, |volume| volume.resolved.get()),
            scrub: observed.and_then(|volume| volume.scrub.clone()),
            serving: observed.is_some_and(|volume| volume.serving),
            uuids: observed.map_or_else(Vec::new, |volume| match volume.ids.len() {
                0 | 1 => Vec::new(),
                _ => volume.ids.iter().copied().collect(),
            }),
            applied: observed.map(|volume| volume.applied.clone()),
            exported: export.cloned(),
            conditions,
        }
    }

    /// In the order of the files, then what is there besides.
    fn replicas(&self) -> Vec<ReplicaStatus> {
        let mut there: Vec<ReplicaStatus> = self
            .observed
            .map(|volume| volume.replicas.clone())
            .unwrap_or_default();
        let Some(wanted) = self.wanted else {
            return there;
        };
        let mut replicas = Vec::new();
        for pool in &wanted.replicas {
            let found = there.iter().position(|replica| replica.pool == *pool);
            replicas.push(match found {
                Some(index) => there.remove(index),
                None => self.missing(pool),
            });
        }
        replicas.append(&mut there);
        replicas
    }

    fn missing(&self, pool: &PoolName) -> ReplicaStatus {
        let remote = format!("pool \"{pool}\" ");
        let notes = self.plan.into_iter().flat_map(|plan| &plan.notes);
        let waiting = notes
            .into_iter()
            .any(|note| note.kind == BlockedKind::Waiting && note.message.starts_with(&remote));
        let state = if waiting {
            ReplicaState::Waiting
        } else {
            ReplicaState::Absent
        };
        ReplicaStatus::new(pool.clone(), None, state)
    }
}

fn resolving(volume: &ObservedVolume) -> Option<ResolveStatus> {
    let unresolved_bytes = volume.unresolved.get();
    (unresolved_bytes > 0).then_some(ResolveStatus { unresolved_bytes })
}

/// The engine says where a socket is in words: `vhost-user /run/volund/db.sock`.
fn vhost_user_socket(export: &ObservedExport) -> Option<String> {
    let socket = export.address.strip_prefix("vhost-user ")?;
    Some(socket.to_owned())
}

/// One statement per type: the first reason, all messages.
fn merge<'a>(blocked: impl Iterator<Item = &'a Blocked>) -> Vec<Statement> {
    let mut merged: BTreeMap<BlockedKind, Statement> = BTreeMap::new();
    for blocked in blocked {
        merged
            .entry(blocked.kind)
            .and_modify(|known| {
                known.message.push_str("; ");
                known.message.push_str(&blocked.message);
            })
            .or_insert_with(|| {
                statement(
                    blocked.kind.condition(),
                    Truth::True,
                    &blocked.reason,
                    &blocked.message,
                )
            });
    }
    merged.into_values().collect()
}

/// All statements about a pool.
pub(super) fn pool_statements(
    observed: Option<&ObservedPool>,
    failure: Option<&Failure>,
    blocked: &[Blocked],
) -> Vec<Statement> {
    let problem = observed.and_then(|pool| pool.problem.as_ref());
    let again = || {
        let text = "it is tried again every few seconds; once it is open, volumes that wait for it are opened, and \
                    copies that missed writes get them, by themselves";
        Some(text.to_owned())
    };
    let ready = match (problem, failure, observed) {
        (Some(problem), _, _) => {
            statement("Ready", Truth::False, &problem.reason, &problem.message).then(again())
        }
        (None, Some(failure), _) => {
            statement("Ready", Truth::False, &failure.reason, &failure.message).then(again())
        }
        (None, None, Some(_)) => statement("Ready", Truth::True, "Online", "it is open"),
        (None, None, None) => statement("Ready", Truth::False, "Opening", UNDER_WAY[2]),
    };
    let mut statements = vec![ready];
    statements.extend(merge(blocked.iter()));
    statements
}

/// The pool as `/v1/status` shows it.
pub(super) fn pool_status(
    name: &PoolName,
    desired: &DesiredState,
    observed: Option<&ObservedPool>,
    conditions: Vec<Condition>,
) -> PoolStatus {
    let wanted = desired.pools.get(name);
    let spec = observed.map(|pool| &pool.spec).or(wanted);
    let online = observed.is_some_and(|pool| pool.problem.is_none());
    PoolStatus {
        name: name.clone(),
        id: observed.and_then(|pool| pool.id),
        backing: spec.map_or_else(String::new, |spec| report::backing(&spec.backing)),
        state: if online {
            PoolState::Online
        } else {
            PoolState::Offline
        },
        capacity_bytes: observed.map_or(0, |pool| pool.capacity.get()),
        allocated_bytes: observed.map_or(0, |pool| pool.allocated.get()),
        committed_bytes: observed.map_or(0, |pool| pool.committed.get()),
        available_bytes: observed.map_or(0, |pool| pool.available.get()),
        spec: spec.cloned(),
        conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::plan::fixture::{running, socket, spec, volume_name};

    fn moment(time: &str) -> Moment {
        Moment {
            time: time.to_owned(),
            generation: 3,
        }
    }

    #[test]
    fn routine_is_not_told() {
        let mut conditions = Conditions::default();
        let way = statement("Ready", Truth::False, "Creating", UNDER_WAY[1]);
        assert_eq!(conditions.set(vec![way], &moment("t1")), []);
        let whole = statement("Degraded", Truth::False, "AllInSync", "");
        assert_eq!(conditions.set(vec![whole], &moment("t2")), []);
        let torn = statement("Degraded", Truth::True, "ReplicaStale", "");
        assert_eq!(conditions.set(vec![torn.clone()], &moment("t3")), [torn]);
    }

    #[test]
    fn a_volume_is_not_ready_before_its_export_is_there() {
        let name = volume_name("db");
        let ready = |export: ExportSpec, state, goal: Goal| {
            let plan = VolumePlan::new(goal);
            let wanted = VolumeSpec {
                export,
                ..spec(&["a"])
            };
            let facts = VolumeFacts {
                name: &name,
                wanted: Some(&wanted),
                observed: Some(&running(&["a"])),
                plan: Some(&plan),
                state,
                failure: None,
                failures: 0,
                again_at: None,
            };
            facts.statements()[0].status == Truth::True
        };
        assert!(ready(socket(), VolumeState::Attached, Goal::Present));
        assert!(!ready(socket(), VolumeState::Available, Goal::Present));
        assert!(!ready(socket(), VolumeState::Attaching, Goal::Present));
        assert!(ready(
            ExportSpec::None,
            VolumeState::Available,
            Goal::Present
        ));
        // The export is another node's to make.
        assert!(ready(socket(), VolumeState::Available, Goal::Elsewhere));
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut conditions = Conditions::default();
        let down = |reason| statement("Ready", Truth::False, reason, "no");
        assert_eq!(
            conditions.set(vec![down("Creating")], &moment("t1")).len(),
            1
        );
        assert_eq!(
            conditions.set(vec![down("Creating")], &moment("t2")).len(),
            0
        );
        assert_eq!(
            conditions.set(vec![down("NoSpace")], &moment("t3")).len(),
            1
        );
        assert_eq!(conditions.list()[0].last_transition_time, "t1");
        assert_eq!(conditions.list()[0].observed_generation, 3);

        let up = statement("Ready", Truth::True, "Attached", "yes");
        assert_eq!(conditions.set(vec![up], &moment("t4")).len(), 1);
        assert_eq!(conditions.list()[0].last_transition_time, "t4");
    }
}
