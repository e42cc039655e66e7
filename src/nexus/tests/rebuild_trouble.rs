//! Rebuilds whose target or source fails (spec B6, F1, G11).

use std::time::Duration;

use super::super::sim::Rig;
use super::super::{AssemblyError, FaultReason, RebuildError, RebuildKind};
use super::basics::{filled, read, states};
use super::rebuild::{
    LOST, SIZE, assert_equal, bring_back, candidate, cut_off, half_way, on_disks, rebuild,
};
use crate::io::sim::SimFault;
use crate::io::{BlockDevice, BufferPool, Clock, IoError, Spawn};
use crate::model::status::ReplicaState::{InSync, Rebuilding, Stale};
use crate::replica::Replica;
use crate::units::{KIB, MIB};

#[test]
fn a_target_that_fails_is_stale_again_and_the_client_notices_nothing() {
    on_disks(7, (1, 2), async |rig, node, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        let running = nexus.clone();
        let (told, result) = tokio::sync::oneshot::channel();
        node.spawn(async move {
            let _ = told.send(running.rebuild(Rig::replica_id(1)).await);
        });
        while nexus.status().children[1].state != Rebuilding {
            node.sleep(Duration::from_micros(100)).await;
        }
        rig.disks[1].set_fault(SimFault {
            write_errors: 1,
            ..SimFault::default()
        });
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        let result = result.await.unwrap();
        assert!(matches!(result, Err(RebuildError::Target(_))), "{result:?}");
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        node.sleep(Duration::from_secs(1)).await;
        assert_eq!(states(&nexus), [InSync, Stale]);
        let busy = nexus.rebuild(Rig::replica_id(1)).await;
        assert_eq!(busy, Err(RebuildError::NotHere(Rig::replica_id(1))));
        bring_back(&rig, &nexus, 1).await;
        rebuild(&nexus, 1).await;
        assert_equal(&rig, &[0, 1]);
    });
}

#[test]
fn a_place_that_no_source_can_read_is_named_and_no_copy_is_given_up() {
    on_disks(8, (1, 2), async |rig, node, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        rig.disks[0].set_fault(SimFault {
            end: Some(crate::replica::layout::DATA_OFFSET + SIZE - 8 * KIB),
            ..SimFault::default()
        });
        let failed = nexus.rebuild(Rig::replica_id(1)).await;
        let offset = SIZE - 8 * KIB;
        assert_eq!(failed, Err(RebuildError::Source { offset }), "B6");
        assert_eq!(rig.committed(), [0], "G7");
        rig.disks[0].set_fault(SimFault::default());
        let _ = node;
    });
}

#[test]
fn a_member_that_is_removed_while_it_is_rebuilt_ends_its_rebuild() {
    on_disks(11, (1, 2), async |rig, node, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        half_way(&node, &nexus, 1).await;
        nexus.remove_member(Rig::replica_id(1)).await.unwrap();
        let over = || nexus.inner.rebuild.borrow().is_none();
        nexus.inner.signal.until(over).await;
        assert_eq!(states(&nexus), [InSync]);
        assert_eq!(rig.committed(), [0]);
    });
}

/// The join's table was written to labels but never committed: writes that were acknowledged without the target are
/// copied although the newest label calls it a member of the write set.
#[test]
fn a_join_that_was_not_committed_is_not_believed() {
    on_disks(12, (2, 2), async |rig, node, nexus| {
        cut_off(&rig, &nexus, 1).await;
        nexus.flush().await.unwrap();
        bring_back(&rig, &nexus, 1).await;
        rig.witness.fail_commits(true);
        let running = nexus.clone();
        node.spawn(async move {
            let _ = running.rebuild(Rig::replica_id(1)).await;
        });
        let target = nexus.inner.children[1].replica().unwrap();
        while !target.label().flags.rebuilding {
            node.sleep(Duration::from_millis(1)).await;
        }
        // From here on the target fails, unnoticed by any table.
        rig.disks[1].set_fault(LOST());
        let data = filled(4096, 6);
        let lost = nexus.write(4 * MIB, &data, true);
        let patience = node.sleep(Duration::from_secs(1));
        super::super::fan_out::either(patience, async {
            let _ = lost.await;
        })
        .await;
        drop((nexus, target));
        node.kill();
        rig.disks[1].set_fault(SimFault::default());
        rig.witness.fail_commits(false);
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        rebuild(&nexus, 1).await;
        assert_equal(&rig, &[0, 1]);
        assert_eq!(states(&nexus), [InSync, InSync]);
    });
}

