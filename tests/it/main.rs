//! Integration tests: one binary, one link.

mod check;
mod fuzz_corpora;
