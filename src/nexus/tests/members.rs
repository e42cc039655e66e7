//! Members come, come back and go (spec section 10, B0, R8, G7).

use std::time::Duration;

use super::super::fan_out::either;
use super::super::sim::{Rig, SimEnv};
use super::super::slots::SLOTS_MAX;
use super::super::status::Health;
use super::super::{Candidate, MemberError, Nexus, Removal};
use super::basics::{SIZE, filled, read, states};
use crate::io::sim::{SimDisk, SimFault, SimNode};
use crate::io::{BlockDevice, Clock};
use crate::model::status::ReplicaState::{Blank, InSync, Stale};

/// Runs a test on a volume over the first `members` of `disks` disks.
pub(super) fn on_part(
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

fn candidate(rig: &Rig, disk: usize) -> Candidate<SimDisk> {
    rig.candidates(&rig.all()).swap_remove(disk)
}

#[test]
fn a_volume_with_one_member_takes_a_second_one_and_gives_it_back() {
    on_part(1, (1, 2), async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 1), false).await.unwrap();
        assert!(nexus.inner.single.get(), "R8");
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        assert!(!nexus.inner.single.get(), "B0");
        assert_eq!(states(&nexus), [InSync, Blank]);
        assert_eq!(nexus.status().health, Health::Degraded);
        assert_eq!(
            rig.durable(0, 0, 4096),
            vec![1; 4096],
            "B0: what was acknowledged is flushed"
        );
        nexus.write(4096, &filled(4096, 2), false).await.unwrap();
        assert_eq!(
            rig.visible(1, 4096, 4096),
            vec![0; 4096],
            "I8: nothing before its rebuild"
        );

        let again = nexus.add_member(candidate(&rig, 1)).await;
        assert!(
            matches!(again, Err(MemberError::AlreadyThere(_))),
            "{again:?}"
        );
        let last = nexus.remove_member(Rig::replica_id(0)).await;
        assert_eq!(last, Err(MemberError::LastCopy(Rig::replica_id(0))), "G7");

        let gone = nexus.remove_member(Rig::replica_id(1)).await;
        assert_eq!(gone, Ok(Removal::Wiped));
        assert!(nexus.inner.single.get(), "R8");
        assert_eq!(states(&nexus), [InSync]);
        assert_eq!(read(&nexus, 4096, 4096).await, Ok(vec![2; 4096]));
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert!(nexus.inner.single.get(), "R8: removed members do not count");
        assert_eq!(read(&nexus, 4096, 4096).await, Ok(vec![2; 4096]));
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Blank], "its old slot serves again");
    });
}

/// R8: one healthy child is not one member.
#[test]
fn a_table_with_two_members_and_one_healthy_child_never_takes_the_fast_path() {
    on_part(2, (2, 2), async |rig, node, nexus| {
        let nexus = {
            rig.disks[1].set_fault(SimFault {
                lost: true,
                ..SimFault::default()
            });
            nexus.write(0, &filled(4096, 1), false).await.unwrap();
            nexus.inner.signal.until(|| rig.committed() == [0]).await;
            assert_eq!(states(&nexus), [InSync, Stale]);
            assert!(!nexus.inner.single.get());
            drop(nexus);
            node.kill();
            let node = rig.sim.node();
            rig.assemble(&node, &[true, false]).await.unwrap()
        };
        assert!(!nexus.inner.single.get());
        nexus.write(0, &filled(4096, 3), false).await.unwrap();
        let replica = nexus.inner.children[0].replica().unwrap();
        let missed = replica.set_count(crate::replica::BitmapKind::Missed);
        assert!(missed > 0, "W4: what the other one lacks is recorded");
    });
}

#[test]
fn a_faulted_member_lets_go_of_its_file_and_can_be_brought_back() {
    on_part(3, (2, 2), async |rig, node, nexus| {
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..SimFault::default()
        });
        nexus.write(0, &filled(4096, 1), false).await.unwrap();
        let child = &nexus.inner.children[1];
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        node.sleep(Duration::from_secs(1)).await;
        assert!(!child.is_here(), "A1, E6: it is opened anew or not at all");
        assert!(nexus.status().children[1].wants_attach);
        let refused = nexus.attach(candidate(&rig, 1)).await;
        assert!(refused.is_err(), "the disk is still lost");
        rig.disks[1].set_fault(SimFault::default());
        nexus.attach(candidate(&rig, 1)).await.unwrap();
        let status = nexus.status();
        assert!(status.children[1].wants_rebuild && !status.children[1].wants_attach);
        assert_eq!(states(&nexus), [InSync, Stale], "G6");
    });
}

#[test]
fn a_member_without_its_label_is_blank_and_never_partly_rebuilt() {
    on_part(4, (2, 2), async |rig, node, nexus| {
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &[true, false]).await.unwrap();
        rig.disks[1].erase();
        nexus.attach(candidate(&rig, 1)).await.unwrap();
        let table = nexus.inner.table.borrow().clone();
        assert!(table.members[1].insync_id.is_nil(), "L2, B3");
        let label = nexus.inner.children[1].replica().unwrap().label();
        assert_eq!(label.ancestors.iter().count(), 0, "B3: it has no history");
    });
}

