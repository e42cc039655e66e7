//! Members are brought back into the active set (spec section 7).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::super::sim::{Rig, SimEnv, durable_regions};
use super::super::status::Health;
use super::super::{Candidate, Nexus, Policy, RebuildError, RebuildKind};
use super::basics::{filled, read, states};
use crate::io::sim::{SimDisk, SimFault, SimNode};
use crate::io::{BlockDevice, Clock, Spawn, ZeroOptions};
use crate::model::status::ReplicaState::{InSync, Rebuilding, Stale};
use crate::replica::BitmapKind;
use crate::replica::layout::{DATA_OFFSET, MISSED_OFFSET};
use crate::units::MIB;

/// Eight regions.
pub(super) const SIZE: u64 = 8 * MIB;

/// Runs a test on a volume over the first `members` of `disks` disks.
pub(super) fn on_disks(
    seed: u64,
    (members, disks): (usize, usize),
    test: impl AsyncFnOnce(Rig, SimNode, Nexus<SimEnv>) + 'static,
) {
    let rig = Rig::new(seed, disks, SIZE, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let candidates = rig.candidates(&rig.all()).into_iter().take(members);
        let created = Nexus::create(rig.parts(&node), rig.spec.clone(), candidates.collect());
        let nexus = created.await.unwrap();
        test(rig, node, nexus).await;
    });
}

pub(super) fn candidate(rig: &Rig, disk: usize) -> Candidate<SimDisk> {
    rig.candidates(&rig.all()).swap_remove(disk)
}

pub(super) const LOST: fn() -> SimFault = || SimFault {
    lost: true,
    ..SimFault::default()
};

/// One member misses writes from now on: a write of the first block was the first.
pub(super) async fn cut_off(rig: &Rig, nexus: &Nexus<SimEnv>, disk: usize) {
    rig.disks[disk].set_fault(LOST());
    nexus.write(0, &filled(4096, 0xcf), false).await.unwrap();
    let is_out = || nexus.status().children[disk].wants_attach;
    nexus.inner.signal.until(is_out).await;
}

pub(super) async fn bring_back(rig: &Rig, nexus: &Nexus<SimEnv>, disk: usize) {
    rig.disks[disk].set_fault(SimFault::default());
    nexus.attach(candidate(rig, disk)).await.unwrap();
}

pub(super) async fn rebuild(nexus: &Nexus<SimEnv>, disk: usize) -> (RebuildKind, u64) {
    let report = nexus.rebuild(Rig::replica_id(disk)).await.unwrap();
    (report.kind, report.copied_bytes)
}

pub(super) fn assert_equal(rig: &Rig, disks: &[usize]) {
    let first = rig.visible(disks[0], 0, SIZE);
    for disk in disks {
        assert!(rig.visible(*disk, 0, SIZE) == first, "G9: disk {disk}");
    }
}

/// Starts a rebuild and returns once some of it is done and more is left.
pub(super) async fn half_way(node: &SimNode, nexus: &Nexus<SimEnv>, disk: usize) {
    // Slow enough to be caught in the middle, and with a checkpoint or two behind it.
    limit(nexus, MIB / 2);
    let running = nexus.clone();
    node.spawn(async move {
        let _ = running.rebuild(Rig::replica_id(disk)).await;
    });
    loop {
        node.sleep(Duration::from_millis(50)).await;
        let progress = nexus.status().children[disk].rebuild.clone();
        if progress.is_some_and(|p| p.copied_bytes >= 5 * MIB) {
            return;
        }
    }
}

/// Sets the limit of a rebuild, bytes per second.
fn limit(nexus: &Nexus<SimEnv>, rebuild_bandwidth: u64) {
    let policy = nexus.inner.spec.borrow().policy;
    nexus.configure(Policy {
        rebuild_bandwidth,
        ..policy
    });
}

