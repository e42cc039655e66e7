//! Starting a volume from the replicas that are here (spec section 6).

use std::rc::Rc;

use super::assembly::force;
use super::assembly::{AssemblyError, Blocked, Plan, plan};
use super::child::{Child, Identity};
use super::env::{Candidate, NexusEnv, NexusSpec, Parts, Presence};
use super::mutant::Mutant;
use super::nexus::{Inner, Nexus};
use super::state::{ChildState, FaultReason};
use super::status::ChildStatus;
use super::table::record_of;
use super::timing::ChildLatencies;
use super::witness::{Witness, WitnessError, WitnessRecord};
use crate::io::{BlockDevice, join_all};
use crate::model::status::ReplicaState;
use crate::model::{GenerationId, PoolId, PoolName, ReplicaId};
use crate::replica::{Access, Ancestors, ErrorCounts, Label, MemberState, OpenError, Replica};

/// Why a file can't be used that was in another slot of the table once.
pub(super) const ANOTHER_SLOT: &str =
    "its label is from another membership: take it out of the volume and add it again";

/// A candidate after it was opened.
struct Opened<D> {
    pool: PoolName,
    replica_id: Option<ReplicaId>,
    volatile: bool,
    found: Found<D>,
}

enum Found<D> {
    /// An open replica of this volume.
    Replica(Rc<Replica<D>>),
    /// No label (spec A2).
    Blank(String),
    /// Not here, or refused (spec A3); never written to.
    Out(String),
    /// Refused because its file is shorter than its label says (spec section 5).
    Truncated(String),
}

impl<E: NexusEnv> Nexus<E> {
    /// Assembles a volume from what is here: finds the newest state that is proven to be so, commits a new generation
    /// owned by this nexus, and serves. Candidates that are not here, or not usable, end up as children with a reason.
    /// Writes nothing unless it succeeds in proving; serves nothing before the commit (spec A9).
    ///
    /// # Errors
    /// [`AssemblyError`] says what is missing or failed.
    pub async fn assemble(
        parts: Parts<E>,
        spec: NexusSpec,
        candidates: Vec<Candidate<E::Disk>>,
    ) -> Result<Self, AssemblyError> {
        let witness = match parts.witness.load().await {
            Ok(record) => record,
            // Unreadable in every copy is as good as lost: A5 asks for more proof then.
            Err(WitnessError::Damaged(_)) => None,
            Err(error) => return Err(AssemblyError::Witness(error)),
        };
        let mut opened = open_all(&parts, &spec, candidates).await;
        refuse_twins(&mut opened);
        let (plan, labels) = decide(&parts, &spec, witness.as_ref(), &opened)?;
        let leader = &labels[plan.leader];
        let table = opening_table(&parts, &spec, (leader, &labels), witness.as_ref());
        let table = if plan.forced {
            new_lineage(table)
        } else {
            table
        };
        let committed = witness.clone().unwrap_or_else(|| record_of(leader));
        let children = children(&table, (&plan, &labels), opened);
        let inner = Inner::build(parts, spec, children, table, committed).watched();
        if !plan.clean {
            inner.load_unresolved();
        }
        let keep_clean = leader.flags.clean && inner.parts.breaks(Mutant::CleanKept);
        let keep_clean = keep_clean && !plan.forced;
        let expected = witness.as_ref().map(WitnessRecord::position);
        let flush = inner.intent.flush_begins();
        let taken = inner.take_over(expected, keep_clean).await;
        taken.inspect_err(|_| inner.abandon_start())?;
        inner.inherit_bits(flush);
        let unresolved = inner.unresolved.borrow().bytes();
        inner.intent.resolved_bytes.set(unresolved);
        // The last owner may have been interrupted before it did so.
        inner.forget_missed().await;
        inner.ensure_resolving();
        Ok(Self { inner })
    }
}

/// A2 and A3 for all candidates at once. One that does not answer is not here, like one whose lock is not granted (A1).
async fn open_all<E: NexusEnv>(
    parts: &Parts<E>,
    spec: &NexusSpec,
    candidates: Vec<Candidate<E::Disk>>,
) -> Vec<Opened<E::Disk>> {
    let openings = candidates
        .into_iter()
        .map(|candidate| open(parts, spec, candidate));
    join_all(openings).await
}

