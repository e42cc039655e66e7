//! Labels to bytes and back: the table in the module above, field by field.

use uuid::Uuid;

use super::{
    ANCESTORS_MAX, Ancestors, Flags, Label, LabelError, MAGIC, MEMBERS_MAX, Member, MemberState,
    PendingSnapshot, VERSION, field,
};
use crate::io::slots::{self, SLOT_SIZE, Slot};
use crate::model::{GenerationId, NodeId, PoolId, ReplicaId, VolumeId, VolumeName};

/// Incompatible features that this code knows (spec L5): none so far.
const INCOMPAT_KNOWN: u32 = 0;
const FLAG_CLEAN: u32 = 1;
const FLAG_REBUILDING: u32 = 2;
const FLAG_SNAP_PENDING: u32 = 4;
const FLAGS_KNOWN: u32 = FLAG_CLEAN | FLAG_REBUILDING | FLAG_SNAP_PENDING;
/// Header length, which is that of the whole slot.
const HEADER_LEN: u32 = 4096;
const MEMBERS_AT: usize = 256;
const MEMBER_SIZE: usize = 64;
/// Flag of a member: memory.
const MEMBER_VOLATILE: u8 = 1;
const ANCESTORS_AT: usize = 1280;
const NAME_AT: usize = 1792;
const NAME_SIZE: usize = 64;

impl Label {
    /// Reads a label from a slot's bytes. Any bytes are allowed; this never panics.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, LabelError> {
        let slot: &Slot = bytes
            .try_into()
            .map_err(|_| LabelError::Length(bytes.len()))?;
        if slot.iter().all(|byte| *byte == 0) {
            return Err(LabelError::Zero);
        }
        if slot[..8] != MAGIC {
            return Err(LabelError::Magic);
        }
        if !slots::is_sealed(slot) {
            return Err(LabelError::Checksum);
        }
        let (major, minor) = (get_u16(slot, 8), get_u16(slot, 10));
        if major != VERSION.0 {
            return Err(LabelError::Version { major, minor });
        }
        let incompat = get_u32(slot, 32) & !INCOMPAT_KNOWN;
        if incompat != 0 {
            return Err(LabelError::Incompat(incompat));
        }
        let header_len = get_u32(slot, 12);
        if header_len != HEADER_LEN {
            return Err(field("header length", header_len, "4096"));
        }
        let label = Self::fields(slot)?;
        label.check()?;
        Ok(label)
    }

    fn fields(slot: &Slot) -> Result<Self, LabelError> {
        let flags = get_u32(slot, 36);
        if flags & !FLAGS_KNOWN != 0 {
            return Err(field("flags", format!("{flags:#x}"), "bits 0 to 2 only"));
        }
        let snapshot = PendingSnapshot {
            id: get_uuid(slot, 192),
            generation: get_u64(slot, 208),
        };
        Ok(Self {
            slot_seq: slots::seq(slot),
            compat: get_u32(slot, 24),
            ro_compat: get_u32(slot, 28),
            flags: Flags {
                clean: flags & FLAG_CLEAN != 0,
                rebuilding: flags & FLAG_REBUILDING != 0,
                snap_pending: flags & FLAG_SNAP_PENDING != 0,
            },
            replica: ReplicaId::from_uuid(get_uuid(slot, 40)),
            volume: VolumeId::from_uuid(get_uuid(slot, 56)),
            pool: PoolId::from_uuid(get_uuid(slot, 72)),
            writer: NodeId::from_uuid(get_uuid(slot, 88)),
            data_offset: get_u64(slot, 104),
            data_len: get_u64(slot, 112),
            lb_size: get_u32(slot, 120),
            region_shift: get_u32(slot, 124),
            generation: get_u64(slot, 128),
            generation_id: GenerationId::from_uuid(get_uuid(slot, 136)),
            epoch: get_u64(slot, 152),
            owner: NodeId::from_uuid(get_uuid(slot, 160)),
            missed_base_gen: get_u64(slot, 176),
            rebuild_from_gen: get_u64(slot, 184),
            pending_snapshot: (!snapshot.id.is_nil()).then_some(snapshot),
            wall_ns: get_u64(slot, 216),
            own_slot: usize::from(get_u16(slot, 226)),
            members: members(slot)?,
            ancestors: Ancestors::new(
                (0..ANCESTORS_MAX).map(|index| {
                    GenerationId::from_uuid(get_uuid(slot, ANCESTORS_AT + index * 16))
                }),
            ),
            name: name(slot)?,
        })
    }

    /// The label as a slot's bytes, with its CRC, readable by [`Label::decode`] if [`Label::check`] is happy.
    ///
    /// # Panics
    /// When there are more than [`MEMBERS_MAX`] members, which [`Label::check`] refuses.
    #[must_use]
    pub fn encode(&self) -> Slot {
        let mut slot = [0; SLOT_SIZE];
        self.fill(&mut slot);
        slots::seal(&mut slot, self.slot_seq);
        slot
    }

    /// Puts everything but the sequence number and the CRC into a zeroed slot.
    pub(in crate::replica) fn fill(&self, slot: &mut Slot) {
        slot[..8].copy_from_slice(&MAGIC);
        put_u16(slot, 8, VERSION.0);
        put_u16(slot, 10, VERSION.1);
        put_u32(slot, 12, HEADER_LEN);
        put_u32(slot, 24, self.compat);
        put_u32(slot, 28, self.ro_compat);
        put_u32(slot, 36, self.flags.bits());
        put_uuid(slot, 40, self.replica.uuid());
        put_uuid(slot, 56, self.volume.uuid());
        put_uuid(slot, 72, self.pool.uuid());
        put_uuid(slot, 88, self.writer.uuid());
        put_u64(slot, 104, self.data_offset);
        put_u64(slot, 112, self.data_len);
        put_u32(slot, 120, self.lb_size);
        put_u32(slot, 124, self.region_shift);
        put_u64(slot, 128, self.generation);
        put_uuid(slot, 136, self.generation_id.uuid());
        put_u64(slot, 152, self.epoch);
        put_uuid(slot, 160, self.owner.uuid());
        put_u64(slot, 176, self.missed_base_gen);
        put_u64(slot, 184, self.rebuild_from_gen);
        if let Some(snapshot) = self.pending_snapshot {
            put_uuid(slot, 192, snapshot.id);
            put_u64(slot, 208, snapshot.generation);
        }
        put_u64(slot, 216, self.wall_ns);
        put_count(slot, 224, self.members.len());
        put_count(slot, 226, self.own_slot);
        for (index, member) in self.members.iter().enumerate() {
            let at = MEMBERS_AT + index * MEMBER_SIZE;
            put_uuid(slot, at, member.replica.uuid());
            slot[at + 16] = member.state as u8;
            slot[at + 17] = if member.volatile { MEMBER_VOLATILE } else { 0 };
            put_u64(slot, at + 24, member.since_gen);
            put_uuid(slot, at + 32, member.insync_id.uuid());
        }
        for (index, id) in self.ancestors.iter().enumerate() {
            put_uuid(slot, ANCESTORS_AT + index * 16, id.uuid());
        }
        let name = self.name.as_str().as_bytes();
        put_count(slot, NAME_AT, name.len());
        slot[NAME_AT + 2..NAME_AT + 2 + name.len()].copy_from_slice(name);
    }
}

