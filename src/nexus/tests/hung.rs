//! Children that do not answer (spec G11, R7).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::basics::{filled, on_volume, read, states};
use crate::io::sim::{SimFault, SimNode};
use crate::io::{BlockDevice, Clock, IoError, Spawn};
use crate::model::status::ReplicaState::{InSync, Stale};
use crate::nexus::sim::{Rig, SimEnv};
use crate::nexus::status::Health;
use crate::nexus::{FaultReason, Nexus, Policy, RebuildError};
use crate::units::MIB;

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn hang(rig: &Rig, disk: usize, hung: bool) {
    let fault = SimFault {
        hung,
        ..SimFault::default()
    };
    rig.disks[disk].set_fault(fault);
}

pub(super) type Answer = Rc<Cell<Option<Result<(), IoError>>>>;

/// Starts a request and notes its answer.
pub(super) fn start(
    node: &SimNode,
    nexus: &Nexus<SimEnv>,
    request: impl AsyncFnOnce(Nexus<SimEnv>) -> Result<(), IoError> + 'static,
) -> Answer {
    let answer = Answer::default();
    let (slot, nexus) = (Rc::clone(&answer), nexus.clone());
    node.spawn(async move { slot.set(Some(request(nexus).await)) });
    answer
}

/// With member 1 of `members` hanging, `request` is answered OK within the I/O timeout and a second.
fn check(
    members: usize,
    request: impl AsyncFnOnce(Nexus<SimEnv>) -> Result<(), IoError> + 'static,
) {
    on_volume(1, members, async move |rig, node, nexus| {
        nexus.write(0, &filled(8192, 1), true).await.unwrap();
        hang(&rig, 1, true);
        let answer = start(&node, &nexus, request);
        node.sleep(9 * SECOND).await;
        assert_eq!(answer.get(), None, "nobody is faulted too early");
        node.sleep(2 * SECOND).await;
        assert_eq!(answer.get(), Some(Ok(())), "G11");
        assert_eq!(rig.committed().len(), members - 1);
        assert_eq!(states(&nexus)[1], Stale);
        let status = nexus.status();
        let reason = status.children[1].reason.clone().unwrap();
        assert!(
            reason.contains("TimedOut") && reason.contains("10 s"),
            "{reason}"
        );
        assert!(status.children.iter().all(|child| !child.hung));
        assert_eq!(read(&nexus, 4096, 4096).await.map(|_| ()), Ok(()));
    });
}

#[test]
fn a_hung_member_of_several_is_faulted_and_requests_go_on() {
    for members in [2, 3] {
        // Its intent bit is durable already, then not yet.
        check(members, async |nexus| {
            nexus.write(0, &filled(4096, 2), false).await
        });
        check(members, async |nexus| {
            nexus.write(0, &filled(4096, 2), true).await
        });
        check(members, async |nexus| nexus.flush().await);
        check(members, async |nexus| {
            let options = crate::io::ZeroOptions::default();
            nexus.write_zeroes(0, 4096, options).await
        });
    }
}

#[test]
fn a_hung_bitmap_write_faults_as_well() {
    let rig = Rig::new(2, 2, 4 * MIB, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        hang(&rig, 1, true);
        let before = rig.disks[1].last_data_write();
        let answer = start(&node, &nexus, async |nexus| {
            nexus.write(2 * MIB, &filled(4096, 2), false).await
        });
        node.sleep(11 * SECOND).await;
        assert_eq!(answer.get(), Some(Ok(())), "G11");
        assert_eq!(
            rig.disks[1].last_data_write(),
            before,
            "W4: the bit comes first"
        );
        hang(&rig, 1, false);
        node.sleep(SECOND).await;
        assert_eq!(
            rig.disks[1].last_data_write(),
            before,
            "F1: nothing new after the fault"
        );
    });
}

#[test]
fn a_hung_label_write_of_a_second_member_does_not_stop_the_commit() {
    on_volume(3, 3, async |rig, node, nexus| {
        nexus.write(0, &filled(8192, 1), true).await.unwrap();
        hang(&rig, 2, true);
        // On the members that are left, only labels are written for it.
        nexus.report_truncated(Rig::replica_id(1));
        node.sleep(11 * SECOND).await;
        assert_eq!(rig.committed(), [0], "F5");
        let written = nexus.write(0, &filled(8192, 1), false).await;
        assert_eq!(written, Ok(()), "G11");
        assert_eq!(states(&nexus), [InSync, Stale, Stale]);
    });
}

