//! Tests of following chains and understanding requests, hostile ones above all.

use super::super::fuzz::table;
use super::super::ring::{Ring, RingAddresses, RingError};
use super::*;

const SIZE: u16 = 8;
const AVAILABLE: u64 = 16 * SIZE as u64;
const USED: u64 = 512;
const INDIRECT_TABLE: u64 = 0x800;
const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const DISK: u64 = 1 << 20;
/// Where the two regions of the memory meet.
const BORDER: u64 = 64 << 10;

const N: u16 = 1;
const W: u16 = 2;
const I: u16 = 4;

type Raw = (u64, u32, u16, u16);

struct Guest {
    memory: Rc<MemoryTable>,
    ring: Ring,
}

impl Guest {
    fn new(event_idx: bool) -> Self {
        let memory = table(&[]);
        let addresses = RingAddresses {
            descriptors: 0,
            available: AVAILABLE,
            used: USED,
        };
        let ring = Ring::new(&memory, addresses, u32::from(SIZE), 0, event_idx).unwrap();
        Self { memory, ring }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes).unwrap();
    }

    fn u16_at(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn describe(&self, table: u64, descriptors: &[Raw]) {
        for (index, (address, len, flags, next)) in (0u64..).zip(descriptors) {
            let at = table + 16 * index;
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &len.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes());
            self.put(at + 14, &next.to_le_bytes());
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.put(HEADER, &kind.to_le_bytes());
        self.put(HEADER + 8, &sector.to_le_bytes());
    }

    /// Makes descriptors 0 to 7 available, in order.
    fn offer(&self, count: u16) {
        for index in 0..count {
            let at = AVAILABLE + 4 + 2 * u64::from(index % SIZE);
            self.put(at, &(index % SIZE).to_le_bytes());
        }
        self.put(AVAILABLE + 2, &count.to_le_bytes());
    }

    fn request(&self) -> Result<Request, Refusal> {
        let mut chain = Chain::default();
        let followed = chain.read(&self.ring, &self.memory, 0);
        followed.map_err(|error| Refusal {
            error,
            status: chain.status(),
        })?;
        decode(&self.memory, &mut chain, DISK)
    }
}

/// The header in one descriptor, `data`, the status in one descriptor.
fn usual(data: &[Raw]) -> Vec<Raw> {
    let mut all = vec![(HEADER, 16, N, 1)];
    for (index, (address, len, flags, _)) in (2u16..).zip(data) {
        all.push((*address, *len, flags | N, index));
    }
    all.push((STATUS, 1, W, 0));
    all
}

fn refused(kind: u32, sector: u64, chain: &[Raw]) -> (ChainError, Option<u64>, Status) {
    let guest = Guest::new(false);
    guest.header(kind, sector);
    guest.describe(0, chain);
    let refusal = guest.request().unwrap_err();
    (refusal.error, refusal.status, refusal.code())
}

