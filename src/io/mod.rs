//! The bottom of the data path: reactors, rings, buffers, block devices, clocks; and their simulated twins.
//!
//! Owns everything that talks to the kernel on behalf of guest I/O. Must never know what a volume or a replica is.
//! Start with [`device`], the one seam between production and simulation, then `reactor`.

pub mod buffer;
pub mod clock;
pub mod device;

pub use buffer::{BufferPool, IoBuffer};
pub use clock::{Clock, Rng, Spawn};
pub use device::{Alignment, BlockDevice, IoError, ZeroOptions};
