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
    /// W7: a write that a member of the committed table misses does not note its own regions, neither before its data nor
    /// before its acknowledgement.
    OwnRegionsForgotten,
    /// F4: the table without a member is written without taking intent into missed, after a fault and at assembly (A8).
    IntentNotMerged,
    /// W4: resolving writes without setting intent bits.
    ResolveWithoutIntent,
    /// B4: a rebuild copies without the range lock.
    CopyWithoutLock,
    /// B7: a rebuild ends without a flush of its target.
    NoFlushAfterCopy,
    /// B5: a checkpoint believes copies that ended while it flushed.
    FinishedWhileFlushing,
    /// B3: a partial rebuild copies what the others know that the target lacks, and not what the target itself says.
    OwnBitsForgotten,
    /// E6: a disk that comes back without its cache is the same one. In production it is the kernel that gives an open
    /// file no second life; what is switched off is the simulated disk's memory of it.
    NoIncarnation,
}

impl Mutant {
    /// Those that spec section 13 names.
    pub const SPECIFIED: [Self; 16] = [
        Self::NoReadLock,
        Self::NoWriteLock,
        Self::NoIntent,
        Self::NoResolve,
        Self::AckBeforeCommit,
        Self::CopyWithoutLock,
        Self::NoFlushAfterCopy,
        Self::IntentClearedUnflushed,
        Self::WitnessIgnored,
        Self::OwnBitsForgotten,
        Self::AckAgainstRam,
        Self::NoIncarnation,
        Self::IntentNotDurable,
        Self::IntentNotMerged,
        Self::OwnRegionsForgotten,
        Self::ResolveWithoutIntent,
    ];

    /// Further ones.
    pub const OTHERS: [Self; 9] = [
        Self::ResolveWithoutWriting,
        Self::FlushNoop,
        Self::FlushRetried,
        Self::UncleanIgnored,
        Self::CleanKept,
        Self::StaleAdmitted,
        Self::NoPrivateCopy,
        Self::FailedWriteForgotten,
        Self::FinishedWhileFlushing,
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::SPECIFIED.into_iter().chain(Self::OTHERS)
    }
}
