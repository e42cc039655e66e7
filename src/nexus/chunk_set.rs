//! Sets of chunks: U, the chunks whose content may differ between members of the active set (spec section 1), and what a
//! rebuild still has to copy (spec B3).

use std::ops::Range;

/// Base-2 logarithm of a chunk: 64 KiB, the unit of copying and resolving.
const CHUNK_SHIFT: u32 = 16;
/// A chunk's size in bytes.
pub(super) const CHUNK: u64 = 1 << CHUNK_SHIFT;

/// A set of chunks of one volume: a bitmap that exists only while something is in it. 16 TiB take 32 MiB.
#[derive(Debug)]
pub(super) struct ChunkSet {
    size: u64,
    bits: Vec<u64>,
    count: u64,
}

impl ChunkSet {
    /// The empty set for a volume of `size` bytes.
    pub(super) const fn new(size: u64) -> Self {
        Self {
            size,
            bits: Vec::new(),
            count: 0,
        }
    }

    /// The volume has `size` bytes now, more than before; what is new is not in the set.
    pub(super) fn grow(&mut self, size: u64) {
        self.size = size;
        if !self.bits.is_empty() {
            let chunks = size.div_ceil(CHUNK);
            self.bits.resize(index(chunks.div_ceil(64)), 0);
        }
    }

    /// Of the volume, bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes in the set, the last chunk counted whole.
    pub(super) const fn bytes(&self) -> u64 {
        self.count << CHUNK_SHIFT
    }

    /// Adds every chunk that touches `range`, in bytes.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        debug_assert!(
            range.end <= self.size,
            "{range:?} leaves {} bytes",
            self.size
        );
        if self.bits.is_empty() {
            let chunks = self.size.div_ceil(CHUNK);
            self.bits = vec![0; index(chunks.div_ceil(64))];
        }
        for (word, mask) in words(touched(&range)) {
            self.count += u64::from((mask & !self.bits[word]).count_ones());
            self.bits[word] |= mask;
        }
    }

    /// Takes out every chunk that lies wholly in `range`, in bytes; the volume's last chunk may be a short one.
    pub(super) fn remove_covered(&mut self, range: &Range<u64>) {
        if self.is_empty() {
            return;
        }
        let first = range.start.div_ceil(CHUNK);
        let end = if range.end == self.size {
            range.end.div_ceil(CHUNK)
        } else {
            range.end / CHUNK
        };
        for (word, mask) in words(first..end) {
            self.count -= u64::from((mask & self.bits[word]).count_ones());
            self.bits[word] &= !mask;
        }
        if self.is_empty() {
            self.clear();
        }
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) {
        self.bits = Vec::new();
        self.count = 0;
    }

    /// The first chunk at or behind byte `from` that is in the set and touches a byte before `until`, as a byte range.
    pub(super) fn first_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if self.is_empty() {
            return None;
        }
        let touched = touched(range);
        let mut chunk = touched.start;
        while chunk < touched.end {
            let rest = self.bits[index(chunk / 64)] >> (chunk % 64);
            if rest == 0 {
                chunk = (chunk / 64 + 1) * 64;
                continue;
            }
            chunk += u64::from(rest.trailing_zeros());
            let start = chunk << CHUNK_SHIFT;
            let found = start..(start + CHUNK).min(self.size);
            return (chunk < touched.end).then_some(found);
        }
        None
    }
}

impl ChunkSet {
    /// The first run of neighbouring chunks in `range`, as bytes, of at most `max` bytes and at least a chunk.
    pub(super) fn run_in(&self, range: &Range<u64>, max: u64) -> Option<Range<u64>> {
        let mut run = self.first_in(range)?;
        while run.end - run.start + CHUNK <= max && run.end < range.end {
            match self.first_in(&(run.end..run.end + 1)) {
                Some(next) => run.end = next.end,
                None => break,
            }
        }
        Some(run)
    }
}

/// The chunks that a range of bytes touches.
fn touched(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK..range.end.div_ceil(CHUNK)
}

/// The words of the bitmap that hold these chunks, with the chunks' bits in each.
fn words(chunks: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut next = chunks.start;
    std::iter::from_fn(move || {
        if next >= chunks.end {
            return None;
        }
        let (word, bit) = (next / 64, next % 64);
        let count = (64 - bit).min(chunks.end - next);
        next += count;
        Some((index(word), (u64::MAX >> (64 - count)) << bit))
    })
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("a volume's chunk bitmap fits memory")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SIZE: u64 = 200 * CHUNK + 4096;

    proptest::proptest! {
        /// Against a set of chunk numbers.
        #[test]
        fn behaves_as_a_set_of_chunks(
            steps in proptest::collection::vec((proptest::bool::ANY, 0..SIZE, 0..5 * CHUNK), 1..40),
            probe in 0..SIZE,
        ) {
            let mut set = ChunkSet::new(SIZE);
            let mut model = BTreeSet::new();
            for (insert, start, len) in steps {
                let range = start..(start + len).min(SIZE);
                for chunk in 0..SIZE.div_ceil(CHUNK) {
                    let bytes = chunk * CHUNK..((chunk + 1) * CHUNK).min(SIZE);
                    let touches = bytes.start < range.end && range.start < bytes.end;
                    let covered = range.start <= bytes.start && bytes.end <= range.end;
                    if insert && touches && !range.is_empty() {
                        model.insert(chunk);
                    } else if !insert && covered {
                        model.remove(&chunk);
                    }
                }
                if insert {
                    set.insert(range);
                } else {
                    set.remove_covered(&range);
                }
                assert_eq!(set.bytes(), model.len() as u64 * CHUNK);
                let expected = model.iter().find(|chunk| **chunk >= probe / CHUNK);
                let found = set.first_in(&(probe..SIZE)).map(|range| range.start / CHUNK);
                assert_eq!(found, expected.copied());
            }
        }
    }

    #[test]
    fn runs_end_at_gaps_and_at_the_given_length() {
        let mut set = ChunkSet::new(SIZE);
        set.insert(CHUNK..6 * CHUNK);
        set.insert(7 * CHUNK..8 * CHUNK);
        set.insert(199 * CHUNK..SIZE);
        let check = |from: u64, max: u64, expected: Option<Range<u64>>| {
            let bytes = expected.map(|run| run.start * CHUNK..(run.end * CHUNK).min(SIZE));
            assert_eq!(set.run_in(&(from * CHUNK..SIZE), max * CHUNK), bytes);
        };
        check(0, 16, Some(1..6));
        check(0, 3, Some(1..4));
        check(4, 16, Some(4..6));
        check(6, 0, Some(7..8));
        check(8, 16, Some(199..201));
        set.clear();
        assert_eq!(set.run_in(&(0..SIZE), CHUNK), None);
    }

    #[test]
    fn the_last_chunk_is_as_short_as_the_volume() {
        let mut set = ChunkSet::new(SIZE);
        set.insert(SIZE - 1..SIZE);
        assert_eq!(set.first_in(&(0..SIZE)), Some(200 * CHUNK..SIZE));
        set.remove_covered(&(200 * CHUNK..SIZE));
        assert!(set.is_empty());
    }
}
