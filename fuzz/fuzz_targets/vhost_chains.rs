//! libFuzzer on `targets::vhost_chains`.

#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code, reason = "each fuzz target is one of them")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::vhost_chains(data));
