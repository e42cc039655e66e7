//! Tests of creation, opening and label updates, with the power cut after every step.

use std::pin::Pin;

use super::*;
use crate::io::recording::{RecordingDisk, run};
use crate::replica::MemberState;
use crate::replica::testing::{DATA_LEN, disk, label, step};
use crate::units::MIB;

fn buffers() -> BufferPool {
    BufferPool::default()
}

fn open(disk: RecordingDisk) -> Result<Replica<RecordingDisk>, OpenError> {
    run(Replica::open(disk, &buffers()))
}

fn formatted() -> Replica<RecordingDisk> {
    run(Replica::format(disk(), &buffers(), label())).unwrap()
}

/// The formatted replica on a disk whose history begins now.
fn fresh() -> Replica<RecordingDisk> {
    open(RecordingDisk::with(formatted().disk().contents())).unwrap()
}

fn next(label: &Label) -> Label {
    let mut next = label.clone();
    next.generation += 1;
    next.members[0].state = MemberState::Removed;
    next
}

#[test]
fn a_formatted_replica_opens_with_its_label_and_no_bit_set() {
    let replica = formatted();
    let expected = Label {
        slot_seq: 1,
        ..label()
    };
    assert_eq!(*replica.label(), expected);
    let reopened = open(replica.disk().clone()).unwrap();
    assert_eq!(*reopened.label(), expected);
    for kind in [BitmapKind::Intent, BitmapKind::Missed] {
        assert_eq!(reopened.set_regions(kind), []);
    }
    let writes = replica.disk().write_count();
    run(reopened.merge_intent_into_missed()).unwrap();
    run(reopened.rewrite_bad_pages()).unwrap();
    assert_eq!(replica.disk().write_count(), writes, "nothing is missing");
}

/// L6: a crash during creation leaves no label, or a whole replica.
#[test]
fn crash_during_format_leaves_no_label_or_a_whole_replica() {
    // Garbage below: everything that is read later must have been written.
    let size = usize::try_from(DATA_LEN + MIB).unwrap();
    let disk = RecordingDisk::with(vec![0xa5; size]);
    let replica = run(Replica::format(disk.clone(), &buffers(), label())).unwrap();
    let steps = disk.steps().len();
    assert_eq!(steps, 3, "first MiB, flush, label");
    for done in 0..=steps {
        for cut in disk.after_power_cut(done) {
            match open(cut) {
                Ok(found) => {
                    assert_eq!(found.label(), replica.label());
                    assert_eq!(found.set_regions(BitmapKind::Missed), []);
                }
                Err(OpenError::Blank { .. }) => assert!(done < steps),
                Err(other) => panic!("after {done} steps: {other}"),
            }
        }
    }
}

/// L1: the label is the old or the new one, whenever the power goes.
#[test]
fn crash_during_a_label_update_leaves_the_old_or_the_new_label() {
    let replica = fresh();
    let mut labels = vec![replica.label()];
    for _ in 0..3 {
        let new = next(&replica.label());
        run(replica.write_label(&new)).unwrap();
        labels.push(replica.label());
    }
    assert_eq!(replica.disk().steps().len(), 3);
    for done in 0..=3 {
        for cut in replica.disk().after_power_cut(done) {
            let found = open(cut).unwrap().label();
            let old = found == labels[done];
            let new = labels.get(done + 1) == Some(&found);
            assert!(old || new, "after {done} steps: {found:?}");
        }
    }
    assert_eq!(labels[3].slot_seq, 4);
}

/// I4: a failed update may be on disk all the same, so its number is not used again, nor the good slot touched.
#[test]
fn a_failed_label_update_keeps_the_old_label_and_uses_up_its_number() {
    let replica = fresh();
    let old = replica.label();
    let new = next(&old);
    replica.disk().fail_write(0);
    assert_eq!(run(replica.write_label(&new)), Err(IoError::EIO));
    assert_eq!(replica.label(), old);
    assert_eq!(open(replica.disk().clone()).unwrap().label(), old);
    run(replica.write_label(&new)).unwrap();
    assert_eq!(replica.label().slot_seq, 3);
    for cut in replica.disk().after_power_cut(0) {
        assert!(open(cut).is_ok());
    }
}

