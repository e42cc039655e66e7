//! Pools: the directories and the memory that replicas are carved from.
//!
//! A directory pool is a directory of a filesystem that we did not write:
//!
//! ```text
//! volund-pool                 marker: the pool's id; also what one daemon locks
//! replicas/<replica uuid>     one file per replica (`replica::layout`)
//! quarantine/<name>           replicas of removed volumes; the name says which and since when
//! garbage/<name>              leftovers of creations that failed, kept for people to look at
//! ```
//!
//! Which folder a file is in is the authority on whether it is quarantined; `state/` only remembers it. Owns creation,
//! listing, locking, quarantine and removal of replica files, and the pool's capacity. Must never touch guest I/O, and
//! never deletes a file that might hold data unless it was told to purge exactly that one. All calls to the
//! filesystem are made by one worker thread per pool, so that a hung disk stalls only its own volumes; callers wait
//! with a deadline. Start with [`handle`], then `directory` (spec A0) and `files` (spec A1, L6).

pub mod error;
pub mod handle;
pub mod quarantine;
pub mod scan;

mod directory;
mod files;
mod listing;
mod lock;
mod marker;
mod memory;
mod rename;
mod worker;

pub use error::{Fault, MissingPool, PoolError};
pub use files::{Discarded, FileStat, OpenedFile};
pub use handle::{Capacity, Opened, Pool, Survey};
pub use listing::{FoundReplica, Listing, Place, ReplicaFault};
pub use lock::Holder;
pub use quarantine::QuarantineName;

#[cfg(test)]
mod tests;