#[test]
fn a_new_member_gets_everything_and_old_data_is_overwritten_with_zeroes() {
    on_disks(1, (1, 2), async |rig, node, nexus| {
        let junk = vec![0xaa; usize::try_from(SIZE).unwrap()];
        rig.disks[1].corrupt(DATA_OFFSET, &junk);
        nexus
            .write(MIB + 4096, &filled(72 << 10, 1), false)
            .await
            .unwrap();
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        assert_eq!(rebuild(&nexus, 1).await, (RebuildKind::Full, SIZE), "B3");
        assert_eq!(states(&nexus), [InSync, InSync]);
        assert_eq!(nexus.status().health, Health::Online);
        assert_eq!(rig.committed(), [0, 1], "B7");
        assert_equal(&rig, &[0, 1]);
        assert_eq!(rig.visible(1, 0, 4096), vec![0; 4096], "B4: zeroes too");
        for child in &nexus.inner.children[..2] {
            let missed = child.replica().unwrap().set_count(BitmapKind::Missed);
            assert_eq!(missed, 0, "B7: nobody lacks anything");
        }
        let totals = nexus.status().rebuilds;
        assert_eq!((totals.finished, totals.copied_bytes), (1, SIZE));
        let again = nexus.rebuild(Rig::replica_id(1)).await;
        assert_eq!(again, Err(RebuildError::InSync(Rig::replica_id(1))));
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &[false, true]).await.unwrap();
        assert_eq!(
            read(&nexus, MIB + 4096, 4096).await,
            Ok(vec![1; 4096]),
            "the new one serves alone"
        );
    });
}

#[test]
fn a_member_that_was_away_gets_what_it_missed_and_nothing_else() {
    on_disks(2, (2, 2), async |rig, node, nexus| {
        for at in 0..8 {
            nexus.write(at * MIB, &filled(4096, 1), true).await.unwrap();
        }
        drop(nexus);
        node.kill();
        // A start that resolves: then nothing is marked any more.
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        let is_clean =
            || nexus.status().unresolved_bytes == 0 && nexus.status().intent_regions == 0;
        nexus.inner.signal.until(is_clean).await;
        // On the disks, too.
        node.sleep(Duration::from_millis(20)).await;
        cut_off(&rig, &nexus, 1).await;
        nexus
            .write(3 * MIB - 4096, &filled(8192, 2), false)
            .await
            .unwrap();
        nexus
            .write_zeroes(6 * MIB, 4096, ZeroOptions::default())
            .await
            .unwrap();
        bring_back(&rig, &nexus, 1).await;
        let (kind, copied) = rebuild(&nexus, 1).await;
        assert_eq!(kind, RebuildKind::Partial, "B3");
        assert_eq!(copied, 4 * MIB, "F4: regions 0, 2, 3, 6");
        assert_equal(&rig, &[0, 1]);
        assert_eq!(rig.committed(), [0, 1]);
    });
}

#[test]
fn what_was_copied_before_the_last_checkpoint_is_not_copied_again_after_a_kill() {
    on_disks(3, (1, 2), async |rig, node, nexus| {
        nexus.write(0, &filled(2 << 20, 1), false).await.unwrap();
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        half_way(&node, &nexus, 1).await;
        assert_eq!(states(&nexus), [InSync, Rebuilding], "B1");
        // Writes to what is copied and to what is not.
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        nexus
            .write(SIZE - 4096, &filled(4096, 8), true)
            .await
            .unwrap();
        drop(nexus);
        node.kill();
        rig.disks.iter().for_each(|disk| disk.power_loss());

        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Rebuilding], "W is committed");
        let (kind, copied) = rebuild(&nexus, 1).await;
        assert_eq!(kind, RebuildKind::Resumed);
        // One checkpoint, after 5 s at 0.5 MiB/s: two regions for certain. Of them, the one written since is marked.
        assert!(copied <= 7 * MIB, "B5: {copied}");
        assert_equal(&rig, &[0, 1]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
    });
}

#[test]
fn a_stop_in_the_middle_is_prompt_and_loses_no_progress() {
    on_disks(4, (1, 2), async |rig, node, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        half_way(&node, &nexus, 1).await;
        let before = node.now();
        let clean = nexus.stop().await;
        assert!(clean, "A10: what is left to copy is on the target's list");
        let took = node.now() - before;
        assert!(took < Duration::from_millis(500), "A10: {took:?}");
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        let (kind, copied) = rebuild(&nexus, 1).await;
        assert_eq!(kind, RebuildKind::Resumed);
        assert!(copied <= 3 * MIB, "nothing is copied twice: {copied}");
        assert_equal(&rig, &[0, 1]);
    });
}

