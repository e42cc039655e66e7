//! Scrubs find what differs, and repair only what is known to be wrong (spec section 10).

use std::time::Duration;

use super::super::{ChunkFinding, Nexus, ScrubError, ScrubReport, ScrubRequest};
use super::basics::{SIZE, filled, on_volume, read, states};
use crate::io::sim::SimFault;
use crate::io::{BlockDevice, Clock, Spawn};
use crate::model::status::ReplicaState::{InSync, Stale};
use crate::nexus::sim::{Rig, SimEnv};
use crate::replica::BitmapKind;
use crate::replica::layout::DATA_OFFSET;
use crate::units::KIB;

const CHUNK: u64 = 64 * KIB;
const SIZE_BYTES: usize = 256 << 10;

fn flip(rig: &Rig, disk: usize, offset: u64) {
    let byte = rig.visible(disk, offset, 1)[0];
    rig.disks[disk].corrupt(DATA_OFFSET + offset, &[byte ^ 0x40]);
}

fn found(report: &ScrubReport) -> Vec<(u64, ChunkFinding)> {
    let found = report.found.iter();
    found.map(|found| (found.offset, found.finding)).collect()
}

async fn scrub(nexus: &Nexus<SimEnv>) -> ScrubReport {
    let report = nexus.scrub(ScrubRequest::default()).await.unwrap();
    let status = nexus.status();
    assert_eq!(status.scrub, None);
    assert_eq!(status.last_scrub.as_deref(), Some(&report));
    report
}

fn assert_equal(rig: &Rig) {
    for disk in 1..rig.disks.len() {
        assert!(rig.visible(disk, 0, SIZE) == rig.visible(0, 0, SIZE), "I10");
    }
}

#[test]
fn of_three_copies_the_wrong_one_is_named_and_repaired() {
    on_volume(1, 3, async |rig, _, nexus| {
        nexus.write(0, &filled(SIZE_BYTES, 7), true).await.unwrap();
        flip(&rig, 1, CHUNK + 4097);
        flip(&rig, 2, 3 * CHUNK);
        let report = scrub(&nexus).await;
        assert_eq!(
            found(&report),
            [
                (CHUNK, ChunkFinding::Repaired),
                (3 * CHUNK, ChunkFinding::Repaired)
            ]
        );
        assert_eq!(report.found[0].replicas, [Rig::replica_id(1)]);
        assert_eq!(report.found[1].replicas, [Rig::replica_id(2)]);
        assert_eq!((report.totals.mismatches, report.totals.repaired), (2, 2));
        assert_eq!((report.totals.scrubbed_bytes, report.compared), (SIZE, 3));
        assert_equal(&rig);
        // Repaired for good, not only in some cache.
        rig.disks.iter().for_each(|disk| {
            assert_eq!(
                disk.durable(DATA_OFFSET..DATA_OFFSET + SIZE),
                vec![7; SIZE_BYTES]
            );
        });
        assert_eq!(found(&scrub(&nexus).await), []);
        assert_eq!(nexus.status().scrubbed.mismatches, 2);
        assert_eq!(nexus.status().scrubbed.scrubbed_bytes, 2 * SIZE);
    });
}

#[test]
fn two_wrong_copies_of_three_are_repaired_where_they_are_wrong_in_different_blocks() {
    on_volume(2, 3, async |rig, _, nexus| {
        flip(&rig, 0, 0);
        flip(&rig, 1, 4096);
        let report = scrub(&nexus).await;
        assert_eq!(found(&report), [(0, ChunkFinding::Repaired)]);
        assert_equal(&rig);
        // In one block they are three different contents, and nobody is right.
        flip(&rig, 0, 0);
        rig.disks[1].corrupt(DATA_OFFSET, &[0x33]);
        let report = scrub(&nexus).await;
        assert_eq!(found(&report), [(0, ChunkFinding::Differs)]);
        assert_eq!(report.totals.unrepairable, 1);
        assert_eq!(rig.visible(1, 0, 1), [0x33]);
    });
}

