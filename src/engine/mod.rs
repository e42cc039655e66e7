//! Live objects: pools, volumes and exports as they are on this node right now, and the calls that change them.
//!
//! Owns the wiring: it gives the nexus its real disks, witness and clock, places volumes on reactors, and knows which
//! replica files belong together. Must never decide *whether* something should be: that is `reconcile/`'s. Every call
//! is idempotent, and calls about one volume run one after the other.
//!
//! Start with [`engine`], then `assemble` (from files to a running volume) and `quarantine` (and back).

#[allow(
    clippy::module_inception,
    reason = "the file with the engine itself is named after it"
)]
pub mod engine;
pub mod error;

mod assemble;
mod attempts;
mod bring;
mod claim;
mod create;
mod exports;
mod found;
mod gather;
mod history;
mod inject;
mod keeper;
mod live;
mod look;
mod members;
mod observe;
mod orphans;
mod outlook;
mod permits;
mod pools;
mod quarantine;
mod readings;
mod rename;
mod resize;
mod scrub;
mod shown;
mod tick;
mod why;

#[cfg(test)]
mod tests;

pub use engine::{Engine, EngineConfig};
pub use error::EngineError;
