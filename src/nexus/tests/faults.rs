//! One child fails while another is healthy (spec section 5).

use std::rc::Rc;
use std::time::Duration;

use super::super::status::Health;
use super::super::{Nexus, WitnessRecord};
use super::basics::{SIZE, filled, on_volume, read, states};
use crate::io::sim::{SimFault, SimNode};
use crate::io::{BlockDevice, Clock, IoError, Spawn, ZeroOptions};
use crate::model::GenerationId;
use crate::model::status::ReplicaState::{InSync, Stale};
use crate::nexus::Policy;
use crate::nexus::sim::{Rig, SimEnv};
use crate::replica::layout::DATA_OFFSET;

const HEALTHY: SimFault = SimFault {
    read_errors: 0,
    write_errors: 0,
    flush_errors: 0,
    transient_errors: 0,
    full: false,
    lost: false,
    hung: false,
    end: None,
    per_mib: Duration::ZERO,
};

/// With `fault` on child 1 of two, `request` must succeed, and leave child 1 in `expected` for a reason that contains
/// `reason`.
fn check(
    fault: SimFault,
    request: impl AsyncFnOnce(&Nexus<SimEnv>) -> Result<(), IoError> + 'static,
    reason: &'static str,
) {
    on_volume(1, 2, async move |rig, _, nexus| {
        nexus.write(0, &filled(8192, 1), true).await.unwrap();
        rig.disks[1].set_fault(fault);
        assert_eq!(request(&nexus).await, Ok(()));
        if reason.is_empty() {
            assert_eq!(states(&nexus), [InSync, InSync]);
            return;
        }
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        nexus
            .inner
            .signal
            .until(|| nexus.inner.active.get().len() == 1)
            .await;
        assert_eq!(states(&nexus), [InSync, Stale]);
        let status = nexus.status();
        let found = status.children[1].reason.clone().unwrap();
        assert!(found.contains(reason), "{found}");
        assert_eq!((status.health, status.generation), (Health::Degraded, 2));
    });
}

async fn write(nexus: &Nexus<SimEnv>) -> Result<(), IoError> {
    nexus.write(4096, &filled(4096, 2), false).await
}

/// Reads until child 1 was asked, too.
async fn read_much(nexus: &Nexus<SimEnv>) -> Result<(), IoError> {
    for _ in 0..20 {
        let slot_1_is_idle = nexus.inner.children[1].inflight() == 0;
        // The policy prefers the idle child; make the other one busy.
        let _busy = slot_1_is_idle.then(|| nexus.inner.children[0].hold(&nexus.inner.signal));
        let data = read(nexus, 0, 4096).await?;
        assert_eq!(data, vec![1; 4096]);
    }
    Ok(())
}

#[test]
fn every_row_of_the_error_table_does_what_it_says() {
    let failing = |one_in| SimFault {
        write_errors: one_in,
        ..HEALTHY
    };
    check(failing(1), async |n| write(n).await, "WriteError");
    check(
        failing(1),
        async |n| n.write_zeroes(0, 4096, ZeroOptions::default()).await,
        "WriteError",
    );
    let lost = SimFault {
        lost: true,
        ..HEALTHY
    };
    check(lost, async |n| write(n).await, "No such device");
    let unflushable = SimFault {
        flush_errors: 1,
        ..HEALTHY
    };
    check(unflushable, async |n| n.flush().await, "FlushError");
    let full = SimFault {
        full: true,
        ..HEALTHY
    };
    check(full, async |n| write(n).await, "NoSpace");
    let truncated = SimFault {
        end: Some(DATA_OFFSET),
        ..HEALTHY
    };
    check(truncated, read_much, "Truncated");
    let unreadable = SimFault {
        read_errors: 1,
        ..HEALTHY
    };
    check(unreadable, read_much, "ReadError");
    let busy = SimFault {
        transient_errors: 3,
        ..HEALTHY
    };
    check(busy, async |n| write(n).await, "");
    let always_busy = SimFault {
        transient_errors: 1,
        ..HEALTHY
    };
    let write_soon = async |n: &Nexus<SimEnv>| {
        // Before anything else is tried on it.
        let mut policy = Policy::default();
        policy.timeouts.io = Duration::from_secs(3);
        n.configure(policy);
        write(n).await
    };
    check(always_busy, write_soon, "TimedOut");
}

