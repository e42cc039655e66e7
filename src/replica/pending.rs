//! What a disk was asked and has not answered, by age. No clock is read for it: whoever watches counts intervals.

use std::cell::Cell;

/// Whole intervals that a disk may take to answer.
pub const PATIENCE: u32 = 16;

/// Zeroings are cut at multiples of this: a disk that is at work on a long one does answer (spec G11).
pub const ZERO_PIECE: u64 = 64 << 20;

/// One interval more than the patience, because everything begins in the middle of one.
const PLACES: usize = PATIENCE as usize + 1;

/// Counts what is under way by the interval in which it began.
#[derive(Debug, Default)]
pub(super) struct Pending {
    begun: [Cell<u32>; PLACES],
    /// What began before all of these.
    overdue: Cell<u32>,
    now: Cell<u64>,
}

/// Something under way until this is dropped.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pending: &'a Pending,
    begun: u64,
}

impl Pending {
    pub(super) fn begin(&self) -> Asked<'_> {
        let begun = self.now.get();
        let count = self.place(begun);
        count.set(count.get() + 1);
        let pending = self;
        Asked { pending, begun }
    }

    /// The next interval begins. True when something is under way that began 16 whole intervals ago or more.
    pub(super) fn tick(&self) -> bool {
        self.now.set(self.now.get() + 1);
        let oldest = self.place(self.now.get()).take();
        self.overdue.set(self.overdue.get() + oldest);
        self.overdue.get() > 0
    }

    fn place(&self, interval: u64) -> &Cell<u32> {
        let place = interval % PLACES as u64;
        &self.begun[usize::try_from(place).expect("a small number")]
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let is_overdue = self.pending.now.get() - self.begun >= PLACES as u64;
        let count = if is_overdue {
            &self.pending.overdue
        } else {
            self.pending.place(self.begun)
        };
        count.set(count.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_within_16_intervals_is_never_overdue() {
        let pending = Pending::default();
        for _ in 0..40 {
            let early = pending.begin();
            for _ in 0..16 {
                assert!(!pending.tick());
            }
            drop(early);
        }
    }

    #[test]
    fn what_is_not_answered_for_longer_is_overdue_until_it_is() {
        let pending = Pending::default();
        assert!(!pending.tick());
        let stuck = pending.begin();
        for tick in 1..50 {
            // Others come and go.
            let other = pending.begin();
            assert_eq!(pending.tick(), tick >= 17, "{tick}");
            drop(other);
        }
        let late = pending.begin();
        drop(stuck);
        assert!(!pending.tick());
        drop(late);
        assert!(!pending.tick());
    }
}
