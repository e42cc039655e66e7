//! Integration tests: one binary, one link.

mod api;
mod check;
mod copies;
mod daemon;
mod daemon_rig;
mod fuzz_corpora;
mod inject;
#[path = "../../examples/vhost_late/control.rs"]
#[allow(
    clippy::disallowed_methods,
    reason = "it measures a real machine in real time"
)]
mod late_control;
mod offline;
mod pool;
mod vhost_data;
mod vhost_guest;
mod vhost_memory;
mod vhost_protocol;
mod vhost_rig;
