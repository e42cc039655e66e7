//! The vhost-user export against front ends that do what they like, when they like.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::EventFd;
use volund::frontend::vhost_user::feature;

use super::vhost_guest::{
    DATA_LEN, DISCARD, FLUSH, GET_ID, Guest, IN, MEMORY, OUT, RING, WITHOUT_FLUSH,
};
use super::vhost_rig::{DISK, PATIENCE, Rig, geometry, pause, until};
use volund::io::MemoryDevice;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn the_device_is_what_the_volume_is() {
    let rig = Rig::new(geometry(4096, true), |_| MemoryDevice::new(DISK));
    let mut guest = Guest::start(&rig.path, 1, 0);
    assert_eq!(guest.front.get_queue_num().unwrap(), 4);
    assert!(guest.front.get_max_mem_slots().unwrap() >= 32);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = guest.front.get_config(0, 60, flags, &[0; 60]).unwrap();
    assert_eq!(config[..8], (DISK / 512).to_le_bytes());
    assert_eq!(config[20..24], 4096u32.to_le_bytes());
    assert_eq!(guest.request(0, GET_ID, 0, 20), OK);
    assert_eq!(guest.write(0, 0, &[1; 4096]), IOERR, "read-only");
    let features = rig.status().features;
    assert_eq!(features & (feature::RO | feature::DISCARD), feature::RO);
    // Not grid-aligned: the logical block is 4096 bytes.
    assert_eq!(guest.request(0, IN, 1, 512), IOERR);
    assert_eq!(guest.request(0, IN, 8, 4096), OK);
}

#[test]
fn writing_to_the_configuration_space_is_refused_and_survived() {
    let (rig, _gate) = Rig::gated();
    let mut guest = Guest::start(&rig.path, 1, 0);
    let flags = VhostUserConfigFlags::WRITABLE;
    guest.front.set_config(32, flags, &[1]).unwrap_err();
    assert_eq!(guest.write(0, 0, &[1; 512]), OK);
}

/// Spec W11: what is in flight is answered before the stop is, and nothing is taken after.
#[test]
fn every_way_to_stop_a_queue_drains_it_first() {
    type Stop = fn(&mut Frontend);
    let ways: [(&str, Stop); 3] = [
        ("GET_VRING_BASE", |front| {
            assert_eq!(front.get_vring_base(0).unwrap(), 2);
        }),
        ("SET_VRING_ENABLE 0", |front| {
            front.set_vring_enable(0, false).unwrap()
        }),
        ("RESET_DEVICE", |front| front.reset_device().unwrap()),
    ];
    for (name, stop) in ways {
        let (rig, gate) = Rig::gated();
        let mut guest = Guest::start(&rig.path, 1, 0);
        gate.close();
        for slot in 0..2 {
            let data = Some((Guest::data(0), 512));
            guest.begin((0, slot), OUT, u64::from(slot), data);
        }
        gate.until_started(2);
        let answered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut front = guest.front.clone();
            let answered = &answered;
            scope.spawn(move || {
                stop(&mut front);
                answered.store(true, Ordering::SeqCst);
            });
            pause(50);
            assert!(!answered.load(Ordering::SeqCst), "{name} did not wait");
            assert_eq!(guest.used(0), 0);
            gate.open();
        });
        assert_eq!(
            guest.used(0),
            2,
            "{name}: answered before the answers were published"
        );
        assert_eq!((guest.status(0, 0), guest.status(0, 1)), (OK, OK));
        // A request after the stop stays where it is.
        guest.begin((0, 2), OUT, 9, Some((Guest::data(0), 512)));
        pause(20);
        assert_eq!(
            (guest.used(0), gate.started.load(Ordering::Relaxed)),
            (2, 2)
        );
        drop(rig);
    }
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let (rig, _gate) = Rig::gated();
    let mut guest = Guest::start(&rig.path, 2, 0);
    assert_eq!(guest.write(0, 0, &[7; 512]), OK);
    let base = guest.front.get_vring_base(0).unwrap();
    assert_eq!(base, 1);
    // One request is made available while nobody looks: it is taken at the start, without a kick.
    guest.begin((0, 0), IN, 0, Some((Guest::data(0), 512)));
    guest.start_queue(0, 1);
    assert_eq!(guest.next_used(0), Some((0, 513)));
    assert_eq!(guest.status(0, 0), OK);
    guest.front.set_vring_enable(1, false).unwrap();
    guest.begin((1, 0), IN, 0, Some((Guest::data(1), 512)));
    guest.front.set_vring_enable(1, true).unwrap();
    assert_eq!(guest.next_used(1), Some((0, 513)));
}

