//! What a rebuild has to copy (spec B3), as a pure function of two labels: the volume's table and the target's own.

use std::fmt;

use crate::replica::{Label, Member, MemberState};

/// Which regions a rebuild copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RebuildKind {
    /// All of them.
    Full,
    /// Those that it missed while it was away.
    Partial,
    /// Those that an interrupted rebuild had left, and those that the target missed since.
    ResumedAfterAbsence,
    /// Those that an interrupted rebuild had left; the target got every write since.
    Resumed,
}

/// A decision, and why it fell so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CopyPlan {
    pub(super) kind: RebuildKind,
    /// A sentence for people (`volund why`).
    pub(super) reason: String,
}

impl fmt::Display for RebuildKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::ResumedAfterAbsence => "resumed after absence",
            Self::Resumed => "resumed",
        })
    }
}

/// Decides what to copy to the member in `slot` of the committed `table`. `own` is the label that it came with.
/// `admitted`: it has been in the committed write set since the volume was assembled, or longer.
pub(super) fn plan(table: &Label, slot: usize, own: &Label, admitted: bool) -> CopyPlan {
    if admitted {
        let reason = "a rebuild was interrupted and the replica got every write since: \
                      the copy goes on where it was"
            .to_owned();
        let kind = RebuildKind::Resumed;
        return CopyPlan { kind, reason };
    }
    let member = &table.members[slot];
    match obstacle(table, member, own) {
        Some(reason) => CopyPlan {
            kind: RebuildKind::Full,
            reason,
        },
        None => incremental(member, own),
    }
}

/// Why the records of the copies that stayed don't say what this one lacks, if so.
fn obstacle(table: &Label, member: &Member, own: &Label) -> Option<String> {
    match member.state {
        MemberState::Blank => {
            return Some(
                "the replica was added anew: nothing that its file held before counts".to_owned(),
            );
        }
        MemberState::Removed => return Some("the replica was removed from the volume".to_owned()),
        MemberState::InSync | MemberState::Rebuilding | MemberState::Stale => {}
    }
    let own_state = own.members[own.own_slot].state;
    if !matches!(own_state, MemberState::InSync | MemberState::Rebuilding) {
        return Some(format!(
            "the replica's own label calls it {own_state:?}, not InSync or Rebuilding"
        ));
    }
    let last = member.insync_id;
    if last.is_nil() {
        return Some("the volume's table does not say that the replica ever was a copy".to_owned());
    }
    if !own.descends_from(last) {
        return Some(format!(
            "the replica's label has generation {} ({}), which does not descend from {last}, the last one in which \
             it got every write: it has another history, or was rolled back",
            own.generation, own.generation_id
        ));
    }
    if member.since_gen <= table.missed_base_gen {
        return Some(format!(
            "the replica left at generation {}, but what replicas miss is recorded only since generation {}",
            member.since_gen, table.missed_base_gen
        ));
    }
    let unit = |label: &Label| label.region_shift;
    (unit(own) != unit(table)).then(|| {
        format!(
            "the replica's bitmaps count regions of {} bytes, those of the volume {}: it has grown meanwhile",
            1_u64 << unit(own),
            1_u64 << unit(table)
        )
    })
}