#[test]
fn chains_that_break_the_rules_are_refused_with_a_status_where_there_is_one() {
    let data = (DATA, 512, W, 0);
    let check = |chain: &[Raw], error: ChainError, status: Option<u64>| {
        assert_eq!(
            refused(0, 0, chain),
            (error, status, Status::IoErr),
            "{chain:x?}"
        );
    };
    // A chain that goes round.
    let round = [(HEADER, 16, N, 1), (DATA, 512, W | N, 0)];
    let error = ChainError::Endless(8);
    check(&[round[0], (DATA, 512, W | N, 1)], error, Some(DATA + 511));
    check(&[(HEADER, 16, N, 0)], error, None);
    // `next` outside the table.
    check(&[(HEADER, 16, N, SIZE)], ChainError::Next(SIZE), None);
    check(&[(HEADER, 16, N, 65535)], ChainError::Next(65535), None);
    // Nothing to write to.
    check(&[(HEADER, 16, 0, 0)], ChainError::NoStatus, None);
    check(
        &[(HEADER, 16, N, 1), (STATUS, 1, 0, 0)],
        ChainError::NoStatus,
        None,
    );
    // Zero bytes, in the middle and at the end.
    let empty = usual(&[(DATA, 0, W, 0)]);
    check(&empty, ChainError::Empty, Some(STATUS));
    let empty = [(HEADER, 16, N, 1), (STATUS, 0, W, 0)];
    check(&empty, ChainError::Empty, None);
    // Readable after writable.
    let order = [(DATA, 512, W | N, 1), (HEADER, 16, N, 2), (STATUS, 1, W, 0)];
    check(&order, ChainError::Order, Some(STATUS));
    // Outside memory.
    let outside = usual(&[(2 * BORDER - 511, 512, W, 0)]);
    check(
        &outside,
        ChainError::Address(2 * BORDER - 511),
        Some(STATUS),
    );
    let wraps = usual(&[(u64::MAX - 100, 512, W, 0)]);
    check(&wraps, ChainError::Address(u64::MAX - 100), Some(STATUS));
    let status = [(HEADER, 16, N, 1), data, (u64::MAX, 1, W, 0)];
    let status = [status[0], (DATA, 512, W | N, 2), status[2]];
    check(&status, ChainError::Address(u64::MAX), None);
    // Four GiB less one byte.
    let huge = usual(&[(DATA, u32::MAX, W, 0)]);
    check(&huge, ChainError::Address(DATA), Some(STATUS));
    // A header that is too short.
    let short = [(HEADER, 15, N, 1), (STATUS, 1, W, 0)];
    check(&short, ChainError::Header(15), Some(STATUS));
}

#[test]
fn indirect_tables_that_break_the_rules_are_refused() {
    let check = |first: Raw, table: &[Raw], error: ChainError, status: Option<u64>| {
        let guest = Guest::new(false);
        guest.describe(0, &[first, (STATUS, 1, W, 0)]);
        guest.describe(INDIRECT_TABLE, table);
        assert_eq!(guest.request().unwrap_err(), Refusal { error, status });
    };
    let at = |len| (INDIRECT_TABLE, len, I, 0);
    check(at(0), &[], ChainError::TableSize(0), None);
    check(at(17), &[], ChainError::TableSize(17), None);
    let huge = 0xffff_fff0;
    check(at(huge), &[], ChainError::TableSize(huge), None);
    let not_last = (INDIRECT_TABLE, 16, I | N, 1);
    check(not_last, &[], ChainError::Indirect, None);
    let nested = [(HEADER, 16, N, 1), (INDIRECT_TABLE, 32, I, 0)];
    check(at(32), &nested, ChainError::Indirect, None);
    let outside = [(HEADER, 16, N, 2), (STATUS, 1, W, 0)];
    check(at(32), &outside, ChainError::Next(2), None);
    let round = [(HEADER, 16, N, 1), (HEADER, 16, N, 0)];
    check(at(32), &round, ChainError::Endless(2), None);
    let far = (u64::MAX - 15, 32, I, 0);
    check(far, &[], ChainError::Address(u64::MAX - 15), None);
    let hole = (2 * BORDER, 32, I, 0);
    check(hole, &[], ChainError::Address(2 * BORDER), None);
}

