//! The block device that an export shows: one [`Volume`] over any [`crate::io::BlockDevice`].
//!
//! Owns the checks that every request passes (bounds, alignment, read-only), the pause between requests, and the
//! counters. Must never know which frontend asks or what lies below. Start with [`volume`].

pub mod counters;
#[allow(
    clippy::module_inception,
    reason = "hop 2 of the data path is named after what it is"
)]
pub mod volume;

pub use counters::{Counters, Operation};
pub use volume::{Geometry, Request, Volume};
