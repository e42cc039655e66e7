//! One copy of a volume: its label, its two bitmaps and its data, all in one file or device (spec section 9).
//!
//! Owns the on-disk layout ([`layout`]) and the order in which its parts become durable. Must never decide which copy
//! is right or who may be read: that is the nexus. Generic over [`crate::io::BlockDevice`], so that the simulator runs
//! the same code. Start with [`replica`], then [`label`].

#[allow(
    clippy::module_inception,
    reason = "hop 4 of the data path is named after what it is"
)]
pub mod replica;

pub mod bitmap;
pub mod dump;
mod errors;
mod format;
pub mod label;
pub mod layout;
mod marks;
pub mod page;
mod pending;
#[cfg(test)]
pub(crate) mod testing;

pub use bitmap::BitmapKind;
pub use errors::ErrorCounts;
pub use label::{Access, Ancestors, Flags, Label, LabelError, Member, MemberState};
pub use page::{Page, PageError};
pub use pending::{PATIENCE, ZERO_PIECE};
pub use replica::{OpenError, Replica};
