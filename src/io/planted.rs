//! Bugs that a test build plants below the nexus, whose own are in its `mutant.rs`. The environment chooses one:
//! `VOLUND_MUTANT=CreationUnsynced`.

/// Spec L6: nothing of a replica's creation is made durable: neither the file, nor its name, nor its label.
pub(crate) const CREATION_UNSYNCED: &str = "CreationUnsynced";

/// Whether the bug is planted; never in a build without the feature `mutants`.
#[cfg(feature = "mutants")]
pub(crate) fn is_planted(name: &str) -> bool {
    std::env::var("VOLUND_MUTANT").is_ok_and(|wanted| wanted == name)
}

/// Whether the bug is planted; never in a build without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn is_planted(_: &str) -> bool {
    false
}

/// A place in the making or the removal of a volume at which a test kills the daemon. `VOLUND_KILL_AT=7` kills it at the
/// seventh that it comes to, as `kill -9` does: nothing is flushed, nobody is told.
#[cfg(feature = "mutants")]
pub(crate) fn kill_point() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = std::env::var("VOLUND_KILL_AT").ok();
    let wanted = wanted.and_then(|number| number.parse::<u64>().ok());
    if wanted == Some(PASSED.fetch_add(1, Ordering::Relaxed) + 1) {
        // This process always exists and may always be signalled by itself.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

/// A place at which test builds can be killed; nothing in any other build.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn kill_point() {}
