//! Tests of mapping, translating and losing guest memory.

use std::os::unix::process::ExitStatusExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::*;

const PAGE: u64 = 4096;

fn file(size: u64) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    File::from(fd)
}

fn spec(guest: u64, size: u64, offset: u64) -> RegionSpec {
    RegionSpec {
        guest,
        user: guest.wrapping_add(0x7f00_0000_0000),
        size,
        offset,
    }
}

fn region(guest: u64, size: u64) -> Rc<Region> {
    Rc::new(Region::map(spec(guest, size, 0), &file(size)).unwrap())
}

/// Two regions that touch at 3 pages, a hole behind the fifth, and one more.
fn table() -> Rc<MemoryTable> {
    let regions = vec![
        region(3 * PAGE, 2 * PAGE),
        region(8 * PAGE, 1000),
        region(PAGE, 2 * PAGE),
    ];
    Rc::new(MemoryTable::new(regions).unwrap())
}

#[test]
fn a_range_that_crosses_regions_is_one_buffer() {
    let table = table();
    let data: Vec<u8> = (0..100).collect();
    table.write(3 * PAGE - 50, &data).unwrap();
    let range = |address, len| GuestRange { address, len };
    let buffer = table
        .buffer(&[range(3 * PAGE + 10, 5), range(3 * PAGE - 50, 100)])
        .unwrap();
    assert_eq!(buffer.len(), 105);
    assert_eq!(buffer.to_vec(), [&data[60..65], &data[..]].concat());
    assert_eq!(buffer.segments().count(), 3);
    let mut back = [0; 100];
    table.read(3 * PAGE - 50, &mut back).unwrap();
    assert_eq!(back.as_slice(), data);
}

#[test]
fn words_are_read_where_they_lie_and_across_regions() {
    let table = table();
    let data: Vec<u8> = (1..=16).collect();
    let words = [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09];
    for address in [PAGE, PAGE + 3, 3 * PAGE - 16, 3 * PAGE - 5] {
        table.write(address, &data).unwrap();
        assert_eq!(table.read_words(address).unwrap(), words);
        table.write_byte(address + 15, 0xff).unwrap();
        assert_eq!(table.read_words(address).unwrap()[1] >> 56, 0xff);
    }
    let end = 5 * PAGE;
    assert!(table.read_words(end - 15).is_err());
    assert!(table.write_byte(end - 1, 1).is_ok() && table.write_byte(end, 1).is_err());
}

#[test]
fn addresses_outside_the_regions_are_refused() {
    let table = table();
    let check = |address: u64, len: usize, expected: bool| {
        let read = table.read(address, &mut vec![0; len]);
        assert_eq!(read.is_ok(), expected, "{len} bytes at {address:#x}");
    };
    check(PAGE, 4 * 4096, true);
    check(PAGE - 1, 1, false);
    check(PAGE - 1, 2, false);
    check(5 * PAGE - 1, 2, false);
    check(5 * PAGE, 1, false);
    check(8 * PAGE, 1000, true);
    check(8 * PAGE + 999, 2, false);
    check(u64::MAX, 1, false);
    check(u64::MAX - 10, 100, false);
    check(PAGE, 0, true);
    let empty = MemoryTable::new(Vec::new()).unwrap();
    assert!(empty.read(0, &mut [0]).is_err());
    assert!(empty.area(0, 16, 16).is_err());
}

#[test]
fn a_region_at_the_end_of_the_address_space_does_not_wrap() {
    let last = u64::MAX - PAGE + 1;
    let map = |guest, size| Region::map(spec(guest, size, 0), &file(2 * PAGE));
    // The last byte of the address space can't be in a region: its end would not fit.
    assert!(matches!(map(last, PAGE), Err(MemoryError::Extent(_))));
    let spec = RegionSpec {
        user: 0,
        ..spec(last - PAGE, PAGE, 0)
    };
    let region = Region::map(spec, &file(PAGE)).unwrap();
    let table = MemoryTable::new(vec![Rc::new(region)]).unwrap();
    assert!(table.read(last - PAGE, &mut [0; 4096]).is_ok());
    assert!(table.read(last - 1, &mut [0; 4]).is_err());
    assert!(table.read(u64::MAX, &mut [0; 4]).is_err());
}

