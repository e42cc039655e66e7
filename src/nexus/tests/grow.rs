//! A volume grows while it is used (spec section 10).

use super::basics::{SIZE, filled, on_volume, read, states};
use crate::io::sim::SimFault;
use crate::io::{BlockDevice, IoError};
use crate::model::status::ReplicaState::{InSync, Stale};
use crate::nexus::sim::Rig;

const LARGER: u64 = 3 * SIZE;

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
            crate::io::Spawn::spawn(&node, async move {
                let _ = growing.grow(LARGER).await;
            });
            let some = std::time::Duration::from_micros(rig.sim.below(20_000));
            crate::io::Clock::sleep(&node, some).await;
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
