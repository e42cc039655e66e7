//! Tests of reusing and wiping replicas, with the power cut after every step.

use uuid::Uuid;

use super::*;
use crate::io::recording::{RecordingDisk, run};
use crate::model::VolumeId;
use crate::replica::testing::{DATA_LEN, disk, label};
use crate::units::MIB;

fn buffers() -> BufferPool {
    BufferPool::default()
}

/// A replica with two labels in its slots, on a disk whose history begins now.
fn used() -> Replica<RecordingDisk> {
    let replica = run(Replica::format(disk(), &buffers(), label())).unwrap();
    let mut next = (*replica.label()).clone();
    next.generation += 1;
    run(replica.write_label(&next)).unwrap();
    run(replica.set_durable(BitmapKind::Intent, 0..8)).unwrap();
    run(replica.set_durable(BitmapKind::Missed, 3..4)).unwrap();
    let contents = replica.disk().contents();
    run(Replica::open(RecordingDisk::with(contents), &buffers())).unwrap()
}

/// A2: a half-wiped replica is what it was before, never what it was earlier.
#[test]
fn crash_during_a_wipe_leaves_the_newest_label_or_none() {
    let replica = used();
    let before = replica.label();
    run(replica.wipe_label()).unwrap();
    let steps = replica.disk().steps().len();
    assert_eq!(steps, 2);
    for done in 0..=steps {
        for cut in replica.disk().after_power_cut(done) {
            match run(Replica::open(cut, &buffers())) {
                Ok(found) => {
                    assert!(done < steps);
                    assert_eq!(found.label(), before);
                }
                Err(OpenError::Blank { .. }) => assert!(done > 0),
                Err(other) => panic!("after {done} steps: {other}"),
            }
        }
    }
    let late = run(replica.write_label(&before));
    assert_eq!(
        late,
        Err(IoError::Stopped),
        "a wiped replica gets no label again"
    );
}

/// L6: whatever is left of an old copy, a crash leaves its newest label, none, or the whole new one.
#[test]
fn crash_during_a_reformat_leaves_the_old_label_none_or_a_whole_new_replica() {
    let old = used();
    let mut new = label();
    new.generation = 40;
    let replica = run(Replica::reformat(
        old.disk().clone(),
        &buffers(),
        new.clone(),
    ))
    .unwrap();
    assert_eq!(replica.label().generation, 40);
    let steps = old.disk().steps().len();
    assert_eq!(steps, 5, "two slots, first MiB, flush, label");
    let mut outcomes = [0; 3];
    for done in 0..=steps {
        for cut in old.disk().after_power_cut(done) {
            match run(Replica::open(cut, &buffers())) {
                Ok(found) if found.label().generation == 40 => {
                    assert!(done >= steps - 1);
                    assert_eq!(found.set_count(BitmapKind::Intent), 0);
                    assert_eq!(found.set_count(BitmapKind::Missed), 0);
                    outcomes[0] += 1;
                }
                Ok(found) => {
                    assert_eq!(found.label(), old.label());
                    outcomes[1] += 1;
                }
                Err(OpenError::Blank { .. }) => outcomes[2] += 1,
                Err(other) => panic!("after {done} steps: {other}"),
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

/// A3: what belongs to another volume is not ours to overwrite.
#[test]
fn only_old_copies_of_the_same_volume_and_blank_files_are_reformatted() {
    let old = used();
    let mut other = label();
    other.volume = VolumeId::from_uuid(Uuid::from_u128(77));
    let refused = run(Replica::reformat(old.disk().clone(), &buffers(), other));
    assert_eq!(refused.unwrap_err(), IoError::Os(libc::EEXIST));
    assert!(old.disk().steps().is_empty());
    let blank = RecordingDisk::with(vec![0x5a; usize::try_from(DATA_LEN + MIB).unwrap()]);
    assert!(run(Replica::reformat(blank, &buffers(), label())).is_ok());
}
