//! Reads that fail or hang on one member (spec R4, R5).

use std::time::Duration;

use super::super::repair::{CORRECTIONS_MAX, WINDOW};
use super::super::{Nexus, Policy};
use super::basics::{SIZE, filled, on_volume, read, states};
use crate::io::sim::SimFault;
use crate::io::{BlockDevice, Clock, IoError, Spawn};
use crate::model::status::ReplicaState::{InSync, Stale};
use crate::nexus::sim::{Rig, SimEnv};
use crate::replica::layout::DATA_OFFSET;

const BLOCK: u64 = 4096;

fn make_unreadable(rig: &Rig, disk: usize, offset: u64) {
    rig.disks[disk].make_unreadable(DATA_OFFSET + offset);
}

/// Reads from `slot`, as long as it is the least busy one.
async fn read_there(
    nexus: &Nexus<SimEnv>,
    slot: usize,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, IoError> {
    let inner = &nexus.inner;
    let others = inner.usable().iter().filter(|other| *other != slot);
    let _busy: Vec<_> = others
        .map(|other| inner.children[other].hold(&inner.signal))
        .collect();
    read(nexus, offset, len).await
}

fn corrected(nexus: &Nexus<SimEnv>) -> Vec<u64> {
    let children = nexus.status().children;
    children.iter().map(|child| child.corrected_reads).collect()
}

async fn until_corrected(nexus: &Nexus<SimEnv>, count: u64) {
    let inner = &nexus.inner;
    let all = || corrected(nexus).iter().sum::<u64>();
    inner.signal.until(|| all() >= count).await;
}

#[test]
fn a_block_that_one_member_can_not_read_is_written_anew_from_another() {
    for members in [2, 3] {
        on_volume(1, members, async move |rig, _, nexus| {
            nexus.write(0, &filled(16384, 7), true).await.unwrap();
            make_unreadable(&rig, 1, BLOCK);
            // The request is larger than the bad block.
            assert_eq!(read_there(&nexus, 1, 0, 16384).await, Ok(vec![7; 16384]));
            until_corrected(&nexus, 1).await;
            assert_eq!(corrected(&nexus)[..2], [0, 1], "R4");
            assert_eq!(states(&nexus), vec![InSync; members], "R4: it stays");
            // It is good again: nobody else is asked, and there is nothing more to correct.
            for slot in 0..members {
                assert_eq!(read_there(&nexus, slot, 0, 16384).await, Ok(vec![7; 16384]));
            }
            assert_eq!(corrected(&nexus)[..2], [0, 1]);
            assert_eq!(rig.durable(1, BLOCK, BLOCK), vec![7; 4096]);
        });
    }
}

#[test]
fn what_was_answered_stays_the_answer_when_the_other_copy_is_lost() {
    for seed in 0..30 {
        on_volume(seed, 2, async |rig, _, nexus| {
            nexus.write(0, &filled(4096, 7), true).await.unwrap();
            make_unreadable(&rig, 1, 0);
            assert_eq!(read_there(&nexus, 1, 0, 4096).await, Ok(vec![7; 4096]));
            // While it is being corrected, somebody writes.
            nexus.write(0, &filled(4096, 8), false).await.unwrap();
            until_corrected(&nexus, 1).await;
            rig.disks[0].set_fault(SimFault {
                lost: true,
                ..SimFault::default()
            });
            assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![8; 4096]), "G5");
        });
    }
}

#[test]
fn many_reads_of_one_bad_block_are_one_error() {
    on_volume(2, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        make_unreadable(&rig, 1, 0);
        let busy = nexus.inner.children[0].hold(&nexus.inner.signal);
        for _ in 0..100 {
            let nexus = nexus.clone();
            node.spawn(async move {
                assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
            });
        }
        node.sleep(Duration::from_secs(1)).await;
        drop(busy);
        assert_eq!(states(&nexus), [InSync; 2]);
        assert_eq!(corrected(&nexus), [0, 1]);
    });
}