/// G11, F5: the second one was asked nothing until the commit without the first.
#[test]
fn two_members_that_hang_cost_a_timeout_each() {
    on_volume(8, 3, async |rig, node, nexus| {
        nexus.write(0, &filled(8192, 1), true).await.unwrap();
        hang(&rig, 2, true);
        let answer = start(&node, &nexus, async |nexus| {
            nexus.write(0, &filled(8192, 2), false).await
        });
        node.sleep(9 * SECOND).await;
        hang(&rig, 0, true);
        node.sleep(11 * SECOND).await;
        assert_eq!(answer.get(), None, "F6: not before the commit");
        node.sleep(2 * SECOND).await;
        assert_eq!(answer.get(), Some(Ok(())), "G11");
        assert_eq!(rig.committed(), [1], "F5");
    });
}

#[test]
fn the_last_copy_is_waited_for_and_says_so_until_it_answers() {
    for members in [1, 2] {
        on_volume(4, members, async move |rig, node, nexus| {
            let mut policy = Policy::default();
            policy.timeouts.commit = 100 * SECOND;
            nexus.configure(policy);
            nexus.write(0, &filled(4096, 1), true).await.unwrap();
            if members == 2 {
                rig.disks[1].set_fault(SimFault {
                    lost: true,
                    ..SimFault::default()
                });
                nexus.write(0, &filled(4096, 1), true).await.unwrap();
            }
            hang(&rig, 0, true);
            let answer = start(&node, &nexus, async |nexus| {
                nexus.write(0, &filled(4096, 2), false).await
            });
            node.sleep(9 * SECOND).await;
            assert!(!nexus.status().children[0].hung);
            node.sleep(21 * SECOND).await;
            let status = nexus.status();
            assert!(status.children[0].hung, "R7");
            assert_eq!(status.health, Health::Failed);
            let reason = status.children[0].reason.clone().unwrap();
            assert!(reason.starts_with("ChildHung: no answer for 2"), "{reason}");
            assert_eq!(rig.committed(), [0], "G7");
            assert_eq!(answer.get(), None, "R7: not before the completion");
            let version = status.version;
            hang(&rig, 0, false);
            nexus.changed(version).await;
            node.sleep(SECOND).await;
            assert_eq!(answer.get(), Some(Ok(())));
            let status = nexus.status();
            assert!(!status.children[0].hung && status.children[0].reason.is_none());
            assert_ne!(status.health, Health::Failed);
        });
    }
}

#[test]
fn when_all_hang_nobody_is_faulted_and_the_first_to_answer_goes_on() {
    on_volume(5, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        (0..2).for_each(|disk| hang(&rig, disk, true));
        let answer = start(&node, &nexus, async |nexus| {
            nexus.write(0, &filled(4096, 2), false).await
        });
        node.sleep(30 * SECOND).await;
        assert_eq!(rig.committed(), [0, 1], "G7");
        assert!(nexus.status().children.iter().all(|child| child.hung));
        hang(&rig, 1, false);
        node.sleep(2 * SECOND).await;
        assert_eq!(rig.committed(), [1]);
        assert_eq!(answer.get(), Some(Ok(())));
        assert_eq!(states(&nexus), [Stale, InSync]);
    });
}

#[test]
fn nobody_watches_a_volume_that_does_nothing() {
    on_volume(6, 2, async |_, node, nexus| {
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        assert!(nexus.inner.children[0].watch.is_active());
        // Until the bit of the write is cleared, too.
        node.sleep(15 * SECOND).await;
        assert!(!nexus.inner.children[0].watch.is_active());
    });
}

#[test]
fn a_member_that_hangs_while_it_is_read_is_faulted_too() {
    on_volume(7, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        hang(&rig, 0, true);
        let answers: Vec<Answer> = (0..4)
            .map(|_| {
                start(&node, &nexus, async |nexus| {
                    read(&nexus, 0, 4096).await.map(|_| ())
                })
            })
            .collect();
        node.sleep(11 * SECOND).await;
        assert!(answers.iter().all(|answer| answer.get() == Some(Ok(()))));
        assert_eq!(rig.committed(), [1], "G11");
    });
}

/// Who brings members back waits for the status to change, and a hung one may be opened again only once it has drained.
#[test]
fn a_member_that_has_drained_is_news() {
    let rig = Rig::new(2, 2, 4 * MIB, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        hang(&rig, 1, true);
        nexus.write(0, &filled(4096, 2), false).await.unwrap();
        node.sleep(SECOND).await;
        let status = nexus.status();
        assert!(!status.children[1].wants_attach, "F1: it still drains");
        hang(&rig, 1, false);
        nexus.changed(status.version).await;
        assert!(nexus.status().children[1].wants_attach);
    });
}

