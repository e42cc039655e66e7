//! The nexus: one block device mirrored synchronously over 1 to 16 children. `nexus-spec.md` is normative; every rule
//! is named where it is implemented.
//!
//! Owns who is in sync, what is acknowledged when, and what happens when a child fails. Must never log, read a clock,
//! or hold a file descriptor: everything comes in through the types that [`NexusEnv`] names, so that the simulator runs the very same
//! code.

pub mod witness;

pub use witness::{Witness, WitnessError, WitnessMember, WitnessPosition, WitnessRecord};

use crate::io::{BlockDevice, Clock, Rng, Spawn};

/// The types that a nexus is built from: the real ones in `engine/`, the simulated ones in tests.
pub trait NexusEnv: 'static {
    /// What holds a replica.
    type Disk: BlockDevice;
    /// Time.
    type Clock: Clock;
    /// Random ids.
    type Rng: Rng;
    /// Background tasks.
    type Spawn: Spawn;
    /// The record outside the replicas.
    type Witness: Witness;
}
