//! Intent bits: set before data is written, cleared once a flush has proven it, resolved after a crash (spec W4, W9).

use std::rc::Rc;
use std::time::Duration;

use super::basics::{filled, states};
use crate::io::sim::{SimFault, SimNode};
use crate::io::{BlockDevice, Clock, Spawn};
use crate::model::status::ReplicaState::{InSync, Stale};
use crate::nexus::sim::{Rig, SimEnv};
use crate::nexus::{Nexus, Policy};
use crate::replica::layout::PAGE_SIZE;
use crate::replica::{BitmapKind, Page};
use crate::units::MIB;

const SECOND: Duration = Duration::from_secs(1);

/// Runs a test on a volume of two members and `mib` regions.
fn on_regions(mib: u64, test: impl AsyncFnOnce(Rig, SimNode, Nexus<SimEnv>) + 'static) {
    let rig = Rig::new(mib, 2, mib * MIB, 4096);
    let sim = rig.sim.clone();
    sim.block_on(async move {
        let node = rig.sim.node();
        let nexus = rig.create(&node).await.unwrap();
        test(rig, node, nexus).await;
    });
}

/// The regions whose bit on one disk survives a power cut for certain.
fn durable_bits(rig: &Rig, disk: usize, kind: BitmapKind) -> Vec<u64> {
    let at = kind.offset();
    let page = rig.disks[disk].durable(at..at + PAGE_SIZE as u64);
    let page = Page::decode(&page).expect("no page write is under way");
    let is_set = |region: &u64| {
        let (byte, bit) = (usize::try_from(region / 8).unwrap(), region % 8);
        page.bits[byte] & (1 << bit) != 0
    };
    (0..64).filter(is_set).collect()
}

async fn write_region(nexus: &Nexus<SimEnv>, region: u64) {
    let data = filled(4096, 7);
    nexus
        .write(region * MIB + 8192, &data, false)
        .await
        .unwrap();
}

/// Kills the daemon and starts it again.
async fn crash(rig: &Rig, node: &SimNode, nexus: Nexus<SimEnv>) -> Nexus<SimEnv> {
    drop(nexus);
    node.kill();
    rig.assemble(&rig.sim.node(), &rig.all()).await.unwrap()
}

#[test]
fn bits_are_durable_before_a_write_is_acknowledged_and_only_they_are_resolved() {
    on_regions(24, async |rig, node, nexus| {
        for region in [3, 17, 9] {
            write_region(&nexus, region).await;
        }
        assert_eq!(nexus.status().intent_regions, 3);
        for disk in 0..2 {
            assert_eq!(
                durable_bits(&rig, disk, BitmapKind::Intent),
                [3, 9, 17],
                "W4"
            );
            assert!(durable_bits(&rig, disk, BitmapKind::Missed).is_empty());
        }
        let nexus = crash(&rig, &node, nexus).await;
        assert_eq!(nexus.status().resolved_bytes, 3 * MIB, "A7");
        assert_eq!(nexus.status().intent_regions, 3);
    });
}

#[test]
fn regions_left_alone_are_cleared_and_then_the_volume_sleeps() {
    on_regions(24, async |rig, node, nexus| {
        write_region(&nexus, 3).await;
        nexus.flush().await.unwrap();
        node.sleep(4 * SECOND).await;
        write_region(&nexus, 9).await;
        node.sleep(4 * SECOND).await;
        assert_eq!(
            durable_bits(&rig, 0, BitmapKind::Intent),
            [9],
            "W9: 3 is idle"
        );
        // The client does not flush: the nexus has to.
        node.sleep(10 * SECOND).await;
        assert_eq!(nexus.status().intent_regions, 0, "W9");
        for disk in 0..2 {
            assert!(durable_bits(&rig, disk, BitmapKind::Intent).is_empty());
            assert_eq!(rig.durable(disk, 9 * MIB + 8192, 4096), [7; 4096]);
        }
        assert!(!nexus.inner.intent.task.get(), "nothing to do, no timer");
        rig.disks.iter().for_each(|disk| disk.power_loss());
        let nexus = crash(&rig, &node, nexus).await;
        assert_eq!(nexus.status().resolved_bytes, 0);
    });
}

#[test]
fn what_the_last_owner_left_is_cleared_once_it_is_resolved_and_flushed() {
    on_regions(24, async |rig, node, nexus| {
        for region in [3, 4, 5, 20] {
            write_region(&nexus, region).await;
        }
        let nexus = crash(&rig, &node, nexus).await;
        assert_eq!(nexus.status().intent_regions, 4);
        node.sleep(30 * SECOND).await;
        assert_eq!(nexus.status().unresolved_bytes, 0, "R3");
        assert_eq!(nexus.status().intent_regions, 0, "I10");
        assert!(durable_bits(&rig, 1, BitmapKind::Intent).is_empty());
    });
}

#[test]
fn what_is_resolved_is_cleared_though_no_life_is_long_enough_for_all() {
    on_regions(40, async |rig, mut node, mut nexus| {
        for region in 0..32 {
            write_region(&nexus, region).await;
        }
        let mut before = 33 * MIB;
        while before > 0 {
            drop(nexus);
            node.kill();
            node = rig.sim.node();
            nexus = rig.assemble(&node, &rig.all()).await.unwrap();
            let left = nexus.status().resolved_bytes;
            assert!(
                left < before,
                "W9: {left} bytes, a life of a few regions was for nothing"
            );
            let most = left.saturating_sub(4 * MIB);
            let is_over = || nexus.status().unresolved_bytes <= most;
            nexus.inner.signal.until(is_over).await;
            // A page write takes its time.
            node.sleep(SECOND / 200).await;
            before = left;
        }
    });
}

