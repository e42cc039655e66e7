//! Tests of the pages, and of what a power cut or a failed write leaves of them.

use std::pin::Pin;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::io::recording::{RecordingDisk, run};
use crate::replica::page::PageError;
use crate::replica::testing::step;

const IDENTITY: Identity = Identity {
    volume: VolumeId::from_uuid(Uuid::from_u128(2)),
    kind: BitmapKind::Intent,
    region_shift: 20,
};
const DISK_SIZE: usize = 264 << 10;

type Pending<'a> = Pin<Box<dyn Future<Output = Result<(), IoError>> + 'a>>;

/// What is on the disk, as an opener would see it.
fn reopen(disk: &RecordingDisk, regions: u64) -> Bitmap {
    let start = usize::try_from(INTENT_OFFSET).unwrap();
    let bytes = &disk.contents()[start..start + Bitmap::pages_len(regions)];
    Bitmap::from_disk(IDENTITY, regions, bytes)
}

/// A disk with a bitmap of which no bit is set.
fn cleared(regions: u64) -> (RecordingDisk, BufferPool, Bitmap) {
    let mut contents = vec![0; DISK_SIZE];
    let start = usize::try_from(INTENT_OFFSET).unwrap();
    for index in 0..PAGES {
        let page = IDENTITY.page(index, 1, Box::new([0; PAGE_BITS_LEN]));
        let at = start + index * PAGE_SIZE;
        contents[at..at + PAGE_SIZE].copy_from_slice(&page.encode());
    }
    let disk = RecordingDisk::with(contents);
    let bitmap = reopen(&disk, regions);
    (disk, BufferPool::default(), bitmap)
}

async fn clear(
    bitmap: &Bitmap,
    disk: &RecordingDisk,
    buffers: &BufferPool,
    region: u64,
) -> Result<(), IoError> {
    bitmap.clear(region..region + 1);
    bitmap.rewrite(disk, buffers, false).await
}

#[test]
fn a_page_survives_encoding_and_shows_damage() {
    let page = IDENTITY.full_page(3);
    let mut bytes = page.encode();
    assert_eq!(Page::decode(&bytes), Ok(page));
    assert_eq!(bytes[..8], *b"RPBM\x03\0\0\x14");
    bytes[100] ^= 1;
    assert_eq!(Page::decode(&bytes), Err(PageError::Checksum));
    bytes[0] ^= 1;
    assert_eq!(Page::decode(&bytes), Err(PageError::Magic));
    assert_eq!(Page::decode(&[]), Err(PageError::Length(0)));
}

#[test]
fn damaged_and_foreign_pages_count_as_all_ones() {
    let (disk, buffers, _) = cleared(100);
    let start = usize::try_from(INTENT_OFFSET).unwrap();
    let check = |page: &Page, damage: u8| {
        let mut bytes = page.encode();
        bytes[4000] ^= damage;
        disk.corrupt(start, &bytes);
        let bitmap = reopen(&disk, 100);
        assert_eq!(bitmap.runs(), [0..100]);
        run(bitmap.rewrite(&disk, &buffers, false)).unwrap();
        let rewritten = Page::decode(&disk.contents()[start..start + PAGE_SIZE]).unwrap();
        assert!(IDENTITY.owns(&rewritten, 0));
        assert_eq!(count(&rewritten.bits), 100);
    };
    let none = Box::new([0; PAGE_BITS_LEN]);
    let page = IDENTITY.page(0, 1, none);
    check(&page, 1);
    let volume = VolumeId::from_uuid(Uuid::from_u128(9));
    check(
        &Page {
            volume,
            ..page.clone()
        },
        0,
    );
    let kind = BitmapKind::Missed;
    check(
        &Page {
            kind,
            ..page.clone()
        },
        0,
    );
    check(
        &Page {
            index: 1,
            ..page.clone()
        },
        0,
    );
    let region_shift = 21;
    check(
        &Page {
            region_shift,
            ..page
        },
        0,
    );
}

