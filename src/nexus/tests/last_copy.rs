//! The last copy fails (spec G7, F2), and copies in memory, which do not count as one.

use std::time::Duration;

use super::super::fan_out::Failure;
use super::super::status::Health;
use super::basics::{SIZE, filled, on_volume, read, states};
use crate::io::sim::SimFault;
use crate::io::{BlockDevice, Clock, IoError};
use crate::model::status::ReplicaState::{Absent, Blank, InSync, Stale};
use crate::nexus::sim::Rig;
use crate::nexus::{AssemblyError, Nexus};
use crate::replica::layout::DATA_OFFSET;

fn lost() -> SimFault {
    SimFault {
        lost: true,
        ..SimFault::default()
    }
}

#[test]
fn the_last_copy_is_kept_and_tried_again() {
    for members in [1, 2] {
        on_volume(1, members, async move |rig, _, nexus| {
            if members == 2 {
                rig.disks[1].set_fault(lost());
                nexus.write(0, &filled(4096, 1), false).await.unwrap();
            } else {
                nexus.write(0, &filled(4096, 1), false).await.unwrap();
            }
            let generation = nexus.status().generation;
            rig.disks[0].set_fault(lost());
            let failed = nexus.write(0, &filled(4096, 2), false).await;
            assert_eq!(failed, Err(IoError::EIO), "F2");
            assert_eq!(read(&nexus, 0, 4096).await, Err(IoError::EIO));
            assert_eq!(nexus.status().health, Health::Failed);
            assert_eq!(
                nexus.status().generation,
                generation,
                "nothing is persisted"
            );
            assert_eq!(rig.committed(), [0], "G7");
            rig.disks[0].set_fault(SimFault::default());
            assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![1; 4096]));
            assert_eq!(nexus.write(0, &filled(4096, 3), false).await, Ok(()));
            assert_ne!(nexus.status().health, Health::Failed);
        });
    }
}

#[test]
fn after_a_failed_flush_of_the_last_copy_only_reads_go_on_until_the_frontends_re_attach() {
    for members in [1, 2] {
        on_volume(2, members, async move |rig, _, nexus| {
            nexus.write(0, &filled(4096, 1), false).await.unwrap();
            for disk in &rig.disks {
                disk.set_fault(SimFault {
                    flush_errors: 1,
                    ..SimFault::default()
                });
            }
            assert_eq!(nexus.flush().await, Err(IoError::EIO));
            rig.disks
                .iter()
                .for_each(|disk| disk.set_fault(SimFault::default()));
            assert_eq!(nexus.flush().await, Err(IoError::EIO), "W10");
            assert_eq!(
                nexus.write(0, &filled(4096, 2), true).await,
                Err(IoError::EIO)
            );
            assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![1; 4096]));
            assert!(nexus.status().lost_unflushed);
            nexus.reattached();
            assert!(!nexus.status().lost_unflushed);
            let health = nexus.status().health;
            assert_ne!(health, Health::Failed, "G9: also while nobody writes");
            assert_eq!(nexus.write(0, &filled(4096, 2), false).await, Ok(()));
            assert_eq!(nexus.flush().await, Ok(()));
        });
    }
}

#[test]
fn a_clean_stop_needs_a_flush_that_succeeds() {
    on_volume(3, 1, async |rig, _, nexus| {
        rig.disks[0].set_fault(SimFault {
            flush_errors: 1,
            ..SimFault::default()
        });
        assert!(!nexus.stop().await, "A10");
    });
}

#[test]
fn a_copy_in_memory_never_becomes_the_last_one() {
    let rig = {
        let mut rig = Rig::new(4, 2, SIZE, 4096);
        rig.volatile[1] = true;
        rig
    };
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        rig.disks[0].set_fault(lost());
        let failed = nexus.write(0, &filled(4096, 2), false).await;
        assert_eq!(failed, Err(IoError::EIO));
        node.sleep(Duration::from_secs(60)).await;
        assert_eq!(rig.committed(), [0, 1], "the file stays in");
        rig.disks[0].set_fault(SimFault::default());
        drop(nexus);
        node.kill();

        rig.disks[1].erase();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(rig.committed(), [0]);
        let found = states(&nexus);
        assert!(
            found == [InSync, Absent] || found == [InSync, Blank],
            "{found:?}"
        );
        let data = read(&nexus, 0, 4096).await.unwrap();
        assert!(data == vec![1; 4096] || data == vec![2; 4096]);
    });
}