/// While regions of an earlier life wait to be resolved, what a crash would leave does not grow because guests are busy.
#[test]
fn resolving_pauses_for_guests_unless_they_mark_more_than_is_resolved() {
    on_regions(40, async |rig, node, nexus| {
        for region in 0..8 {
            write_region(&nexus, region).await;
        }
        let nexus = crash(&rig, &node, nexus).await;
        let pause = || nexus.inner.resolve_pace(SECOND / 100).pause;
        assert_eq!(pause(), Duration::ZERO, "no guest");
        let guest = nexus.inner.enter();
        assert_eq!(pause(), SECOND / 100);
        for region in 20..30 {
            write_region(&nexus, region).await;
        }
        assert!(nexus.inner.intent.resolved.get() < 10);
        assert_eq!(pause(), Duration::ZERO, "it is behind");
        drop(guest);
    });
}

#[test]
fn nothing_is_cleared_without_a_flush_that_succeeds_on_every_member() {
    on_regions(24, async |rig, node, nexus| {
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..SimFault::default()
        });
        // Member 1 leaves with the first write, so the bits of member 0 wait for flushes of member 0 alone.
        write_region(&nexus, 3).await;
        nexus.inner.signal.until(|| rig.committed() == [0]).await;
        let unflushable = SimFault {
            flush_errors: 1,
            ..SimFault::default()
        };
        rig.disks[0].set_fault(unflushable);
        node.sleep(30 * SECOND).await;
        assert_eq!(nexus.status().intent_regions, 1, "W9");
        assert!(
            nexus.status().lost_unflushed,
            "a flush of our own is honest as well"
        );
    });
}

#[test]
fn bits_are_cleared_of_a_degraded_volume_once_missed_has_them() {
    on_regions(24, async |rig, node, nexus| {
        write_region(&nexus, 1).await;
        rig.disks[1].set_fault(SimFault {
            lost: true,
            ..SimFault::default()
        });
        write_region(&nexus, 3).await;
        write_region(&nexus, 9).await;
        assert_eq!(states(&nexus), [InSync, Stale]);
        node.sleep(20 * SECOND).await;
        assert_eq!(nexus.status().intent_regions, 0);
        let missed = durable_bits(&rig, 0, BitmapKind::Missed);
        assert_eq!(
            missed,
            [1, 3, 9],
            "F4, W4: 1 was not flushed on the member that left"
        );
    });
}

#[test]
fn a_sequential_stream_marks_a_few_regions_ahead_and_no_more() {
    on_regions(40, async |rig, node, nexus| {
        let data = filled(256 << 10, 7);
        for at in 0..64 {
            nexus.write(at * (256 << 10), &data, false).await.unwrap();
        }
        let bits = durable_bits(&rig, 0, BitmapKind::Intent);
        assert!((16..=16 + 12).contains(&bits.len()), "{bits:?}");
        let page = BitmapKind::Intent.offset();
        let page = rig.disks[0].durable(page..page + PAGE_SIZE as u64);
        let writes = Page::decode(&page).unwrap().seq - 1;
        assert!(writes <= 5, "{writes} page writes for 16 regions");
        let nexus = crash(&rig, &node, nexus).await;
        assert!(nexus.status().resolved_bytes <= (16 + 12) * MIB);
    });
}

#[test]
fn writes_all_over_the_place_mark_nothing_ahead() {
    on_regions(40, async |rig, _, nexus| {
        for region in [30, 2, 17, 3, 4, 5, 29] {
            write_region(&nexus, region).await;
        }
        let bits = durable_bits(&rig, 0, BitmapKind::Intent);
        assert_eq!(bits, [2, 3, 4, 5, 17, 29, 30]);
    });
}

#[test]
fn no_more_regions_than_allowed_stay_set() {
    on_regions(60, async |rig, node, nexus| {
        nexus.configure(Policy {
            intent_max: 8,
            ..Policy::default()
        });
        let most = Rc::new(std::cell::Cell::new(0));
        let (seen, watched, clock) = (Rc::clone(&most), nexus.clone(), node.clone());
        node.spawn(async move {
            loop {
                seen.set(seen.get().max(watched.status().intent_regions));
                clock.sleep(Duration::from_micros(300)).await;
            }
        });
        for round in 0..4 {
            for region in 0..60 {
                write_region(&nexus, (region * 7 + round) % 60).await;
            }
        }
        assert!((8..=9).contains(&most.get()), "{}", most.get());
        let nexus = crash(&rig, &node, nexus).await;
        let resolved = nexus.status().resolved_bytes;
        assert!(
            resolved <= 9 * MIB,
            "W9: the client wrote within a second: {resolved}"
        );
    });
}

#[test]
fn a_clean_stop_leaves_no_bit() {
    on_regions(24, async |rig, node, nexus| {
        for region in [3, 9, 17] {
            write_region(&nexus, region).await;
        }
        assert!(nexus.stop().await, "A10");
        let nexus = rig.assemble(&node, &rig.all()).await.unwrap();
        assert_eq!(nexus.status().intent_regions, 0);
        assert_eq!(nexus.status().resolved_bytes, 0);
    });
}
