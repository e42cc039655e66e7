//! The guest's memory over vhost-user: regions that are bad, come, go, or shrink under load.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::os::fd::AsRawFd;

use rustix::fs::ftruncate;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use volund::io::MemoryDevice;

use super::vhost_guest::{Guest, IN, MEMORY, MEMORY_LEN, OUT};
use super::vhost_rig::{DISK, Manner, Rig, geometry};

const OK: u8 = 0;
const IOERR: u8 = 1;

#[test]
fn memory_shrunk_under_load_ends_that_connection_only() {
    shrunk_under_load(&Rig::gated().0);
}

/// The data still have pages then, but nobody else sees them.
#[test]
fn pinned_memory_shrunk_under_load_ends_that_connection_only() {
    let manner = Manner {
        pinned: true,
        ..Manner::default()
    };
    shrunk_under_load(&Rig::with(manner, geometry(512, false), |_| {
        MemoryDevice::new(DISK)
    }));
}

fn shrunk_under_load(hit: &Rig) {
    let (spared, _) = Rig::gated();
    let mut bystander = Guest::start(&spared.path, 1, 0);
    assert_eq!(bystander.write(0, 0, &[5; 512]), OK);
    // Everything goes, then only the data: the ring itself is met first, or the request's data.
    for left in [0, 0x4000] {
        let mut victim = Guest::start(&hit.path, 1, 0);
        assert_eq!(victim.write(0, 0, &[1; 4096]), OK);
        let data = Some((Guest::data(0), 0x8000));
        victim.begin((0, 0), IN, 0, data);
        victim.begin((0, 1), OUT, 64, data);
        ftruncate(&victim.file, left).unwrap();
        // What is gone from our mapping is gone from the guest's own, so it takes care where it steps.
        let shrunk = |error: &String| error.contains("shrunk");
        if left == 0 {
            victim.kick(0);
        } else {
            victim.begin((0, 2), IN, 0, data);
        }
        hit.until("the connection has ended", |status| !status.connected);
        assert!(hit.status().last_error.as_ref().is_some_and(shrunk));
        assert_eq!(bystander.read(0, 0, 512), (OK, vec![5; 512]));
        std::mem::forget(victim);
    }
    let mut again = Guest::start(&hit.path, 1, 0);
    assert_eq!(again.write(0, 0, &[1; 512]), OK);
    assert_eq!(bystander.write(0, 8, &[6; 512]), OK);
    assert_eq!(spared.status().last_error, None);
}

#[test]
fn bad_memory_regions_are_refused_by_name() {
    let (rig, _gate) = Rig::gated();
    let check = |change: fn(&mut VhostUserMemoryRegionInfo), expected: &str| {
        let mut guest = Guest::connect(&rig.path, 0);
        let mut region = guest.region();
        change(&mut region);
        guest.front.add_mem_region(&region).unwrap_err();
        rig.until("the connection has ended", |status| !status.connected);
        let error = rig.status().last_error.unwrap_or_default();
        assert!(error.contains(expected), "{error:?} without {expected:?}");
    };
    check(|region| region.memory_size += 1, "ends beyond its file");
    check(|region| region.mmap_offset = 4096, "ends beyond its file");
    check(
        |region| region.mmap_offset = 100,
        "does not start on a page",
    );
    check(
        |region| region.guest_phys_addr = u64::MAX - 5,
        "wraps around",
    );
    check(
        |region| region.memory_size = 1 << 60,
        "ends beyond its file",
    );

    let mut guest = Guest::connect(&rig.path, 0);
    let region = guest.region();
    guest.front.add_mem_region(&region).unwrap();
    let mut overlapping = guest.region();
    overlapping.guest_phys_addr += MEMORY_LEN - 1;
    guest.front.add_mem_region(&overlapping).unwrap_err();
    drop(guest);

    let mut guest = Guest::connect(&rig.path, 0);
    let never_added = guest.region();
    guest.front.remove_mem_region(&never_added).unwrap_err();
}

#[test]
fn memory_can_be_added_and_removed_while_queues_run() {
    let (rig, _gate) = Rig::gated();
    let mut guest = Guest::start(&rig.path, 1, 0);
    let more = VhostUserMemoryRegionInfo {
        guest_phys_addr: MEMORY + MEMORY_LEN,
        memory_size: 0x1000,
        userspace_addr: 0x7f00_0000_0000,
        mmap_offset: 0x1_f000,
        mmap_handle: guest.file.as_raw_fd(),
    };
    // Its second page is outside, the whole buffer crosses from one region into the other.
    let across = Some((MEMORY + MEMORY_LEN - 512, 1024));
    guest.begin((0, 0), IN, 0, across);
    assert_eq!(guest.next_used(0), Some((0, 0)));
    assert_eq!(guest.status(0, 0), IOERR);
    guest.front.add_mem_region(&more).unwrap();
    guest.begin((0, 0), IN, 0, across);
    assert_eq!(guest.next_used(0), Some((0, 1025)));
    guest.front.remove_mem_region(&more).unwrap();
    guest.begin((0, 0), IN, 0, across);
    assert_eq!(guest.next_used(0), Some((0, 0)));
    // The table as a whole, with the same contents, is replaced under running queues as well.
    guest.front.set_mem_table(&[guest.region()]).unwrap();
    assert_eq!(guest.write(0, 0, &[3; 512]), OK);
    assert_eq!(rig.status().queues[0].malformed, 2);
}
