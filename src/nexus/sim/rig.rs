//! A volume made of simulated parts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use uuid::Uuid;

use super::engine::Rebuilds;
use crate::io::sim::{Sim, SimDisk, SimHardware, SimLayout, SimNode};
use crate::io::{BufferPool, Clock, IoError};
use crate::model::{GenerationId, NodeId, PoolId, PoolName, ReplicaId, VolumeId};
use crate::nexus::{
    AssemblyError, Candidate, CreateError, Mutant, Nexus, NexusEnv, NexusSpec, Parts, Policy,
    Presence, Witness, WitnessError, WitnessPosition, WitnessRecord,
};
use crate::replica::layout::DATA_OFFSET;

/// Simulated parts.
#[derive(Debug)]
pub(in crate::nexus) enum SimEnv {}

impl NexusEnv for SimEnv {
    type Disk = SimDisk;
    type Clock = SimNode;
    type Rng = SimNode;
    type Spawn = SimNode;
    type Witness = SimWitness;

    /// So small that copies are under way at most checkpoints.
    const CHECKPOINT: (Duration, u64) = (Duration::from_millis(50), 256 << 10);
}

/// A witness that is always durable, sometimes slow, and not there when told so. Clones are the same one.
#[derive(Clone)]
pub(in crate::nexus) struct SimWitness {
    state: Rc<WitnessState>,
}

struct WitnessState {
    sim: Sim,
    clock: SimNode,
    record: RefCell<Option<WitnessRecord>>,
    /// The newest record there ever was, also after it was lost.
    newest: RefCell<Option<WitnessRecord>>,
    down: Cell<bool>,
    commits_fail: Cell<bool>,
    /// One answer in so many is lost although the record was written; zero for none.
    lost_answers: Cell<u64>,
    /// When each replica left the active set, as [`Sim::tick`].
    left: RefCell<BTreeMap<ReplicaId, u64>>,
}

impl SimWitness {
    fn new(sim: &Sim) -> Self {
        let state = WitnessState {
            sim: sim.clone(),
            clock: sim.node(),
            record: RefCell::default(),
            newest: RefCell::default(),
            down: Cell::new(false),
            commits_fail: Cell::new(false),
            lost_answers: Cell::new(0),
            left: RefCell::default(),
        };
        Self {
            state: Rc::new(state),
        }
    }

    pub(in crate::nexus) fn set_down(&self, down: bool) {
        self.state.down.set(down);
    }

    /// Loads work, commits do not.
    pub(in crate::nexus) fn fail_commits(&self, fail: bool) {
        self.state.commits_fail.set(fail);
    }

    pub(in crate::nexus) fn set_lost_answers(&self, one_in: u64) {
        self.state.lost_answers.set(one_in);
    }

    pub(in crate::nexus) fn record(&self) -> Option<WitnessRecord> {
        self.state.record.borrow().clone()
    }

    /// Puts something else in, or loses it.
    pub(in crate::nexus) fn replace(&self, record: Option<WitnessRecord>) {
        if record.is_some() {
            self.state.newest.replace(record.clone());
        }
        self.state.record.replace(record);
    }

    /// What was committed last, also if the record was lost since.
    pub(in crate::nexus) fn newest(&self) -> Option<WitnessRecord> {
        self.state.newest.borrow().clone()
    }

    /// The [`Sim::tick`] at which the commit was done that left this replica out; none while it is in.
    pub(in crate::nexus) fn left_at(&self, replica: ReplicaId) -> Option<u64> {
        self.state.left.borrow().get(&replica).copied()
    }

    fn note_left(&self, record: &WitnessRecord) {
        let now = self.state.sim.tick();
        let mut left = self.state.left.borrow_mut();
        for member in &record.members {
            if member.in_sync {
                left.remove(&member.replica);
            } else {
                left.entry(member.replica).or_insert(now);
            }
        }
    }

    async fn reach(&self) -> Result<(), WitnessError> {
        let delay = Duration::from_micros(50 + self.state.sim.below(2000));
        self.state.clock.sleep(delay).await;
        if self.state.down.get() {
            return Err(WitnessError::Unavailable(IoError::EIO));
        }
        Ok(())
    }
}

impl Witness for SimWitness {
    async fn load(&self) -> Result<Option<WitnessRecord>, WitnessError> {
        self.reach().await?;
        Ok(self.record())
    }

    async fn commit(
        &self,
        expected: Option<WitnessPosition>,
        new: &WitnessRecord,
    ) -> Result<(), WitnessError> {
        self.reach().await?;
        if self.state.commits_fail.get() {
            return Err(WitnessError::Unavailable(IoError::EIO));
        }
        let found = self.record();
        if found.as_ref() != Some(new) {
            if let Some(found) = found.filter(|found| Some(found.position()) != expected) {
                return Err(WitnessError::Conflict {
                    epoch: found.epoch,
                    generation: found.generation,
                });
            }
            self.replace(Some(new.clone()));
            self.note_left(new);
        }
        let lost_answers = self.state.lost_answers.get();
        if lost_answers > 0 && self.state.sim.one_in(lost_answers) {
            return Err(WitnessError::Unavailable(IoError::EIO));
        }
        self.reach().await
    }
}

/// Disks, a witness, and the ids that a pool and an engine would know.
#[derive(Clone)]
pub(in crate::nexus) struct Rig {
    pub(in crate::nexus) sim: Sim,
    pub(in crate::nexus) disks: Vec<SimHardware>,
    pub(in crate::nexus) witness: SimWitness,
    pub(in crate::nexus) spec: NexusSpec,
    pub(in crate::nexus) mutant: Option<Mutant>,
    /// Which disks lose everything when the node stops.
    pub(in crate::nexus) volatile: Vec<bool>,
    pub(in crate::nexus) rebuilds: Rc<Rebuilds>,
}

