//! Every input of the fuzzers' corpora, and of what they once found, through the same functions as in a fuzzing run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper of tests fails by panicking, and says which input it was at"
)]

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::path::Path;

/// Runs `target` on each file of its corpus. A panic names the file, since it is printed first.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "{} has no input", folder.display());
}

#[test]
fn config_corpus_gives_no_panic() {
    replay("config", targets::config);
}

#[test]
fn label_corpus_gives_no_panic() {
    replay("label", targets::label);
}

#[test]
fn vhost_messages_corpus_gives_no_panic() {
    replay("vhost_messages", targets::vhost_messages);
}

#[test]
fn vhost_chains_corpus_gives_no_panic() {
    replay("vhost_chains", targets::vhost_chains);
}
