//! Which replicas may serve: spec section 6, A4 to A7, as a pure function of what was found.

use std::cmp::Reverse;
use std::fmt;

use super::env::ForceStart;
use super::mutant::Mutant;
use super::witness::{WitnessError, WitnessRecord};
use crate::model::ReplicaId;
use crate::replica::{Label, MemberState};

/// What the labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Index of L, the admissible label with the highest generation that was not provably given up.
    pub(super) leader: usize,
    /// Indices of the labels of A', the members that may serve.
    pub(super) active: Vec<usize>,
    /// Indices of the labels of members that were being rebuilt and have had every write since that began.
    pub(super) rebuilding: Vec<usize>,
    /// Whether every member of A' was stopped cleanly at L's generation (spec A7).
    pub(super) clean: bool,
    /// An operator's decision, not the labels, makes this one the newest (spec A5).
    pub(super) forced: bool,
}

/// Why a volume can't be assembled now: each reason names what is missing. Nothing was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Sentences for people, the main one first.
    pub reasons: Vec<String>,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons.join("; "))
    }
}

/// Why a volume was not assembled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssemblyError {
    /// What is here does not prove which copy is the newest (spec A5, A6). It will work when what is missing is back.
    #[error("blocked: {0}")]
    Blocked(Blocked),
    /// The witness could not be read, or did not take the new generation in time. It may be tried again.
    #[error("the witness failed: {0}")]
    Witness(#[source] WitnessError),
    /// Another owner has the volume (spec E4). Not to be tried again by itself.
    #[error("another owner has taken the volume over: {0}")]
    LostOwnership(#[source] WitnessError),
    /// Every in-sync replica failed while it was opened for writing (spec A8): start again with opening them.
    #[error("no replica could be opened for writing: {0}")]
    Failed(String),
}

/// Finds L, A' and whether the last stop was clean.
///
/// # Errors
/// [`Blocked`] when nothing here is proven to be the newest (A5), or no in-sync replica is here (A6).
pub(super) fn plan(
    witness: Option<&WitnessRecord>,
    labels: &[&Label],
    mutant: Option<Mutant>,
) -> Result<Plan, Blocked> {
    let ignored = mutant == Some(Mutant::WitnessIgnored);
    let witness = witness.filter(|_| !ignored);
    let admissible =
        |label: &Label| witness.is_none_or(|witness| label.descends_from(witness.generation_id));
    let mut admitted: Vec<usize> = (0..labels.len())
        .filter(|index| admissible(labels[*index]))
        .collect();
    admitted.sort_by_key(|index| Reverse((labels[*index].generation, labels[*index].epoch)));
    let Some(&highest) = admitted.first() else {
        return Err(not_newest(witness, labels));
    };
    if witness.is_none() && !ignored {
        check_lineage(labels[highest], labels)?;
        admitted.truncate(1);
    }
    // Stricter than A6: a commit is durable on each of its members, so a member without the committed generation was
    // rolled back behind our back. One that has a smaller size lacks the label of a growth that was cut short only.
    let planted = mutant == Some(Mutant::StaleAdmitted);
    let belongs = |label: &Label, newest: &Label| {
        newest.descends_from(label.generation_id)
            && (admissible(label) || planted)
            && label.data_len <= newest.data_len
    };
    let in_state = |newest: &Label, wanted: &dyn Fn(MemberState) -> bool| -> Vec<usize> {
        let state = |label: &Label| {
            let listed = newest.members.iter().find(|m| m.replica == label.replica);
            listed.map(|member| member.state)
        };
        let chosen = |label: &Label| state(label).is_some_and(wanted) && belongs(label, newest);
        (0..labels.len())
            .filter(|index| chosen(labels[*index]))
            .collect()
    };
    let active_by = |leader: usize| {
        in_state(labels[leader], &|state| {
            state == MemberState::InSync || planted
        })
    };
    // Labels above the committed generation are of attempts that were given up, and those may lie on several branches.
    // One that only a member has that was being rebuilt is passed over, if that is proven: nothing was acknowledged by it (F7).
    let given_up = |&leader: &usize| {
        active_by(leader).is_empty() && is_given_up(labels[leader], labels, &admissible)
    };
    let leader = admitted.into_iter().find(|leader| !given_up(leader));
    let leader = leader.filter(|leader| !active_by(*leader).is_empty());
    let Some(leader) = leader else {
        let reason = "no in-sync replica is here".to_owned();
        return Err(Blocked {
            reasons: vec![reason],
        });
    };
    let (newest, active) = (labels[leader], active_by(leader));
    let rebuilding = in_state(newest, &|state| {
        state == MemberState::Rebuilding && !planted
    });
    let is_clean = |index: &usize| {
        let label = labels[*index];
        label.flags.clean && label.generation_id == newest.generation_id
    };
    let clean = active.iter().all(is_clean) || mutant == Some(Mutant::UncleanIgnored);
    Ok(Plan {
        leader,
        active,
        rebuilding,
        clean,
        forced: false,
    })
}

/// Whether a table was certainly never committed: its label is durable on all of its in-sync members before the commit, and
/// one of them is here with a label of another branch (A4).
fn is_given_up(table: &Label, labels: &[&Label], admissible: &dyn Fn(&Label) -> bool) -> bool {
    let in_sync = |label: &Label| {
        let mut members = table.members.iter();
        members.any(|m| m.replica == label.replica && m.state == MemberState::InSync)
    };
    let lacks_it = |label: &Label| !label.descends_from(table.generation_id);
    let mut labels = labels.iter();
    labels.any(|label| in_sync(label) && admissible(label) && lacks_it(label))
}

/// The label by which a volume that nobody serves would start, or why it would not: an index into `labels`.
///
/// # Errors
/// [`Blocked`] as for assembly (A5, A6).
pub fn leader(witness: Option<&WitnessRecord>, labels: &[&Label]) -> Result<usize, Blocked> {
    plan(witness, labels, None).map(|plan| plan.leader)
}

/// A5: what an operator decided, if the label is still the one that they saw.
///
/// # Errors
/// [`Blocked`] with one more reason: the replica is not here, or has moved on.
pub(super) fn force(
    force: ForceStart,
    labels: &[&Label],
    mut blocked: Blocked,
) -> Result<Plan, Blocked> {
    let found = labels.iter().position(|label| label.replica == force.from);
    let why = match found.map(|leader| (leader, labels[leader].generation)) {
        Some((leader, generation)) if generation == force.at_generation => {
            return Ok(Plan {
                leader,
                active: vec![leader],
                rebuilding: Vec::new(),
                clean: false,
                forced: true,
            });
        }
        Some((_, generation)) => format!(
            "force_start names generation {} but replica {} has generation {generation}: look again at what it has",
            force.at_generation, force.from
        ),
        None => format!(
            "force_start names replica {}, which is not here",
            force.from
        ),
    };
    blocked.reasons.push(why);
    Err(blocked)
}

fn not_newest(witness: Option<&WitnessRecord>, labels: &[&Label]) -> Blocked {
    let reason = match witness {
        None => "no replica here has a label of this volume, and there is no witness record".into(),
        Some(witness) => format!(
            "none of the {} replicas with a label here has the committed generation {}",
            labels.len(),
            witness.generation
        ),
    };
    Blocked {
        reasons: vec![reason],
    }
}

/// A5 without a witness: every member that any label names must be here, and one lineage must contain all others.
fn check_lineage(newest: &Label, labels: &[&Label]) -> Result<(), Blocked> {
    let is_here = |replica: ReplicaId| labels.iter().any(|label| label.replica == replica);
    let mut reasons = Vec::new();
    for label in labels {
        for member in &label.members {
            let has_data = match member.state {
                MemberState::InSync | MemberState::Rebuilding | MemberState::Stale => true,
                MemberState::Blank | MemberState::Removed => false,
            };
            let reason = format!(
                "there is no witness record, and replica {} is not here",
                member.replica
            );
            let has_data = has_data && !member.volatile;
            if has_data && !is_here(member.replica) && !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        if !newest.descends_from(label.generation_id) {
            reasons.push(format!(
                "there is no witness record, and replica {} has another history than {}",
                label.replica, newest.replica
            ));
        }
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Blocked { reasons })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::witness::WitnessMember;
    use super::*;
    use crate::model::GenerationId;
    use crate::replica::testing::label;
    use crate::replica::{Ancestors, Member};

    fn generation(number: u64) -> GenerationId {
        GenerationId::from_uuid(Uuid::from_u128(number.into()))
    }

    fn replica(slot: usize) -> ReplicaId {
        ReplicaId::from_uuid(Uuid::from_u128(1000 + slot as u128))
    }

    /// A slot's label of the table `number`, whose id is `id` and which comes after those of `ancestors`.
    fn of(slot: usize, number: u64, id: u64, ancestors: &[u64], states: [MemberState; 3]) -> Label {
        let mut label = label();
        let base = label.members[0];
        let member = |(slot, state)| Member {
            replica: replica(slot),
            state,
            volatile: false,
            ..base
        };
        label.members = states.into_iter().enumerate().map(member).collect();
        (label.own_slot, label.replica) = (slot, replica(slot));
        (label.generation, label.generation_id) = (number, generation(id));
        label.ancestors = Ancestors::new(ancestors.iter().rev().map(|id| generation(*id)));
        label
    }

    fn witness(number: u64, id: u64) -> WitnessRecord {
        let label = label();
        WitnessRecord {
            volume: label.volume,
            name: label.name,
            epoch: label.epoch,
            generation: number,
            generation_id: generation(id),
            members: Vec::<WitnessMember>::new(),
        }
    }

    const BOTH: [MemberState; 3] = [
        MemberState::InSync,
        MemberState::Rebuilding,
        MemberState::InSync,
    ];
    const ALONE: [MemberState; 3] = [
        MemberState::InSync,
        MemberState::Rebuilding,
        MemberState::Stale,
    ];

    /// Slot 2 failed in table 11, and the record of it is lost: only the label of the copy that is being rebuilt knows. That
    /// nobody who is here has a table of another branch leaves it possible that 11 was committed.
    #[test]
    fn a_table_that_may_have_been_committed_is_not_passed_over() {
        let (rebuilding, stale) = (of(1, 11, 11, &[10], ALONE), of(2, 10, 10, &[], BOTH));
        let refused = plan(Some(&witness(10, 10)), &[&rebuilding, &stale], None);
        assert_eq!(
            refused.unwrap_err().reasons,
            ["no in-sync replica is here"],
            "A4"
        );
    }

    /// Slot 0 would have the label of 11 if that had been committed.
    #[test]
    fn a_table_that_an_in_sync_member_lacks_is_passed_over() {
        let (rebuilding, other) = (of(1, 12, 12, &[10], ALONE), of(0, 11, 11, &[10], ALONE));
        let labels = [&rebuilding, &other];
        let found = plan(Some(&witness(10, 10)), &labels, None).unwrap();
        assert_eq!((found.leader, found.active), (1, vec![1]), "A4");
        assert_eq!(leader(Some(&witness(10, 10)), &labels), Ok(1));
    }
}