#[test]
fn of_two_copies_that_differ_none_is_touched_unless_one_is_trusted() {
    on_volume(3, 2, async |rig, _, nexus| {
        nexus.write(0, &filled(8192, 7), true).await.unwrap();
        flip(&rig, 1, 5000);
        let before = [rig.visible(0, 0, SIZE), rig.visible(1, 0, SIZE)];
        for _ in 0..2 {
            let report = scrub(&nexus).await;
            assert_eq!(found(&report), [(0, ChunkFinding::Differs)]);
            let both = [Rig::replica_id(0), Rig::replica_id(1)];
            assert_eq!(report.found[0].replicas, both);
            assert_eq!(report.totals.repaired, 0);
        }
        assert!([rig.visible(0, 0, SIZE), rig.visible(1, 0, SIZE)] == before);
        assert_eq!(states(&nexus), [InSync; 2]);

        let trusting = |disk: usize| ScrubRequest {
            repair_from: Some(Rig::replica_id(disk)),
            bandwidth: 0,
        };
        let refused = nexus.scrub(trusting(5)).await;
        assert_eq!(refused, Err(ScrubError::NotInSync(Rig::replica_id(5))));
        let report = nexus.scrub(trusting(0)).await.unwrap();
        assert_eq!(found(&report), [(0, ChunkFinding::Repaired)]);
        assert_eq!(report.found[0].replicas, [Rig::replica_id(1)]);
        assert_equal(&rig);
        assert_eq!(rig.visible(1, 0, 8192), vec![7; 8192]);
    });
}

#[test]
fn a_single_copy_is_read_through() {
    on_volume(4, 1, async |rig, _, nexus| {
        nexus.write(0, &filled(8192, 7), true).await.unwrap();
        rig.disks[0].make_unreadable(DATA_OFFSET + CHUNK);
        flip(&rig, 0, 0);
        let report = scrub(&nexus).await;
        assert_eq!(found(&report), [(CHUNK, ChunkFinding::Unreadable)]);
        assert_eq!((report.compared, report.totals.unreadable), (1, 1));
    });
}

#[test]
fn what_a_member_can_not_read_is_corrected_by_the_way() {
    on_volume(5, 2, async |rig, node, nexus| {
        rig.disks[1].make_unreadable(DATA_OFFSET + CHUNK + 8192);
        let report = scrub(&nexus).await;
        assert_eq!(found(&report), [], "R4 is no mismatch");
        node.sleep(Duration::from_secs(1)).await;
        assert_eq!(nexus.status().children[1].corrected_reads, 1);
        // No member can read it.
        for disk in &rig.disks {
            disk.make_unreadable(DATA_OFFSET);
        }
        let report = scrub(&nexus).await;
        assert_eq!(found(&report), [(0, ChunkFinding::Unreadable)]);
        assert_eq!(states(&nexus), [InSync; 2], "G7");
    });
}

#[test]
fn a_scrub_under_load_reports_nothing_and_breaks_nothing() {
    for seed in 0..20 {
        on_volume(seed, 3, async |rig, node, nexus| {
            let clients: Vec<_> = (0..4u8)
                .map(|client| {
                    let (done, ended) = tokio::sync::oneshot::channel();
                    let (nexus, sim) = (nexus.clone(), rig.sim.clone());
                    node.spawn(async move {
                        for round in 0..40 {
                            let offset = sim.below(SIZE / 4096) * 4096;
                            let data = filled(4096, round * 4 + client);
                            nexus.write(offset, &data, false).await.unwrap();
                        }
                        let _ = done.send(());
                    });
                    ended
                })
                .collect();
            for _ in 0..5 {
                let report = scrub(&nexus).await;
                assert_eq!(
                    found(&report),
                    [],
                    "I9: writes under way are not mismatches"
                );
            }
            for client in clients {
                client.await.unwrap();
            }
            assert_equal(&rig);
        });
    }
}

