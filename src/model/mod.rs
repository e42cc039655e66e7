//! The vocabulary that the other modules share: ids and names, desired state (specs), observed state (statuses).
//!
//! Plain data without behaviour beyond validation. Specs carry no serde and no source positions: those stay in
//! `config/`. Statuses serialise, because `/v1/status` and the CLI exchange them. Start with [`spec`].

pub mod fault;
pub mod id;
pub mod journal;
pub mod observed;
pub mod policy;
pub mod polling;
pub mod scrub;
pub mod spec;
pub mod status;
pub mod time;
pub mod why;

pub use id::{GenerationId, NodeId, NodeName, PoolId, PoolName, ReplicaId, VolumeId, VolumeName};
pub use polling::Polling;
