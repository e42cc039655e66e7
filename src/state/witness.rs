//! Witness files: the newest committed generation of a volume, in two slots that replace each other (spec L1).
//!
//! Slot layout, little endian; `io::slots` adds sequence number and CRC:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | magic `VWITNES1` |
//! | 8 | 4 | format version, 1 |
//! | 16 | 8 | sequence number |
//! | 24 | 16 | volume uuid |
//! | 40 | 8 | epoch |
//! | 48 | 8 | generation |
//! | 56 | 16 | generation id |
//! | 72 | 2 | number of members, at most 16 |
//! | 74 | 2 | length of the name |
//! | 76 | 64 | name |
//! | 256 | 16 x 32 | members: replica uuid, 1 byte in sync, 15 bytes zero |
//! | 4092 | 4 | CRC32C |

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;

use uuid::Uuid;

use crate::io::gate::Gate;
use crate::io::slots::{self, Newest, SLOT_SIZE, Slot, SlotPair};
use crate::io::{BlockDevice, BufferPool, IoError};
use crate::model::{GenerationId, ReplicaId, VolumeId};
use crate::nexus::{Witness, WitnessError, WitnessMember, WitnessPosition, WitnessRecord};

/// Where the two slots are.
const OFFSETS: [u64; 2] = [0, 4096];
/// Length of a witness file, bytes.
pub const FILE_LEN: u64 = 8192;
const RUBBLE: &str = "both slots fail their checksum";
const MAGIC: [u8; 8] = *b"VWITNES1";
const VERSION: u32 = 1;
const MEMBERS_AT: usize = 256;
const MEMBER_LEN: usize = 32;
const MEMBERS_MAX: usize = 16;
const NAME_AT: usize = 76;
const NAME_MAX: usize = 64;

/// A volume's witness in a file. Belongs to the volume's reactor; nobody else writes the file, because the state folder
/// is locked.
pub struct WitnessFile<D> {
    disk: D,
    buffers: BufferPool,
    volume: VolumeId,
    loaded: OnceCell<Loaded>,
    /// Makes comparing and swapping one step.
    gate: Gate,
}

struct Loaded {
    slots: SlotPair,
    record: RefCell<Option<WitnessRecord>>,
    /// Nothing in the file can be read, until something is committed to it.
    is_rubble: Cell<bool>,
}

impl<D: BlockDevice> WitnessFile<D> {
    /// The witness of `volume` on an open file of [`FILE_LEN`] bytes.
    pub fn new(disk: D, buffers: BufferPool, volume: VolumeId) -> Self {
        Self {
            disk,
            buffers,
            volume,
            loaded: OnceCell::new(),
            gate: Gate::default(),
        }
    }

    async fn exchange(
        &self,
        expected: Option<WitnessPosition>,
        new: &WitnessRecord,
    ) -> Result<(), WitnessError> {
        let loaded = self.loaded().await?;
        let found = loaded.record.borrow().clone();
        if found.as_ref() == Some(new) {
            return Ok(());
        }
        if found.as_ref().map(WitnessRecord::position) != expected {
            let (epoch, generation) = found.map_or((0, 0), |r| (r.epoch, r.generation));
            return Err(WitnessError::Conflict { epoch, generation });
        }
        if new.volume != self.volume || new.members.len() > MEMBERS_MAX {
            return Err(WitnessError::Unavailable(IoError::EINVAL));
        }
        let written = loaded
            .slots
            .replace(&self.disk, &self.buffers, |slot| encode(new, slot));
        written.await.map_err(WitnessError::Unavailable)?;
        loaded.is_rubble.set(false);
        *loaded.record.borrow_mut() = Some(new.clone());
        Ok(())
    }

    async fn loaded(&self) -> Result<&Loaded, WitnessError> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let read = SlotPair::read(&self.disk, &self.buffers, OFFSETS).await;
        let slots = read.map_err(WitnessError::Unavailable)?;
        // What was read may be in the disk's cache only, left by a daemon that was killed: before the other slot is
        // overwritten it must be durable, or a power cut could take both.
        let flushed = self.disk.flush().await;
        flushed.map_err(WitnessError::Unavailable)?;
        // As good as lost: whoever can do without (spec A5) may commit a new record over it.
        let is_rubble = is_rubble(&slots);
        let newest = if is_rubble {
            None
        } else {
            decode_newest(&slots)?
        };
        let (current, seq, record) = match newest {
            Some((index, record)) => (index, slots::seq(&slots[index]), Some(record)),
            None => (1, 0, None),
        };
        if let Some(record) = record
            .as_ref()
            .filter(|record| record.volume != self.volume)
        {
            let found = record.volume;
            return Err(WitnessError::Damaged(format!("it is of volume {found}")));
        }
        let record = RefCell::new(record);
        let slots = SlotPair::new(OFFSETS, current, seq);
        let is_rubble = Cell::new(is_rubble);
        Ok(self.loaded.get_or_init(|| Loaded {
            slots,
            record,
            is_rubble,
        }))
    }
}