#[test]
fn a_member_that_can_not_be_repaired_is_faulted() {
    on_volume(6, 3, async |rig, node, nexus| {
        flip(&rig, 1, 0);
        rig.disks[1].set_fault(SimFault {
            write_errors: 1,
            ..SimFault::default()
        });
        let report = scrub(&nexus).await;
        assert_eq!(found(&report), [(0, ChunkFinding::Differs)]);
        node.sleep(Duration::from_secs(1)).await;
        assert_eq!(states(&nexus), [InSync, Stale, InSync]);
        assert_eq!(read(&nexus, 0, 4096).await, Ok(vec![0; 4096]));
        // A partial rebuild of it will have to copy this place (spec B3).
        let replica = nexus.inner.children[0].replica().unwrap();
        assert!(replica.is_set(crate::replica::BitmapKind::Missed, 0), "W7");
    });
}

#[test]
fn chunks_that_a_crash_left_different_are_no_mismatches() {
    for seed in 0..20 {
        on_volume(seed, 2, async |rig, node, nexus| {
            for block in 0..SIZE / 4096 {
                let nexus = nexus.clone();
                node.spawn(async move {
                    let _ = nexus.write(block * 4096, &filled(4096, 7), false).await;
                });
            }
            node.sleep(Duration::from_micros(700)).await;
            drop(nexus);
            node.kill();
            rig.disks.iter().for_each(|disk| disk.power_loss());
            let node = rig.sim.node();
            let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            assert_eq!(found(&scrub(&nexus).await), [], "U is resolved first");
        });
    }
}

#[test]
fn one_scrub_at_a_time_and_none_outlives_the_volume() {
    on_volume(7, 2, async |_, node, nexus| {
        // 256 KiB at 64 KiB/s take four seconds.
        let request = ScrubRequest {
            repair_from: None,
            bandwidth: CHUNK,
        };
        let (answer, answered) = tokio::sync::oneshot::channel();
        let slow = nexus.clone();
        node.spawn(async move {
            let _ = answer.send(slow.scrub(request).await);
        });
        node.sleep(Duration::from_millis(1500)).await;
        assert_eq!(nexus.scrub(request).await, Err(ScrubError::Busy));
        let progress = nexus.status().scrub.unwrap();
        assert_eq!(
            (progress.total_bytes, progress.done_bytes),
            (SIZE, 2 * CHUNK)
        );
        let started = node.now();
        assert!(nexus.stop().await);
        assert!(node.now() - started < Duration::from_millis(100));
        assert_eq!(answered.await.unwrap(), Err(ScrubError::Stopped));
        assert_eq!(nexus.scrub(request).await, Err(ScrubError::Stopped));
    });
}

/// A copy that went bad without a crash is no better source after one: of three, the two that agree win (spec A9, R2).
#[test]
fn a_bad_copy_of_three_does_not_win_when_a_crash_comes_before_its_repair() {
    for bad in 0..3 {
        on_volume(7, 3, async move |rig, node, nexus| {
            nexus.write(0, &filled(SIZE_BYTES, 7), true).await.unwrap();
            flip(&rig, bad, CHUNK + 100);
            // As a repair does that a power cut ends before its data is written.
            let replica = nexus.inner.children[bad].replica().unwrap();
            let marked = replica.set_durable(BitmapKind::Intent, 0..1).await;
            marked.unwrap();
            drop(nexus);
            node.kill();
            rig.disks.iter().for_each(|disk| disk.power_loss());
            let node = rig.sim.node();
            let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            assert!(nexus.status().unresolved_bytes > 0, "A7");
            assert_eq!(read(&nexus, CHUNK, 4096).await, Ok(vec![7; 4096]));
            let mut seen = 0;
            while nexus.status().unresolved_bytes > 0 {
                seen = nexus.changed(seen).await;
            }
            assert_equal(&rig);
        });
    }
}
