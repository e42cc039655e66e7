//! Which replicas may serve after a restart (spec section 6).

use super::super::status::Health;
use super::super::{AssemblyError, Nexus, WitnessRecord};
use super::basics::{SIZE, filled, on_volume, read, states};
use crate::io::sim::{SimFault, SimNode};
use crate::io::{BlockDevice, BufferPool, slots};
use crate::model::status::ReplicaState::{Absent, InSync, Stale};
use crate::model::{GenerationId, VolumeId};
use crate::nexus::sim::{Rig, SimEnv};
use crate::replica::layout::{DATA_OFFSET, LABEL_OFFSETS};

async fn refused(rig: &Rig, node: &SimNode, present: &[bool]) -> String {
    match rig.assemble(node, present).await {
        Err(AssemblyError::Blocked(blocked)) => blocked.to_string(),
        other => panic!("expected Blocked, found {other:?}"),
    }
}

/// A volume with `members` copies in which copy `left` has missed an acknowledged write.
async fn leave_behind(rig: &Rig, nexus: Nexus<SimEnv>, left: usize) {
    rig.disks[left].set_fault(SimFault {
        lost: true,
        ..SimFault::default()
    });
    nexus.write(0, &filled(4096, 7), true).await.unwrap();
    rig.disks[left].set_fault(SimFault::default());
    assert!(!nexus.stop().await || nexus.status().unresolved_bytes == 0);
}

#[test]
fn a_copy_that_missed_a_write_does_not_start_alone_whatever_its_label_says() {
    on_volume(1, 2, async |rig, node, nexus| {
        leave_behind(&rig, nexus, 1).await;
        let text = refused(&rig, &node, &[false, true]).await;
        assert!(text.contains("committed generation 2"), "A5: {text}");
        assert!(
            text.contains("in-sync replica") && text.contains("`pool0`"),
            "{text}"
        );
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
    });
}

#[test]
fn an_in_sync_copy_starts_alone_and_leaves_the_absent_one_behind() {
    on_volume(2, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 7), false).await.unwrap();
        assert!(nexus.stop().await);
        let nexus = rig.assemble(&node, &[true, false]).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Absent]);
        assert_eq!(nexus.status().health, Health::Degraded);
        let reason = nexus.status().children[1].reason.clone().unwrap();
        assert!(reason.contains("disk 1 is unplugged"), "{reason}");
        nexus.stop().await;
        let text = refused(&rig, &node, &[false, true]).await;
        assert!(text.contains("committed generation"), "A4: {text}");
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale], "A6");
    });
}

#[test]
fn an_aborted_generation_on_an_absent_copy_does_not_outrank_a_committed_one() {
    on_volume(3, 2, async |rig, node, nexus| {
        // Copy 0 gets generation 2 into its label, but the witness never learns of it.
        rig.witness.set_down(true);
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..SimFault::default()
        });
        let write = nexus.write(0, &filled(4096, 6), true).await;
        assert!(write.is_err());
        drop(nexus);
        node.kill();
        rig.disks[1].set_fault(SimFault::default());
        rig.witness.set_down(false);

        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &[false, true]).await.unwrap();
        nexus.write(0, &filled(4096, 8), true).await.unwrap();
        assert_eq!(
            nexus.status().generation,
            2,
            "the same number on another branch"
        );
        nexus.stop().await;
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [Stale, InSync], "A4");
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![8; 4096]));
    });
}

#[test]
fn without_a_witness_every_member_must_be_here_and_of_one_lineage() {
    on_volume(4, 3, async |rig, node, nexus| {
        leave_behind(&rig, nexus, 2).await;
        rig.witness.replace(None);
        let text = refused(&rig, &node, &[true, false, true]).await;
        assert!(
            text.contains("no witness record") && text.contains("is not here"),
            "A5: {text}"
        );
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, InSync, Stale]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
        assert!(rig.witness.record().is_some(), "the record is made anew");
    });
}