impl Rig {
    pub(in crate::nexus) fn new(seed: u64, members: usize, size: u64, block: u32) -> Self {
        let sim = Sim::new(seed);
        let layout = SimLayout {
            // Some room behind the data, which nobody may touch (spec G12).
            size: DATA_OFFSET + size + (64 << 10),
            data_offset: DATA_OFFSET,
            block: u64::from(block),
        };
        let disks = (0..members).map(|_| SimHardware::new(&sim, layout));
        Self {
            disks: disks.collect(),
            witness: SimWitness::new(&sim),
            spec: NexusSpec {
                thick: false,
                name: "db".parse().unwrap(),
                id: VolumeId::from_uuid(Uuid::from_u128(0xdb)),
                size,
                block_size: block,
                policy: Policy::default(),
                force_start: None,
            },
            mutant: None,
            volatile: vec![false; members],
            rebuilds: Rc::default(),
            sim,
        }
    }

    pub(in crate::nexus) fn replica_id(index: usize) -> ReplicaId {
        ReplicaId::from_uuid(Uuid::from_u128(0x1000 + index as u128))
    }

    pub(in crate::nexus) fn pool(index: usize) -> PoolName {
        format!("pool{index}").parse().unwrap()
    }

    pub(in crate::nexus) fn parts(&self, node: &SimNode) -> Parts<SimEnv> {
        Parts::new(
            node.clone(),
            node.clone(),
            node.clone(),
            self.witness.clone(),
            BufferPool::default(),
            NodeId::from_uuid(Uuid::from_u128(1)),
        )
        .with_mutant(self.mutant)
    }

    /// A candidate per disk; a closed one stands for what is not `present`.
    pub(in crate::nexus) fn candidates(&self, present: &[bool]) -> Vec<Candidate<SimDisk>> {
        let candidate = |index: usize| Candidate {
            pool: Self::pool(index),
            pool_id: Some(PoolId::from_uuid(Uuid::from_u128(0x2000 + index as u128))),
            replica: Some(Self::replica_id(index)),
            volatile: self.volatile[index],
            presence: if present[index] {
                Presence::Present(self.disks[index].open())
            } else {
                Presence::Absent(format!("disk {index} is unplugged"))
            },
        };
        (0..self.disks.len()).map(candidate).collect()
    }

    /// One of the disks, opened anew.
    pub(in crate::nexus) fn candidate(&self, disk: usize) -> Candidate<SimDisk> {
        let present: Vec<bool> = (0..self.disks.len()).map(|index| index == disk).collect();
        self.candidates(&present).swap_remove(disk)
    }

    /// The disk that a replica is on.
    pub(in crate::nexus) fn disk_of(&self, replica: ReplicaId) -> Option<usize> {
        (0..self.disks.len()).find(|disk| Self::replica_id(*disk) == replica)
    }

    pub(in crate::nexus) fn all(&self) -> Vec<bool> {
        vec![true; self.disks.len()]
    }

    pub(in crate::nexus) async fn create(
        &self,
        node: &SimNode,
    ) -> Result<Nexus<SimEnv>, CreateError> {
        self.create_on(node, self.disks.len()).await
    }

    /// Creates the volume on the first disks only.
    pub(in crate::nexus) async fn create_on(
        &self,
        node: &SimNode,
        members: usize,
    ) -> Result<Nexus<SimEnv>, CreateError> {
        let mut candidates = self.candidates(&self.all());
        candidates.truncate(members);
        Nexus::create(self.parts(node), self.spec.clone(), candidates).await
    }

    /// Waits for the locks (spec A1), then assembles.
    pub(in crate::nexus) async fn assemble(
        &self,
        node: &SimNode,
        present: &[bool],
    ) -> Result<Nexus<SimEnv>, AssemblyError> {
        for disk in &self.disks {
            disk.quiesce().await;
        }
        let candidates = self.candidates(present);
        Nexus::assemble(self.parts(node), self.spec.clone(), candidates).await
    }

    /// The active set of the committed table, as indices of disks.
    pub(in crate::nexus) fn committed(&self) -> Vec<usize> {
        let record = self.witness.newest();
        let members = record.map(|record| record.members).unwrap_or_default();
        let in_sync = members.iter().filter(|member| member.in_sync);
        in_sync
            .filter_map(|member| self.disk_of(member.replica))
            .collect()
    }

    /// Whether a disk was unplugged since then and has not been rebuilt: it may lack what it acknowledged.
    pub(in crate::nexus) fn lost_cache(&self, disk: usize, since: u64) -> bool {
        let at = self.disks[disk].unplugged_at();
        let rebuilt = self.rebuilds.begun(Self::replica_id(disk));
        at > since && rebuilt.is_none_or(|begun| begun < at)
    }

    /// Whether this is the committed generation.
    pub(in crate::nexus) fn is_committed(&self, generation: GenerationId) -> bool {
        let record = self.witness.newest();
        record.is_some_and(|record| record.generation_id == generation)
    }

    /// The bytes of one disk's data area that a read would return.
    pub(in crate::nexus) fn visible(&self, index: usize, offset: u64, len: u64) -> Vec<u8> {
        self.disks[index].visible(DATA_OFFSET + offset..DATA_OFFSET + offset + len)
    }

    /// The bytes of one disk's data area that survive a power cut for certain.
    pub(in crate::nexus) fn durable(&self, index: usize, offset: u64, len: u64) -> Vec<u8> {
        self.disks[index].durable(DATA_OFFSET + offset..DATA_OFFSET + offset + len)
    }
}

impl fmt::Debug for SimWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimWitness")
            .field(&self.state.record.borrow())
            .finish()
    }
}