/// L4, W4.
#[test]
fn set_bits_are_durable_on_return_and_cost_nothing_again() {
    let (disk, buffers, bitmap) = cleared(40_000);
    run(bitmap.set_durable(&disk, &buffers, 32_470..32_490)).unwrap();
    assert_eq!(disk.write_count(), 2, "the range touches two pages");
    for cut in disk.after_power_cut(2) {
        assert_eq!(reopen(&cut, 40_000).runs(), [32_470..32_490]);
    }
    run(bitmap.set_durable(&disk, &buffers, 32_475..32_485)).unwrap();
    assert_eq!(disk.write_count(), 2);
    assert!(bitmap.is_set(32_480) && !bitmap.is_set(32_490));
    assert_eq!(bitmap.count(), 20);
}

/// W9, W4: between the decision to clear a bit and the write of its page, a setter must set it again.
#[test]
fn a_bit_that_is_about_to_be_cleared_is_not_durable_any_more() {
    let (disk, buffers, bitmap) = cleared(100);
    run(bitmap.set_durable(&disk, &buffers, 5..6)).unwrap();
    bitmap.clear(5..6);
    assert!(!bitmap.is_durable(5..6));
    run(bitmap.set_durable(&disk, &buffers, 5..6)).unwrap();
    run(bitmap.rewrite(&disk, &buffers, false)).unwrap();
    assert_eq!(reopen(&disk, 100).runs(), [5..6]);
}

/// W4: one that waits for its turn gets what it waits for, whoever clears the bit meanwhile (a rebuild's checkpoint may).
#[test]
fn a_bit_that_is_cleared_while_its_setter_waits_is_set_again() {
    let (disk, buffers, bitmap) = cleared(100);
    disk.hold(true);
    let mut first: Pending<'_> = Box::pin(bitmap.set_durable(&disk, &buffers, 1..2));
    let mut second: Pending<'_> = Box::pin(bitmap.set_durable(&disk, &buffers, 5..6));
    assert_eq!((step(&mut first), step(&mut second)), (None, None));
    bitmap.clear(5..6);
    disk.hold(false);
    assert_eq!(step(&mut first), Some(Ok(())));
    assert_eq!(step(&mut second), Some(Ok(())));
    assert!(bitmap.is_durable(5..6));
    assert_eq!(reopen(&disk, 100).runs(), [1..2, 5..6]);
}

/// L4: a page write that only clears may stay in a cache, unless it is asked to be durable.
#[test]
fn clearing_is_durable_only_when_asked_for() {
    for (fua, survivors) in [(false, true), (true, false)] {
        let (disk, buffers, bitmap) = cleared(100);
        run(bitmap.set_durable(&disk, &buffers, 5..6)).unwrap();
        bitmap.clear(5..6);
        run(bitmap.rewrite(&disk, &buffers, fua)).unwrap();
        let steps = disk.steps().len();
        let comes_back = disk.after_power_cut(steps);
        let comes_back = comes_back.iter().any(|cut| reopen(cut, 100).is_set(5));
        assert_eq!(comes_back, survivors);
    }
}

/// A large volume's pages are written side by side.
#[test]
fn pages_of_one_change_do_not_wait_for_each_other() {
    let regions = 4 * REGIONS_PER_PAGE;
    let (disk, buffers, bitmap) = cleared(regions);
    disk.hold(true);
    let mut task: Pending<'_> = Box::pin(bitmap.set_durable(&disk, &buffers, 0..regions));
    assert_eq!(step(&mut task), None);
    assert_eq!(disk.write_count(), 4);
    disk.hold(false);
    assert_eq!(step(&mut task), Some(Ok(())));
    assert_eq!(bitmap.count(), regions);
    assert_eq!(reopen(&disk, regions).count(), regions);
}