async fn open<E: NexusEnv>(
    parts: &Parts<E>,
    spec: &NexusSpec,
    candidate: Candidate<E::Disk>,
) -> Opened<E::Disk> {
    let expected = (candidate.pool_id, candidate.replica);
    let found = match candidate.presence {
        Presence::Absent(reason) => Found::Out(reason),
        Presence::Present(disk) => {
            let buffers = parts.buffers.clone();
            let opening = async move { Replica::open(disk, &buffers).await };
            match parts
                .in_time(spec.policy.timeouts.io, Box::pin(opening))
                .await
            {
                Ok(Ok(replica)) => match refusal(spec, expected, &replica) {
                    None => Found::Replica(Rc::new(replica)),
                    Some(reason) => Found::Out(reason),
                },
                Ok(Err(error @ OpenError::Blank { .. })) => Found::Blank(error.to_string()),
                Ok(Err(error @ OpenError::Truncated { .. })) => Found::Truncated(error.to_string()),
                Ok(Err(error)) => Found::Out(error.to_string()),
                Err(silent) => Found::Out(silent.to_string()),
            }
        }
    };
    let replica_id = match &found {
        Found::Replica(replica) => Some(replica.label().replica),
        Found::Blank(_) | Found::Out(_) | Found::Truncated(_) => candidate.replica,
    };
    Opened {
        pool: candidate.pool,
        replica_id,
        volatile: candidate.volatile,
        found,
    }
}

/// Spec A3: why an intact replica is not one of ours, if so.
pub(super) fn refusal<D: BlockDevice>(
    spec: &NexusSpec,
    (pool, replica_id): (Option<PoolId>, Option<ReplicaId>),
    replica: &Replica<D>,
) -> Option<String> {
    let label = replica.label();
    let differs = |what: &str, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
        Some(format!(
            "its label names {what} {found}, expected {expected}: it belongs elsewhere"
        ))
    };
    if label.volume != spec.id {
        return differs("volume", &label.volume, &spec.id);
    }
    match pool {
        Some(pool) if pool != label.pool => return differs("pool", &label.pool, &pool),
        _ => {}
    }
    match replica_id {
        Some(id) if id != label.replica => return differs("replica", &label.replica, &id),
        _ => {}
    }
    (replica.access() == Access::ReadOnly).then(|| {
        "it has features that this release can't keep intact: use a newer volund".to_owned()
    })
}

/// Spec A3: of several candidates with one replica id, none is used.
fn refuse_twins<D>(opened: &mut [Opened<D>]) {
    let ids: Vec<Option<ReplicaId>> = opened
        .iter()
        .map(|opened| match opened.found {
            Found::Replica(_) => opened.replica_id,
            Found::Blank(_) | Found::Out(_) | Found::Truncated(_) => None,
        })
        .collect();
    for (index, opened) in opened.iter_mut().enumerate() {
        let Some(id) = ids[index] else { continue };
        if ids.iter().filter(|other| **other == Some(id)).count() > 1 {
            let reason = format!("replica {id} is here more than once: remove the copies");
            opened.found = Found::Out(reason);
        }
    }
}

/// A4 to A7, with the names of what is missing.
fn decide<E: NexusEnv>(
    parts: &Parts<E>,
    spec: &NexusSpec,
    witness: Option<&WitnessRecord>,
    opened: &[Opened<E::Disk>],
) -> Result<(Plan, Vec<Rc<Label>>), AssemblyError> {
    let labels: Vec<Rc<Label>> = opened
        .iter()
        .filter_map(|opened| match &opened.found {
            Found::Replica(replica) => Some(replica.label()),
            Found::Blank(_) | Found::Out(_) | Found::Truncated(_) => None,
        })
        .collect();
    let all: Vec<&Label> = labels.iter().map(Rc::as_ref).collect();
    let planted = Mutant::all().find(|m| parts.breaks(*m));
    let plan = plan(witness, &all, planted).or_else(|mut blocked| {
        name_missing(&mut blocked, witness, opened);
        match spec.force_start {
            Some(wanted) => force(wanted, &all, blocked),
            None => Err(blocked),
        }
    });
    Ok((plan.map_err(AssemblyError::Blocked)?, labels))
}

/// Says which replicas are not here, where they should be, and which of them the witness calls in sync.
fn name_missing<D>(blocked: &mut Blocked, witness: Option<&WitnessRecord>, opened: &[Opened<D>]) {
    let in_sync = |id: Option<ReplicaId>| {
        let members = witness.map_or(&[][..], |witness| &witness.members);
        id.is_some_and(|id| members.iter().any(|m| m.replica == id && m.in_sync))
    };
    for candidate in opened {
        let (Found::Blank(reason) | Found::Out(reason) | Found::Truncated(reason)) =
            &candidate.found
        else {
            continue;
        };
        let what = match candidate.replica_id {
            Some(id) if in_sync(Some(id)) => format!("in-sync replica {id}"),
            Some(id) => format!("replica {id}"),
            None => "the replica".to_owned(),
        };
        let pool = &candidate.pool;
        blocked
            .reasons
            .push(format!("{what} in pool `{pool}` can't be used: {reason}"));
    }
    for member in witness.map_or(&[][..], |witness| &witness.members) {
        let known = opened
            .iter()
            .any(|opened| opened.replica_id == Some(member.replica));
        if member.in_sync && !known {
            blocked.reasons.push(format!(
                "in-sync replica {} is in no pool that is online here",
                member.replica
            ));
        }
    }
}

