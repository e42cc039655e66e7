//! The nexus: one block device mirrored synchronously over 1 to 16 children. `docs/nexus-spec.md` is normative; every rule
//! is named where it is implemented.
//!
//! Owns who is in sync, what is acknowledged when, and what happens when a child fails. Must never log, read a clock,
//! or hold a file descriptor: everything comes in through the types that [`NexusEnv`] names, so that the simulator
//! runs the very same code. Start with [`state`] (a child's life), then `nexus`, `write` and `read` (a request's
//! life), `fault` and `assembly` (the volume's life).

mod env;
pub mod state;
pub mod witness;

mod clear;
mod flush;
mod intent;
#[allow(
    clippy::module_inception,
    reason = "the file with the nexus itself is named after it"
)]
mod nexus;
mod race;
mod read;
mod room;
mod write;

mod fault;
mod grow;
mod member;
mod rebuild;
mod rebuild_copy;
mod rebuild_plan;
mod repair;
mod resolve;
mod scrub;
mod stop;
mod table;

mod assemble;
mod assembly;
mod create;
mod take_over;

mod child;
mod chunk_set;
mod durability;
mod fan_out;
mod range_lock;
mod signal;
mod slots;
mod throttle;
mod timing;
mod vote;
mod watch;

pub mod mutant;
pub mod status;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use assembly::{AssemblyError, Blocked, leader};
pub use create::CreateError;
pub use env::{
    Candidate, ForceStart, NexusEnv, NexusSpec, Parts, Policy, Presence, Silent, Timeouts,
};
pub use member::{MemberError, Removal};
pub use mutant::Mutant;
pub use nexus::Nexus;
pub use rebuild::{RebuildError, RebuildReport};
pub use rebuild_plan::RebuildKind;
pub use scrub::{
    ChunkFinding, FoundChunk, ScrubError, ScrubProgress, ScrubReport, ScrubRequest, ScrubTotals,
};
pub use state::{ChildState, FaultReason};
pub use status::{ChildStatus, Health, NexusStatus, RebuildProgress, RebuildTotals};
pub use timing::ChildLatencies;
pub use witness::{Witness, WitnessError, WitnessMember, WitnessPosition, WitnessRecord};