impl<D: BlockDevice> Witness for WitnessFile<D> {
    async fn load(&self) -> Result<Option<WitnessRecord>, WitnessError> {
        let loaded = self.loaded().await?;
        if loaded.is_rubble.get() {
            return Err(WitnessError::Damaged(RUBBLE.into()));
        }
        Ok(loaded.record.borrow().clone())
    }

    async fn commit(
        &self,
        expected: Option<WitnessPosition>,
        new: &WitnessRecord,
    ) -> Result<(), WitnessError> {
        let entered = self.gate.enter().await.map_err(WitnessError::Unavailable)?;
        let result = self.exchange(expected, new).await;
        entered.leave();
        result
    }
}

impl<D> fmt::Debug for WitnessFile<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WitnessFile({})", self.volume)
    }
}

/// The record in a whole witness file's bytes; none when nothing was ever committed to it.
///
/// # Errors
/// When it is damaged.
pub(super) fn newest_record(file: &[u8]) -> Result<Option<WitnessRecord>, WitnessError> {
    let mut slots = [[0; SLOT_SIZE]; 2];
    for (slot, bytes) in slots.iter_mut().zip(file.chunks_exact(SLOT_SIZE)) {
        slot.copy_from_slice(bytes);
    }
    Ok(decode_newest(&slots)?.map(|(_, record)| record))
}

/// Which slot is the record, and the record. `None` when nothing was ever committed: the very first update goes to slot
/// 0, so a torn slot 0 beside an untouched slot 1 is an update that nobody was told of.
fn decode_newest(slots: &[Slot; 2]) -> Result<Option<(usize, WitnessRecord)>, WitnessError> {
    match slots::newest(slots) {
        Newest::Slot(index) => decode(&slots[index]).map(|record| Some((index, record))),
        Newest::Neither if is_rubble(slots) => Err(WitnessError::Damaged(RUBBLE.into())),
        Newest::Neither => Ok(None),
        Newest::Ambiguous => Err(WitnessError::Damaged("two records carry one number".into())),
    }
}

/// Whether a record was there once, and neither slot has one that is intact.
fn is_rubble(slots: &[Slot; 2]) -> bool {
    matches!(slots::newest(slots), Newest::Neither) && slots[1] != [0; SLOT_SIZE]
}

fn encode(record: &WitnessRecord, slot: &mut Slot) {
    let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(8, &VERSION.to_le_bytes());
    put(24, record.volume.uuid().as_bytes());
    put(40, &record.epoch.to_le_bytes());
    put(48, &record.generation.to_le_bytes());
    put(56, record.generation_id.uuid().as_bytes());
    let small = |len: usize| u16::try_from(len).expect("at most 64").to_le_bytes();
    put(72, &small(record.members.len()));
    let name = record.name.as_str().as_bytes();
    put(74, &small(name.len()));
    put(NAME_AT, name);
    for (index, member) in record.members.iter().enumerate() {
        let at = MEMBERS_AT + index * MEMBER_LEN;
        put(at, member.replica.uuid().as_bytes());
        put(at + 16, &[u8::from(member.in_sync)]);
    }
}

fn decode(slot: &Slot) -> Result<WitnessRecord, WitnessError> {
    let damaged = |what: &str| WitnessError::Damaged(what.to_owned());
    if slot[..8] != MAGIC {
        return Err(damaged("it is not a witness record"));
    }
    if number(slot, 8, 4) != u64::from(VERSION) {
        return Err(damaged("it is of a newer release"));
    }
    let count = usize::try_from(number(slot, 72, 2)).unwrap_or(usize::MAX);
    let name_len = usize::try_from(number(slot, 74, 2)).unwrap_or(usize::MAX);
    if count > MEMBERS_MAX || name_len > NAME_MAX {
        return Err(damaged("its counts are out of range"));
    }
    let name = std::str::from_utf8(&slot[NAME_AT..NAME_AT + name_len]).ok();
    let name = name.and_then(|name| name.parse().ok());
    let members = (0..count).map(|index| {
        let at = MEMBERS_AT + index * MEMBER_LEN;
        WitnessMember {
            replica: ReplicaId::from_uuid(uuid(slot, at)),
            in_sync: slot[at + 16] != 0,
        }
    });
    Ok(WitnessRecord {
        volume: VolumeId::from_uuid(uuid(slot, 24)),
        name: name.ok_or_else(|| damaged("its name is not a volume's"))?,
        epoch: number(slot, 40, 8),
        generation: number(slot, 48, 8),
        generation_id: GenerationId::from_uuid(uuid(slot, 56)),
        members: members.collect(),
    })
}