#[test]
fn the_membership_has_sixteen_slots_and_old_ones_are_used_again() {
    on_part(5, (1, 18), async |rig, _, nexus| {
        for disk in 1..16 {
            nexus.add_member(candidate(&rig, disk)).await.unwrap();
        }
        let refused = nexus.add_member(candidate(&rig, 16)).await;
        assert_eq!(refused, Err(MemberError::Full));
        nexus.remove_member(Rig::replica_id(3)).await.unwrap();
        nexus.remove_member(Rig::replica_id(7)).await.unwrap();
        nexus.add_member(candidate(&rig, 16)).await.unwrap();
        nexus.add_member(candidate(&rig, 17)).await.unwrap();
        let table = nexus.inner.table.borrow().clone();
        assert_eq!(
            table.members[3].replica,
            Rig::replica_id(16),
            "the oldest first"
        );
        assert_eq!(table.members[7].replica, Rig::replica_id(17));
    });
}

/// F1: the same file can't be wiped for the member that goes and written for the one that comes.
#[test]
fn a_member_that_is_still_leaving_is_not_added_again() {
    on_part(9, (2, 2), async |rig, node, nexus| {
        let hung = SimFault {
            hung: true,
            ..SimFault::default()
        };
        rig.disks[1].set_fault(hung);
        nexus.write(0, &filled(4096, 1), false).await.unwrap();
        let id = Rig::replica_id(1);
        assert_eq!(nexus.remove_member(id).await, Ok(Removal::LabelKept));
        let again = nexus.add_member(candidate(&rig, 1)).await;
        assert_eq!(again, Err(MemberError::Draining(id)));
        rig.disks[1].set_fault(SimFault::default());
        node.sleep(Duration::from_secs(1)).await;
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
        assert_eq!(states(&nexus), [InSync, Blank]);
    });
}

/// G9: the file of a member that left while it was away has a label of the slot that it had. It comes back into another
/// slot, and what makes it a new member is cut short.
#[test]
fn a_new_member_with_a_label_of_another_slot_is_made_anew() {
    for is_restarted in [false, true] {
        let disks = SLOTS_MAX + 1;
        on_part(3, (1, disks), async move |rig, mut node, mut nexus| {
            for disk in 1..SLOTS_MAX {
                nexus.add_member(candidate(&rig, disk)).await.unwrap();
                if disk == 1 {
                    nexus.rebuild(Rig::replica_id(1)).await.unwrap();
                    let lost = true;
                    rig.disks[1].set_fault(SimFault {
                        lost,
                        ..SimFault::default()
                    });
                }
                nexus.remove_member(Rig::replica_id(disk)).await.unwrap();
            }
            // Every slot was used, and the one of disk 1 longest ago.
            let last = candidate(&rig, SLOTS_MAX);
            nexus.add_member(last).await.unwrap();
            rig.disks[1].set_fault(SimFault {
                write_errors: 1,
                ..SimFault::default()
            });
            let added = nexus.add_member(candidate(&rig, 1)).await;
            assert!(matches!(added, Err(MemberError::Label(_))), "{added:?}");
            rig.disks[1].set_fault(SimFault::default());
            if is_restarted {
                drop(nexus);
                node.kill();
                node = rig.sim.node();
                nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            }
            nexus.attach(candidate(&rig, 1)).await.unwrap();
            for disk in [1, SLOTS_MAX] {
                nexus.rebuild(Rig::replica_id(disk)).await.unwrap();
            }
            assert_eq!(nexus.status().health, Health::Online);
            drop(node);
        });
    }
}

/// B0: when all requests have ended, nothing more reaches the only copy; a write that nobody waits for may.
#[test]
fn a_write_that_was_given_up_on_keeps_the_volume_on_the_fast_path_until_it_starts_again() {
    on_part(10, (1, 2), async |rig, node, nexus| {
        let unpolled = filled(4096, 1);
        drop(nexus.write(0, &unpolled, false));
        let data = filled(4096, 2);
        let late = async { nexus.write(0, &data, false).await.unwrap() };
        let gave_up = node.sleep(Duration::from_micros(1));
        assert!(!either(gave_up, late).await, "it takes longer");
        let refused = nexus.add_member(candidate(&rig, 1)).await;
        assert!(
            matches!(refused, Err(MemberError::Refused(_))),
            "{refused:?}"
        );
        node.sleep(Duration::from_secs(1)).await;
        let landed = read(&nexus, 0, 4096).await;
        assert!(landed == Ok(vec![2; 4096]), "the disk did it all the same");
        assert!(nexus.stop().await);
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        nexus.add_member(candidate(&rig, 1)).await.unwrap();
    });
}

/// The survivor's label is of a commit that was cut short: it must not look as if there had never been anybody else.
#[test]
fn a_removal_that_was_cut_short_lets_no_survivor_start_alone_without_a_witness() {
    on_part(9, (2, 2), async |rig, node, nexus| {
        rig.witness.set_down(true);
        let removal = nexus.remove_member(Rig::replica_id(1));
        let removed = async {
            removal.await.unwrap();
            unreachable!("the witness is not there");
        };
        either(node.sleep(Duration::from_secs(1)), removed).await;
        drop(nexus);
        node.kill();
        rig.witness.set_down(false);

        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &[false, true]).await.unwrap();
        nexus.write(0, &filled(4096, 8), true).await.unwrap();
        nexus.stop().await;
        let found = rig.witness.record();
        rig.witness.replace(None);
        let alone = rig.assemble(&node, &[true, false]).await;
        let text = alone.map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("is not here"), "A5: {text}");

        rig.witness.replace(found);
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(states(&nexus), [Stale, InSync], "A4");
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![8; 4096]));
    });
}
