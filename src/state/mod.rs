//! What a node remembers beside the replicas: the witness of each volume, and a small database.
//!
//! ```text
//! lock              locked by the one daemon that uses the folder (spec E5); holds its process id
//! node              this node's id
//! witness/<uuid>    two 4 KiB slots per volume: the newest committed generation (`witness`)
//! volund.redb       what helps but must never be missed: see `store`
//! ```
//!
//! No I/O waits for the database, and losing the whole folder loses no data: labels say what belongs together, and
//! assembly without a witness demands every member (spec A5). Must never look into a pool. Start with [`dir`].

pub mod dir;
mod peek;
pub mod records;
pub mod store;
pub mod witness;

pub use dir::{StateDir, StateError};
pub use peek::{Peeked, WitnessFound, peek, witnesses};
pub use records::{AppliedConfig, Creation, History, MemberChange, VolumeRecord};
pub use store::{Contents, Store};
pub use witness::WitnessFile;