#[test]
fn bad_regions_are_refused_by_name() {
    let check = |spec: RegionSpec, size: u64, expected: fn(&MemoryError) -> bool| {
        let error = Region::map(spec, &file(size)).unwrap_err();
        assert!(expected(&error), "{error:?}");
    };
    check(spec(0, 0, 0), PAGE, |e| matches!(e, MemoryError::Extent(_)));
    check(spec(u64::MAX - 5, PAGE, 0), PAGE, |e| {
        matches!(e, MemoryError::Extent(_))
    });
    check(spec(0, PAGE, 100), 2 * PAGE, |e| {
        matches!(e, MemoryError::Offset(_))
    });
    check(spec(0, PAGE + 1, 0), PAGE, |e| {
        matches!(e, MemoryError::Short { .. })
    });
    check(spec(0, PAGE, u64::MAX - PAGE + 1), PAGE, |e| {
        matches!(e, MemoryError::Extent(_))
    });
    let pipe = File::from(rustix::pipe::pipe().unwrap().0);
    let refused = Region::map(spec(0, PAGE, 0), &pipe).unwrap_err();
    assert!(matches!(refused, MemoryError::NotAFile(_)));
    let overlap = MemoryTable::new(vec![region(0, 2 * PAGE), region(PAGE, PAGE)]);
    assert!(matches!(overlap, Err(MemoryError::Overlap(..))));
}

#[test]
fn a_removed_region_stays_mapped_for_whoever_uses_it() {
    let table = table();
    table.write(PAGE, b"kept").unwrap();
    let ranges = [GuestRange {
        address: PAGE,
        len: 4,
    }];
    let buffer = table.buffer(&ranges).unwrap();
    let smaller = table.without(spec(PAGE, 2 * PAGE, 0)).unwrap();
    assert!(smaller.read(PAGE, &mut [0]).is_err());
    assert!(smaller.read(3 * PAGE, &mut [0]).is_ok());
    let again = smaller.without(spec(PAGE, 2 * PAGE, 0));
    assert!(matches!(again, Err(MemoryError::Unknown(_))));
    drop(table);
    assert_eq!(buffer.to_vec(), b"kept");
}

#[test]
fn a_vring_part_must_lie_whole_and_aligned_in_one_region() {
    let table = table();
    let user = 0x7f00_0000_0000 + PAGE;
    let check = |address: u64, len: usize, alignment: usize, expected: bool| {
        let found = table.area(address, len, alignment);
        assert_eq!(found.is_ok(), expected, "{address:#x}");
    };
    check(user, 2 * 4096, 16, true);
    check(user, 2 * 4096 + 1, 16, false);
    check(user + 8, 16, 16, false);
    check(user + 2, 16, 2, true);
    check(user - 16, 16, 16, false);
    check(u64::MAX - 15, 16, 16, false);
}

#[test]
fn memory_that_is_shrunk_reads_as_zeroes_and_is_known_to_be_damaged() {
    let memory = file(4 * PAGE);
    let shrunk = Region::map(spec(0, 4 * PAGE, 0), &memory).unwrap();
    let shrunk = MemoryTable::new(vec![Rc::new(shrunk)]).unwrap();
    let other = table();
    other.write(PAGE, b"whole").unwrap();
    shrunk.write(0, b"first").unwrap();
    shrunk.write(3 * PAGE, b"last").unwrap();
    ftruncate(&memory, PAGE).unwrap();
    let mut bytes = [1; 5];
    shrunk.read(0, &mut bytes).unwrap();
    assert_eq!((&bytes, shrunk.is_damaged()), (b"first", false));
    shrunk.read(3 * PAGE, &mut bytes).unwrap();
    assert_eq!((bytes, shrunk.is_damaged()), ([0; 5], true));
    shrunk.write(2 * PAGE - 2, b"crosses").unwrap();
    other.read(PAGE, &mut bytes).unwrap();
    assert_eq!((&bytes, other.is_damaged()), (b"whole", false));
}

#[test]
fn a_table_entry_is_free_again_after_its_region() {
    let memory = file(PAGE);
    for _ in 0..2 * WATCHES {
        drop(Region::map(spec(0, PAGE, 0), &memory).unwrap());
    }
}

/// Runs this very test again in a process that is to die.
#[test]
fn a_bus_error_outside_guest_memory_still_ends_the_process() {
    const CHILD: &str = "VOLUND_TEST_BUS_ERROR";
    if std::env::var_os(CHILD).is_some() {
        let _installed = region(0, PAGE);
        let memory = file(PAGE);
        let offset = FileOffset::new(memory.try_clone().unwrap(), 0);
        let theirs = MmapRegion::<()>::from_file(offset, 4096).unwrap();
        ftruncate(&memory, 0).unwrap();
        let _: u8 = theirs.as_volatile_slice().read_obj(0).unwrap();
        unreachable!("SIGBUS ends the process");
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_bus_error_outside_guest_memory", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{child:?}");
}
