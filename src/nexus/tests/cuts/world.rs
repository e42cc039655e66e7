//! Disks and a witness that log what happens, for cutting it at any point.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use uuid::Uuid;

use super::{MEMBERS, SECTOR};
use crate::io::sim::SimNode;
use crate::io::{Alignment, BlockDevice, BufferPool, IoBuffer, IoError, ZeroOptions};
use crate::model::{NodeId, PoolId};
use crate::nexus::sim::Rig;
use crate::nexus::{
    Candidate, NexusEnv, Parts, Presence, Witness, WitnessError, WitnessPosition, WitnessRecord,
};

/// What happens, in the order of happening.
#[derive(Clone)]
pub(super) enum Event {
    Write {
        disk: usize,
        offset: u64,
        bytes: Rc<Vec<u8>>,
        fua: bool,
    },
    Flush(usize),
    Grow(usize, u64),
    Commit(WitnessRecord),
    /// The client sends a write of this value to this block.
    Sent(u64, u8),
    /// It was acknowledged, as durable.
    Acked(u64, u8),
}

/// The bytes of a disk as sectors that differ from zero.
pub(super) type Sectors = BTreeMap<u64, Rc<[u8; SECTOR]>>;

#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) size: u64,
    pub(super) sectors: Sectors,
    pub(super) broken: bool,
}

/// Disks and a witness, and what happened to them.
#[derive(Clone, Default)]
pub(super) struct World {
    pub(super) disks: Vec<Disk>,
    pub(super) witness: Option<WitnessRecord>,
    pub(super) log: Vec<Event>,
}

pub(super) type Shared = Rc<RefCell<World>>;

pub(super) struct CutDisk {
    pub(super) world: Shared,
    pub(super) index: usize,
}

pub(super) struct CutWitness(Shared);

#[derive(Debug)]
pub(super) enum CutEnv {}

impl NexusEnv for CutEnv {
    type Disk = CutDisk;
    type Clock = SimNode;
    type Rng = SimNode;
    type Spawn = SimNode;
    type Witness = CutWitness;
}

impl Disk {
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            let at = offset + (index * SECTOR) as u64;
            let sector: [u8; SECTOR] = sector.try_into().unwrap();
            if sector == [0; SECTOR] {
                self.sectors.remove(&at);
            } else {
                self.sectors.insert(at, Rc::new(sector));
            }
        }
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, sector) in self.sectors.range(offset..offset + len as u64) {
            let at = usize::try_from(at - offset).unwrap();
            bytes[at..at + SECTOR].copy_from_slice(&sector[..]);
        }
        bytes
    }
}

impl World {
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Write {
                disk,
                offset,
                bytes,
                ..
            } => self.disks[*disk].write(*offset, bytes),
            Event::Grow(disk, size) => self.disks[*disk].size = *size,
            Event::Commit(record) => self.witness = Some(record.clone()),
            Event::Flush(_) | Event::Sent(..) | Event::Acked(..) => {}
        }
    }
}

impl CutDisk {
    pub(super) fn happen(&self, event: Event) -> Result<(), IoError> {
        let mut world = self.world.borrow_mut();
        if world.disks[self.index].broken {
            return Err(IoError::EIO);
        }
        world.apply(&event);
        world.log.push(event);
        Ok(())
    }
}

impl BlockDevice for CutDisk {
    fn size(&self) -> u64 {
        self.world.borrow().disks[self.index].size
    }

    fn alignment(&self) -> Alignment {
        let (offset, memory) = (4096, 512);
        Alignment { offset, memory }
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        let world = self.world.borrow();
        let disk = &world.disks[self.index];
        if disk.broken {
            return Err(IoError::EIO);
        }
        buf.write_at(0, &disk.read(offset, buf.len()));
        Ok(())
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        let (disk, bytes) = (self.index, Rc::new(buf.to_vec()));
        self.happen(Event::Write {
            disk,
            offset,
            bytes,
            fua,
        })
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        let zeroes = BufferPool::default().zeroed(usize::try_from(len).unwrap());
        self.write(offset, &zeroes, options.fua).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.happen(Event::Flush(self.index))
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        self.happen(Event::Grow(self.index, size))
    }
}

impl Witness for CutWitness {
    async fn load(&self) -> Result<Option<WitnessRecord>, WitnessError> {
        Ok(self.0.borrow().witness.clone())
    }

    async fn commit(
        &self,
        expected: Option<WitnessPosition>,
        new: &WitnessRecord,
    ) -> Result<(), WitnessError> {
        let mut world = self.0.borrow_mut();
        let found = world.witness.as_ref().map(WitnessRecord::position);
        assert_eq!(found, expected, "nobody else is here");
        let event = Event::Commit(new.clone());
        world.apply(&event);
        world.log.push(event);
        Ok(())
    }
}

pub(super) fn parts(world: &Shared, node: &SimNode) -> Parts<CutEnv> {
    Parts::new(
        node.clone(),
        node.clone(),
        node.clone(),
        CutWitness(Rc::clone(world)),
        BufferPool::default(),
        NodeId::from_uuid(Uuid::from_u128(1)),
    )
}

pub(super) fn candidate(world: &Shared, index: usize, present: bool) -> Candidate<CutDisk> {
    let world = Rc::clone(world);
    Candidate {
        pool: Rig::pool(index),
        pool_id: Some(PoolId::from_uuid(Uuid::from_u128(0x2000 + index as u128))),
        replica: Some(Rig::replica_id(index)),
        volatile: false,
        presence: if present {
            Presence::Present(CutDisk { world, index })
        } else {
            Presence::Absent("unplugged".to_owned())
        },
    }
}

pub(super) fn candidates(world: &Shared, present: [bool; MEMBERS]) -> Vec<Candidate<CutDisk>> {
    let candidate = |index| candidate(world, index, present[index]);
    (0..MEMBERS).map(candidate).collect()
}