#[test]
fn a_second_client_is_refused_while_the_first_is_served() {
    let (rig, _gate) = Rig::gated();
    let mut guest = Guest::start(&rig.path, 1, 0);
    let mut second = UnixStream::connect(&rig.path).unwrap();
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0, "closed at once");
    let status = rig.status();
    assert_eq!((status.refused, status.connections), (1, 1));
    assert_eq!(guest.write(0, 0, &[1; 512]), OK);
}

#[test]
fn a_client_may_leave_and_come_back_any_time() {
    let (rig, _gate) = Rig::gated();
    for round in 1..=10u8 {
        let mut guest = Guest::start(&rig.path, 2, 0);
        let earlier = u8::from(round > 1) * (round - 1);
        assert_eq!(guest.read(1, 0, 512), (OK, vec![earlier; 512]));
        assert_eq!(guest.write(0, 0, &[round; 512]), OK);
    }
    rig.until("the last client has gone", |status| !status.connected);
    let status = rig.status();
    assert_eq!((status.connections, status.refused), (10, 0));
    assert_eq!(status.last_error, None);
}

/// Over virtio-mmio guests use rings of 1024 entries, whatever the export is set to.
#[test]
fn no_more_than_the_depth_is_in_flight_and_the_rest_needs_no_kick() {
    let (rig, gate) = Rig::gated_with(2);
    let mut guest = Guest::start(&rig.path, 1, 0);
    gate.close();
    for slot in 0..5 {
        guest.begin((0, slot), OUT, u64::from(slot), Some((Guest::data(0), 512)));
    }
    gate.until_started(2);
    pause(20);
    assert_eq!(gate.started.load(Ordering::Relaxed), 2);
    gate.open();
    for _ in 0..5 {
        assert!(guest.next_used(0).is_some_and(|(_, written)| written == 1));
    }
    assert_eq!(
        guest.write(0, 0, &[1; 512]),
        OK,
        "kicks are asked for again"
    );
    guest.front.set_vring_num(1, 1024).unwrap();
    guest.front.set_vring_num(1, 1000).unwrap_err();
    drop(rig);
}

/// Spec W11 across clients: a write of the one that has gone can't land after one of the next.
#[test]
fn the_next_client_waits_for_the_last_ones_requests() {
    let (rig, gate) = Rig::gated();
    let mut first = Guest::start(&rig.path, 1, 0);
    gate.close();
    first.begin((0, 0), OUT, 0, Some((Guest::data(0), 512)));
    gate.until_started(1);
    drop(first);
    let path = rig.path.clone();
    let second = std::thread::spawn(move || {
        let mut second = Guest::start(&path, 1, 0);
        second.write(0, 0, &[9; 512])
    });
    pause(50);
    assert!(!second.is_finished());
    assert_eq!(
        gate.started.load(Ordering::Relaxed),
        1,
        "the second has to wait"
    );
    gate.open();
    assert_eq!(second.join().unwrap(), OK);
    assert_eq!(rig.status().refused, 0);
}

