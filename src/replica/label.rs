//! The label: who a replica is, and what it last knew of its volume's membership table (spec section 9).
//!
//! ```text
//! off   len    field                          off   len    field
//! 0     8      magic "RPLABEL1"               128   8+16   generation, generation uuid
//! 8     2+2    version major, minor           152   8+16   epoch, owner node uuid
//! 12    4      header length (4096)           176   8+8    missed_base_gen, rebuild_from_gen
//! 16    8      slot_seq                       192   16+8   pending snapshot uuid, its generation
//! 24    4+4+4  compat, ro_compat, incompat    216   8      wall clock ns (diagnostic only)
//! 36    4      flags                          224   2+2    member_count, own slot
//! 40    16     replica uuid                   256   16*64  members: uuid 16, state 1, flags 1, pad 6,
//! 56    16     volume uuid                                 since_gen 8, insync_uuid 16, reserved 16
//! 72    16     pool uuid                      1280  32*16  ancestor generation uuids, newest first
//! 88    16     writer node uuid               1792  2+64   volume name length, name
//! 104   8+8    data_offset, data_len          4092  4      crc32c of bytes 0..4092
//! 120   4+4    lb_size, region_shift
//! ```
//!
//! Little endian. What is not listed is zero when written and ignored when read. The sequence number and the CRC are
//! those of [`crate::io::slots`].

mod codec;

use uuid::Uuid;

use super::layout::{DATA_OFFSET_UNIT, REGION_SHIFT_MIN, REGIONS_MAX};
use crate::io::slots::SLOT_SIZE;
use crate::model::{GenerationId, NodeId, PoolId, ReplicaId, VolumeId, VolumeName};

/// The first bytes of every label.
pub const MAGIC: [u8; 8] = *b"RPLABEL1";
/// The version that this code writes. A reader refuses another major version and ignores the minor one.
pub const VERSION: (u16, u16) = (1, 0);
/// Slots in the membership table.
pub const MEMBERS_MAX: usize = 16;
/// Ancestors that a label keeps.
pub const ANCESTORS_MAX: usize = 32;

/// Compatible feature: the file is preallocated and zeroing a range must not give its blocks back.
const COMPAT_THICK: u32 = 1;
/// Features that an ignorant reader may read past but not write past: none so far.
const RO_COMPAT_KNOWN: u32 = 0;

/// Everything that one label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Counts the updates of this label, strictly increasing (spec I4). Assigned by [`super::Replica`], not by callers.
    pub slot_seq: u64,
    /// Features that a reader may ignore; kept when the label is rewritten.
    pub compat: u32,
    /// Features that allow reading but not writing to whoever does not know them.
    pub ro_compat: u32,
    /// What is going on.
    pub flags: Flags,
    /// This copy.
    pub replica: ReplicaId,
    /// The volume that it is a copy of.
    pub volume: VolumeId,
    /// The pool that it lies in.
    pub pool: PoolId,
    /// The node that wrote this label.
    pub writer: NodeId,
    /// Where the data begins in the file, bytes.
    pub data_offset: u64,
    /// Size of the data, bytes.
    pub data_len: u64,
    /// Logical block size, 512 or 4096 bytes.
    pub lb_size: u32,
    /// Base-2 logarithm of the bytes that one bitmap bit stands for.
    pub region_shift: u32,
    /// Number of the membership table below; never decreases (spec I3).
    pub generation: u64,
    /// Identity of that table.
    pub generation_id: GenerationId,
    /// The ownership term of the nexus that wrote it.
    pub epoch: u64,
    /// The node that owned that term.
    pub owner: NodeId,
    /// Since this generation the missed bitmap records everything (spec B3).
    pub missed_base_gen: u64,
    /// The generation that a rebuild started from.
    pub rebuild_from_gen: u64,
    /// A snapshot that was begun and not committed.
    pub pending_snapshot: Option<PendingSnapshot>,
    /// When this was written, nanoseconds since 1970. For people only.
    pub wall_ns: u64,
    /// This replica's place in `members`.
    pub own_slot: usize,
    /// The membership table: 1 to 16 members, each keeping its slot for ever.
    pub members: Vec<Member>,
    /// Identities of the tables before this one.
    pub ancestors: Ancestors,
    /// The volume's name.
    pub name: VolumeName,
}

