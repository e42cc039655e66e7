//! A volume grows while it is used (spec section 10).

use std::time::Duration;

use super::basics::{SIZE, filled, on_volume, read, states};
use crate::io::sim::{SimFault, SimNode};
use crate::io::{BlockDevice, Clock, IoError, Spawn};
use crate::model::status::ReplicaState::{InSync, Stale};
use crate::nexus::fan_out::either;
use crate::nexus::sim::{Rig, SimEnv};
use crate::nexus::{ForceStart, Nexus, RebuildKind};
use crate::replica::BitmapKind;
use crate::units::{MIB, TIB};

const LARGER: u64 = 3 * SIZE;

/// What `future` answers within a minute.
async fn soon<T>(node: &SimNode, future: impl Future<Output = T>) -> Option<T> {
    let mut answer = None;
    let asked = async { answer = Some(future.await) };
    either(node.sleep(Duration::from_secs(60)), asked).await;
    answer
}

#[test]
fn a_larger_volume_keeps_its_data_and_reads_zeroes_behind_it_also_after_a_crash() {
    for members in [1, 3] {
        on_volume(1, members, async |rig, node, nexus| {
            nexus.write(0, &filled(8192, 1), false).await.unwrap();
            let behind = nexus.write(SIZE, &filled(4096, 2), false).await;
            assert_eq!(behind, Err(IoError::EINVAL));
            nexus.grow(LARGER).await.unwrap();
            assert_eq!((nexus.size(), nexus.status().size_bytes), (LARGER, LARGER));
            assert_eq!(read(&nexus, LARGER - 4096, 4096).await, Ok(vec![0; 4096]));
            nexus.write(SIZE, &filled(4096, 2), true).await.unwrap();
            drop(nexus);
            node.kill();
            let node = rig.sim.node();
            let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            assert_eq!(nexus.size(), LARGER);
            assert_eq!(read(&nexus, 0, 8192).await, Ok(vec![1; 8192]));
            assert_eq!(read(&nexus, SIZE, 4096).await, Ok(vec![2; 4096]));
            nexus.grow(LARGER).await.unwrap();
            let smaller = nexus.grow(SIZE).await;
            assert_eq!(smaller, Err(IoError::EINVAL), "volumes never shrink");
        });
    }
}

/// The labels name the new size, the witness does not know of that table yet.
#[test]
fn a_growth_that_was_cut_short_leaves_every_copy_in_sync() {
    for seed in 0..20 {
        on_volume(seed, 3, async |rig, node, nexus| {
            nexus.write(0, &filled(4096, 1), true).await.unwrap();
            rig.witness.set_down(true);
            let growing = nexus.clone();
            node.spawn(async move {
                let _ = growing.grow(LARGER).await;
            });
            let some = Duration::from_micros(rig.sim.below(20_000));
            node.sleep(some).await;
            drop(nexus);
            node.kill();
            rig.witness.set_down(false);
            let node = rig.sim.node();
            let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            assert_eq!(states(&nexus), [InSync; 3], "A6");
            assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![1; 4096]));
            nexus.grow(LARGER).await.unwrap();
            assert_eq!(read(&nexus, LARGER - 4096, 4096).await, Ok(vec![0; 4096]));
        });
    }
}

/// Leaves the labels of members 0 and 2 of three with a larger volume that was never committed: member 1 is lost before
/// its label is written, the witness is away, then the daemon is killed.
async fn cut_growth_short(rig: &Rig, node: &SimNode, nexus: Nexus<SimEnv>) {
    nexus.write(0, &filled(4096, 1), true).await.unwrap();
    rig.witness.set_down(true);
    let growing = nexus.clone();
    node.spawn(async move {
        let _ = growing.grow(LARGER).await;
    });
    while nexus.inner.table.borrow().data_len == SIZE {
        node.sleep(Duration::from_micros(5)).await;
    }
    let lost = true;
    rig.disks[1].set_fault(SimFault {
        lost,
        ..SimFault::default()
    });
    node.sleep(Duration::from_secs(1)).await;
    drop(nexus);
    node.kill();
    rig.disks[1].set_fault(SimFault::default());
    rig.witness.set_down(false);
}

/// G9: the members whose labels name the growth are on a branch that leads nowhere. They come back with the size that
/// counts, and get only what they missed.
#[test]
fn members_with_a_growth_that_was_never_committed_come_back() {
    for is_open in [false, true] {
        on_volume(3, 3, async move |rig, node, nexus| {
            cut_growth_short(&rig, &node, nexus).await;
            let mut node = rig.sim.node();
            let only = [false, true, false];
            let mut nexus = rig.assemble(&node, &only).await.unwrap();
            assert_eq!(nexus.size(), SIZE, "A5: proven by the witness");
            nexus.write(4096, &filled(4096, 2), true).await.unwrap();
            if is_open {
                drop(nexus);
                node.kill();
                node = rig.sim.node();
                nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            }
            for disk in [0, 2] {
                if !is_open {
                    nexus.attach(rig.candidate(disk)).await.unwrap();
                }
                let own = nexus.inner.children[disk].replica().unwrap().label();
                assert_eq!(own.data_len, if is_open { LARGER } else { SIZE });
                let report = nexus.rebuild(Rig::replica_id(disk)).await.unwrap();
                assert_eq!(report.kind, RebuildKind::Partial, "B3");
            }
            assert_eq!(states(&nexus), [InSync; 3]);
            nexus.grow(LARGER).await.unwrap();
            let end = usize::try_from(LARGER - SIZE).unwrap();
            for disk in 0..3 {
                assert_eq!(rig.visible(disk, 0, 8192), [[1; 4096], [2; 4096]].concat());
                assert_eq!(rig.visible(disk, SIZE, LARGER - SIZE), vec![0; end]);
            }
        });
    }
}