/// F1, A1: what an attempt that was given up still does to its target comes before the next attempt.
#[test]
fn no_rebuild_begins_while_an_earlier_one_is_still_at_work_on_the_target() {
    on_volume(5, 2, async |rig, node, nexus| {
        let lost = SimFault {
            lost: true,
            ..SimFault::default()
        };
        rig.disks[1].set_fault(lost);
        nexus.write(0, &filled(4096, 1), true).await.unwrap();
        let is_out = || nexus.status().children[1].wants_attach;
        nexus.inner.signal.until(is_out).await;
        rig.disks[1].set_fault(SimFault::default());
        nexus.attach(rig.candidate(1)).await.unwrap();
        hang(&rig, 1, true);
        let target = Rig::replica_id(1);
        let first = nexus.rebuild(target).await;
        assert!(matches!(first, Err(RebuildError::Target(_))), "{first:?}");
        let second = nexus.rebuild(target).await;
        let refused = RebuildError::Target(FaultReason::Hung(10 * SECOND));
        assert_eq!(second, Err(refused));
        assert_eq!(nexus.inner.children[1].inflight(), 1);
        hang(&rig, 1, false);
        node.sleep(SECOND).await;
        nexus.rebuild(target).await.unwrap();
        assert_eq!(states(&nexus), [InSync, InSync]);
    });
}

/// G11: a member that comes back hangs at once, and then another one fails. The volume goes on with the third.
#[test]
fn a_member_that_hangs_while_it_comes_back_holds_up_no_commit() {
    on_volume(9, 3, async |rig, node, nexus| {
        let lose = |disk: usize, lost: bool, hung: bool| {
            rig.disks[disk].set_fault(SimFault {
                lost,
                hung,
                ..SimFault::default()
            });
        };
        lose(2, true, false);
        nexus.write(0, &filled(4096, 1), false).await.unwrap();
        nexus.inner.signal.until(|| rig.committed() == [0, 1]).await;
        rig.disks[2].quiesce().await;
        lose(2, false, true);
        let (coming, candidate) = (nexus.clone(), rig.candidate(2));
        node.spawn(async move {
            let _ = coming.attach(candidate).await;
        });
        node.sleep(Duration::from_millis(1)).await;
        lose(1, true, false);
        let before = node.now();
        nexus.write(0, &filled(4096, 2), false).await.unwrap();
        let took = node.now() - before;
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(rig.committed(), [0]);
    });
}

/// G11: a disk that is at work on a long zeroing does answer, piece by piece.
#[test]
fn a_long_zeroing_is_not_a_hang() {
    let size = 128 * MIB;
    let rig = Rig::new(9, 2, size, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        rig.disks[1].set_fault(SimFault {
            per_mib: Duration::from_millis(150),
            ..SimFault::default()
        });
        let begun = node.now();
        let options = crate::io::ZeroOptions::default();
        nexus.write_zeroes(0, size, options).await.unwrap();
        let took = node.now() - begun;
        assert!(took > 15 * SECOND, "the disk is that slow: {took:?}");
        assert_eq!(states(&nexus), [InSync, InSync]);
    });
}

/// F6: whoever waits for a place that others hold, which wait for the same commit, has waited for it, too.
#[test]
fn a_commit_that_is_not_possible_costs_each_request_its_time_once() {
    on_volume(10, 2, async |rig, node, nexus| {
        nexus.write(0, &filled(8192, 1), false).await.unwrap();
        drop(nexus);
        node.kill();
        let node = rig.sim.node();
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert!(nexus.status().unresolved_bytes > 0, "A7");
        rig.witness.set_down(true);
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..SimFault::default()
        });
        let mut answers: Vec<Answer> = Vec::new();
        for _ in 0..3 {
            answers.push(start(&node, &nexus, async |nexus| {
                read(&nexus, 0, 4096).await.map(|_| ())
            }));
            answers.push(start(&node, &nexus, async |nexus| {
                nexus.write(0, &filled(4096, 2), false).await
            }));
        }
        node.sleep(29 * SECOND).await;
        assert!(answers.iter().all(|answer| answer.get().is_none()), "F6");
        node.sleep(2 * SECOND).await;
        let eio = Some(Err(IoError::EIO));
        assert!(answers.iter().all(|answer| answer.get() == eio), "F6");
        // One that comes now waits as long as the others did.
        let later = start(&node, &nexus, async |nexus| {
            nexus.write(0, &filled(4096, 3), false).await
        });
        node.sleep(10 * SECOND).await;
        assert_eq!(later.get(), None);
        rig.witness.set_down(false);
        node.sleep(5 * SECOND).await;
        assert_eq!(later.get(), Some(Ok(())));
        assert_eq!(rig.committed(), [0]);
    });
}