#[test]
fn an_indirect_table_may_be_longer_than_the_ring_but_not_without_bound() {
    let guest = Guest::new(false);
    let chain = |count: u16| -> Vec<Raw> {
        (0..count)
            .map(|i| match i {
                0 => (HEADER, 16, N, 1),
                i if i == count - 1 => (STATUS, 1, W, 0),
                i => (DATA, 512, W | N, i + 1),
            })
            .collect()
    };
    guest.header(0, 0);
    for (count, works) in [(3, true), (100, true), (1024, true), (1025, false)] {
        guest.describe(INDIRECT_TABLE + 0x8000, &chain(count));
        guest.describe(0, &[(INDIRECT_TABLE + 0x8000, 16 * u32::from(count), I, 0)]);
        let request = guest.request();
        assert_eq!(request.is_ok(), works, "{count}");
        if let Ok(request) = request {
            assert_eq!(request.written, u32::from(count - 2) * 512 + 1);
        }
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let read = |len| usual(&[(DATA, len, W, 0)]);
    let write = |len| usual(&[(DATA, len, 0, 0)]);
    let check = |kind, sector, chain: &[Raw], error: ChainError, code: Status| {
        let expected = (error, Some(STATUS), code);
        assert_eq!(refused(kind, sector, chain), expected);
    };
    let no = Status::IoErr;
    let unknown = Status::Unsupported;
    // Past the end, by one and by far; a sector whose byte offset does not fit 64 bits.
    check(0, DISK / 512, &read(512), ChainError::Sector, no);
    check(1, DISK / 512 - 1, &write(1024), ChainError::Sector, no);
    check(1, u64::MAX, &write(512), ChainError::Sector, no);
    check(0, u64::MAX / 512, &read(512), ChainError::Sector, no);
    // Not whole sectors, none, or in the wrong direction.
    check(0, 0, &read(511), ChainError::Data, no);
    check(1, 0, &write(513), ChainError::Data, no);
    check(0, 0, &usual(&[]), ChainError::Data, no);
    check(0, 0, &write(512), ChainError::Data, no);
    check(1, 0, &read(512), ChainError::Data, no);
    // Unknown types, and ranges that are not ranges.
    check(2, 0, &read(512), ChainError::Type(2), unknown);
    check(u32::MAX, 0, &read(512), ChainError::Type(u32::MAX), unknown);
    check(11, 0, &write(15), ChainError::Data, no);
    check(13, 0, &usual(&[]), ChainError::Data, no);
    check(11, 0, &write(16 * 17), ChainError::Data, no);
}

#[test]
fn discards_and_zeroes_are_checked_range_by_range() {
    let check = |kind: u32, ranges: &[(u64, u32, u32)], expected: Result<usize, ChainError>| {
        let guest = Guest::new(false);
        guest.header(kind, 0);
        let len = 16 * u32::try_from(ranges.len()).unwrap();
        guest.describe(0, &usual(&[(DATA, len, 0, 0)]));
        for (index, (sector, count, flags)) in (0u64..).zip(ranges) {
            let at = DATA + 16 * index;
            guest.put(at, &sector.to_le_bytes());
            guest.put(at + 8, &count.to_le_bytes());
            guest.put(at + 12, &flags.to_le_bytes());
        }
        let found = match guest.request() {
            Ok(request) => match request.command {
                Command::Zero(ranges) => Ok(ranges.len()),
                other => panic!("{other:?}"),
            },
            Err(refusal) => Err(refusal.error),
        };
        assert_eq!(found, expected, "{kind} {ranges:?}");
    };
    let all = u32::try_from(DISK / 512).unwrap();
    check(11, &[(0, all, 0)], Ok(1));
    check(13, &[(8, 8, 0), (0, 1, 1)], Ok(2));
    check(11, &[(0, 8, 1)], Err(ChainError::Flags));
    check(13, &[(0, 8, 0), (0, 8, 2)], Err(ChainError::Flags));
    check(13, &[(0, 0, 0)], Err(ChainError::Data));
    check(13, &[(1, all, 0)], Err(ChainError::Sector));
    check(11, &[(u64::MAX, 8, 0)], Err(ChainError::Sector));
    check(11, &[(0, u32::MAX, 0)], Err(ChainError::Data));
}

#[test]
fn a_request_may_be_spread_over_descriptors_in_any_way() {
    let guest = Guest::new(false);
    guest.header(0, 3);
    let chain = [
        (HEADER, 1, N, 1),
        (HEADER + 1, 10, N, 2),
        (HEADER + 11, 5, N, 3),
        // Data across the border of two regions, and a status that shares their last descriptor.
        (BORDER - 100, 300, W | N, 4),
        (DATA, 213, W, 0),
    ];
    guest.describe(0, &chain);
    let request = guest.request().unwrap();
    assert_eq!((request.status, request.written), (DATA + 212, 513));
    let Command::Read { offset, buffer } = request.command else {
        panic!("{request:?}")
    };
    assert_eq!((offset, buffer.len()), (3 * 512, 512));
    assert_eq!(buffer.segments().count(), 3);
}

#[test]
fn header_and_data_may_share_a_descriptor() {
    let guest = Guest::new(false);
    guest.header(1, 0);
    guest.put(HEADER + 16, &[7; 512]);
    guest.describe(0, &[(HEADER, 528, N, 1), (STATUS, 1, W, 0)]);
    match guest.request().unwrap().command {
        Command::Write { offset, buffer } => {
            assert_eq!((offset, buffer.to_vec()), (0, vec![7; 512]));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ring_that_makes_no_sense_is_refused() {
    let mut guest = Guest::new(false);
    guest.offer(SIZE + 1);
    let refused = guest.ring.pop();
    assert!(matches!(
        refused,
        Err(RingError::Overrun {
            available: 9,
            size: 8
        })
    ));
    guest.offer(1);
    guest.put(AVAILABLE + 4, &SIZE.to_le_bytes());
    let refused = guest.ring.pop();
    assert!(matches!(refused, Err(RingError::Head { head: 8, size: 8 })));
    let memory = table(&[]);
    let at = RingAddresses {
        descriptors: 0,
        available: AVAILABLE,
        used: USED,
    };
    let new = |at, size| Ring::new(&memory, at, size, 0, false);
    for size in [0, 3, 1 << 16, u32::MAX] {
        assert!(matches!(new(at, size), Err(RingError::Size(_))), "{size}");
    }
    let outside = RingAddresses {
        used: 2 * BORDER - 8,
        ..at
    };
    assert!(matches!(new(outside, 8), Err(RingError::Memory(_))));
}

#[test]
fn a_call_is_made_when_the_driver_asked_for_one() {
    let mut guest = Guest::new(false);
    guest.ring.add_used(0, 1);
    assert_eq!(guest.u16_at(USED + 2), 0, "nothing is visible yet");
    assert!(guest.ring.publish());
    assert_eq!(guest.u16_at(USED + 2), 1);
    assert!(!guest.ring.publish(), "nothing new");
    guest.put(AVAILABLE, &1u16.to_le_bytes());
    guest.ring.add_used(1, 1);
    assert!(!guest.ring.publish(), "NO_INTERRUPT is set");

    let mut guest = Guest::new(true);
    let used_event = AVAILABLE + 4 + 2 * u64::from(SIZE);
    guest.put(used_event, &2u16.to_le_bytes());
    for (expected, index) in [(false, 0), (false, 1), (true, 2), (false, 3)] {
        guest.ring.add_used(index, 1);
        assert_eq!(guest.ring.publish(), expected, "{index}");
    }
    guest.put(used_event, &6u16.to_le_bytes());
    for index in 4..8 {
        guest.ring.add_used(index, 1);
    }
    assert!(guest.ring.publish(), "the event lies within the batch");
}

#[test]
fn kicks_are_asked_for_only_when_nothing_is_left() {
    let check = |event_idx: bool, armed: &dyn Fn(&Guest) -> bool| {
        let mut guest = Guest::new(event_idx);
        guest.offer(2);
        guest.ring.disarm();
        assert!(!armed(&guest));
        assert_eq!(guest.ring.pop().unwrap(), Some(0));
        assert!(guest.ring.arm(), "one has come meanwhile");
        guest.ring.disarm();
        assert_eq!(guest.ring.pop().unwrap(), Some(1));
        assert_eq!(guest.ring.pop().unwrap(), None);
        assert!(!guest.ring.arm());
        assert!(armed(&guest));
        assert_eq!(guest.ring.base(), 2);
    };
    check(false, &|guest| guest.u16_at(USED) == 0);
    let avail_event = USED + 4 + 8 * u64::from(SIZE);
    check(true, &|guest| {
        guest.u16_at(avail_event) == guest.ring.base()
    });
}