/// Section 10: growing keeps bits, and adds pages with none; another region size sets them all, whatever is on disk.
#[test]
fn resized_bitmaps_keep_or_exceed_what_was_set() {
    let (disk, buffers, bitmap) = cleared(100);
    run(bitmap.set_durable(&disk, &buffers, 5..6)).unwrap();
    let more = REGIONS_PER_PAGE + 7;
    bitmap.resize(20, more);
    run(bitmap.rewrite(&disk, &buffers, false)).unwrap();
    assert_eq!(bitmap.runs(), [5..6]);
    run(bitmap.set_durable(&disk, &buffers, more - 1..more)).unwrap();
    assert_eq!(reopen(&disk, more).runs(), [5..6, more - 1..more]);
    bitmap.resize(21, more / 2);
    assert_eq!(bitmap.runs(), [0..more / 2]);
    let start = usize::try_from(INTENT_OFFSET).unwrap();
    let larger = Identity {
        region_shift: 21,
        ..IDENTITY
    };
    let found = |disk: &RecordingDisk| {
        let bytes = &disk.contents()[start..start + Bitmap::pages_len(more / 2)];
        Bitmap::from_disk(larger, more / 2, bytes).count()
    };
    assert_eq!(found(&disk), more / 2, "old pages count as all ones");
    run(bitmap.rewrite(&disk, &buffers, false)).unwrap();
    bitmap.clear(0..more / 2);
    run(bitmap.rewrite(&disk, &buffers, false)).unwrap();
    assert_eq!(found(&disk), 0);
}

