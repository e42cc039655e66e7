//! A label and disks for tests.

use std::pin::Pin;

use uuid::Uuid;

use super::label::{Ancestors, Flags, Label, Member, MemberState};
use super::layout::{DATA_OFFSET, region_shift};
use crate::io::recording::RecordingDisk;
use crate::io::slots::{self, Slot};
use crate::model::{GenerationId, NodeId, PoolId, ReplicaId, VolumeId};
use crate::units::MIB;

/// Size of the data area that [`label`] describes, bytes.
pub(crate) const DATA_LEN: u64 = 8 * MIB;

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(0x0197_0000_0000_7000_8000_0000_0000_0000 | number)
}

/// A label as it lies in a slot.
pub(crate) fn sealed(label: &Label) -> Slot {
    let mut slot = label.encode();
    slots::seal(&mut slot, label.slot_seq);
    slot
}

/// A label of a volume with two members, of which the second is this one.
pub(crate) fn label() -> Label {
    let generation_id = GenerationId::from_uuid(uuid(6));
    let member = |number, state, since_gen| Member {
        replica: ReplicaId::from_uuid(uuid(number)),
        state,
        volatile: number == 1,
        since_gen,
        insync_id: generation_id,
    };
    Label {
        slot_seq: 9,
        compat: 0,
        ro_compat: 0,
        flags: Flags::default(),
        replica: ReplicaId::from_uuid(uuid(1)),
        volume: VolumeId::from_uuid(uuid(2)),
        pool: PoolId::from_uuid(uuid(3)),
        writer: NodeId::from_uuid(uuid(4)),
        data_offset: DATA_OFFSET,
        data_len: DATA_LEN,
        lb_size: 4096,
        region_shift: region_shift(DATA_LEN),
        generation: 7,
        generation_id,
        epoch: 3,
        owner: NodeId::from_uuid(uuid(5)),
        missed_base_gen: 1,
        rebuild_from_gen: 0,
        pending_snapshot: None,
        wall_ns: 1_000_000_000,
        own_slot: 1,
        members: vec![
            member(8, MemberState::Stale, 4),
            member(1, MemberState::InSync, 0),
        ],
        ancestors: Ancestors::new([GenerationId::from_uuid(uuid(9))]),
        name: "db".parse().expect("a valid name"),
    }
}

/// A zeroed disk that the label fits.
pub(crate) fn disk() -> RecordingDisk {
    RecordingDisk::new(usize::try_from(DATA_OFFSET + DATA_LEN).expect("test disks are small"))
}

/// Polls a boxed future once.
pub(crate) fn step<T>(future: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Option<T> {
    match crate::io::recording::poll_once(&mut Pin::new(future)) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
