//! What [`Intent`] promises, against models.

use proptest::prelude::*;

use super::*;

const SHIFT: u32 = 20;
const SIZE: u64 = 40 << SHIFT;

#[derive(Clone, Debug)]
enum Step {
    Begin(u64),
    End(usize),
    Submit,
    Complete(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6_u64).prop_map(Step::Begin),
        (0..4_usize).prop_map(Step::End),
        Just(Step::Submit),
        (0..3_usize).prop_map(Step::Complete),
    ]
}

proptest! {
    /// W9 against a model that remembers every write: whoever counts as proven was covered by a completed flush.
    #[test]
    fn a_region_is_proven_only_by_a_flush_submitted_after_its_last_write(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let intent = Intent::new(SHIFT);
        let mut writing: Vec<(u64, Writing<'_>)> = Vec::new();
        // Of each flush under way, the writes that it covers; of each region, the writes that none has covered.
        let mut flushes: Vec<(u64, Vec<u64>)> = Vec::new();
        let mut unproven = vec![Vec::new(); 6];
        let mut ended = 0;
        for step in steps {
            match step {
                Step::Begin(region) => {
                    let bytes = (region << SHIFT) + 4096..(region << SHIFT) + 8192;
                    writing.push((region, intent.begin(&bytes, SIZE, 100)));
                }
                Step::End(which) if which < writing.len() => {
                    let (region, guard) = writing.swap_remove(which);
                    drop(guard);
                    ended += 1;
                    unproven[usize::try_from(region).unwrap()].push(ended);
                }
                Step::Submit => {
                    let covered = unproven.iter().flatten().copied().collect();
                    flushes.push((intent.flush_begins(), covered));
                }
                Step::Complete(which) if which < flushes.len() => {
                    let (number, covered) = flushes.swap_remove(which);
                    intent.proved(number);
                    for writes in &mut unproven {
                        writes.retain(|write| !covered.contains(write));
                    }
                }
                Step::End(_) | Step::Complete(_) => {}
            }
            for (region, known) in intent.regions.borrow().iter() {
                let clear = known.writing == 0 && intent.is_proven(known.needs);
                let busy = writing.iter().any(|(at, _)| at == region);
                let unproven = &unproven[usize::try_from(*region).unwrap()];
                prop_assert!(!clear || (!busy && unproven.is_empty()));
            }
        }
    }

    /// Show 3: what is marked and was not written stays below the bound, however many streams there are.
    #[test]
    fn few_regions_are_marked_ahead(
        starts in proptest::collection::vec(0..30_u64, 1..12),
        forgotten in proptest::collection::vec(0..40_u64, 0..20),
    ) {
        let intent = Intent::new(SHIFT);
        let quarter = 1 << (SHIFT - 2);
        for at in 0..24 {
            for start in &starts {
                let begin = ((start << SHIFT) + at * quarter).min(SIZE - quarter);
                drop(intent.begin(&(begin..begin + quarter), SIZE, 100));
            }
            for region in &forgotten {
                intent.forget(*region);
            }
            let known = intent.regions.borrow();
            let ahead = known.values().filter(|region| region.is_ahead()).count() as u64;
            prop_assert_eq!(ahead, intent.ahead.get());
            prop_assert!(ahead <= AHEAD_MAX);
            prop_assert!(known.keys().all(|region| *region < SIZE >> SHIFT));
        }
    }
}

#[test]
fn a_stream_is_marked_ahead_once_it_is_recognised() {
    let intent = Intent::new(SHIFT);
    let mib = 1 << SHIFT;
    let begin = |from: u64, until: u64| intent.begin(&(from..until), SIZE, 100).marks().ahead;
    assert!(begin(0, mib).is_empty(), "one write is no stream");
    assert_eq!(begin(mib, 2 * mib), 2 * mib..6 * mib);
    assert!(begin(2 * mib, 3 * mib).is_empty(), "marked already");
    assert!(begin(38 * mib, 39 * mib).is_empty());
    assert!(begin(39 * mib, 40 * mib).is_empty(), "the volume ends");
}
