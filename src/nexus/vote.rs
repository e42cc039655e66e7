//! Which of several copies of a chunk is right, block by block (spec section 10).

use std::ops::Range;

/// What to do about copies that differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What the chunk should hold; where nobody knows, what the first copy has.
    pub(super) right: Vec<u8>,
    /// Per copy, the runs of bytes in which it differs from what is right.
    pub(super) wrong: Vec<Vec<Range<usize>>>,
    /// Whether there are blocks of which nobody knows what is right.
    pub(super) is_disputed: bool,
}

/// Compares copies of one length in blocks. Right is what more than half of the `voters` have; where there is no such
/// majority, what the `trusted` copy has, if there is one. `voters` may be more than the copies: those can't be read.
pub(super) fn vote(
    copies: &[Vec<u8>],
    block: usize,
    voters: usize,
    trusted: Option<usize>,
) -> Verdict {
    let mut verdict = Verdict {
        right: copies.first().cloned().unwrap_or_default(),
        wrong: vec![Vec::new(); copies.len()],
        is_disputed: false,
    };
    let len = verdict.right.len();
    for start in (0..len).step_by(block) {
        let at = start..(start + block).min(len);
        let of = |copy: &Vec<u8>| copy[at.clone()].to_vec();
        let agree = |content: &[u8]| copies.iter().filter(|c| c[at.clone()] == *content).count();
        if agree(&copies[0][at.clone()]) == copies.len() {
            continue;
        }
        let majority = copies
            .iter()
            .find(|copy| agree(&copy[at.clone()]) * 2 > voters);
        let chosen = majority.or_else(|| trusted.map(|index| &copies[index]));
        let Some(right) = chosen.map(of) else {
            verdict.is_disputed = true;
            continue;
        };
        for (copy, wrong) in copies.iter().zip(&mut verdict.wrong) {
            if copy[at.clone()] != right {
                extend(wrong, at.clone());
            }
        }
        verdict.right[at].copy_from_slice(&right);
    }
    verdict
}

/// Adds a range that lies behind all others, joined to the last one if they touch.
pub(super) fn extend(runs: &mut Vec<Range<usize>>, next: Range<usize>) {
    match runs.last_mut() {
        Some(run) if run.end == next.start => run.end = next.end,
        _ => runs.push(next),
    }
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of runs may have just one"
)]
mod tests {
    use super::*;

    const LEN: usize = 4;

    /// Blocks of one byte, copies as texts.
    fn check(copies: &[&str], voters: usize, trusted: Option<usize>) -> Verdict {
        let copies: Vec<Vec<u8>> = copies.iter().map(|copy| copy.as_bytes().to_vec()).collect();
        assert!(copies.iter().all(|copy| copy.len() == LEN));
        vote(&copies, 1, voters, trusted)
    }

    #[test]
    fn a_strict_majority_is_right_block_by_block() {
        let verdict = check(&["abcd", "xbcd", "abcy"], 3, None);
        assert_eq!(verdict.right, b"abcd");
        assert_eq!(verdict.wrong, [vec![], vec![0..1], vec![3..4]]);
        assert!(!verdict.is_disputed);
    }

    #[test]
    fn two_copies_have_no_majority() {
        let verdict = check(&["abcd", "xbcy"], 2, None);
        assert!(verdict.is_disputed);
        assert!(verdict.wrong.concat().is_empty());
        let verdict = check(&["abcd", "axxd"], 2, Some(1));
        assert_eq!(verdict.right, b"axxd");
        assert_eq!(verdict.wrong, [vec![1..3], vec![]]);
        assert!(!verdict.is_disputed);
    }

    #[test]
    fn a_majority_is_one_of_all_and_not_of_those_that_can_be_read() {
        assert!(check(&["abcd", "xbcd"], 3, None).is_disputed);
        assert!(check(&["abcd", "abcd", "xbcd", "xbcd"], 4, None).is_disputed);
        assert!(!check(&["abcd", "abcd", "abcd", "xbcd"], 5, None).is_disputed);
    }

    #[test]
    fn a_majority_outweighs_the_trusted_copy() {
        let verdict = check(&["xbcd", "abcd", "abcd"], 3, Some(0));
        assert_eq!(verdict.right, b"abcd");
        assert_eq!(verdict.wrong, [vec![0..1], vec![], vec![]]);
    }

    #[test]
    fn equal_copies_are_left_alone() {
        let verdict = check(&["abcd", "abcd"], 2, None);
        assert!(verdict.wrong.concat().is_empty());
        assert!(!verdict.is_disputed);
    }
}
