//! How long requests took: a histogram whose buckets are at most 0.8 % wide, so that any quantile is right within 0.4 %.

/// Buckets per doubling, as a power of two.
const FINE: u32 = 7;
/// Nanoseconds below this have a bucket each.
const EXACT: u64 = 1 << FINE;
/// Up to 2^40 ns, 18 minutes; what is longer counts as that.
const OCTAVES: u32 = 40 - FINE;
const BUCKETS: usize = (1 << FINE) * (1 + OCTAVES as usize);

/// Counts of nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
            max: 0,
        }
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        self.buckets[bucket_of(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    pub(crate) fn add(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The smallest time that this many thousandths of all requests did not exceed; 0 when there were none.
    pub(crate) fn quantile(&self, thousandths: u64) -> u64 {
        let rank = (self.count * thousandths).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle_of(index).min(self.max);
            }
        }
        0
    }
}

fn bucket_of(nanos: u64) -> usize {
    let octave = nanos.max(EXACT).ilog2() - FINE;
    let within = (nanos >> octave) & (EXACT - 1);
    let index = match nanos < EXACT {
        true => nanos,
        false => (u64::from(octave) + 1) * EXACT + within,
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

fn middle_of(index: usize) -> u64 {
    let index = index as u64;
    match index / EXACT {
        0 => index,
        above => {
            let octave = above - 1;
            let start = (EXACT + index % EXACT) << octave;
            start + ((1 << octave) >> 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_known_within_half_a_percent() {
        let mut nanos = 1;
        while nanos < 1 << 39 {
            let found = middle_of(bucket_of(nanos));
            assert!(
                found.abs_diff(nanos) * 200 <= nanos,
                "{nanos} became {found}"
            );
            nanos += 1 + nanos / 97;
        }
    }

    #[test]
    fn quantiles_are_the_ranks_of_what_was_recorded() {
        let (mut low, mut high) = (Histogram::new(), Histogram::new());
        (1..=50).for_each(|nanos| low.record(nanos));
        (51..=100).for_each(|nanos| high.record(nanos));
        low.add(&high);
        assert_eq!((low.quantile(500), low.quantile(990)), (50, 99));
        assert_eq!((low.quantile(999), low.max(), low.count()), (100, 100, 100));
        assert_eq!(Histogram::new().quantile(500), 0);
    }

    #[test]
    fn a_time_without_end_has_a_bucket() {
        let mut histogram = Histogram::new();
        histogram.record(u64::MAX);
        assert!(histogram.quantile(500) >= 1 << 39);
    }
}
