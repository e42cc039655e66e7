//! The nexus on simulated disks: random clients, faults, crashes and power cuts, and checkers for the guarantees.
//!
//! [`rig`] builds a volume out of simulated parts and crashes it; directed tests use it too.

mod rig;

pub(super) use rig::{Rig, SimEnv, SimWitness};
