//! Where things are in a replica's file (spec section 9).
//!
//! ```text
//! offset      size      content
//! 0           4 KiB     reserved, zero
//! 4 KiB       4 KiB     label slot A
//! 64 KiB      4 KiB     label slot B
//! 128 KiB     132 KiB   intent bitmap: 33 pages
//! 264 KiB     132 KiB   missed bitmap: 33 pages, then reserved, zero, up to 1 MiB
//! 1 MiB       data_len  data
//! ```

use crate::units::{KIB, MIB};

/// Label slots A and B, bytes.
pub const LABEL_OFFSETS: [u64; 2] = [4 * KIB, 64 * KIB];
/// The intent bitmap, bytes.
pub const INTENT_OFFSET: u64 = 128 * KIB;
/// The missed bitmap, bytes.
pub const MISSED_OFFSET: u64 = 264 * KIB;
/// Where data begins in every replica that this release makes, bytes.
pub const DATA_OFFSET: u64 = MIB;
/// What every data offset is a multiple of, bytes.
pub const DATA_OFFSET_UNIT: u64 = MIB;
/// Size of a bitmap page, bytes.
pub const PAGE_SIZE: usize = 4096;
/// Pages of a bitmap.
pub const PAGES: usize = 33;
/// Bytes of a page that are bits.
pub const PAGE_BITS_LEN: usize = 4060;
/// Regions that a page covers.
pub const REGIONS_PER_PAGE: u64 = PAGE_BITS_LEN as u64 * 8;
/// Regions that a bitmap covers.
pub const REGIONS_MAX: u64 = REGIONS_PER_PAGE * PAGES as u64;
/// The smallest region is 1 MiB.
pub const REGION_SHIFT_MIN: u32 = 20;

/// The region shift of a replica of this size: `max(1 MiB, next power of two of (data_len / 2^20))`.
#[must_use]
pub const fn region_shift(data_len: u64) -> u32 {
    let wanted = (data_len >> 20).next_power_of_two().trailing_zeros();
    if wanted > REGION_SHIFT_MIN {
        wanted
    } else {
        REGION_SHIFT_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, TIB};

    #[test]
    fn regions_of_every_size_fit_the_bitmap() {
        let check = |len: u64, shift: u32| {
            assert_eq!(region_shift(len), shift, "{len}");
            assert!(len.div_ceil(1 << shift) <= REGIONS_MAX, "{len}");
        };
        check(4096, 20);
        check(20 * GIB, 20);
        check(TIB, 20);
        check(TIB + MIB - 4096, 20);
        check(TIB + MIB, 21);
        check(16 * TIB, 24);
        check((1 << 63) - (1 << 20), 43);
    }

    #[test]
    fn areas_do_not_overlap() {
        let bitmap = (PAGES * PAGE_SIZE) as u64;
        assert!(LABEL_OFFSETS[1] + 4096 <= INTENT_OFFSET);
        assert!(INTENT_OFFSET + bitmap <= MISSED_OFFSET);
        assert!(MISSED_OFFSET + bitmap <= DATA_OFFSET);
    }
}
