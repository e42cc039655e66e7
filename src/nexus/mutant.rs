//! Rules that a test build can switch off one at a time, to show that the simulation notices.

/// A planted bug. In a build without the feature `mutants`, nothing is ever planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// W3: overlapping writes are not serialised.
    NoWriteLock,
    /// R6: reads do not wait for overlapping writes.
    NoReadLock,
    /// R2: a read of an unresolved chunk just reads some member.
    NoResolve,
    /// R2: resolving a chunk forgets it without making the members equal.
    ResolveWithoutWriting,
    /// F6: acknowledgements do not wait for the witness and the labels.
    AckBeforeCommit,
    /// W6: acknowledgements look at the table in memory instead of the committed one.
    AckAgainstRam,
    /// A4: the witness is not asked which label is on the committed branch.
    WitnessIgnored,
    /// W10: a flush answers at once.
    FlushNoop,
    /// W10: a failed flush is tried again, and a later success believed.
    FlushRetried,
    /// A7: an unclean stop is taken for a clean one.
    UncleanIgnored,
    /// A8: opening for write leaves CLEAN in the labels.
    CleanKept,
    /// A6: a member that the newest label calls stale is read all the same.
    StaleAdmitted,
    /// W2: members are written straight from the client's memory.
    NoPrivateCopy,
    /// W8: a failed write's range is not marked unresolved.
    FailedWriteForgotten,
    /// W4: data is written without setting intent bits.
    NoIntent,
    /// W4: bits are written, but not durably.
    IntentNotDurable,
    /// W9: bits are cleared although no flush was completed since the last write.
    IntentClearedUnflushed,
    /// W7: a write that a member missed does not note its own regions.
    OwnRegionsForgotten,
    /// F4: the table without a member is written without taking intent into missed.
    IntentNotMerged,
    /// W4: resolving writes without setting intent bits.
    ResolveWithoutIntent,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NoWriteLock,
        Self::NoReadLock,
        Self::NoResolve,
        Self::ResolveWithoutWriting,
        Self::AckBeforeCommit,
        Self::AckAgainstRam,
        Self::WitnessIgnored,
        Self::FlushNoop,
        Self::FlushRetried,
        Self::UncleanIgnored,
        Self::CleanKept,
        Self::StaleAdmitted,
        Self::NoPrivateCopy,
        Self::FailedWriteForgotten,
    ];
}