/// A5: the copy that an operator did not choose had grown, and was written where the chosen one has nothing.
#[test]
fn a_copy_that_had_grown_before_a_forced_start_takes_the_size_of_the_chosen_one() {
    on_volume(4, 2, async |rig, node, nexus| {
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &[true, false]).await.unwrap();
        nexus.grow(LARGER).await.unwrap();
        nexus.write(SIZE, &filled(4096, 7), true).await.unwrap();
        drop(nexus);
        node.kill();
        rig.witness.replace(None);
        let node = rig.sim.node();
        let mut chosen = rig.clone();
        chosen.spec.force_start = Some(ForceStart {
            from: Rig::replica_id(1),
            at_generation: 1,
        });
        let nexus = chosen.assemble(&node, &[false, true]).await.unwrap();
        assert_eq!(nexus.size(), SIZE);
        nexus.attach(rig.candidate(0)).await.unwrap();
        let report = nexus.rebuild(Rig::replica_id(0)).await.unwrap();
        assert_eq!(report.kind, RebuildKind::Full, "A5");
        nexus.grow(LARGER).await.unwrap();
        for disk in 0..2 {
            assert_eq!(rig.visible(disk, SIZE, 4096), vec![0; 4096]);
        }
    });
}

#[test]
fn a_member_that_was_away_grows_when_it_comes_back_and_gets_what_it_missed() {
    on_volume(2, 2, async |rig, _, nexus| {
        nexus.write(0, &filled(4096, 1), false).await.unwrap();
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..SimFault::default()
        });
        nexus.write(4096, &filled(4096, 2), false).await.unwrap();
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        nexus.grow(LARGER).await.unwrap();
        nexus
            .write(LARGER - 4096, &filled(4096, 3), false)
            .await
            .unwrap();
        rig.disks[1].set_fault(SimFault::default());
        rig.disks[1].quiesce().await;
        let candidate = rig.candidates(&rig.all()).swap_remove(1);
        nexus.attach(candidate).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale]);
        nexus.rebuild(Rig::replica_id(1)).await.unwrap();
        assert_eq!(states(&nexus), [InSync, InSync]);
        for disk in 0..2 {
            assert_eq!(rig.visible(disk, 4096, 4096), vec![2; 4096]);
            assert_eq!(rig.visible(disk, LARGER - 4096, 4096), vec![3; 4096]);
        }
    });
}

/// A table with such a size would be tried for ever on the last copy, and nobody else could change the table.
#[test]
fn a_size_that_no_label_can_hold_is_refused_and_the_volume_goes_on() {
    for members in [1, 3] {
        on_volume(3, members, async |_, node, nexus| {
            let grown = soon(&node, nexus.grow(1 << 63)).await;
            assert_eq!(grown, Some(Err(IoError::EINVAL)));
            assert_eq!(nexus.size(), SIZE);
            nexus.write(0, &filled(4096, 1), true).await.unwrap();
            assert_eq!(soon(&node, nexus.grow(LARGER)).await, Some(Ok(())));
            assert_eq!(read(&nexus, LARGER - 4096, 4096).await, Ok(vec![0; 4096]));
        });
    }
}

/// Larger regions need all range locks; the way to the fast path waits for requests, which wait for theirs (R8).
#[test]
fn growing_to_larger_regions_while_a_member_leaves_holds_nobody_up_for_ever() {
    let rig = Rig::new(21, 2, TIB, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        // Less than any disk takes: the removal has the table and is far from its commit when the others begin.
        let instant = Duration::from_micros(5);
        let removal = nexus.remove_member(Rig::replica_id(1));
        let growth = async {
            node.sleep(instant).await;
            nexus.grow(2 * TIB).await
        };
        let data = filled(4096, 1);
        let write = async {
            node.sleep(2 * instant).await;
            nexus.write(0, &data, false).await
        };
        let all = async { tokio::join!(removal, growth, write) };
        let (removed, grown, written) = soon(&node, all).await.expect("no deadlock");
        assert!(removed.is_ok(), "{removed:?}");
        assert_eq!((grown, written), (Ok(()), Ok(())));
        assert_eq!(nexus.size(), 2 * TIB);
    });
}

/// W9, section 10: while larger regions are being committed, a region's number stands for other bytes on the disks than in
/// memory, and nothing may be cleared by it.
#[test]
fn no_bit_is_cleared_while_larger_regions_are_being_committed() {
    let rig = Rig::new(7, 2, TIB, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        for offset in [10 * MIB, TIB - MIB] {
            nexus.write(offset, &filled(4096, 1), false).await.unwrap();
        }
        nexus.flush().await.unwrap();
        // Shares its new region with the one at 10 MiB, and is not flushed.
        let data = filled(4096, 2);
        nexus.write(11 * MIB, &data, false).await.unwrap();
        rig.witness.set_down(true);
        let growing = nexus.clone();
        node.spawn(async move { growing.grow(2 * TIB).await.unwrap() });
        node.sleep(Duration::from_secs(9)).await;
        let replica = nexus.inner.children[0].replica().unwrap();
        assert_eq!(replica.region_shift(), 21, "its label has the new size");
        let set = replica.set_regions(BitmapKind::Intent);
        let all = 0..replica.label().regions();
        assert!(set.iter().eq([&all]), "section 10: all bits, not {set:?}");
        drop(replica);
        rig.witness.set_down(false);
        let grown = async { nexus.inner.signal.until(|| nexus.size() == 2 * TIB).await };
        assert!(soon(&node, grown).await.is_some());
    });
}
