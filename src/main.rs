//! volund.
fn main() {}