/// L7: one write in flight per page; whoever comes meanwhile shares the next one.
#[test]
fn concurrent_setters_share_writes() {
    let (disk, buffers, bitmap) = cleared(1000);
    disk.hold(true);
    let mut tasks: Vec<Pending<'_>> = (0..10)
        .map(|i| -> Pending<'_> { Box::pin(bitmap.set_durable(&disk, &buffers, i..i + 1)) })
        .collect();
    for task in &mut tasks {
        assert_eq!(step(task), None);
    }
    assert_eq!(disk.write_count(), 1);
    disk.hold(false);
    for task in &mut tasks {
        // The last of those who share a write may have to be polled twice.
        assert_eq!(step(task).or_else(|| step(task)), Some(Ok(())));
    }
    assert_eq!(disk.write_count(), 2);
    assert_eq!(reopen(&disk, 1000).runs(), [0..10]);
}

#[test]
fn a_failed_write_fails_all_who_waited_for_it_and_can_be_tried_again() {
    let (disk, buffers, bitmap) = cleared(1000);
    disk.fail_write(0);
    disk.hold(true);
    let mut first: Pending<'_> = Box::pin(bitmap.set_durable(&disk, &buffers, 0..1));
    let mut second: Pending<'_> = Box::pin(bitmap.set_durable(&disk, &buffers, 1..2));
    assert_eq!((step(&mut first), step(&mut second)), (None, None));
    disk.hold(false);
    assert_eq!(step(&mut first), Some(Err(IoError::EIO)));
    assert_eq!(step(&mut second), Some(Err(IoError::EIO)));
    assert_eq!(reopen(&disk, 1000).count(), 0);
    run(bitmap.set_durable(&disk, &buffers, 1..2)).unwrap();
    assert_eq!(reopen(&disk, 1000).runs(), [0..2]);
}

/// W10: a page that was merely refused does not hide one that may have lost something.
#[test]
fn of_several_failures_the_worst_is_told() {
    let all_of = |results: &[Result<(), IoError>]| {
        let results = results.iter().copied();
        run(all(results.map(std::future::ready)))
    };
    let again = Err(IoError::Os(libc::EAGAIN));
    let worst = all_of(&[again, Err(IoError::EIO), Err(IoError::ENOSPC)]);
    assert_eq!(worst, Err(IoError::EIO));
    assert_eq!(all_of(&[Ok(()), again]), again);
    assert_eq!(all_of(&[Ok(()), Ok(())]), Ok(()));
}

/// L7: nobody knows when the abandoned write lands.
#[test]
fn a_write_dropped_in_flight_gives_the_page_up() {
    let (disk, buffers, bitmap) = cleared(1000);
    disk.hold(true);
    let mut task: Pending<'_> = Box::pin(bitmap.set_durable(&disk, &buffers, 0..1));
    assert_eq!(step(&mut task), None);
    drop(task);
    let stopped = run(bitmap.set_durable(&disk, &buffers, 5..6));
    assert_eq!(stopped, Err(IoError::Stopped));
}

#[test]
fn a_bit_cleared_and_set_during_a_write_is_durable_on_return() {
    let (disk, buffers, bitmap) = cleared(1000);
    run(bitmap.set_durable(&disk, &buffers, 0..2)).unwrap();
    disk.hold(true);
    let mut clear: Pending<'_> = Box::pin(clear(&bitmap, &disk, &buffers, 0));
    assert_eq!(step(&mut clear), None);
    let mut set: Pending<'_> = Box::pin(bitmap.set_durable(&disk, &buffers, 0..1));
    assert_eq!(step(&mut set), None, "the write in flight clears the bit");
    disk.hold(false);
    assert_eq!(step(&mut clear), Some(Ok(())));
    assert_eq!(step(&mut set), Some(Ok(())));
    for cut in disk.after_power_cut(disk.steps().len()) {
        assert_eq!(reopen(&cut, 1000).runs(), [0..2]);
    }
}

#[test]
fn merging_takes_over_every_bit() {
    let (disk, buffers, bitmap) = cleared(70_000);
    let (_, _, other) = cleared(70_000);
    for region in [3, 33_000, 69_999] {
        run(other.set_durable(&RecordingDisk::new(DISK_SIZE), &buffers, region..region + 1))
            .unwrap();
    }
    run(bitmap.set_durable(&disk, &buffers, 4..5)).unwrap();
    run(bitmap.merge(&disk, &buffers, &other)).unwrap();
    for cut in disk.after_power_cut(disk.steps().len()) {
        let runs = reopen(&cut, 70_000).runs();
        assert_eq!(runs, [3..5, 33_000..33_001, 69_999..70_000]);
    }
    let writes = disk.write_count();
    run(bitmap.merge(&disk, &buffers, &other)).unwrap();
    assert_eq!(disk.write_count(), writes);
}

#[derive(Clone, Debug)]
enum Op {
    Set(u64),
    Clear(u64),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_bytes_make_the_page_parser_panic(
        at in 0_usize..32,
        bytes in proptest::collection::vec(any::<u8>(), 1..32),
    ) {
        let mut page = IDENTITY.full_page(0).encode();
        page[at..at + bytes.len()].copy_from_slice(&bytes);
        let crc = crc32c::crc32c(&page[..PAGE_SIZE - 4]).to_le_bytes();
        page[PAGE_SIZE - 4..].copy_from_slice(&crc);
        if let Ok(decoded) = Page::decode(&page) {
            prop_assert_eq!(decoded.encode(), page);
        }
    }

    /// L4: set bits are on disk after any power cut; a bit may only be there too many times.
    #[test]
    fn set_bits_outlive_every_power_cut(
        ops in proptest::collection::vec(
            prop_oneof![(0..20_u64).prop_map(Op::Set), (0..20_u64).prop_map(Op::Clear)],
            1..20,
        ),
    ) {
        let (disk, buffers, bitmap) = cleared(20);
        let mut wanted = vec![(0, [false; 20])];
        let mut now = [false; 20];
        for op in ops {
            match op {
                Op::Set(region) => {
                    run(bitmap.set_durable(&disk, &buffers, region..region + 1)).unwrap();
                    now[usize::try_from(region).unwrap()] = true;
                }
                Op::Clear(region) => {
                    // From the moment of the call on, the bit may be missing.
                    now[usize::try_from(region).unwrap()] = false;
                    wanted.last_mut().unwrap().1[usize::try_from(region).unwrap()] = false;
                    run(clear(&bitmap, &disk, &buffers, region)).unwrap();
                }
            }
            let steps = disk.steps().len();
            wanted.retain(|(earlier, _)| *earlier < steps);
            wanted.push((steps, now));
        }
        for (steps, wanted_then) in wanted {
            for cut in disk.after_power_cut(steps) {
                let found = reopen(&cut, 20);
                for (region, set) in wanted_then.iter().enumerate() {
                    prop_assert!(!set || found.is_set(region as u64));
                }
            }
        }
    }
}