/// A8 before its labels are written: L's table with the numbers from which the next generation counts.
fn opening_table<E: NexusEnv>(
    parts: &Parts<E>,
    spec: &NexusSpec,
    (leader, labels): (&Label, &[Rc<Label>]),
    witness: Option<&WitnessRecord>,
) -> Label {
    let mut table = leader.clone();
    let seen = witness.map_or((0, 0), |witness| (witness.epoch, witness.generation));
    let epochs = labels.iter().map(|label| label.epoch);
    let epoch = epochs.chain([seen.0]).max().unwrap_or(0);
    table.epoch = epoch.saturating_add(1);
    table.owner = parts.node;
    table.generation = leader.generation.max(seen.1);
    table.name = spec.name.clone();
    table
}

/// The table of a forced start: nobody else's history leads to it, so that everybody else is rebuilt in full (A5).
fn new_lineage(mut table: Label) -> Label {
    table.ancestors = Ancestors::default();
    table.missed_base_gen = table.generation + 1;
    let own = table.replica;
    for member in &mut table.members {
        if member.replica == own {
            member.state = MemberState::InSync;
        } else if member.state != MemberState::Removed {
            member.state = MemberState::Stale;
            member.since_gen = table.generation + 1;
            member.insync_id = GenerationId::from_uuid(uuid::Uuid::nil());
        }
    }
    table
}

/// One child per slot of L's table; what has no slot is only reported.
fn children<D: BlockDevice>(
    table: &Label,
    (plan, labels): (&Plan, &[Rc<Label>]),
    mut opened: Vec<Opened<D>>,
) -> (Vec<Child<D>>, Vec<ChildStatus>) {
    let is_among = |chosen: &[usize], replica: ReplicaId| {
        chosen.iter().any(|index| labels[*index].replica == replica)
    };
    let mut children = Vec::new();
    for (slot, member) in table.members.iter().enumerate() {
        if member.state == MemberState::Removed {
            children.push(Child::vacant());
            continue;
        }
        // A refused copy of the member's file must not stand in for the member.
        let its = |opened: &Opened<D>| opened.replica_id == Some(member.replica);
        let is_usable = |opened: &Opened<D>| matches!(opened.found, Found::Replica(_));
        let place = opened.iter().position(|o| its(o) && is_usable(o));
        let place = place.or_else(|| opened.iter().position(its));
        let candidate = place.map(|place| opened.remove(place));
        let since = match member.state {
            MemberState::InSync => table.generation + 1,
            _ => member.since_gen,
        };
        let reason = match candidate.as_ref().map(|c| &c.found) {
            Some(Found::Replica(_)) => FaultReason::Behind,
            Some(Found::Truncated(_)) => FaultReason::Truncated,
            Some(Found::Blank(_) | Found::Out(_)) | None => FaultReason::Absent,
        };
        let state = match member.state {
            _ if is_among(&plan.active, member.replica) => ChildState::InSync,
            _ if is_among(&plan.rebuilding, member.replica) => ChildState::Rebuilding,
            MemberState::Blank => ChildState::Blank,
            _ => ChildState::Stale { since, reason },
        };
        let mut identity = Identity {
            replica: member.replica,
            pool: None,
            volatile: member.volatile,
            note: None,
        };
        let mut found = None;
        if let Some(candidate) = candidate {
            identity.pool = Some(candidate.pool);
            identity.volatile |= candidate.volatile;
            match candidate.found {
                Found::Replica(replica) if replica.label().own_slot == slot => {
                    found = Some(replica)
                }
                // It is to be made a new member, or to be taken out: see `attach`.
                Found::Replica(_) => identity.note = Some(ANOTHER_SLOT.to_owned()),
                Found::Blank(note) | Found::Out(note) | Found::Truncated(note) => {
                    identity.note = Some(note)
                }
            }
        }
        children.push(Child::new(identity, state, found));
    }
    (children, opened.into_iter().map(spare).collect())
}

fn spare<D>(opened: Opened<D>) -> ChildStatus {
    let (state, reason) = match opened.found {
        Found::Blank(_) if opened.volatile => (
            ReplicaState::Blank,
            "memory is blank after a start; it waits for a rebuild".to_owned(),
        ),
        Found::Blank(reason) => (ReplicaState::Blank, reason),
        Found::Out(reason) | Found::Truncated(reason) => (ReplicaState::Absent, reason),
        Found::Replica(_) => (
            ReplicaState::Absent,
            "it is not a member of the volume's newest table".to_owned(),
        ),
    };
    ChildStatus {
        pool: Some(opened.pool),
        replica: opened.replica_id,
        state,
        reason: Some(reason),
        corrected_reads: 0,
        latencies: ChildLatencies::default(),
        errors: ErrorCounts::default(),
        is_member: false,
        wants_attach: false,
        wants_rebuild: false,
        hung: false,
        rebuild: None,
    }
}