#[test]
fn the_last_copy_is_kept_although_it_can_not_be_read() {
    on_volume(3, 2, async |rig, _, nexus| {
        nexus.write(0, &filled(8192, 7), true).await.unwrap();
        make_unreadable(&rig, 0, 0);
        make_unreadable(&rig, 1, 0);
        for _ in 0..5 {
            assert_eq!(read(&nexus, 0, 4096).await, Err(IoError::EIO), "R4, G10");
            assert_eq!(read(&nexus, 4096, 4096).await, Ok(vec![7; 4096]));
        }
        assert_eq!(states(&nexus), [InSync; 2], "G7");
        nexus.write(0, &filled(4096, 8), false).await.unwrap();
        for slot in 0..2 {
            assert_eq!(read_there(&nexus, slot, 0, 4096).await, Ok(vec![8; 4096]));
        }
    });
}

/// Reads `count` bad blocks, `pause` apart.
async fn read_bad_blocks(rig: &Rig, nexus: &Nexus<SimEnv>, count: u64, pause: Duration) {
    for index in 0..count {
        let offset = index * BLOCK % SIZE;
        make_unreadable(rig, 1, offset);
        let clock = rig.sim.node();
        assert_eq!(read_there(nexus, 1, offset, 4096).await, Ok(vec![0; 4096]));
        if states(nexus)[1] != InSync {
            return;
        }
        until_corrected(nexus, index + 1).await;
        clock.sleep(pause).await;
    }
}

#[test]
fn more_than_twenty_corrections_in_an_hour_fault_the_member() {
    on_volume(4, 2, async |rig, _, nexus| {
        let limit = CORRECTIONS_MAX as u64;
        read_bad_blocks(&rig, &nexus, limit, Duration::ZERO).await;
        assert_eq!(states(&nexus), [InSync; 2]);
        make_unreadable(&rig, 1, 0);
        assert_eq!(read_there(&nexus, 1, 0, 4096).await, Ok(vec![0; 4096]));
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        let reason = nexus.status().children[1].reason.clone().unwrap();
        assert!(reason.contains("ReadErrors"), "{reason}");
    });
}

#[test]
fn corrections_over_a_long_time_fault_nobody() {
    on_volume(5, 2, async |rig, _, nexus| {
        let pause = WINDOW / 19;
        read_bad_blocks(&rig, &nexus, 60, pause).await;
        assert_eq!(states(&nexus), [InSync; 2]);
        assert_eq!(corrected(&nexus), [0, 60]);
    });
}

#[test]
fn a_member_that_can_not_be_corrected_is_faulted() {
    on_volume(6, 2, async |rig, _, nexus| {
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        // Reads work elsewhere; writes fail.
        make_unreadable(&rig, 1, 0);
        rig.disks[1].set_fault(SimFault {
            write_errors: 1,
            ..SimFault::default()
        });
        assert_eq!(read_there(&nexus, 1, 0, 4096).await, Ok(vec![7; 4096]));
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        assert_eq!(states(&nexus), [InSync, Stale]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
    });
}

#[test]
fn a_read_of_a_member_that_hangs_is_answered_by_another_one() {
    on_volume(7, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        rig.disks[1].set_fault(SimFault {
            hung: true,
            ..SimFault::default()
        });
        let started = node.now();
        assert_eq!(read_there(&nexus, 1, 0, 4096).await, Ok(vec![7; 4096]));
        let took = node.now() - started;
        let hedge = rig.spec.policy.timeouts.read_hedge;
        assert!(took >= hedge && took < hedge * 3 / 2, "R5: {took:?}");
        assert_eq!(nexus.status().hedged_reads, 1);
        // The abandoned read is still under way, so the member counts as busy, and others are asked first.
        assert_eq!(nexus.inner.children[1].inflight(), 1, "R5, R7");
        // However busy these are.
        let started = node.now();
        let signal = &nexus.inner.signal;
        let _busy: Vec<_> = (0..9)
            .map(|_| nexus.inner.children[0].hold(signal))
            .collect();
        for _ in 0..20 {
            assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
        }
        assert!(node.now() - started < hedge);
        assert_eq!(nexus.status().hedged_reads, 1);
        rig.disks[1].set_fault(SimFault::default());
        node.sleep(Duration::from_secs(1)).await;
        assert_eq!(nexus.inner.children[1].inflight(), 0);
        assert_eq!(states(&nexus), [InSync; 2]);
    });
}

