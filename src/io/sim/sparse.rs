//! Bytes of which most are zero: what a simulated disk holds.

use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;

/// An endless run of zero bytes, except for what was written. So disks of gigabytes cost what is in them.
#[derive(Default)]
pub(super) struct Sparse {
    pages: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
}

impl Sparse {
    /// The bytes of `range`.
    pub(super) fn get(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; index(range.end - range.start)];
        for (number, page) in self.pages_of(&range) {
            let start = (number * PAGE).max(range.start);
            let end = ((number + 1) * PAGE).min(range.end);
            bytes[index(start - range.start)..index(end - range.start)]
                .copy_from_slice(&page[index(start % PAGE)..][..index(end - start)]);
        }
        bytes
    }

    /// Overwrites the bytes from `offset`.
    pub(super) fn set(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (inside, room) = (index(at % PAGE), index(PAGE - at % PAGE));
            let (part, others) = rest.split_at(room.min(rest.len()));
            let page = self.pages.entry(at / PAGE);
            let page = page.or_insert_with(|| Box::new([0; PAGE_LEN]));
            page[inside..inside + part.len()].copy_from_slice(part);
            at += part.len() as u64;
            rest = others;
        }
    }

    /// Whether nothing but zeroes was ever written near `range`.
    pub(super) fn is_untouched(&self, range: &Range<u64>) -> bool {
        self.pages_of(range).next().is_none()
    }

    /// Where something other than zero is, a range of at most a page each.
    pub(super) fn nonzero(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let full = |page: &[u8; PAGE_LEN]| page.iter().any(|byte| *byte != 0);
        let pages = self.pages.iter().filter(move |(_, page)| full(page));
        pages.map(|(number, _)| number * PAGE..(number + 1) * PAGE)
    }

    fn pages_of(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, &[u8; PAGE_LEN])> {
        let numbers = range.start / PAGE..range.end.div_ceil(PAGE).max(range.start / PAGE);
        self.pages
            .range(numbers)
            .map(|(number, page)| (*number, page.as_ref()))
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("a part of a simulated disk fits memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_written_and_zeroes_elsewhere() {
        let mut bytes = Sparse::default();
        bytes.set(5 << 40, &[0; 0]);
        bytes.set(4090, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes.get(4088..4100), [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
        assert_eq!(bytes.get(4095..4096), [6]);
        assert_eq!(bytes.get(8192..8194), [0, 0]);
        assert!(bytes.is_untouched(&(8192..1 << 40)));
        assert!(!bytes.is_untouched(&(8191..8192)));
        bytes.set(0, &[0; 8192]);
        assert_eq!(bytes.nonzero().count(), 0);
    }
}
