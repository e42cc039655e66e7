//! `cargo xtask bench`: measurements of speed against what users have today, in interleaved rounds.
//!
//! `stats` has medians, paired ratios with their interval, and the judgement of a ratio.

#[allow(dead_code, reason = "the cases that use it land next")]
pub(crate) mod stats;