/// A little-endian number of `len` bytes, at most 8.
fn number(slot: &Slot, at: usize, len: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(&slot[at..at + len]);
    u64::from_le_bytes(bytes)
}

fn uuid(slot: &Slot, at: usize) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&slot[at..at + 16]);
    Uuid::from_bytes(bytes)
}

/// The bytes of a witness file, for tests of who reads such files.
#[cfg(test)]
pub(crate) fn encoded_for_tests(record: &WitnessRecord) -> Vec<u8> {
    let mut slot = [0; SLOT_SIZE];
    encode(record, &mut slot);
    slots::seal(&mut slot, 1);
    [slot, [0; SLOT_SIZE]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryDevice;
    use crate::io::recording::{RecordingDisk, poll_once};
    use std::future::Future;
    use std::rc::Rc;
    use std::task::{Context, Poll, Waker};

    fn now<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("memory answers at once"),
        }
    }

    fn record(generation: u64) -> WitnessRecord {
        WitnessRecord {
            volume: VolumeId::from_uuid(Uuid::from_u128(7)),
            name: "db".parse().unwrap(),
            epoch: 3,
            generation,
            generation_id: GenerationId::from_uuid(Uuid::from_u128(u128::from(generation) << 64)),
            members: vec![WitnessMember {
                replica: ReplicaId::from_uuid(Uuid::from_u128(9)),
                in_sync: true,
            }],
        }
    }

    fn open(disk: MemoryDevice) -> WitnessFile<MemoryDevice> {
        WitnessFile::new(disk, BufferPool::default(), record(1).volume)
    }

    #[test]
    fn a_commit_is_there_after_reopening_and_only_from_the_expected_position() {
        let file = open(MemoryDevice::new(FILE_LEN));
        assert_eq!(now(file.load()), Ok(None));
        now(file.commit(None, &record(1))).unwrap();
        let conflict = now(file.commit(None, &record(2)));
        let (epoch, generation) = (3, 1);
        assert_eq!(conflict, Err(WitnessError::Conflict { epoch, generation }));
        now(file.commit(Some(record(1).position()), &record(2))).unwrap();
        // The same commit again, as after an answer that got lost.
        now(file.commit(Some(record(1).position()), &record(2))).unwrap();
        let again = open(file.disk);
        assert_eq!(now(again.load()), Ok(Some(record(2))));
        now(again.commit(Some(record(2).position()), &record(3))).unwrap();
    }

    /// F6, L1: whatever instant the power goes, the record is the old or the new one.
    #[test]
    fn a_power_cut_leaves_the_record_before_or_after() {
        let disk = RecordingDisk::new(usize::try_from(FILE_LEN).unwrap());
        let file = WitnessFile::new(disk.clone(), BufferPool::default(), record(1).volume);
        let mut records = vec![None];
        for generation in 1..5 {
            let before = records.last().cloned().flatten();
            let before: Option<WitnessRecord> = before;
            let new = record(generation);
            let expected = before.as_ref().map(WitnessRecord::position);
            now(file.commit(expected, &new)).unwrap();
            records.push(Some(new));
            // And the flush before the first of them.
            assert_eq!(disk.steps().len(), records.len(), "one write each");
        }
        for done in 0..records.len() {
            for cut in disk.after_power_cut(done + 1) {
                let again = WitnessFile::new(cut, BufferPool::default(), record(1).volume);
                let found = now(again.load()).unwrap();
                let new = records.get(done + 1);
                assert!(found == records[done] || Some(&found) == new, "{done}");
            }
        }
    }

    /// A write that failed may be on the disk or not; the next one goes over it, never over the record.
    #[test]
    fn a_failed_commit_can_be_tried_again_or_given_up() {
        let disk = RecordingDisk::new(usize::try_from(FILE_LEN).unwrap());
        let file = WitnessFile::new(disk.clone(), BufferPool::default(), record(1).volume);
        now(file.commit(None, &record(1))).unwrap();
        disk.fail_write(0);
        let position = Some(record(1).position());
        let failed = now(file.commit(position, &record(2)));
        assert!(matches!(failed, Err(WitnessError::Unavailable(_))));
        assert_eq!(now(file.load()), Ok(Some(record(1))));
        for cut in disk.after_power_cut(disk.steps().len()) {
            let again = WitnessFile::new(cut, BufferPool::default(), record(1).volume);
            assert_eq!(now(again.load()), Ok(Some(record(1))));
        }
        now(file.commit(position, &record(2))).unwrap();
        assert_eq!(now(file.load()), Ok(Some(record(2))));
    }

    /// F6: of two commits from one position, only one goes through.
    #[test]
    fn commits_that_race_do_not_both_win() {
        let disk = RecordingDisk::new(usize::try_from(FILE_LEN).unwrap());
        let file = WitnessFile::new(disk.clone(), BufferPool::default(), record(1).volume);
        now(file.commit(None, &record(1))).unwrap();
        let position = Some(record(1).position());
        let (second, third) = (record(2), record(3));
        disk.hold(true);
        let mut first = std::pin::pin!(file.commit(position, &second));
        let mut other = std::pin::pin!(file.commit(position, &third));
        assert!(poll_once(&mut first).is_pending());
        assert!(poll_once(&mut other).is_pending());
        disk.hold(false);
        assert_eq!(poll_once(&mut first), Poll::Ready(Ok(())));
        let (epoch, generation) = (3, 2);
        let conflict = WitnessError::Conflict { epoch, generation };
        assert_eq!(poll_once(&mut other), Poll::Ready(Err(conflict)));
    }

    #[test]
    fn a_torn_update_leaves_the_record_before_it() {
        let pool = BufferPool::default();
        for torn in 0..2u64 {
            let file = open(MemoryDevice::new(FILE_LEN));
            now(file.commit(None, &record(1))).unwrap();
            if torn == 1 {
                now(file.commit(Some(record(1).position()), &record(2))).unwrap();
            }
            let before = record(1 + torn);
            // The next update goes to the other slot; half of it arrives.
            let at = OFFSETS[usize::from(torn == 0)];
            now(file.disk.write(at, &pool.copy_of(&[0xaa; 512]), true)).unwrap();
            let again = open(file.disk);
            assert_eq!(now(again.load()), Ok(Some(before)));
        }
    }

    #[test]
    fn a_first_update_that_tore_was_never_committed_but_worse_is_damage() {
        let pool = BufferPool::default();
        let file = open(MemoryDevice::new(FILE_LEN));
        now(file.disk.write(0, &pool.copy_of(&[0xaa; 512]), true)).unwrap();
        assert_eq!(now(file.load()), Ok(None));
        let file = open(MemoryDevice::new(FILE_LEN));
        now(file.disk.write(4096, &pool.copy_of(&[0xaa; 512]), true)).unwrap();
        assert!(matches!(now(file.load()), Err(WitnessError::Damaged(_))));
    }

    /// A5: who can prove the newest state without the witness may serve, and then there is a witness again.
    #[test]
    fn a_record_that_is_lost_to_damage_can_be_replaced() {
        let pool = BufferPool::default();
        let file = open(MemoryDevice::new(FILE_LEN));
        now(file.commit(None, &record(1))).unwrap();
        now(file.disk.write(0, &pool.copy_of(&[0xaa; 8192]), true)).unwrap();
        let again = open(file.disk);
        assert!(matches!(now(again.load()), Err(WitnessError::Damaged(_))));
        let (epoch, generation) = (0, 0);
        let stale = now(again.commit(Some(record(1).position()), &record(2)));
        assert_eq!(stale, Err(WitnessError::Conflict { epoch, generation }));
        now(again.commit(None, &record(2))).unwrap();
        assert_eq!(now(again.load()), Ok(Some(record(2))));
        assert_eq!(now(open(again.disk).load()), Ok(Some(record(2))));
    }

    #[test]
    fn a_record_of_another_volume_is_refused() {
        let file = open(MemoryDevice::new(FILE_LEN));
        now(file.commit(None, &record(1))).unwrap();
        let other = VolumeId::from_uuid(Uuid::from_u128(8));
        let again = WitnessFile::new(file.disk, BufferPool::default(), other);
        assert!(matches!(now(again.load()), Err(WitnessError::Damaged(_))));
    }

    #[test]
    fn any_bytes_decode_without_panicking() {
        let mut slot = [0; SLOT_SIZE];
        encode(&record(5), &mut slot);
        let original = slot;
        for at in (0..SLOT_SIZE - 4).step_by(7) {
            slot[at] ^= 0xff;
            slots::seal(&mut slot, 1);
            let _ = decode(&slot);
            slot = original;
        }
        assert_eq!(decode(&original), Ok(record(5)));
        let _ = Rc::new(newest_record(&[1, 2, 3]));
    }
}