/// A rebuild that goes on finds what a client's write is just about to note: it is on the list in memory, and its page under
/// way (seed 195259328716697).
#[test]
fn what_is_listed_in_memory_only_is_listed_durably_before_it_is_copied() {
    on_disks(11, (1, 2), async |rig, node, nexus| {
        nexus.write(0, &filled(2 << 20, 1), false).await.unwrap();
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        half_way(&node, &nexus, 1).await;
        assert!(nexus.stop().await);
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        let listed = durable_regions(&rig.disks[1], MISSED_OFFSET, 8);
        assert!(!listed.contains(&0), "B5: {listed:?}");
        let target = nexus.inner.children[1].replica().unwrap();
        target.set(BitmapKind::Missed, 0..1);

        let (disk, copied) = (rig.disks[1].clone(), Rc::new(Cell::new(0)));
        let count = Rc::clone(&copied);
        rig.disks[1].watch_data_writes(move |bytes| {
            let region = (bytes.start - DATA_OFFSET) / MIB;
            let listed = durable_regions(&disk, MISSED_OFFSET, 8);
            assert!(listed.contains(&region), "W4, B3: {region} of {listed:?}");
            count.set(count.get() + u32::from(region == 0));
        });
        let (kind, _) = rebuild(&nexus, 1).await;
        assert_eq!(kind, RebuildKind::Resumed);
        assert!(copied.get() > 0, "the test is about the copy of region 0");
        assert_equal(&rig, &[0, 1]);
    });
}

#[test]
fn a_target_that_leaves_in_the_middle_goes_on_where_it_was() {
    on_disks(5, (2, 2), async |rig, node, nexus| {
        cut_off(&rig, &nexus, 1).await;
        for at in 0..8 {
            nexus.write(at * MIB, &filled(4096, 3), true).await.unwrap();
        }
        bring_back(&rig, &nexus, 1).await;
        half_way(&node, &nexus, 1).await;
        cut_off(&rig, &nexus, 1).await;
        assert_eq!(states(&nexus), [InSync, Stale]);
        nexus.write(MIB, &filled(4096, 4), true).await.unwrap();
        limit(&nexus, 0);
        let over = || nexus.inner.rebuild.borrow().is_none();
        nexus.inner.signal.until(over).await;
        bring_back(&rig, &nexus, 1).await;
        let (kind, _) = rebuild(&nexus, 1).await;
        assert_eq!(kind, RebuildKind::ResumedAfterAbsence);
        assert_equal(&rig, &[0, 1]);
        assert_eq!(read(&nexus, MIB, 4096).await, Ok(vec![4; 4096]));
    });
}

#[test]
fn writes_during_the_copy_are_on_both_whatever_the_order() {
    for seed in 0..12 {
        on_disks(seed, (1, 2), async |rig, node, nexus| {
            nexus.write(0, &filled(4 << 20, 1), false).await.unwrap();
            nexus.add_member(candidate(&rig, 1)).await.unwrap();
            for client in 0..4_u64 {
                let (nexus, clock, sim) = (nexus.clone(), node.clone(), rig.sim.clone());
                node.spawn(async move {
                    for round in 0..40 {
                        let at = sim.below(SIZE / 4096 - 8) * 4096;
                        let len = usize::try_from(4096 * (1 + sim.below(8))).unwrap();
                        let value = u8::try_from(2 + client * 40 + round).unwrap();
                        if sim.one_in(5) {
                            let options = ZeroOptions::default();
                            nexus.write_zeroes(at, len as u64, options).await.unwrap();
                        } else {
                            nexus.write(at, &filled(len, value), false).await.unwrap();
                        }
                        clock.sleep(Duration::from_micros(sim.below(500))).await;
                    }
                });
            }
            assert_eq!(rebuild(&nexus, 1).await, (RebuildKind::Full, SIZE));
            node.sleep(Duration::from_secs(2)).await;
            assert_equal(&rig, &[0, 1]);
        });
    }
}