#[test]
fn two_histories_without_a_witness_are_nobodys_to_choose_from() {
    on_volume(5, 2, async |rig, node, nexus| {
        nexus.stop().await;
        let committed = rig.witness.record();
        rig.assemble(&node, &[true, false])
            .await
            .unwrap()
            .stop()
            .await;
        rig.witness.replace(committed);
        rig.assemble(&node, &[false, true])
            .await
            .unwrap()
            .stop()
            .await;
        rig.witness.replace(None);
        let text = refused(&rig, &node, &rig.all()).await;
        assert!(text.contains("another history"), "A5: {text}");
    });
}

#[test]
fn a_witness_that_knows_a_newer_generation_blocks_all_older_copies() {
    on_volume(6, 2, async |rig, node, nexus| {
        nexus.stop().await;
        let found = rig.witness.record().unwrap();
        rig.witness.replace(Some(WitnessRecord {
            generation: 9,
            generation_id: GenerationId::from_uuid(uuid::Uuid::from_u128(9)),
            ..found
        }));
        let text = refused(&rig, &node, &rig.all()).await;
        assert!(text.contains("committed generation 9"), "{text}");
    });
}

#[test]
fn replicas_that_belong_elsewhere_are_refused_by_name_and_not_written_to() {
    on_volume(7, 2, async |rig, node, nexus| {
        nexus.stop().await;
        let before = rig.disks[1].visible(0..DATA_OFFSET);
        let check = async |change: &dyn Fn(&mut crate::nexus::Candidate<_>), expected: &str| {
            let mut candidates = rig.candidates(&rig.all());
            change(&mut candidates[1]);
            let nexus = Nexus::assemble(rig.parts(&node), rig.spec.clone(), candidates);
            let nexus = nexus.await.unwrap();
            assert_eq!(nexus.inner.usable().len(), 1);
            let children = nexus.status().children;
            let reasons: Vec<_> = children.iter().filter_map(|c| c.reason.clone()).collect();
            assert!(reasons.iter().any(|r| r.contains(expected)), "{reasons:?}");
            nexus.stop().await;
        };
        let other = crate::model::PoolId::from_uuid(uuid::Uuid::from_u128(77));
        check(&|c| c.pool_id = Some(other), "its label names pool").await;
        assert!(rig.disks[1].visible(0..DATA_OFFSET) == before, "A3");
    });
}

#[test]
fn of_twins_neither_is_used() {
    on_volume(8, 3, async |rig, node, nexus| {
        nexus.stop().await;
        let copy = rig.disks[1].visible(0..DATA_OFFSET + SIZE);
        rig.disks[2].corrupt(0, &copy);
        let mut candidates = rig.candidates(&rig.all());
        candidates[2].replica = None;
        candidates[2].pool_id = None;
        let nexus = Nexus::assemble(rig.parts(&node), rig.spec.clone(), candidates);
        let nexus = nexus.await.unwrap();
        assert_eq!(rig.committed(), [0]);
        let children = nexus.status().children;
        let twins = children.iter().filter(|c| {
            let reason = c.reason.as_deref().unwrap_or_default();
            reason.contains("more than once")
        });
        assert_eq!(twins.count(), 2, "A3: {children:?}");
    });
}

#[test]
fn a_label_of_another_volume_is_no_candidate() {
    on_volume(9, 1, async |mut rig, node, nexus| {
        nexus.stop().await;
        rig.spec.id = VolumeId::from_uuid(uuid::Uuid::from_u128(0xbad));
        rig.witness.replace(None);
        let text = refused(&rig, &node, &[true]).await;
        assert!(text.contains("its label names volume"), "A3: {text}");
    });
}

