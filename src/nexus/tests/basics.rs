//! A volume's life without trouble.

use super::super::sim::{Rig, SimEnv};
use super::super::status::Health;
use super::super::{AssemblyError, Nexus};
use crate::io::sim::SimNode;
use crate::io::{BlockDevice, BufferPool, IoBuffer, IoError, ZeroOptions};
use crate::model::status::ReplicaState;

pub(super) const SIZE: u64 = 256 << 10;

/// Runs a test on a freshly created volume.
pub(super) fn on_volume(
    seed: u64,
    members: usize,
    test: impl AsyncFnOnce(Rig, SimNode, Nexus<SimEnv>) + 'static,
) {
    let rig = Rig::new(seed, members, SIZE, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        test(rig, node, nexus).await;
    });
}

pub(super) fn filled(len: usize, value: u8) -> IoBuffer {
    let buffer = BufferPool::default().get(len);
    buffer.fill(value);
    buffer
}

pub(super) async fn read(
    nexus: &Nexus<SimEnv>,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, IoError> {
    let buffer = filled(len, 0xcc);
    nexus.read(offset, &buffer).await.map(|()| buffer.to_vec())
}

pub(super) fn states(nexus: &Nexus<SimEnv>) -> Vec<ReplicaState> {
    let children = nexus.status().children;
    children.into_iter().map(|child| child.state).collect()
}

#[test]
fn what_was_written_is_read_back_after_a_clean_restart() {
    for members in [1, 2, 5, 16] {
        on_volume(1, members, async move |rig, node, nexus| {
            nexus.write(4096, &filled(8192, 7), false).await.unwrap();
            assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![0; 4096]));
            assert_eq!(read(&nexus, 4096, 8192).await, Ok(vec![7; 8192]));
            nexus
                .write_zeroes(4096, 4096, ZeroOptions::default())
                .await
                .unwrap();
            nexus.flush().await.unwrap();
            assert!(nexus.stop().await, "A10: nothing is left to resolve");
            assert_eq!(read(&nexus, 0, 4096).await, Err(IoError::Stopped));

            let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            let status = nexus.status();
            assert_eq!(status.health, Health::Online);
            assert_eq!(status.unresolved_bytes, 0, "A7: every member is CLEAN");
            assert_eq!((status.epoch, status.generation), (2, 2), "A8");
            assert_eq!(read(&nexus, 4096, 4096).await, Ok(vec![0; 4096]));
            assert_eq!(read(&nexus, 8192, 4096).await, Ok(vec![7; 4096]));
        });
    }
}

#[test]
fn an_unclean_stop_leaves_everything_unresolved_until_it_was_made_equal() {
    on_volume(2, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 7), true).await.unwrap();
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(nexus.status().unresolved_bytes, SIZE, "A7");
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![7; 4096]));
        let mut seen = 0;
        while nexus.status().unresolved_bytes > 0 {
            seen = nexus.changed(seen).await;
        }
        assert!(nexus.stop().await);
    });
}

#[test]
fn requests_outside_the_volume_or_off_its_grid_have_no_effect() {
    on_volume(3, 2, async |_, _, nexus| {
        let check = async |offset: u64, len: usize| {
            let buffer = filled(len, 1);
            assert_eq!(
                nexus.write(offset, &buffer, false).await,
                Err(IoError::EINVAL),
                "W1"
            );
            assert_eq!(
                nexus.read(offset, &buffer).await,
                Err(IoError::EINVAL),
                "W1"
            );
        };
        check(SIZE, 4096).await;
        check(SIZE - 4096, 8192).await;
        check(u64::MAX - 4095, 4096).await;
        check(512, 4096).await;
        check(0, 512).await;
        check(0, 0).await;
    });
}

#[test]
fn a_renamed_volume_keeps_its_generation_and_carries_the_name_in_every_label() {
    on_volume(4, 3, async |rig, _, nexus| {
        let before = nexus.status().generation;
        nexus.rename("db2".parse().unwrap()).await.unwrap();
        assert_eq!(nexus.name().as_str(), "db2");
        assert_eq!(rig.witness.record().unwrap().name.as_str(), "db2");
        assert_eq!(nexus.status().generation, before);
        for disk in &rig.disks {
            let replica = crate::replica::Replica::open(disk.open(), &BufferPool::default()).await;
            assert_eq!(replica.unwrap().label().name.as_str(), "db2");
        }
    });
}

#[test]
fn nothing_is_assembled_from_nothing() {
    on_volume(5, 2, async |rig, node, nexus| {
        nexus.stop().await;
        let refused = rig.assemble(&node, &[false, false]).await.unwrap_err();
        let AssemblyError::Blocked(blocked) = refused else {
            panic!("{refused}")
        };
        let text = blocked.to_string();
        assert!(
            text.contains("disk 0 is unplugged") && text.contains("`pool1`"),
            "{text}"
        );
    });
}
