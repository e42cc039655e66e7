//! Newtypes for quantities, with checked arithmetic, so that bytes, blocks and counts are never mixed up.
//!
//! Nothing here knows about the configuration's spelling of a size; that is `config/`'s.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 2^10.
pub const KIB: u64 = 1 << 10;
/// 2^20.
pub const MIB: u64 = 1 << 20;
/// 2^30.
pub const GIB: u64 = 1 << 30;
/// 2^40.
pub const TIB: u64 = 1 << 40;

/// An amount of bytes. Printed in the largest binary unit that divides it exactly or, failing that, with one decimal.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The bare number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// `self + other`, or `None` past 2^64.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// `self - other`, or zero when `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Whether the amount is a multiple of `unit` bytes. A `unit` of zero divides nothing.
    #[must_use]
    pub const fn is_multiple_of(self, unit: u64) -> bool {
        unit != 0 && self.0.is_multiple_of(unit)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        for (unit, name) in UNITS {
            if self.0 >= unit {
                let whole = self.0 / unit;
                // One decimal, rounded down: a size must never look larger than it is.
                let tenths = (u128::from(self.0 % unit) * 10) / u128::from(unit);
                return if tenths == 0 {
                    f.pad(&format!("{whole}{name}"))
                } else {
                    f.pad(&format!("{whole}.{tenths}{name}"))
                };
            }
        }
        f.pad(&format!("{}B", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_print_in_the_largest_fitting_unit() {
        let check = |bytes: u64, expected: &str| assert_eq!(Bytes(bytes).to_string(), expected);
        check(0, "0B");
        check(512, "512B");
        check(KIB, "1KiB");
        check(1536, "1.5KiB");
        check(20 * GIB, "20GiB");
        check(u64::MAX, "16777215.9TiB");
    }

    #[test]
    fn checked_add_reports_overflow() {
        assert_eq!(Bytes(u64::MAX).checked_add(Bytes(1)), None);
        assert_eq!(Bytes(1).checked_add(Bytes(2)), Some(Bytes(3)));
    }
}