#[test]
fn a_copy_with_both_labels_gone_is_left_out_and_not_initialised() {
    on_volume(10, 2, async |rig, node, nexus| {
        nexus.stop().await;
        for at in LABEL_OFFSETS {
            rig.disks[1].corrupt(at, &[0xff; 4096]);
        }
        let before = rig.disks[1].visible(0..DATA_OFFSET);
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(rig.committed(), [0], "L2");
        let reason = nexus.status().children[1].reason.clone().unwrap();
        assert!(reason.contains("no valid label"), "{reason}");
        assert!(rig.disks[1].visible(0..DATA_OFFSET) == before, "A2");
    });
}

#[test]
fn a_member_that_fails_while_it_is_opened_is_left_out_and_the_last_one_ends_the_attempt() {
    on_volume(11, 2, async |rig, node, nexus| {
        nexus.stop().await;
        let broken = SimFault {
            write_errors: 1,
            ..SimFault::default()
        };
        rig.disks.iter().for_each(|disk| disk.set_fault(broken));
        let failed = rig.assemble(&node, &rig.all()).await.unwrap_err();
        assert!(matches!(failed, AssemblyError::Failed(_)), "A8: {failed}");
        rig.disks[0].set_fault(SimFault::default());
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale], "A8");
        assert_eq!(rig.committed(), [0]);
    });
}

#[test]
fn a_rolled_back_copy_is_not_taken_for_an_in_sync_one() {
    on_volume(12, 2, async |rig, node, nexus| {
        let old = rig.disks[1].visible(0..DATA_OFFSET + SIZE);
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        nexus.stop().await;
        rig.assemble(&node, &rig.all()).await.unwrap().stop().await;
        // Somebody restores a backup of one copy.
        rig.disks[1].corrupt(0, &old);
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
    });
}

#[test]
fn clean_is_taken_off_before_the_first_write() {
    on_volume(13, 2, async |rig, node, nexus| {
        assert!(nexus.stop().await);
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(nexus.status().unresolved_bytes, 0);
        nexus.write(0, &filled(4096, 1), false).await.unwrap();
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(nexus.status().unresolved_bytes, SIZE, "A10");
    });
}

#[test]
fn fifty_aborted_attempts_do_not_lose_the_way_to_the_committed_generation() {
    on_volume(14, 1, async |rig, _, nexus| {
        nexus.stop().await;
        for _ in 0..50 {
            let node = rig.sim.node();
            // The load works, the commit does not: the label has a new generation, the witness has not.
            let mut parts_rig = rig.clone();
            parts_rig.spec.policy.timeouts.commit = std::time::Duration::ZERO;
            let witness = rig.witness.clone();
            let record = witness.record();
            witness.fail_commits(true);
            let failed = parts_rig.assemble(&node, &[true]).await;
            assert!(matches!(failed, Err(AssemblyError::Witness(_))));
            witness.fail_commits(false);
            assert_eq!(witness.record(), record);
        }
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &[true]).await.unwrap();
        assert_eq!(nexus.status().generation, 52, "A4");
    });
}

#[test]
fn a_label_that_was_read_from_the_cache_is_durable_before_the_other_slot_is_overwritten() {
    on_volume(15, 1, async |rig, node, nexus| {
        drop(nexus);
        node.kill();
        // A label update that was under way when the daemon was killed: complete, but only in the disk's cache.
        let [a, b] = LABEL_OFFSETS;
        let mut slot: slots::Slot = rig.disks[0].visible(a..a + 4096).try_into().unwrap();
        let newer = slots::seq(&slot) + 1;
        slots::seal(&mut slot, newer);
        let cached = BufferPool::default().copy_of(&slot);
        rig.disks[0].open().write(b, &cached, false).await.unwrap();
        assert!(rig.disks[0].durable(b..b + 4096) != slot);
        let node = rig.sim.node();
        rig.assemble(&node, &[true]).await.unwrap();
        assert!(rig.disks[0].durable(b..b + 4096) == slot, "L1");
        assert!(
            rig.disks[0].durable(a..a + 4096) != slot,
            "the older slot is the one overwritten"
        );
    });
}