#[test]
fn a_power_cut_of_the_source_right_after_the_target_turned_in_sync_loses_nothing() {
    for seed in 0..10 {
        on_disks(seed, (2, 2), async |rig, node, nexus| {
            cut_off(&rig, &nexus, 1).await;
            nexus.write(MIB, &filled(1 << 20, 5), false).await.unwrap();
            nexus.flush().await.unwrap();
            bring_back(&rig, &nexus, 1).await;
            rebuild(&nexus, 1).await;
            rig.disks.iter().for_each(|disk| disk.power_loss());
            drop(nexus);
            node.kill();
            let node = rig.sim.node();
            let nexus = rig.assemble(&node, &[false, true]).await.unwrap();
            let found = read(&nexus, MIB, 1 << 20).await.unwrap();
            assert!(
                found == vec![5; 1 << 20],
                "B7: flushed before it is in sync"
            );
        });
    }
}

/// B7: the record of what yet another member lacks survives the loss of the source.
#[test]
fn a_rebuilt_member_knows_what_others_lack() {
    on_disks(6, (3, 3), async |rig, node, nexus| {
        cut_off(&rig, &nexus, 1).await;
        cut_off(&rig, &nexus, 2).await;
        nexus.write(5 * MIB, &filled(4096, 9), true).await.unwrap();
        bring_back(&rig, &nexus, 1).await;
        rebuild(&nexus, 1).await;
        assert_eq!(states(&nexus), [InSync, InSync, Stale]);
        cut_off(&rig, &nexus, 0).await;
        bring_back(&rig, &nexus, 2).await;
        let (kind, copied) = rebuild(&nexus, 2).await;
        assert_eq!(kind, RebuildKind::Partial);
        assert!((2 * MIB..SIZE).contains(&copied), "{copied}");
        assert_equal(&rig, &[1, 2]);
        assert_eq!(rig.visible(2, 5 * MIB, 4096), vec![9; 4096]);
        let _ = node;
    });
}

#[test]
fn one_rebuild_at_a_time_and_none_of_strangers() {
    on_disks(9, (1, 3), async |rig, node, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        nexus.add_member(candidate(&rig, 2)).await.unwrap();
        half_way(&node, &nexus, 1).await;
        let second = nexus.rebuild(Rig::replica_id(2)).await;
        assert_eq!(second, Err(RebuildError::Busy), "B9");
        let stranger = Rig::replica_id(7);
        nexus.inner.rebuild.replace(None);
        let unknown = nexus.rebuild(stranger).await;
        assert_eq!(unknown, Err(RebuildError::NotMember(stranger)));
    });
}

#[test]
fn progress_is_told_once_a_second_and_the_limit_is_kept() {
    on_disks(10, (1, 2), async |rig, node, nexus| {
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        limit(&nexus, MIB);
        let seen = Rc::new(Cell::new(0));
        let (counter, watched) = (Rc::clone(&seen), nexus.clone());
        node.spawn(async move {
            let mut version = 0;
            loop {
                version = watched.changed(version).await;
                counter.set(counter.get() + 1);
            }
        });
        let before = node.now();
        rebuild(&nexus, 1).await;
        let took = node.now() - before;
        let expected = Duration::from_secs(7)..Duration::from_secs(10);
        assert!(expected.contains(&took), "B9: {took:?}");
        assert!(seen.get() < 20, "{} changes", seen.get());
    });
}

#[test]
fn a_member_that_was_truncated_is_copied_in_full() {
    on_disks(31, (2, 2), async |rig, _, nexus| {
        nexus.write(MIB, &filled(4096, 1), true).await.unwrap();
        nexus.report_truncated(Rig::replica_id(1));
        let is_out = || nexus.status().children[1].wants_attach;
        nexus.inner.signal.until(is_out).await;
        // It has its length back, and nobody knows what is in it.
        bring_back(&rig, &nexus, 1).await;
        let (kind, copied) = rebuild(&nexus, 1).await;
        assert_eq!((kind, copied), (RebuildKind::Full, SIZE), "section 5");
        assert_equal(&rig, &[0, 1]);
    });
}