/// What is going on with a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The volume was stopped with nothing unresolved (spec A10).
    pub clean: bool,
    /// This replica is being copied to.
    pub rebuilding: bool,
    /// A snapshot was begun.
    pub snap_pending: bool,
}

/// A snapshot that was begun (spec section 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingSnapshot {
    /// Its id.
    pub id: Uuid,
    /// The generation in which it was begun.
    pub generation: u64,
}

/// One line of the membership table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The replica.
    pub replica: ReplicaId,
    /// What it may be used for.
    pub state: MemberState,
    /// Whether it is memory, whose contents never outlive a stop; nobody waits for such a member to come back.
    pub volatile: bool,
    /// The generation in which it left the write set; 0 while it is in the active set.
    pub since_gen: u64,
    /// The last committed table in which it got every write, as `InSync` or `Rebuilding`, before it left; nil if there is
    /// none. Its own label says which of the two it was.
    pub insync_id: GenerationId,
}

/// What a member may be used for (spec section 1). The numbers are those on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MemberState {
    /// Holds every acknowledged write; the only state that guests may read from.
    InSync = 1,
    /// Being copied to; gets every new write.
    Rebuilding = 2,
    /// Missed writes since [`Member::since_gen`].
    Stale = 3,
    /// Has no data yet.
    Blank = 4,
    /// Taken out of the volume; its slot is not used again while its label may turn up.
    Removed = 5,
}

/// The newest tables before the present one, attempted ones included, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ancestors {
    ids: Vec<GenerationId>,
}

impl Ancestors {
    /// From newest to oldest; more than [`ANCESTORS_MAX`] are cut off at the old end, nils are left out.
    #[must_use]
    pub fn new(ids: impl IntoIterator<Item = GenerationId>) -> Self {
        let ids = ids.into_iter().filter(|id| !id.is_nil());
        Self {
            ids: ids.take(ANCESTORS_MAX).collect(),
        }
    }

    /// Adds a table that comes after all others here. The oldest is forgotten when there are too many.
    pub fn push(&mut self, id: GenerationId) {
        self.ids.insert(0, id);
        self.ids.truncate(ANCESTORS_MAX);
    }

    /// Whether the table is among them.
    #[must_use]
    pub fn contains(&self, id: GenerationId) -> bool {
        self.ids.contains(&id)
    }

    /// From newest to oldest.
    pub fn iter(&self) -> impl Iterator<Item = GenerationId> + '_ {
        self.ids.iter().copied()
    }
}

/// What may be done with a replica under its label (spec L5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// It has features that this version can't keep intact when writing.
    ReadOnly,
}

/// Why bytes are not a label that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Not 4096 bytes.
    #[error("a label has {SLOT_SIZE} bytes, this has {0}")]
    Length(usize),
    /// Nothing was ever written here.
    #[error("the slot is all zeroes")]
    Zero,
    /// Something else is here.
    #[error("the slot does not start with the label magic")]
    Magic,
    /// The bytes changed since they were written, or the write was torn.
    #[error("the label's checksum does not match")]
    Checksum,
    /// From a release whose labels this one can't read.
    #[error(
        "the label has format version {major}.{minor}, this release reads {}.x: use a newer volund",
        VERSION.0
    )]
    Version {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// Features that this release does not know (spec L5).
    #[error("the label has unknown incompatible features {0:#x}: use a newer volund")]
    Incompat(u32),
    /// A field holds what no release ever writes.
    #[error("the label's field \"{field}\" holds {found}, expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: &'static str,
    },
}

impl LabelError {
    /// Whether the slot holds an intact label that just can't be used, as opposed to no label at all. An intact label
    /// must never be overwritten or passed over in favour of an older one.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        match self {
            Self::Length(_) | Self::Zero | Self::Magic | Self::Checksum => false,
            Self::Version { .. } | Self::Incompat(_) | Self::Field { .. } => true,
        }
    }
}

fn field(field: &'static str, found: impl ToString, expected: &'static str) -> LabelError {
    LabelError::Field {
        field,
        found: found.to_string(),
        expected,
    }
}

