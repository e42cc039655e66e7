//! Disks that hang while a volume starts, gets a member back, or grows (spec A1, A8, G11).

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::basics::{SIZE, filled, on_volume, read, states};
use super::hung::{SECOND, hang, start};
use super::members::on_part;
use crate::io::sim::{SimFault, SimNode};
use crate::io::{BlockDevice, Clock, IoError, Spawn};
use crate::model::status::ReplicaState::InSync;
use crate::nexus::sim::{Rig, SimEnv};
use crate::nexus::{AssemblyError, Nexus};

type Started = Rc<RefCell<Option<Result<Nexus<SimEnv>, AssemblyError>>>>;

/// Starts a volume; after a moment, these disks hang.
async fn start_hanging(rig: &Rig, moment: u64, hung: &[usize]) -> (SimNode, Started) {
    let node = rig.sim.node();
    let started = Started::default();
    let (answer, own, clock) = (Rc::clone(&started), rig.clone(), node.clone());
    node.spawn(async move {
        let result = own.assemble(&clock, &own.all()).await;
        answer.replace(Some(result));
    });
    node.sleep(Duration::from_micros(moment)).await;
    hung.iter().for_each(|disk| hang(rig, *disk, true));
    (node, started)
}

/// Moments in microseconds, from before the labels are read until after the start.
fn moments() -> impl Iterator<Item = u64> {
    (0..60).map(|step| step * 150)
}

/// A1, A8, F5: it is left behind, wherever it hangs, and comes back later.
#[test]
fn a_disk_that_hangs_does_not_hold_up_the_start() {
    for moment in moments() {
        on_volume(moment, 2, async move |rig, node, nexus| {
            nexus.write(0, &filled(8192, 1), true).await.unwrap();
            drop(nexus);
            node.kill();
            let (node, started) = start_hanging(&rig, moment, &[1]).await;
            node.sleep(22 * SECOND).await;
            let nexus = started.take().expect("A1").expect("A8: one copy is safe");
            nexus.write(0, &filled(4096, 2), true).await.unwrap();
            assert_eq!(rig.committed(), [0], "{moment}");
            hang(&rig, 1, false);
            node.sleep(SECOND).await;
            rig.disks[1].quiesce().await;
            nexus.attach(rig.candidate(1)).await.unwrap();
            nexus.rebuild(Rig::replica_id(1)).await.unwrap();
            assert_eq!(states(&nexus), [InSync, InSync]);
            assert_eq!(rig.visible(1, 0, 4096), [2; 4096]);
        });
    }
}

/// A8: nothing is left to start from, until they answer.
#[test]
fn a_start_ends_when_all_disks_hang_and_works_once_they_answer() {
    for (moment, members) in moments().zip([1, 2].into_iter().cycle()) {
        on_volume(moment, members, async move |rig, node, nexus| {
            nexus.write(0, &filled(8192, 1), true).await.unwrap();
            drop(nexus);
            node.kill();
            let all: Vec<usize> = (0..members).collect();
            let (node, started) = start_hanging(&rig, moment, &all).await;
            node.sleep(22 * SECOND).await;
            let first = started.take().expect("A8: start again at A1");
            if let Err(error) = &first {
                let said = error.to_string();
                assert!(said.contains("10 s"), "{said}");
            }
            drop(first);
            node.kill();
            all.iter().for_each(|disk| hang(&rig, *disk, false));
            let node = rig.sim.node();
            let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            // A label that was under way may say that the other disk was left behind first.
            assert!(states(&nexus).contains(&InSync), "G7: {moment}");
            assert_eq!(read(&nexus, 0, 8192).await, Ok(vec![1; 8192]));
        });
    }
}

