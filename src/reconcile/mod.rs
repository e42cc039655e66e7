//! From desired state to reality: what has to change (`plan`), where each volume is in its life (`state`), doing
//! it (`apply`), and saying how it went (`status`).
//!
//! Owns the decision what happens to whom and when it is tried again. Must never touch a file, a socket or a ring:
//! all it does goes through the engine. Start with `plan`.
//!
//! # What it asks of `engine::Engine`
//!
//! `Engine` is `Clone + Send + Sync`. Every call is idempotent: a goal already met is a success. Every call has its
//! own deadlines below, returns `Result<_, EngineError>` and may be dropped. `EngineError` has
//! `fn reason(&self) -> &str` (a condition's CamelCase reason) and `Display` (its message). Types are those of
//! [`crate::model`].
//!
//! ```text
//! async fn observe(&self) -> Observed                      never waits for a pool: cached what a busy pool last said
//! fn readings(&self) -> Vec<metrics::VolumeReading>        counters of every volume; no waiting
//! fn changes(&self) -> tokio::sync::watch::Receiver<u64>   bumped when anything in `observe()` may have changed
//!
//! async fn open_pool(&self, name: &PoolName, spec: &PoolSpec)     PoolMissing, PathMissing, ...; stays in `observe()`
//!                                                                 with its problem when it fails
//! async fn close_pool(&self, name: &PoolName)                     InUse while a volume runs on it
//!
//! async fn ensure_volume(&self, name: &VolumeName, spec: &VolumeSpec)
//!         labels of that name in the pools listed: assemble; none at all: create, refused by rule A0 while a witness
//!         record or quarantined data carries the name or a listed pool is offline. `spec.replicas` holds local pools
//!         only. Records the removal policy and `thin` in `state/`. On failure the problem stays in `observe()`.
//! async fn rename_volume(&self, from: &VolumeName, to: &VolumeName)      labels, witness, `state/`; `InUse` while a client
//!                                                                 is there; first removes the export and stops it
//! async fn set_removal_policy(&self, name: &VolumeName, policy: RemovalPolicy)  `state/` only
//! async fn ensure_export(&self, name: &VolumeName, export: &ExportSpec, read_only: bool)
//!         never `ExportSpec::None`; an export with other parameters is replaced, unless in use (`InUse`)
//! async fn remove_export(&self, name: &VolumeName)                       `InUse` while a client is there
//! async fn quarantine_volume(&self, name: &VolumeName) -> String         stops it cleanly, moves every local replica;
//!                                                                 `InUse` while exported; answers the entry's id
//! async fn restore_volume(&self, entry: &str, name: &VolumeName)         back from quarantine, under `name` (labels
//!                                                                 rewritten when it differs); does not assemble it
//! async fn purge(&self, entry: &str)                                     deletes the entry's replicas for ever
//!
//! fn configure_node(&self, policy: NodePolicy)                           from now on; so the next one
//! async fn configure_volume(&self, name: &VolumeName, policy: &VolumePolicy)
//! async fn grow_volume(&self, name: &VolumeName, size: Bytes)            all replicas, or nothing: `NoSpace`
//! async fn add_replica(&self, name: &VolumeName, pool: &PoolName)        returns once it is in the table; built later
//! async fn remove_replica(&self, name: &VolumeName, pool: &PoolName)     `LastCopy`; the pool may be offline
//!
//! A quarantine entry is *all* quarantined replicas of one volume id, over all pools, so that a restore brings every
//! copy back.
//!
//! async fn shutdown(&self)      exports drained and removed whether in use or not, volumes stopped (A10), pools closed
//! ```

mod against;
pub mod apply;
pub mod backoff;
pub mod compare;
mod copies;
mod drift;
pub mod events;
pub mod handle;
mod leftover;
mod naming;
mod next;
pub mod operations;
pub mod plan;
mod reconciler;
mod records;
pub mod report;
mod status;
mod wording;

pub use against::plan_against;
pub use events::{EventRecord, Events};
pub use handle::{Config, Handle, Refusal, Snapshot, Stats};
pub use naming::Named;
pub use operations::{Operations, Ticket};
pub use reconciler::start;
pub mod state;
pub mod step;