#[test]
fn bad_requests_get_an_error_and_the_queue_goes_on() {
    let (rig, _gate) = Rig::gated();
    let mut guest = Guest::start(&rig.path, 1, 0);
    let last = DISK / 512;
    assert_eq!(guest.request(0, IN, last, 512), IOERR);
    assert_eq!(guest.request(0, IN, u64::MAX, 512), IOERR);
    assert_eq!(guest.request(0, OUT, last - 1, 1024), IOERR);
    assert_eq!(guest.request(0, IN, 0, 100), IOERR);
    assert_eq!(guest.request(0, 77, 0, 512), UNSUPPORTED);
    // A loop without a status byte: given back with nothing written.
    guest.describe(0, 15, (Guest::data(0), 16, 1, 15));
    guest.offer(0, 15);
    guest.kick(0);
    assert_eq!(guest.next_used(0), Some((15, 0)));
    // 4 GiB less one.
    guest.begin((0, 0), IN, 0, Some((Guest::data(0), u32::MAX)));
    assert_eq!(guest.next_used(0), Some((0, 0)));
    assert_eq!(guest.status(0, 0), IOERR);
    assert_eq!(guest.write(0, 0, &[1; 512]), OK);
    assert_eq!(rig.status().queues[0].malformed, 7);
}

#[test]
fn a_broken_ring_stops_its_queue_and_no_other() {
    type Break = fn(&mut Guest);
    let breaks: [(&str, Break); 3] = [
        ("offers descriptor", |guest| guest.offer(0, RING)),
        ("available in a virtqueue", |guest| {
            guest.put_available(0, 1000);
        }),
        ("in flight", |guest| {
            for _ in 0..=RING {
                guest.begin((0, 0), OUT, 0, Some((Guest::data(0), 512)));
                pause(2);
            }
        }),
    ];
    for (what, break_it) in breaks {
        let (rig, gate) = Rig::gated();
        let mut guest = Guest::start(&rig.path, 2, 0);
        gate.close();
        break_it(&mut guest);
        guest.kick(0);
        rig.until(what, |status| status.queues[0].broken == 1);
        gate.open();
        let status = rig.status();
        let error = status.last_error.unwrap_or_default();
        assert!(error.contains(what), "{error:?} without {what:?}");
        assert_eq!(
            (status.queues[0].running, status.queues[1].running),
            (false, true)
        );
        assert_eq!(guest.write(1, 0, &[1; 512]), OK);
        assert!(guest.front.get_vring_base(0).is_ok());
    }
}