#[test]
fn a_target_that_fills_up_says_so() {
    on_disks(13, (1, 2), async |rig, _, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        rig.disks[1].set_fault(SimFault {
            full: true,
            ..SimFault::default()
        });
        let failed = nexus.rebuild(Rig::replica_id(1)).await;
        assert_eq!(failed, Err(RebuildError::Target(FaultReason::NoSpace)));
        let read = read(&nexus, 0, 4096).await;
        assert_eq!(read, Ok::<_, IoError>(vec![0; 4096]));
    });
}

/// G11: neither the guest nor the rebuild waits for a target that does not answer.
#[test]
fn a_target_that_hangs_is_given_up_after_the_timeout() {
    on_disks(14, (1, 2), async |rig, node, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        let running = nexus.clone();
        let (told, result) = tokio::sync::oneshot::channel();
        node.spawn(async move {
            let _ = told.send(running.rebuild(Rig::replica_id(1)).await);
        });
        while nexus.status().children[1].rebuild.is_none() {
            node.sleep(Duration::from_micros(100)).await;
        }
        while nexus.status().rebuilds.copied_bytes == 0 {
            node.sleep(Duration::from_micros(100)).await;
        }
        rig.disks[1].set_fault(SimFault {
            hung: true,
            ..SimFault::default()
        });
        let timeout = nexus.inner.spec.borrow().policy.timeouts.io;
        let before = node.now();
        nexus
            .write(SIZE - 4096, &filled(4096, 1), true)
            .await
            .unwrap();
        let took = node.now() - before;
        assert!(took < timeout + Duration::from_secs(1), "G11: {took:?}");
        let result = result.await.unwrap();
        assert!(matches!(result, Err(RebuildError::Target(_))), "{result:?}");
        assert_eq!(rig.committed(), [0]);
        assert!(nexus.inner.children[1].is_busy(), "F1: not recalled");
        assert!(nexus.attach(candidate(&rig, 1)).await.is_err(), "F1");
        rig.disks[1].set_fault(SimFault::default());
        nexus
            .inner
            .signal
            .until(|| nexus.status().children[1].wants_attach)
            .await;
        bring_back(&rig, &nexus, 1).await;
        let (kind, _) = rebuild(&nexus, 1).await;
        assert_eq!(kind, RebuildKind::ResumedAfterAbsence);
        assert_equal(&rig, &[0, 1]);
    });
}

/// G9, E6: a member that waits for its rebuild loses its device, which comes back as another one. The file that is open
/// would fail for ever.
#[test]
fn a_target_whose_device_went_before_its_rebuild_is_opened_anew() {
    on_disks(12, (1, 2), async |rig, _, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        rig.disks[1].unplug();
        let failed = nexus.rebuild(Rig::replica_id(1)).await;
        assert!(matches!(failed, Err(RebuildError::Target(_))), "{failed:?}");
        assert!(nexus.status().children[1].wants_attach, "A1");
        bring_back(&rig, &nexus, 1).await;
        rebuild(&nexus, 1).await;
        assert_equal(&rig, &[0, 1]);
    });
}

/// B3: what it lacks is looked up when it joins, not when its rebuild is asked for.
#[test]
fn a_rebuild_that_was_asked_for_before_the_volume_grew_copies_the_new_range_too() {
    on_disks(11, (2, 2), async |rig, node, nexus| {
        cut_off(&rig, &nexus, 1).await;
        bring_back(&rig, &nexus, 1).await;
        rig.disks[1].set_fault(SimFault {
            hung: true,
            ..SimFault::default()
        });
        let (told, result) = tokio::sync::oneshot::channel();
        let running = nexus.clone();
        node.spawn(async move {
            let _ = told.send(running.rebuild(Rig::replica_id(1)).await);
        });
        node.sleep(Duration::from_millis(10)).await;
        nexus.grow(SIZE + 2 * MIB).await.unwrap();
        nexus.write(SIZE, &filled(8192, 5), true).await.unwrap();
        rig.disks[1].set_fault(SimFault::default());
        result.await.unwrap().unwrap();
        assert_eq!(states(&nexus), [InSync, InSync]);
        assert_equal(&rig, &[0, 1]);
        assert_eq!(rig.visible(1, SIZE, 8192), vec![5; 8192], "G9");
    });
}

