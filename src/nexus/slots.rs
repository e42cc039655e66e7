//! Sets of the 16 slots of a membership table, as one word.

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

/// Slots of a membership table: 0 to 15.
pub(super) const SLOTS_MAX: usize = 16;

/// A set of slots.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SlotSet(u16);

impl SlotSet {
    pub(super) const EMPTY: Self = Self(0);

    pub(super) fn one(slot: usize) -> Self {
        assert!(slot < SLOTS_MAX, "slot {slot} of {SLOTS_MAX}");
        Self(1 << slot)
    }

    pub(super) fn insert(&mut self, slot: usize) {
        *self = *self | Self::one(slot);
    }

    pub(super) fn contains(self, slot: usize) -> bool {
        slot < SLOTS_MAX && self.0 & (1 << slot) != 0
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether every slot of this set is in `other`.
    pub(super) const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> + use<> {
        (0..SLOTS_MAX).filter(move |slot| self.contains(*slot))
    }
}

impl BitAnd for SlotSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for SlotSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Sub for SlotSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<usize> for SlotSet {
    fn from_iter<I: IntoIterator<Item = usize>>(slots: I) -> Self {
        slots
            .into_iter()
            .fold(Self::EMPTY, |set, slot| set | Self::one(slot))
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_behave_as_sets() {
        let set: SlotSet = [0, 3, 15].into_iter().collect();
        assert_eq!(set.len(), 3);
        assert_eq!((set - SlotSet::one(3)).iter().collect::<Vec<_>>(), [0, 15]);
        assert!((set & SlotSet::one(15)).is_within(set));
        assert!(!set.is_within(SlotSet::one(3)));
        assert!(SlotSet::EMPTY.is_within(set) && SlotSet::EMPTY.is_empty());
    }
}