#[test]
fn a_volume_in_memory_alone_does_not_survive_a_restart() {
    let mut rig = Rig::new(5, 2, SIZE, 4096);
    rig.volatile = vec![true, true];
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        rig.disks[0].set_fault(lost());
        nexus.write(0, &filled(4096, 1), false).await.unwrap();
        assert_eq!(states(&nexus), [Stale, InSync], "among equals, one may go");
        drop(nexus);
        node.kill();
        rig.disks.iter().for_each(|disk| disk.erase());
        let refused = Nexus::assemble(
            rig.parts(&node),
            rig.spec.clone(),
            rig.candidates(&[true, true]),
        );
        assert!(matches!(refused.await, Err(AssemblyError::Blocked(_))));
    });
}

#[test]
fn the_last_copy_is_not_written_to_once_its_file_is_too_short() {
    for members in [1, 2] {
        on_volume(6, members, async move |rig, _, nexus| {
            if members == 2 {
                rig.disks[1].set_fault(lost());
                nexus.write(0, &filled(4096, 1), false).await.unwrap();
            }
            let end = Some(DATA_OFFSET + 8192);
            rig.disks[0].set_fault(SimFault {
                end,
                ..SimFault::default()
            });
            assert_eq!(read(&nexus, 8192, 4096).await, Err(IoError::EIO));
            let before = rig.disks[0].last_data_write();
            let failed = nexus.write(SIZE - 4096, &filled(4096, 2), false).await;
            assert_eq!(failed, Err(IoError::EIO));
            assert_eq!(read(&nexus, 0, 4096).await.map(|_| ()), Ok(()));
            let failed = nexus.write(0, &filled(4096, 2), false).await;
            assert_eq!(
                failed,
                Err(IoError::EIO),
                "not even where the file still is"
            );
            assert_eq!(rig.disks[0].last_data_write(), before);
            let reason = nexus.status().children[0].reason.clone().unwrap();
            assert!(reason.contains("Truncated"), "{reason}");
        });
    }
}

#[test]
fn a_lost_witness_does_not_wait_for_memory_that_can_not_come_back() {
    let mut rig = Rig::new(7, 2, SIZE, 4096);
    rig.volatile[1] = true;
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        nexus.stop().await;
        rig.disks[1].erase();
        rig.witness.replace(None);
        let nexus = rig.assemble(&node, &[true, false]).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Absent]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![1; 4096]));
    });
}

/// The request's memory is the guest's own: its frontend ends the connection when it learns that it has gone.
#[test]
fn memory_that_the_guest_took_away_is_no_fault_of_the_copy_and_is_told() {
    on_volume(9, 1, async move |_, _, nexus| {
        let gone = IoError::Os(libc::EFAULT);
        for failure in [Failure::Data(gone), Failure::Read(gone)] {
            assert_eq!(nexus.inner.judge_single(failure), gone);
        }
        assert_eq!(states(&nexus), [InSync]);
        assert_eq!(nexus.status().health, Health::Online);
        let ours = nexus.inner.judge_single(Failure::Data(IoError::EINVAL));
        assert_eq!(ours, IoError::EIO);
    });
}

/// W8, F2: one copy is full, the other one can't be written to; then both are well again.
#[test]
fn a_volume_whose_copies_all_failed_goes_on_once_they_are_well() {
    for seed in 0..20 {
        on_volume(seed, 2, async |rig, node, nexus| {
            nexus.write(0, &filled(65536, 1), true).await.unwrap();
            rig.disks[1].set_fault(SimFault {
                full: true,
                ..SimFault::default()
            });
            rig.disks[0].set_fault(SimFault {
                write_errors: 1,
                ..SimFault::default()
            });
            let failed = nexus.write(0, &filled(8192, 2), false).await;
            assert!(failed.is_err(), "{failed:?}");
            node.sleep(Duration::from_secs(5)).await;
            rig.disks[0].set_fault(SimFault::default());
            rig.disks[1].set_fault(SimFault::default());
            node.sleep(Duration::from_secs(5)).await;
            let data = read(&nexus, 0, 4096).await;
            assert!(data.is_ok(), "{data:?} {:?}", nexus.status());
        });
    }
}
