//! Statistics of paired rounds: medians, ratios with a bootstrapped interval, and the judgement of a ratio against a line.
//!
//! All of it is deterministic: the same figures give the same interval.

use std::fmt;

use serde::Serialize;

/// Resamples of one bootstrap.
const RESAMPLES: usize = 4000;
/// What is cut off at each end of the resamples, so that 95 % are left.
const TAIL: f64 = 0.025;
/// Where the bootstrap's choices start.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The middle value; the mean of the two in the middle if there is an even number. Of nothing, NaN.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    median_of(&mut sorted)
}

fn median_of(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values {
        [] => f64::NAN,
        _ if values.len() % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The median of a set of ratios, one a round, and the 95 % interval of that median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Rounds with a ratio, and all that were played.
    pub(crate) rounds: usize,
    pub(crate) played: usize,
}

impl Ratio {
    /// Of the same figure of two contenders, round by round: `ours` divided by `theirs`. Rounds that only one of them has,
    /// or without a figure to divide by, are left out; a judgement does not overlook that.
    pub(crate) fn paired(ours: &[f64], theirs: &[f64]) -> Ratio {
        let ratios: Vec<f64> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| ours / theirs)
            .filter(|ratio| ratio.is_finite())
            .collect();
        Ratio {
            played: ours.len().max(theirs.len()),
            ..Ratio::of(&ratios)
        }
    }

    /// Whether there is a ratio of every round.
    fn is_complete(&self) -> bool {
        self.rounds > 0 && self.rounds == self.played
    }

    /// Of ratios that somebody else has computed.
    pub(crate) fn of(ratios: &[f64]) -> Ratio {
        let rounds = ratios.len();
        if rounds == 0 {
            return Ratio {
                median: f64::NAN,
                low: f64::NAN,
                high: f64::NAN,
                rounds,
                played: rounds,
            };
        }
        let mut random = SEED;
        let mut resample = vec![0.0; rounds];
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                for slot in &mut resample {
                    *slot = ratios[below(&mut random, rounds)];
                }
                median_of(&mut resample)
            })
            .collect();
        medians.sort_unstable_by(f64::total_cmp);
        Ratio {
            median: median(ratios),
            low: quantile(&medians, TAIL),
            high: quantile(&medians, 1.0 - TAIL),
            rounds,
            played: rounds,
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.median, self.low, self.high)?;
        match self.is_complete() {
            true => Ok(()),
            false => write!(f, " ({} of {} rounds)", self.rounds, self.played),
        }
    }
}

/// The value below which this part of the sorted values lies.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a few thousand values"
    )]
    let index = (part * (sorted.len() - 1) as f64).round() as usize;
    sorted[index]
}

/// xorshift64*, as everywhere where a seed decides.
fn below(state: &mut u64, limit: usize) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let high = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
    usize::try_from(high % limit as u64).expect("it is below a usize")
}

/// What a ratio has to meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Line {
    AtLeast(f64),
    AtMost(f64),
}

impl Line {
    fn meets(self, value: f64) -> bool {
        match self {
            Line::AtLeast(line) => value >= line,
            Line::AtMost(line) => value <= line,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::AtLeast(line) => write!(f, "at least {line}"),
            Line::AtMost(line) => write!(f, "at most {line}"),
        }
    }
}

/// How a ratio stands to its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Verdict {
    /// The unfavourable end of the interval meets the line.
    Holds,
    /// The median meets the line, the interval reaches over it.
    HoldsInNoise,
    /// The median does not meet the line, nor does every value of the interval miss it.
    MissesInNoise,
    /// No value of the interval meets the line.
    Misses,
}

impl Verdict {
    /// Whether the line counts as met.
    pub(crate) fn holds(self) -> bool {
        matches!(self, Verdict::Holds | Verdict::HoldsInNoise)
    }

    fn word(self) -> &'static str {
        match self {
            Verdict::Holds => "holds",
            Verdict::HoldsInNoise => "holds by its median only",
            Verdict::MissesInNoise => "misses by its median",
            Verdict::Misses => "MISSES",
        }
    }
}

