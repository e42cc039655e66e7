//! The daemon: in which order things start and stop, signals, the configuration's files, the log.
//!
//! Owns the wiring of all that runs for as long as the daemon does. Must never decide what happens to a volume: that
//! is `reconcile/`'s. Start with [`run()`].

mod files;
mod journal;
mod logging;
mod reload;
mod run;
mod watch;
mod wiring;

pub use logging::LogFormat;
pub use run::{Options, run};