/// B3: the label of a member that joins is that of the last table in which it was a copy, until the next one is
/// committed. With a newer one it would look as if it had everything since.
#[test]
fn a_renaming_leaves_the_label_of_a_joining_member_alone() {
    on_disks(12, (2, 2), async |rig, node, nexus| {
        cut_off(&rig, &nexus, 1).await;
        bring_back(&rig, &nexus, 1).await;
        let target = nexus.inner.children[1].replica().unwrap();
        let before = target.label().generation_id;
        // The barrier of B2 waits for this.
        let held = nexus.inner.locks.exclusive(0..4096).await;
        let (told, result) = tokio::sync::oneshot::channel();
        let running = nexus.clone();
        node.spawn(async move {
            let _ = told.send(running.rebuild(Rig::replica_id(1)).await);
        });
        let joins = || nexus.inner.writers().contains(1);
        nexus.inner.signal.until(joins).await;
        nexus.rename("db2".parse().unwrap()).await.unwrap();
        assert_eq!(target.label().generation_id, before, "B3");
        drop(held);
        result.await.unwrap().unwrap();
        assert_eq!(target.label().name.as_str(), "db2");
        assert_equal(&rig, &[0, 1]);
    });
}

/// I3: the table in which a member joins is above everything that its label has seen.
#[test]
fn a_member_whose_label_can_not_be_counted_up_from_stays_out_and_the_volume_goes_on() {
    on_disks(13, (2, 2), async |rig, node, nexus| {
        cut_off(&rig, &nexus, 1).await;
        rig.disks[1].set_fault(SimFault::default());
        let disk = rig.disks[1].open();
        let replica = Replica::open(disk, &BufferPool::default()).await.unwrap();
        let mut label = (*replica.label()).clone();
        label.generation = u64::try_from(i64::MAX).unwrap();
        replica.write_label(&label).await.unwrap();
        bring_back(&rig, &nexus, 1).await;
        let (told, mut result) = tokio::sync::oneshot::channel();
        let running = nexus.clone();
        node.spawn(async move {
            let _ = told.send(running.rebuild(Rig::replica_id(1)).await);
        });
        node.sleep(Duration::from_secs(60)).await;
        let refused = RebuildError::Target(FaultReason::Label(IoError::EINVAL));
        assert_eq!(result.try_recv(), Ok(Err(refused)));
        nexus.write(0, &filled(4096, 9), true).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale]);
        nexus.grow(SIZE + MIB).await.unwrap();
    });
}

/// Two starts end before their commit, and their labels are on two branches above the committed generation: the highest
/// one is on the member that was being rebuilt, and the in-sync one's does not lead to it.
#[test]
fn a_given_up_start_that_only_a_rebuilding_member_has_does_not_block_the_volume() {
    on_disks(13, (1, 2), async |mut rig, node, nexus| {
        nexus.write(MIB, &filled(4096, 5), true).await.unwrap();
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        half_way(&node, &nexus, 1).await;
        drop(nexus);
        node.kill();
        let broken = SimFault {
            write_errors: 1,
            ..SimFault::default()
        };
        for _ in 0..2 {
            rig.disks[0].set_fault(broken);
            let failed = rig.assemble(&rig.sim.node(), &rig.all()).await;
            assert!(matches!(failed, Err(AssemblyError::Failed(_))), "A8");
            rig.disks[0].set_fault(SimFault::default());
        }
        let timeouts = rig.spec.policy.timeouts;
        rig.spec.policy.timeouts.commit = Duration::ZERO;
        rig.witness.fail_commits(true);
        let failed = rig.assemble(&rig.sim.node(), &[true, false]).await;
        assert!(matches!(failed, Err(AssemblyError::Witness(_))), "A8");
        rig.witness.fail_commits(false);
        rig.spec.policy.timeouts = timeouts;

        let nexus = rig.assemble(&rig.sim.node(), &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale], "A4");
        assert_eq!(read(&nexus, MIB, 4096).await, Ok(vec![5; 4096]));
        rebuild(&nexus, 1).await;
        assert_equal(&rig, &[0, 1]);
    });
}