impl Label {
    /// Whether the fields make sense together.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn check(&self) -> Result<(), LabelError> {
        self.check_geometry()?;
        for (name, id) in [
            ("replica uuid", self.replica.uuid()),
            ("volume uuid", self.volume.uuid()),
            ("pool uuid", self.pool.uuid()),
            ("generation uuid", self.generation_id.uuid()),
        ] {
            if id.is_nil() {
                return Err(field(name, id, "a uuid other than nil"));
            }
        }
        if self.generation == 0 {
            return Err(field("generation", 0, "1 or more"));
        }
        // They are counted up from.
        for (name, number) in [
            ("slot_seq", self.slot_seq),
            ("generation", self.generation),
            ("epoch", self.epoch),
        ] {
            if i64::try_from(number).is_err() {
                return Err(field(name, number, "less than 2^63"));
            }
        }
        if !(1..=MEMBERS_MAX).contains(&self.members.len()) {
            return Err(field("member_count", self.members.len(), "1 to 16"));
        }
        match self.members.get(self.own_slot) {
            None => {
                return Err(field(
                    "own slot",
                    self.own_slot,
                    "less than the member count",
                ));
            }
            Some(own) if own.replica != self.replica => {
                return Err(field(
                    "member uuid of the own slot",
                    own.replica,
                    "the replica uuid",
                ));
            }
            Some(_) => {}
        }
        for (index, member) in self.members.iter().enumerate() {
            let repeated = self.members[..index]
                .iter()
                .any(|m| m.replica == member.replica);
            if member.replica.is_nil() || repeated {
                return Err(field(
                    "member uuid",
                    member.replica,
                    "a uuid of its own for each member",
                ));
            }
        }
        Ok(())
    }

    fn check_geometry(&self) -> Result<(), LabelError> {
        if ![512, 4096].contains(&self.lb_size) {
            return Err(field("lb_size", self.lb_size, "512 or 4096"));
        }
        if self.data_offset == 0 || !self.data_offset.is_multiple_of(DATA_OFFSET_UNIT) {
            return Err(field(
                "data_offset",
                self.data_offset,
                "a multiple of 1 MiB above 0",
            ));
        }
        let end = self.data_offset.checked_add(self.data_len);
        let fits = end.is_some_and(|end| i64::try_from(end).is_ok());
        if self.data_len == 0 || !self.data_len.is_multiple_of(4096) || !fits {
            return Err(field(
                "data_len",
                self.data_len,
                "a multiple of 4096 above 0 that ends below 2^63",
            ));
        }
        let shift_ok = (REGION_SHIFT_MIN..63).contains(&self.region_shift)
            && self.data_len.div_ceil(1 << self.region_shift) <= REGIONS_MAX;
        if !shift_ok {
            return Err(field(
                "region_shift",
                self.region_shift,
                "20 or more, so that all regions fit the bitmap",
            ));
        }
        Ok(())
    }

    /// What may be done with the replica.
    #[must_use]
    pub fn access(&self) -> Access {
        if self.ro_compat & !RO_COMPAT_KNOWN == 0 {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        }
    }

    /// Whether the file is preallocated, and keeps its blocks when ranges are zeroed. Stored as compatible feature 0:
    /// whoever ignores it loses a reservation, no data.
    #[must_use]
    pub const fn is_thick(&self) -> bool {
        self.compat & COMPAT_THICK != 0
    }

    /// Says whether the file is preallocated.
    pub const fn set_thick(&mut self, thick: bool) {
        if thick {
            self.compat |= COMPAT_THICK;
        } else {
            self.compat &= !COMPAT_THICK;
        }
    }

    /// Whether `id` is this label's table or one of those before it (spec A4, A6).
    #[must_use]
    pub fn descends_from(&self, id: GenerationId) -> bool {
        self.generation_id == id || self.ancestors.contains(id)
    }

    /// How many regions the data has.
    #[must_use]
    pub const fn regions(&self) -> u64 {
        self.data_len.div_ceil(1 << self.region_shift)
    }

    /// The smallest file that holds all of the data, bytes.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.data_offset.saturating_add(self.data_len)
    }
}

#[cfg(test)]
mod tests;