/// A ratio, its line, and how they stand.
#[derive(Clone, Debug)]
pub(crate) struct Judgement {
    what: String,
    ratio: Ratio,
    line: Line,
    pub(crate) verdict: Verdict,
}

/// Judges `what` by the unfavourable end of its interval, and by the median where noise is wider than that. A
/// ratio that lacks rounds misses: those may be the bad ones.
pub(crate) fn judge(what: impl Into<String>, ratio: Ratio, line: Line) -> Judgement {
    let (unfavourable, favourable) = match line {
        Line::AtLeast(_) => (ratio.low, ratio.high),
        Line::AtMost(_) => (ratio.high, ratio.low),
    };
    let verdict = if !ratio.is_complete() {
        Verdict::Misses
    } else if line.meets(unfavourable) {
        Verdict::Holds
    } else if line.meets(ratio.median) {
        Verdict::HoldsInNoise
    } else if line.meets(favourable) {
        Verdict::MissesInNoise
    } else {
        Verdict::Misses
    };
    Judgement {
        what: what.into(),
        ratio,
        line,
        verdict,
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, {}: {}",
            self.what,
            self.ratio,
            self.line,
            self.verdict.word()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_taken_within_rounds_so_that_drift_of_the_machine_cancels() {
        let theirs = [100.0, 200.0, 50.0, 400.0];
        let ours = theirs.map(|value| value * 1.5);
        let ratio = Ratio::paired(&ours, &theirs);
        assert_eq!((ratio.median, ratio.low, ratio.high), (1.5, 1.5, 1.5));
    }

    #[test]
    fn an_interval_holds_its_median_and_is_the_same_each_time() {
        let ratios = [0.91, 1.02, 0.97, 1.05, 0.99, 1.01, 0.93];
        let ratio = Ratio::of(&ratios);
        assert!(ratio.low < ratio.median && ratio.median < ratio.high);
        assert_eq!(ratio, Ratio::of(&ratios));
    }

    #[test]
    fn a_round_without_a_figure_is_left_out() {
        let ratio = Ratio::paired(&[1.0, 2.0, 3.0], &[1.0, 0.0, f64::NAN]);
        assert_eq!((ratio.median, ratio.rounds), (1.0, 1));
        assert!(Ratio::of(&[]).median.is_nan());
    }

    #[test]
    fn a_ratio_that_lacks_rounds_misses_whatever_the_others_are() {
        let verdict = |ours: &[f64], theirs: &[f64]| {
            let judged = judge("x", Ratio::paired(ours, theirs), Line::AtLeast(0.9));
            (judged.verdict, judged.to_string())
        };
        assert_eq!(verdict(&[1.0, 1.0], &[1.0, 1.0]).0, Verdict::Holds);
        for theirs in [&[1.0, 0.0][..], &[1.0, f64::NAN], &[1.0]] {
            let (verdict, text) = verdict(&[1.0, 1.0], theirs);
            assert_eq!(verdict, Verdict::Misses, "{theirs:?}");
            assert!(text.contains("1 of 2 rounds"), "{text}");
        }
    }

    #[test]
    fn the_unfavourable_end_decides_and_the_median_where_noise_is_wider() {
        let ratio = |low, median, high| Ratio {
            median,
            low,
            high,
            rounds: 15,
            played: 15,
        };
        let verdict = |ratio, line| judge("x", ratio, line).verdict;
        let wide = ratio(0.9, 1.0, 1.1);
        assert_eq!(verdict(wide, Line::AtLeast(0.9)), Verdict::Holds);
        assert_eq!(verdict(wide, Line::AtLeast(0.95)), Verdict::HoldsInNoise);
        assert_eq!(verdict(wide, Line::AtLeast(1.05)), Verdict::MissesInNoise);
        assert_eq!(verdict(wide, Line::AtLeast(1.2)), Verdict::Misses);
        assert_eq!(verdict(wide, Line::AtMost(1.1)), Verdict::Holds);
        assert_eq!(verdict(wide, Line::AtMost(1.05)), Verdict::HoldsInNoise);
        assert_eq!(verdict(Ratio::of(&[]), Line::AtMost(1.0)), Verdict::Misses);
    }
}