#[test]
fn no_space_on_all_members_is_told_to_the_client_and_faults_nobody() {
    on_volume(2, 3, async |rig, _, nexus| {
        let full = SimFault {
            full: true,
            ..HEALTHY
        };
        rig.disks.iter().for_each(|disk| disk.set_fault(full));
        assert_eq!(write(&nexus).await, Err(IoError::ENOSPC));
        assert_eq!(states(&nexus), [InSync; 3]);
        assert_eq!(nexus.status().unresolved_bytes, 64 << 10, "range -> U");
        rig.disks.iter().for_each(|disk| disk.set_fault(HEALTHY));
        assert_eq!(write(&nexus).await, Ok(()));
    });
}

#[test]
fn a_write_that_fails_everywhere_faults_nobody_and_is_resolved_before_it_is_read() {
    for seed in 0..20 {
        on_volume(seed, 2, async |rig, _, nexus| {
            let failing = SimFault {
                write_errors: 1,
                ..HEALTHY
            };
            rig.disks.iter().for_each(|disk| disk.set_fault(failing));
            let result = nexus.write(0, &filled(16 << 10, 9), false).await;
            assert_eq!(result, Err(IoError::EIO), "W8");
            assert_eq!(states(&nexus), [InSync, InSync]);
            rig.disks.iter().for_each(|disk| disk.set_fault(HEALTHY));
            let seen = read(&nexus, 0, 16 << 10).await.unwrap();
            for disk in 0..2 {
                assert_eq!(rig.visible(disk, 0, 16 << 10), seen, "R2");
            }
        });
    }
}

#[test]
fn only_a_write_of_a_whole_chunk_resolves_it() {
    let chunk = 64 << 10;
    for seed in 0..10 {
        on_volume(seed, 2, async move |rig, node, nexus| {
            let failing = SimFault {
                write_errors: 1,
                ..HEALTHY
            };
            rig.disks.iter().for_each(|disk| disk.set_fault(failing));
            let result = nexus.write(0, &filled(chunk, 9), false).await;
            assert_eq!(result, Err(IoError::EIO), "W8");
            // The background task tries, fails, and pauses.
            node.sleep(Duration::from_millis(100)).await;
            if rig.visible(0, 0, 64 << 10) == rig.visible(1, 0, 64 << 10) {
                return;
            }
            rig.disks.iter().for_each(|disk| disk.set_fault(HEALTHY));
            nexus.write(0, &filled(chunk / 2, 1), false).await.unwrap();
            assert_eq!(nexus.status().unresolved_bytes, 64 << 10, "R3");
            nexus.write(0, &filled(chunk, 2), false).await.unwrap();
            assert_eq!(nexus.status().unresolved_bytes, 0, "R3");
            assert_eq!(rig.visible(0, 0, 64 << 10), rig.visible(1, 0, 64 << 10));
        });
    }
}

/// Starts a write and gives its result back through the nexus' clock.
fn background_write(
    nexus: &Nexus<SimEnv>,
    node: &SimNode,
) -> Rc<std::cell::Cell<Option<Result<(), IoError>>>> {
    let result = Rc::new(std::cell::Cell::new(None));
    let (slot, nexus) = (Rc::clone(&result), nexus.clone());
    node.spawn(async move { slot.set(Some(write(&nexus).await)) });
    result
}

#[test]
fn no_write_is_acked_while_the_witness_can_not_be_reached() {
    on_volume(3, 2, async |rig, node, nexus| {
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..HEALTHY
        });
        rig.witness.set_down(true);
        let result = background_write(&nexus, &node);
        node.sleep(Duration::from_secs(29)).await;
        assert_eq!(result.get(), None, "F6: held");
        node.sleep(Duration::from_secs(2)).await;
        assert_eq!(result.get(), Some(Err(IoError::EIO)), "F6: never acked");
        // What both may hold differently is equalised before anybody reads it, and that waits for the commit, too.
        rig.witness.set_down(false);
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        assert_eq!(write(&nexus).await, Ok(()));
        assert_eq!(states(&nexus), [InSync, Stale]);
    });
}

