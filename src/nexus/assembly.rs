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
    /// Index of L, of the admissible labels by which an in-sync member is here the one with the highest generation.
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
    // One that only a member had that was being rebuilt is passed over: nothing was acknowledged by it (F7).
    let leads = |leader: usize| Some((leader, active_by(leader))).filter(|l| !l.1.is_empty());
    let Some((leader, active)) = admitted.into_iter().find_map(leads) else {
        let reason = "no in-sync replica is here".to_owned();
        return Err(Blocked {
            reasons: vec![reason],
        });
    };
    let newest = labels[leader];
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
