//! Integration tests: one binary, one link.

mod check;
mod copies;
mod daemon;
mod daemon_rig;
mod fuzz_corpora;
mod inject;
mod pool;
mod vhost_data;
mod vhost_guest;
mod vhost_memory;
mod vhost_protocol;
mod vhost_rig;