#[test]
fn a_fault_does_not_wait_for_the_io_that_hangs_on_the_child() {
    on_volume(4, 2, async |rig, node, nexus| {
        rig.disks[1].set_fault(SimFault {
            hung: true,
            ..HEALTHY
        });
        let hanging = background_write(&nexus, &node);
        node.sleep(Duration::from_secs(1)).await;
        assert_eq!(hanging.get(), None);
        // Something else finds out that the child is bad.
        nexus.report_truncated(Rig::replica_id(1));
        node.sleep(Duration::from_secs(1)).await;
        assert_eq!(hanging.get(), Some(Ok(())), "F1");
        assert_eq!(rig.committed(), [0]);
        let state = || nexus.inner.children[1].state();
        let draining = matches!(state(), super::super::ChildState::Draining { .. });
        assert!(draining, "{:?}", state());
        rig.disks[1].set_fault(HEALTHY);
        node.sleep(Duration::from_secs(1)).await;
        assert!(matches!(
            state(),
            super::super::ChildState::Stale { since: 2, .. }
        ));
    });
}

#[test]
fn another_owner_at_the_witness_ends_everything_and_no_label_is_written() {
    on_volume(5, 3, async |rig, node, nexus| {
        let found = rig.witness.record().unwrap();
        rig.witness.replace(Some(WitnessRecord {
            epoch: found.epoch + 1,
            generation_id: GenerationId::from_uuid(uuid::Uuid::from_u128(9)),
            ..found
        }));
        rig.disks[2].set_fault(SimFault {
            write_errors: 1,
            ..HEALTHY
        });
        assert_eq!(write(&nexus).await, Err(IoError::EIO), "E4");
        assert_eq!(nexus.status().health, Health::Failed);
        assert_eq!(read(&nexus, 0, 4096).await, Err(IoError::EIO));
        assert_eq!(nexus.flush().await, Err(IoError::EIO));
        let labels = || {
            rig.disks
                .iter()
                .map(|disk| disk.durable(0..1 << 20))
                .collect::<Vec<_>>()
        };
        let before = labels();
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..HEALTHY
        });
        let _ = write(&nexus).await;
        node.sleep(Duration::from_secs(60)).await;
        assert!(!nexus.stop().await);
        assert!(labels() == before, "I6");
    });
}

#[test]
fn a_second_fault_during_the_first_commit_is_committed_as_well() {
    for seed in 0..30 {
        on_volume(seed, 3, async |rig, node, nexus| {
            rig.witness.set_lost_answers(2);
            for disk in &rig.disks[1..] {
                disk.set_fault(SimFault {
                    write_errors: 2,
                    ..HEALTHY
                });
            }
            for _ in 0..12 {
                assert_eq!(write(&nexus).await, Ok(()), "F5");
            }
            node.sleep(Duration::from_secs(5)).await;
            let expected: Vec<usize> = rig.committed();
            let active: Vec<usize> = nexus.inner.active.get().iter().collect();
            assert_eq!(active, expected);
            assert!(expected.contains(&0));
        });
    }
}

#[test]
fn a_dropped_request_is_finished_all_the_same() {
    use std::pin::pin;
    use std::task::{Context, Waker};
    on_volume(6, 2, async |rig, node, nexus| {
        {
            let data = filled(4096, 3);
            let mut write = pin!(nexus.write(0, &data, false));
            let mut context = Context::from_waker(Waker::noop());
            assert!(write.as_mut().poll(&mut context).is_pending());
        }
        // The next request for the same place waits for the abandoned one (W3, W11).
        nexus.write(0, &filled(4096, 4), false).await.unwrap();
        node.sleep(Duration::from_secs(1)).await;
        for disk in 0..2 {
            assert!(rig.visible(disk, 0, 4096) == vec![4; 4096]);
        }
    });
}

#[test]
fn a_stale_child_stays_stale_after_a_restart_and_is_not_read() {
    on_volume(7, 2, async |rig, node, nexus| {
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..HEALTHY
        });
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        drop(nexus);
        node.kill();
        rig.disks[1].set_fault(HEALTHY);
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Stale], "G6");
        for _ in 0..50 {
            assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
        }
        let before = rig.disks[1].last_data_write();
        nexus
            .write(SIZE - 4096, &filled(4096, 7), true)
            .await
            .unwrap();
        assert_eq!(rig.disks[1].last_data_write(), before, "I8");
    });
}
