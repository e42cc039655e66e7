//! An operator starts from a copy that nothing proves to be the newest (spec A5).

use super::super::{ForceStart, Nexus};
use super::basics::{filled, on_volume, read, states};
use crate::io::BlockDevice;
use crate::io::sim::{SimFault, SimNode};
use crate::model::status::ReplicaState::{Absent, InSync, Stale};
use crate::nexus::sim::{Rig, SimEnv};
use crate::nexus::{AssemblyError, RebuildKind};
use crate::replica::MemberState;

/// Assembles with a decision about where to start.
async fn force(
    rig: &Rig,
    node: &SimNode,
    present: &[bool],
    (from, at_generation): (usize, u64),
) -> Result<Nexus<SimEnv>, AssemblyError> {
    let mut rig = rig.clone();
    rig.spec.force_start = Some(ForceStart {
        from: Rig::replica_id(from),
        at_generation,
    });
    rig.assemble(node, present).await
}

/// Copy 1 of two lacks an acknowledged write and has generation 1 in its label; copy 0 has both.
fn on_split(test: impl AsyncFnOnce(Rig, SimNode) + 'static) {
    on_volume(1, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 6), true).await.unwrap();
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..SimFault::default()
        });
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        rig.disks[1].set_fault(SimFault::default());
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        test(rig, node).await;
    });
}

#[test]
fn a_forced_start_serves_the_older_copy_and_rebuilds_all_others_in_full() {
    on_split(async |rig, node| {
        let nexus = force(&rig, &node, &[false, true], (1, 1)).await.unwrap();
        assert_eq!(states(&nexus), [Absent, InSync]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![6; 4096]));
        assert!(nexus.status().generation > 2, "A8: above all that was seen");
        drop(nexus);
        node.kill();

        // The other copy comes back; its history leads nowhere any more.
        let node = rig.sim.node();
        let nexus = force(&rig, &node, &[true, true], (1, 1)).await.unwrap();
        assert_eq!(states(&nexus), [Stale, InSync]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![6; 4096]));
        let table = nexus.inner.table.borrow().clone();
        assert_eq!(table.members[0].state, MemberState::Stale);
        assert!(table.members[0].insync_id.is_nil(), "A5, B3: in full");
    });
}

#[test]
fn a_forced_start_counts_for_the_generation_that_the_operator_saw_and_only_when_blocked() {
    on_split(async |rig, node| {
        let check = async |decision: (usize, u64), expected: &str| {
            let refused = force(&rig, &node, &[false, true], decision).await;
            let text = refused.unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("committed generation 2"), "{text}");
        };
        check((1, 2), "has generation 1").await;
        check((0, 2), "which is not here").await;
        let nexus = force(&rig, &node, &[true, true], (1, 1)).await.unwrap();
        assert_eq!(
            states(&nexus),
            [InSync, Stale],
            "the proof outranks the decision"
        );
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
    });
}

/// I3, E1: the copy that was not chosen has a label from later than anything that the new lineage has seen.
#[test]
fn a_copy_that_was_ahead_of_a_forced_start_is_rebuilt() {
    on_split(async |rig, mut node| {
        for _ in 0..5 {
            let nexus = rig.assemble(&node, &[true, false]).await.unwrap();
            drop(nexus);
            node.kill();
            node = rig.sim.node();
        }
        rig.witness.replace(None);
        let nexus = force(&rig, &node, &[false, true], (1, 1)).await.unwrap();
        nexus.attach(rig.candidate(0)).await.unwrap();
        let ahead = nexus.inner.children[0].replica().unwrap().label();
        let status = nexus.status();
        assert!(status.generation < ahead.generation && status.epoch < ahead.epoch);
        let report = nexus.rebuild(Rig::replica_id(0)).await.unwrap();
        assert_eq!(report.kind, RebuildKind::Full, "A5");
        assert_eq!(states(&nexus), [InSync, InSync]);
        let status = nexus.status();
        assert!(status.generation > ahead.generation && status.epoch >= ahead.epoch);
        drop(nexus);
        node.kill();

        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &[true, false]).await.unwrap();
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![6; 4096]), "B4");
    });
}
