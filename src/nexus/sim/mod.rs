//! The nexus on simulated disks: random clients, faults, crashes and power cuts, and checkers for the guarantees.
//!
//! [`rig`] builds a volume out of simulated parts; directed tests use it too. [`run`] takes one seed through several
//! crashes. [`history`] decides whether what the clients saw is what the specification promises.

mod bits;
mod caught;
mod client;
mod directed;
mod engine;
mod history;
mod inspect;
mod marks;
mod rig;
mod rules;
mod run;
mod scenario;
mod seeds;
mod shrink;
mod trouble;

pub(super) use marks::durable_regions;
pub(super) use rig::{Rig, SimEnv};