/// L7.
#[test]
fn label_updates_go_one_after_the_other() {
    let replica = fresh();
    let (first, second) = (next(&replica.label()), next(&next(&replica.label())));
    replica.disk().hold(true);
    type Pending<'a> = Pin<Box<dyn Future<Output = Result<(), IoError>> + 'a>>;
    let mut a: Pending<'_> = Box::pin(replica.write_label(&first));
    let mut b: Pending<'_> = Box::pin(replica.write_label(&second));
    assert_eq!((step(&mut a), step(&mut b)), (None, None));
    assert_eq!(replica.disk().write_count(), 1);
    replica.disk().hold(false);
    assert_eq!((step(&mut a), step(&mut b)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(replica.label().generation, second.generation);
    assert_eq!(
        open(replica.disk().clone()).unwrap().label(),
        replica.label()
    );
}

#[test]
#[should_panic(expected = "I3")]
fn a_label_may_not_go_back_a_generation() {
    let replica = fresh();
    let mut old = (*replica.label()).clone();
    old.generation -= 1;
    let _ = run(replica.write_label(&old));
}

#[test]
fn an_intact_label_is_never_formatted_over() {
    let replica = formatted();
    let again = run(Replica::format(replica.disk().clone(), &buffers(), label()));
    assert_eq!(again.unwrap_err(), IoError::Os(libc::EEXIST));
    assert!(open(replica.disk().clone()).is_ok());
}

/// A2: a torn newer slot gives way to the older one; an intact one that can't be used does not.
#[test]
fn the_newest_intact_label_counts() {
    let replica = fresh();
    let old = replica.label();
    run(replica.write_label(&next(&old))).unwrap();
    let slot_b = usize::try_from(LABEL_OFFSETS[1]).unwrap();
    let torn = RecordingDisk::with(replica.disk().contents());
    torn.corrupt(slot_b + 50, &[0xee; 4]);
    assert_eq!(open(torn).unwrap().label(), old);

    let newer = RecordingDisk::with(replica.disk().contents());
    let mut slot = next(&old).encode();
    slot[32] = 8;
    slots::seal(&mut slot, 2);
    newer.corrupt(slot_b, &slot);
    let refused = OpenError::Refused(LabelError::Incompat(8));
    assert_eq!(open(newer.clone()).unwrap_err(), refused);

    let same = RecordingDisk::with(replica.disk().contents());
    slot[32] = 0;
    slots::seal(&mut slot, old.slot_seq);
    same.corrupt(slot_b, &slot);
    let ambiguous = OpenError::Ambiguous { seq: 1 };
    assert_eq!(open(same).unwrap_err(), ambiguous);

    // Garbage with a fitting CRC and a high number is no label.
    let mut garbage = [7; 4096];
    slots::seal(&mut garbage, u64::MAX);
    newer.corrupt(slot_b, &garbage);
    assert_eq!(open(newer).unwrap().label(), old);
}

/// A3.
#[test]
fn a_file_shorter_than_its_label_is_truncated() {
    let contents = formatted().disk().contents();
    let found = contents.len() - 4096;
    let truncated = RecordingDisk::with(contents[..found].to_vec());
    let expected = OpenError::Truncated {
        expected: DATA_LEN + MIB,
        found: found as u64,
    };
    assert_eq!(open(truncated).unwrap_err(), expected);
    let tiny = open(RecordingDisk::new(8192)).unwrap_err();
    assert!(matches!(tiny, OpenError::Truncated { found: 8192, .. }));
}

#[test]
fn a_blank_file_has_no_label() {
    let (a, b) = (LabelError::Zero, LabelError::Zero);
    assert_eq!(open(disk()).unwrap_err(), OpenError::Blank { a, b });
}

/// L5.
#[test]
fn unknown_features_of_writers_forbid_every_write() {
    let replica = formatted();
    let mut slot = replica.label().encode();
    slot[28] = 1;
    slots::seal(&mut slot, 5);
    let at = usize::try_from(LABEL_OFFSETS[0]).unwrap();
    replica.disk().corrupt(at, &slot);
    let writes = replica.disk().write_count();
    let replica = open(replica.disk().clone()).unwrap();
    let buffer = buffers().zeroed(4096);
    let erofs = Err(IoError::EROFS);
    assert_eq!(run(replica.write(0, &buffer, false)), erofs);
    let options = ZeroOptions::default();
    assert_eq!(run(replica.write_zeroes(0, 4096, options)), erofs);
    assert_eq!(run(replica.write_label(&replica.label())), erofs);
    assert_eq!(run(replica.clear(BitmapKind::Intent, 0..1)), erofs);
    assert_eq!(run(replica.rewrite_bad_pages()), erofs);
    assert_eq!(run(replica.read(0, &buffer)), Ok(()));
    assert_eq!(replica.disk().write_count(), writes);
}

/// G12.
#[test]
fn data_lands_in_the_data_area_only() {
    let replica = fresh();
    let before = replica.disk().contents();
    let last = DATA_LEN - 4096;
    let block = buffers().copy_of(&[7; 4096]);
    run(replica.write(0, &block, true)).unwrap();
    run(replica.write(last, &block, false)).unwrap();
    let after = replica.disk().contents();
    let mib = usize::try_from(MIB).unwrap();
    assert_eq!(after[..mib], before[..mib]);
    assert_eq!(after[mib..mib + 4096], [7; 4096]);
    assert_eq!(after[after.len() - 4096..], [7; 4096]);
    let back = buffers().zeroed(4096);
    run(replica.read(last, &back)).unwrap();
    assert_eq!(back.to_vec(), [7; 4096]);
    let options = ZeroOptions::default();
    run(replica.write_zeroes(last, 4096, options)).unwrap();
    run(replica.read(last, &back)).unwrap();
    assert!(back.is_zero());
    assert_eq!(replica.regions(MIB - 4096, 8192), 0..2);
}

#[test]
fn ranges_outside_the_data_area_are_caught() {
    let check = |offset: u64, len: usize| {
        let caught = std::panic::catch_unwind(|| {
            let replica = fresh();
            let _ = run(replica.write(offset, &buffers().zeroed(len), false));
        });
        assert!(caught.is_err(), "{offset}+{len}");
    };
    check(DATA_LEN, 4096);
    check(DATA_LEN - 4096, 8192);
    check(u64::MAX - 4095, 4096);
    check(u64::MAX, 4096);
}

/// A label of a volume with `mib` MiB of data in regions of `1 << shift` bytes.
fn sized(label: &Label, mib: u64, shift: u32) -> Label {
    let mut label = label.clone();
    label.generation += 1;
    label.data_len = mib * MIB;
    label.region_shift = shift;
    label
}

/// Section 10: room first, then the label; a power cut leaves the old size or the new one, with every bit that was set.
#[test]
fn crash_during_growth_leaves_the_old_or_the_new_size_and_every_set_bit() {
    for shift in [20, 21] {
        let replica = fresh();
        run(replica.set_durable(BitmapKind::Intent, 3..4)).unwrap();
        let before = replica.disk().steps().len();
        run(replica.grow(20 * MIB)).unwrap();
        run(replica.grow(20 * MIB)).unwrap();
        assert_eq!(replica.data_len(), DATA_LEN, "the label decides");
        run(replica.write_label(&sized(&replica.label(), 20, shift))).unwrap();
        assert_eq!(replica.data_len(), 20 * MIB);
        let expected = if shift == 20 { 3..4 } else { 0..10 };
        assert_eq!(replica.set_regions(BitmapKind::Intent), [expected]);
        run(replica.set_durable(BitmapKind::Intent, 9..10)).unwrap();
        let steps = replica.disk().steps().len();
        let mut sizes = [0; 2];
        for done in before..=steps {
            for cut in replica.disk().after_power_cut(done) {
                let found = open(cut).unwrap();
                let (len, unit) = (found.data_len(), 1 << found.region_shift());
                let runs = found.set_regions(BitmapKind::Intent);
                let holds = |at: u64| runs.iter().any(|run| run.contains(&(at / unit)));
                assert!(holds(3 * MIB), "after {done} steps: {runs:?}");
                assert!(done < steps || holds(9 << shift));
                assert!(len == DATA_LEN || len == 20 * MIB);
                sizes[usize::from(len > DATA_LEN)] += 1;
            }
        }
        assert!(sizes.iter().all(|count| *count > 0), "{sizes:?}");
    }
}

/// Section 10: a growth that was never committed is undone on a copy that nobody uses; what was behind the end is zeroed
/// before it is used again.
#[test]
fn crash_while_a_growth_is_undone_leaves_either_size_and_every_bit_below_it() {
    for shift in [20, 21] {
        let replica = fresh();
        run(replica.grow(20 * MIB)).unwrap();
        run(replica.write_label(&sized(&replica.label(), 20, shift))).unwrap();
        run(replica.write(19 * MIB, &buffers().copy_of(&[7; 4096]), true)).unwrap();
        for region in [3, 9] {
            let marked = replica.set_durable(BitmapKind::Missed, region..region + 1);
            run(marked).unwrap();
        }
        let before = replica.disk().steps().len();
        run(replica.take_size(DATA_LEN, 20)).unwrap();
        let regions = DATA_LEN / MIB;
        let expected = if shift == 20 { 3..4 } else { 0..regions };
        assert_eq!(
            replica.set_regions(BitmapKind::Missed),
            std::slice::from_ref(&expected),
            "L4: another unit sets all"
        );
        for done in before..=replica.disk().steps().len() {
            for cut in replica.disk().after_power_cut(done) {
                let found = open(cut).unwrap();
                let (len, unit) = (found.data_len(), 1 << found.region_shift());
                let runs = found.set_regions(BitmapKind::Missed);
                let holds = |at: u64| runs.iter().any(|run| run.contains(&(at / unit)));
                assert!(holds(3 * MIB), "after {done} steps: {runs:?}");
                assert!(len == DATA_LEN || len == 20 * MIB);
            }
        }
        run(replica.grow(20 * MIB)).unwrap();
        run(replica.take_size(20 * MIB, 20)).unwrap();
        assert_eq!(replica.set_regions(BitmapKind::Missed), [expected]);
        let behind = buffers().get(4096);
        run(replica.read(19 * MIB, &behind)).unwrap();
        assert_eq!(behind.to_vec(), [0; 4096]);
    }
}

/// Section 5: no label ever names more data than the file has.
#[test]
fn a_label_that_needs_more_room_than_there_is_is_refused() {
    let replica = fresh();
    let large = sized(&replica.label(), 9, 20);
    assert_eq!(run(replica.write_label(&large)), Err(IoError::EINVAL));
    run(replica.grow(9 * MIB)).unwrap();
    run(replica.write_label(&large)).unwrap();
    assert_eq!(replica.set_regions(BitmapKind::Intent), []);
    run(replica.set_durable(BitmapKind::Missed, 8..9)).unwrap();
    let reopened = open(replica.disk().clone()).unwrap();
    assert_eq!(reopened.set_regions(BitmapKind::Missed), [8..9]);
}

/// What lies behind the data of a device is unknown; members must be equal there when it becomes data.
#[test]
fn room_that_is_already_there_is_zeroed_before_it_becomes_data() {
    let mut contents = formatted().disk().contents();
    let old = contents.len();
    contents.resize(old + 8192, 0x5a);
    let replica = open(RecordingDisk::with(contents)).unwrap();
    run(replica.grow(DATA_LEN + 4096)).unwrap();
    let after = replica.disk().contents();
    assert!(after[old..old + 4096].iter().all(|byte| *byte == 0));
    assert!(after[old + 4096..].iter().all(|byte| *byte == 0x5a), "G12");
    assert_eq!(run(replica.grow(DATA_LEN - 4096)), Err(IoError::EINVAL));
}
