//! The simulated twins of the bottom of the data path: an executor with virtual time, and disks that misbehave.
//!
//! Everything that happens follows from one seed: which ready task runs next, how long an I/O takes, which cached
//! writes a power cut keeps. Nothing here reads a clock or starts a thread. Start with [`executor::Sim`], then
//! [`disk::SimDisk`].

pub mod disk;
pub mod executor;
mod media;
mod sparse;

pub use disk::{SimDisk, SimFault, SimHardware, SimLayout};
pub use executor::{Sim, SimNode};