#[test]
fn writes_of_a_driver_that_cannot_flush_are_durable() {
    for (without, durable) in [(0, 0), (WITHOUT_FLUSH, 2)] {
        let (rig, gate) = Rig::gated();
        let mut guest = Guest::start(&rig.path, 1, without);
        assert_eq!(guest.write(0, 0, &[1; 512]), OK);
        let mut range = vec![0; 16];
        range[8] = 8;
        assert_eq!(guest.write(0, 0, &[2; 512]), OK);
        let durable_writes = gate.durable_writes.load(Ordering::Relaxed);
        assert_eq!(durable_writes, durable);
        guest.put(0x4000, &range);
        assert_eq!(guest.request(0, DISCARD, 0, 16), OK);
        assert_eq!(guest.read(0, 0, 512), (OK, vec![0; 512]));
        assert_eq!(guest.request(0, FLUSH, 0, 0), OK);
        assert_eq!(gate.flushes.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_large_request_is_served_in_pieces() {
    let (rig, gate) = Rig::gated();
    let mut guest = Guest::start(&rig.path, 1, 0);
    // The same 64 KiB again and again, 96 times: 6 MiB from an indirect table.
    let table = 0x1_8000;
    let count = 98u32;
    let entry = |index: u32, (address, len, flags): (u64, u32, u16)| {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(u16::try_from(index + 1).unwrap().to_le_bytes());
        bytes
    };
    let data = Guest::data(1) - 0x4000;
    guest.put(0x3000, &OUT.to_le_bytes());
    guest.put(0x3008, &0u64.to_le_bytes());
    for index in 0..count {
        let descriptor = match index {
            0 => (MEMORY + 0x3000, 16, 1),
            97 => (MEMORY + 0x3800, 1, 2),
            _ => (data, u32::try_from(DATA_LEN).unwrap(), 1),
        };
        guest.put(table + 16 * u64::from(index), &entry(index, descriptor));
    }
    guest.describe(0, 0, (MEMORY + table, 16 * count, 4, 0));
    guest.offer(0, 0);
    guest.kick(0);
    assert_eq!(guest.next_used(0), Some((0, 1)));
    assert_eq!(guest.status(0, 0), OK);
    assert_eq!(gate.writes.load(Ordering::Relaxed), 6);
    drop(rig);
}

#[test]
fn stopping_disconnects_drains_and_removes_the_socket() {
    let (mut rig, gate) = Rig::gated();
    let mut guest = Guest::start(&rig.path, 1, 0);
    gate.close();
    guest.begin((0, 0), OUT, 0, Some((Guest::data(0), 512)));
    gate.until_started(1);
    std::thread::scope(|scope| {
        let path = rig.path.clone();
        scope.spawn(|| rig.stop());
        until("the socket is gone", || {
            !path.exists() || guest.front.get_features().is_err()
        });
        assert_eq!(gate.writes.load(Ordering::Relaxed), 0);
        gate.open();
    });
    assert!(!rig.path.exists());
    assert_eq!((guest.used(0), guest.status(0, 0)), (1, OK));
    guest.front.get_features().unwrap_err();
}

#[test]
fn what_is_not_an_eventfd_is_refused_as_one() {
    let (rig, _gate) = Rig::gated();
    let guest = Guest::start(&rig.path, 1, 0);
    let (pipe, _other) = std::io::pipe().unwrap();
    let not_an_event = event_of(pipe.into());
    guest.front.set_vring_call(0, &not_an_event).unwrap_err();
    rig.until("the connection has ended", |status| !status.connected);
    let error = rig.status().last_error.unwrap_or_default();
    assert!(error.contains("expected an eventfd"), "{error}");
}

#[allow(unsafe_code, reason = "dresses a pipe up as an eventfd")]
fn event_of(fd: std::os::fd::OwnedFd) -> EventFd {
    let fd = std::os::fd::IntoRawFd::into_raw_fd(fd);
    // SAFETY: the descriptor was just given up by its owner.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

#[test]
fn nonsense_on_the_socket_ends_the_connection_with_a_reason() {
    use std::io::Write;
    let (rig, _gate) = Rig::gated();
    for bytes in [
        &[0xffu8; 64][..],
        // Request 5 (SET_MEM_TABLE) with a body of 8 bytes: no regions, no files.
        &[5, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // Request 8 (SET_VRING_NUM) for queue 9, 128 entries.
        &[8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 128, 0, 0, 0],
        // A body of 4 GiB.
        &[2, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255],
    ] {
        let mut stream = UnixStream::connect(&rig.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let _ = stream.read(&mut [0; 8]);
        rig.until("the connection has ended", |status| !status.connected);
        assert!(rig.status().last_error.is_some(), "{bytes:?}");
    }
    let mut guest = Guest::start(&rig.path, 1, 0);
    assert_eq!(guest.write(0, 0, &[1; 512]), OK);
}

#[test]
fn a_client_may_disconnect_in_the_middle_of_any_message() {
    use std::io::Write;
    let (rig, _gate) = Rig::gated();
    let handshake = [
        // SET_OWNER, GET_FEATURES, SET_FEATURES, GET_PROTOCOL_FEATURES, SET_VRING_NUM.
        &[3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0],
        &[15, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0],
    ]
    .concat();
    for len in 0..=handshake.len() {
        let mut stream = UnixStream::connect(&rig.path).unwrap();
        stream.write_all(&handshake[..len]).unwrap();
        drop(stream);
    }
    let mut guest = Guest::start(&rig.path, 1, 0);
    assert_eq!(guest.write(0, 0, &[1; 512]), OK);
    assert_eq!(rig.status().refused, 0);
}
