//! The bottom of the data path: reactors, rings, buffers, block devices, clocks; and their simulated twins.
//!
//! Owns everything that talks to the kernel on behalf of guest I/O. Must never know what a volume or a replica is.
//! Start with [`device`], the one seam between production and simulation, then [`reactor`].

pub mod device;

pub mod buffer;
pub mod clock;
pub mod disk;
pub mod doors;
pub mod file;
pub mod gate;
pub mod inject;
pub mod join;
pub mod memory;
pub mod reactor;
#[cfg(test)]
pub(crate) mod recording;
#[cfg(any(test, feature = "mutants"))]
pub mod sim;
pub mod slots;

pub(crate) mod executor;
mod mailbox;
pub(crate) mod operation;
pub(crate) mod planted;
pub(crate) mod polling;
pub(crate) mod ring;

pub use buffer::{BufferPool, IoBuffer};
pub use clock::{Clock, Rng, Spawn};
pub use device::{Alignment, BlockDevice, IoError, ZeroOptions};
pub use disk::Disk;
pub use doors::Door;
pub use executor::AtEndOfTurn;
pub use file::FileDevice;
pub use inject::{Faults, Injected};
pub use join::join_all;
pub use memory::MemoryDevice;
pub use reactor::{Local, ReactorHandle};
pub use ring::{Bell, Pinned, Readable};