#[test]
fn a_read_that_is_slow_everywhere_is_answered_by_whoever_comes_first() {
    on_volume(8, 3, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        let hung = SimFault {
            hung: true,
            ..SimFault::default()
        };
        rig.disks.iter().for_each(|disk| disk.set_fault(hung));
        let answer = std::rc::Rc::new(std::cell::RefCell::new(None));
        let (slot, reader) = (std::rc::Rc::clone(&answer), nexus.clone());
        node.spawn(async move { *slot.borrow_mut() = Some(read(&reader, 0, 4096).await) });
        node.sleep(Duration::from_secs(3)).await;
        assert!(answer.borrow().is_none());
        assert_eq!(nexus.status().hedged_reads, 2);
        rig.disks[2].set_fault(SimFault::default());
        node.sleep(Duration::from_millis(200)).await;
        assert_eq!(answer.take(), Some(Ok(vec![7; 4096])));
        rig.disks
            .iter()
            .for_each(|disk| disk.set_fault(SimFault::default()));
        assert!(nexus.stop().await);
    });
}

#[test]
fn a_truncated_member_is_faulted_and_never_corrected() {
    on_volume(9, 2, async |rig, _, nexus| {
        nexus.write(0, &filled(8192, 7), true).await.unwrap();
        let before = rig.disks[1].last_data_write();
        rig.disks[1].set_fault(SimFault {
            end: Some(DATA_OFFSET + 4096),
            ..SimFault::default()
        });
        assert_eq!(read_there(&nexus, 1, 0, 8192).await, Ok(vec![7; 8192]));
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        assert_eq!(rig.disks[1].last_data_write(), before, "section 5");
        assert_eq!(corrected(&nexus), [0, 0]);
    });
}

#[test]
fn a_block_that_can_not_be_read_does_not_stop_resolving() {
    on_volume(10, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(8192, 7), true).await.unwrap();
        drop(nexus);
        node.kill();
        make_unreadable(&rig, 1, BLOCK);
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        let mut seen = 0;
        while nexus.status().unresolved_bytes > 0 {
            seen = nexus.changed(seen).await;
        }
        node.sleep(Duration::from_secs(1)).await;
        assert_eq!(states(&nexus), [InSync; 2], "R2, R4");
        assert_eq!(read_there(&nexus, 1, 0, 8192).await, Ok(vec![7; 8192]));
        assert_eq!(corrected(&nexus), [0, 1]);
    });
}

#[test]
fn a_member_that_is_being_rebuilt_is_never_read() {
    on_volume(11, 2, async |rig, node, nexus| {
        let lost = SimFault {
            lost: true,
            ..SimFault::default()
        };
        rig.disks[1].set_fault(lost);
        let len = usize::try_from(SIZE).unwrap();
        nexus.write(0, &filled(len, 7), true).await.unwrap();
        node.sleep(Duration::from_secs(1)).await;
        rig.disks[1].set_fault(SimFault::default());
        let candidate = rig.candidates(&rig.all()).swap_remove(1);
        nexus.attach(candidate).await.unwrap();
        // 64 KiB a second.
        nexus.configure(Policy {
            rebuild_bandwidth: 64 << 10,
            ..rig.spec.policy
        });
        let (rebuilding, replica) = (nexus.clone(), Rig::replica_id(1));
        let (done, mut ended) = tokio::sync::oneshot::channel();
        node.spawn(async move {
            rebuilding.rebuild(replica).await.unwrap();
            let _ = done.send(());
        });
        let mut reads = 0;
        while ended.try_recv().is_err() {
            // Its disk has zeroes where nothing was copied yet.
            for offset in (0..SIZE).step_by(64 << 10) {
                let seen = read_there(&nexus, 1, offset, 4096).await;
                assert_eq!(seen, Ok(vec![7; 4096]), "R1");
                reads += 1;
            }
            node.sleep(Duration::from_millis(50)).await;
        }
        assert!(reads > 100, "{reads}");
        assert_eq!(states(&nexus), [InSync; 2]);
        assert_eq!(read_there(&nexus, 1, 0, 4096).await, Ok(vec![7; 4096]));
    });
}
