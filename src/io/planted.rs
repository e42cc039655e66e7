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