/// G11: each of the two costs its timeout, and not until the first one answers.
#[test]
fn a_disk_that_hangs_while_it_is_brought_back_does_not_hold_up_a_fault() {
    for moment in moments().take(20) {
        on_volume(moment, 3, async move |rig, node, nexus| {
            rig.disks[1].set_fault(SimFault {
                lost: true,
                ..SimFault::default()
            });
            nexus.write(0, &filled(4096, 1), true).await.unwrap();
            node.sleep(SECOND).await;
            rig.disks[1].set_fault(SimFault::default());
            let back = rig.candidate(1);
            let attached = start(&node, &nexus, async |nexus| {
                let attached = nexus.attach(back).await;
                attached.map_err(|_| IoError::EIO)
            });
            node.sleep(Duration::from_micros(moment)).await;
            hang(&rig, 1, true);
            hang(&rig, 2, true);
            let written = start(&node, &nexus, async |nexus| {
                nexus.write(0, &filled(4096, 2), true).await
            });
            node.sleep(22 * SECOND).await;
            assert!(attached.get().is_some(), "{moment}");
            assert_eq!(written.get(), Some(Ok(())), "G11: {moment}");
            assert_eq!(rig.committed(), [0]);
        });
    }
}

/// G11: wherever a disk hangs that comes back to a volume that has grown, or that joins it, another one may fail at once.
#[test]
fn a_disk_that_hangs_while_it_joins_does_not_hold_up_a_fault_at_all() {
    for (moment, is_new) in moments().take(40).zip([false, true].into_iter().cycle()) {
        let members = if is_new { 2 } else { 3 };
        on_part(moment, (members, 3), async move |rig, node, nexus| {
            let lost = |disk: usize, lost: bool| {
                rig.disks[disk].set_fault(SimFault {
                    lost,
                    ..SimFault::default()
                });
            };
            if !is_new {
                lost(2, true);
                nexus.write(0, &filled(4096, 1), true).await.unwrap();
                node.sleep(SECOND).await;
                nexus.grow(3 * SIZE).await.unwrap();
                lost(2, false);
            }
            let coming = rig.candidate(2);
            let joined = start(&node, &nexus, async move |nexus| {
                let joined = if is_new {
                    nexus.add_member(coming).await
                } else {
                    nexus.attach(coming).await
                };
                joined.map_err(|_| IoError::EIO)
            });
            node.sleep(Duration::from_micros(moment)).await;
            hang(&rig, 2, true);
            node.sleep(Duration::from_millis(20)).await;
            lost(1, true);
            let written = start(&node, &nexus, async |nexus| {
                nexus.write(0, &filled(4096, 2), true).await
            });
            node.sleep(SECOND).await;
            assert_eq!(written.get(), Some(Ok(())), "G11: {moment} {is_new}");
            assert_eq!(rig.committed(), [0]);
            node.sleep(20 * SECOND).await;
            assert!(joined.get().is_some(), "{moment}");
        });
    }
}

/// G11: growing holds the table, and sometimes the whole range.
#[test]
fn a_disk_that_hangs_while_the_volume_grows_is_left_behind() {
    on_volume(1, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        hang(&rig, 1, true);
        let grown = start(&node, &nexus, async |nexus| nexus.grow(3 * SIZE).await);
        node.sleep(12 * SECOND).await;
        assert_eq!(grown.get(), Some(Ok(())), "G11");
        assert_eq!(rig.committed(), [0]);
        nexus.write(SIZE, &filled(4096, 2), true).await.unwrap();
    });
}

/// A1: a start that failed while its disks hung keeps no replica but those that still hang.
#[test]
fn a_start_that_failed_lets_go_of_the_disk_that_answers_again() {
    for moment in moments() {
        on_volume(moment, 2, async move |rig, node, nexus| {
            nexus.write(0, &filled(8192, 1), true).await.unwrap();
            drop(nexus);
            node.kill();
            rig.disks[1].quiesce().await;
            let closed = rig.disks[1].holders();
            let (node, started) = start_hanging(&rig, moment, &[0, 1]).await;
            node.sleep(40 * SECOND).await;
            let Some(Err(_)) = started.take() else {
                // The start was over before.
                return;
            };
            hang(&rig, 1, false);
            node.sleep(SECOND).await;
            assert_eq!(rig.disks[1].holders(), closed, "{moment}");
        });
    }
}