impl MemberState {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::InSync),
            2 => Some(Self::Rebuilding),
            3 => Some(Self::Stale),
            4 => Some(Self::Blank),
            5 => Some(Self::Removed),
            _ => None,
        }
    }
}

impl Flags {
    fn bits(self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.clean, FLAG_CLEAN)
            | bit(self.rebuilding, FLAG_REBUILDING)
            | bit(self.snap_pending, FLAG_SNAP_PENDING)
    }
}

fn members(slot: &Slot) -> Result<Vec<Member>, LabelError> {
    let count = usize::from(get_u16(slot, 224));
    if !(1..=MEMBERS_MAX).contains(&count) {
        return Err(field("member_count", count, "1 to 16"));
    }
    let member = |index: usize| {
        let at = MEMBERS_AT + index * MEMBER_SIZE;
        let state = MemberState::from_byte(slot[at + 16])
            .ok_or_else(|| field("member state", slot[at + 16], "1 to 5"))?;
        Ok(Member {
            replica: ReplicaId::from_uuid(get_uuid(slot, at)),
            state,
            volatile: slot[at + 17] & MEMBER_VOLATILE != 0,
            since_gen: get_u64(slot, at + 24),
            insync_id: GenerationId::from_uuid(get_uuid(slot, at + 32)),
        })
    };
    (0..count).map(member).collect()
}

fn name(slot: &Slot) -> Result<VolumeName, LabelError> {
    let len = usize::from(get_u16(slot, NAME_AT));
    if len > NAME_SIZE {
        return Err(field("volume name length", len, "at most 64"));
    }
    let bytes = &slot[NAME_AT + 2..NAME_AT + 2 + len];
    let text = std::str::from_utf8(bytes)
        .map_err(|_| field("volume name", format!("{bytes:?}"), "UTF-8"))?;
    text.parse()
        .map_err(|_| field("volume name", format!("{text:?}"), "a volume name"))
}

fn get<const N: usize>(slot: &Slot, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&slot[at..at + N]);
    bytes
}

fn get_u16(slot: &Slot, at: usize) -> u16 {
    u16::from_le_bytes(get(slot, at))
}

fn get_u32(slot: &Slot, at: usize) -> u32 {
    u32::from_le_bytes(get(slot, at))
}

fn get_u64(slot: &Slot, at: usize) -> u64 {
    u64::from_le_bytes(get(slot, at))
}

fn get_uuid(slot: &Slot, at: usize) -> Uuid {
    Uuid::from_bytes(get(slot, at))
}

fn put_u16(slot: &mut Slot, at: usize, value: u16) {
    slot[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(slot: &mut Slot, at: usize, value: u32) {
    slot[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(slot: &mut Slot, at: usize, value: u64) {
    slot[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_uuid(slot: &mut Slot, at: usize, value: Uuid) {
    slot[at..at + 16].copy_from_slice(value.as_bytes());
}

fn put_count(slot: &mut Slot, at: usize, value: usize) {
    let value = u16::try_from(value).expect("counts in a checked label are at most 64");
    put_u16(slot, at, value);
}
