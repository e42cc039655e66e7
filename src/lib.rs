//! volund: a per-node daemon for replicated block volumes. `docs/ARCHITECTURE.md` is the map.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod frontend;
pub mod fsck;
pub mod http;
pub mod io;
pub mod metrics;
pub mod model;
pub mod nexus;
pub mod pool;
pub mod reconcile;
pub mod replica;
pub mod state;
pub mod units;
pub mod volume;