fn incremental(member: &Member, own: &Label) -> CopyPlan {
    let since = member.since_gen;
    if own.members[own.own_slot].state == MemberState::Rebuilding {
        return CopyPlan {
            kind: RebuildKind::ResumedAfterAbsence,
            reason: format!(
                "a rebuild was interrupted when the replica left at generation {since}: what was left of it, and what \
                 was written since, is copied"
            ),
        };
    }
    CopyPlan {
        kind: RebuildKind::Partial,
        reason: format!(
            "the replica left at generation {since} and what was written since is recorded: only that is copied"
        ),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::GenerationId;
    use crate::replica::testing::label;
    use crate::replica::{Ancestors, layout::region_shift};
    use crate::units::TIB;

    fn id(number: u128) -> GenerationId {
        GenerationId::from_uuid(Uuid::from_u128(number))
    }

    /// Generation 20: slot 0 is in sync, slot 1 left at 15 after 14 was the last table in which it got every write.
    /// What replicas miss is recorded since generation 10.
    fn table() -> Label {
        let mut table = label();
        table.generation = 20;
        table.generation_id = id(20);
        table.ancestors = Ancestors::new((10..20).rev().map(id));
        table.missed_base_gen = 10;
        table.own_slot = 0;
        table.replica = table.members[0].replica;
        table.members[0].state = MemberState::InSync;
        table.members[0].insync_id = id(20);
        table.members[1].state = MemberState::Stale;
        table.members[1].since_gen = 15;
        table.members[1].insync_id = id(14);
        table
    }

    /// The label of slot 1 as it was in generation 14.
    fn own() -> Label {
        let mut own = table();
        own.generation = 14;
        own.generation_id = id(14);
        own.ancestors = Ancestors::new((10..14).rev().map(id));
        own.own_slot = 1;
        own.replica = own.members[1].replica;
        own.members[1].state = MemberState::InSync;
        own
    }

    fn check(change: impl FnOnce(&mut Label, &mut Label), kind: RebuildKind, reason: &str) {
        let (mut table, mut own) = (table(), own());
        change(&mut table, &mut own);
        let plan = plan(&table, 1, &own, false);
        assert_eq!(plan.kind, kind, "{}", plan.reason);
        assert!(plan.reason.contains(reason), "{}", plan.reason);
    }

    #[test]
    fn what_was_recorded_is_enough_for_a_copy_that_left_and_came_back() {
        check(|_, _| {}, RebuildKind::Partial, "left at generation 15");
        // An attempt to go on that never was committed: on the target only, on a branch of its own.
        let aborted = |_: &mut Label, own: &mut Label| {
            own.ancestors.push(id(14));
            own.generation_id = id(0xbad);
            own.generation = 15;
        };
        check(aborted, RebuildKind::Partial, "");
        let long_ago = |table: &mut Label, _: &mut Label| {
            table.ancestors = Ancestors::new((100..132).map(id));
        };
        check(long_ago, RebuildKind::Partial, "");
    }

    #[test]
    fn an_interrupted_rebuild_goes_on() {
        let rebuilding = |_: &mut Label, own: &mut Label| {
            own.members[1].state = MemberState::Rebuilding;
        };
        check(rebuilding, RebuildKind::ResumedAfterAbsence, "interrupted");
        let admitted = plan(&table(), 1, &own(), true);
        assert_eq!(admitted.kind, RebuildKind::Resumed);
    }

    #[test]
    fn without_a_proof_of_what_it_lacks_everything_is_copied() {
        use RebuildKind::Full;
        type Change = fn(&mut Label, &mut Label);
        let cases: [(Change, &str); 9] = [
            (|t, _| t.members[1].state = MemberState::Blank, "added anew"),
            (|t, _| t.members[1].state = MemberState::Removed, "removed"),
            (|_, o| o.members[1].state = MemberState::Blank, "Blank"),
            (|_, o| o.members[1].state = MemberState::Stale, "Stale"),
            (|t, _| t.members[1].insync_id = id(0), "ever was a copy"),
            // B3: rolled back to a generation before the last one in which it was a copy.
            (|t, _| t.members[1].insync_id = id(15), "rolled back"),
            // A5: after force_start, the lineage is another.
            (|_, o| o.ancestors = Ancestors::default(), ""),
            (|t, _| t.missed_base_gen = 15, "only since generation 15"),
            (|t, _| t.region_shift = region_shift(2 * TIB), "grown"),
        ];
        for (change, reason) in cases {
            if reason.is_empty() {
                let other = |t: &mut Label, o: &mut Label| {
                    change(t, o);
                    o.generation_id = id(0xbad);
                };
                check(other, Full, "another history");
            } else {
                check(change, Full, reason);
            }
        }
        // The last generation before the record began is too early by one.
        check(|t, _| t.missed_base_gen = 14, RebuildKind::Partial, "");
    }
}
