//! The first creation of a volume, and building a nexus over replicas whose table is known.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::child::{Child, Identity};
use super::chunk_set::ChunkSet;
use super::env::{Candidate, NexusEnv, NexusSpec, Parts, Presence};
use super::intent::Intent;
use super::nexus::{Inner, Mode, Nexus};
use super::slots::{SLOTS_MAX, SlotSet};
use super::state::ChildState;
use super::status::ChildStatus;
use super::table::record_of;
use super::watch::Watch;
use super::witness::{WitnessError, WitnessRecord};
use crate::io::{Alignment, BlockDevice, Clock, IoError};
use crate::model::{PoolId, PoolName, ReplicaId};
use crate::replica::layout::{DATA_OFFSET, region_shift};
use crate::replica::{Ancestors, Flags, Label, Member, MemberState, Replica};

/// Why a volume was not created. Whatever was written is the caller's to clean up: its journal knows (spec A0).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The specification asks for what does not exist.
    #[error(
        "a volume has 1 to 16 replicas and a size that is a multiple of 4 KiB, not {replicas} and {size} bytes"
    )]
    Spec {
        /// Number of candidates.
        replicas: usize,
        /// Size in bytes.
        size: u64,
    },
    /// A replica is not here. Every one must be, at the first creation.
    #[error("the replica in pool `{pool}` is not here: {reason}")]
    Absent {
        /// Its pool.
        pool: PoolName,
        /// Why.
        reason: String,
    },
    /// A pool's filesystem can't serve blocks this small.
    #[error(
        "pool `{pool}` needs direct I/O in units of {needed} bytes but the volume has blocks of {block_size}"
    )]
    Alignment {
        /// The pool.
        pool: PoolName,
        /// What it needs, bytes.
        needed: u32,
        /// What the volume has, bytes.
        block_size: u32,
    },
    /// A replica could not be written.
    #[error("the replica in pool `{pool}` could not be written: {source}")]
    Format {
        /// Its pool.
        pool: PoolName,
        /// What its disk said.
        source: IoError,
    },
    /// The witness did not take the record, or has one already.
    #[error("the witness failed: {0}")]
    Witness(#[source] WitnessError),
}

/// A candidate that is here and has ids.
struct Ready<D> {
    pool: PoolName,
    pool_id: PoolId,
    replica: ReplicaId,
    volatile: bool,
    disk: D,
}

impl<E: NexusEnv> Nexus<E> {
    /// Creates a volume: formats every replica, then commits generation 1 at the witness. The caller has made sure that
    /// no witness record, label or quarantined data carries its name, and has journalled the intent (spec A0).
    ///
    /// # Errors
    /// [`CreateError`]; then some replicas may be formatted, but the witness has no record.
    pub async fn create(
        parts: Parts<E>,
        spec: NexusSpec,
        candidates: Vec<Candidate<E::Disk>>,
    ) -> Result<Self, CreateError> {
        let replicas = candidates.len();
        let size = spec.size;
        if !(1..=SLOTS_MAX).contains(&replicas) || size == 0 || !size.is_multiple_of(4096) {
            return Err(CreateError::Spec { replicas, size });
        }
        let ready = candidates
            .into_iter()
            .map(|candidate| make_ready(candidate, spec.block_size))
            .collect::<Result<Vec<_>, _>>()?;
        let table = first_table(&parts, &spec, &ready);
        let mut children = Vec::new();
        for (slot, ready) in ready.into_iter().enumerate() {
            let label = Label {
                replica: ready.replica,
                pool: ready.pool_id,
                own_slot: slot,
                ..table.clone()
            };
            let pool = ready.pool;
            let replica = Replica::format(ready.disk, &parts.buffers, label)
                .await
                .map_err(|source| CreateError::Format {
                    pool: pool.clone(),
                    source,
                })?;
            let identity = Identity {
                replica: ready.replica,
                pool: Some(pool),
                volatile: ready.volatile,
                note: None,
            };
            let replica = Some(Rc::new(replica));
            children.push(Child::new(identity, ChildState::InSync, replica));
        }
        let record = record_of(&table);
        parts
            .commit_within(spec.policy.timeouts.commit, None, &record)
            .await
            .map_err(CreateError::Witness)?;
        let inner = Inner::build(parts, spec, (children, Vec::new()), table, record);
        Ok(Self {
            inner: inner.watched(),
        })
    }
}

fn make_ready<D: BlockDevice>(
    candidate: Candidate<D>,
    block_size: u32,
) -> Result<Ready<D>, CreateError> {
    let pool = candidate.pool;
    let absent = |reason: &str| CreateError::Absent {
        pool: pool.clone(),
        reason: reason.to_owned(),
    };
    let disk = match candidate.presence {
        Presence::Present(disk) => disk,
        Presence::Absent(reason) => return Err(absent(&reason)),
    };
    let pool_id = candidate
        .pool_id
        .ok_or_else(|| absent("its pool has no id"))?;
    let replica = candidate.replica.ok_or_else(|| absent("it has no id"))?;
    let needed = disk.alignment().offset;
    if needed > block_size {
        return Err(CreateError::Alignment {
            pool,
            needed,
            block_size,
        });
    }
    Ok(Ready {
        pool,
        pool_id,
        replica,
        volatile: candidate.volatile,
        disk,
    })
}

/// Generation 1: everybody is in sync, since everybody reads as zeroes.
fn first_table<E: NexusEnv>(parts: &Parts<E>, spec: &NexusSpec, ready: &[Ready<E::Disk>]) -> Label {
    let generation_id = parts.generation_id();
    let member = |ready: &Ready<E::Disk>| Member {
        replica: ready.replica,
        state: MemberState::InSync,
        volatile: ready.volatile,
        since_gen: 0,
        insync_id: generation_id,
    };
    let mut label = Label {
        slot_seq: 0,
        compat: 0,
        ro_compat: 0,
        flags: Flags::default(),
        replica: ready[0].replica,
        volume: spec.id,
        pool: ready[0].pool_id,
        writer: parts.node,
        data_offset: DATA_OFFSET,
        data_len: spec.size,
        lb_size: spec.block_size,
        region_shift: region_shift(spec.size),
        generation: 1,
        generation_id,
        epoch: 1,
        owner: parts.node,
        missed_base_gen: 1,
        rebuild_from_gen: 0,
        pending_snapshot: None,
        wall_ns: parts.clock.wall_ns(),
        own_slot: 0,
        members: ready.iter().map(member).collect(),
        ancestors: Ancestors::default(),
        name: spec.name.clone(),
    };
    label.set_thick(spec.thick);
    label
}

impl<E: NexusEnv> Inner<E> {
    /// A nexus whose committed table is `committed`; `table` is the same as a label. The active set is the children
    /// that are in sync, the write set those and the ones that are being rebuilt.
    pub(super) fn build(
        parts: Parts<E>,
        spec: NexusSpec,
        (mut children, spares): (Vec<Child<E::Disk>>, Vec<ChildStatus>),
        table: Label,
        committed: WitnessRecord,
    ) -> Self {
        let slots = |wanted: &dyn Fn(ChildState) -> bool| -> SlotSet {
            let chosen = |slot: &usize| wanted(children[*slot].state());
            (0..children.len()).filter(chosen).collect()
        };
        let active = slots(&|state| state == ChildState::InSync);
        let writers = slots(&ChildState::is_written);
        let single = slots(&|state| state != ChildState::Vacant).len() == 1;
        let here = children.iter().filter_map(|child| child.replica().ok());
        let memory = here.map(|replica| replica.alignment().memory).max();
        children.resize_with(SLOTS_MAX, Child::vacant);
        let watch = Rc::<Watch>::default();
        for child in &mut children {
            child.watch = Rc::clone(&watch);
        }
        let children = children.into_boxed_slice().try_into();
        Self {
            parts,
            spec: RefCell::new(spec),
            children: children
                .ok()
                .expect("a membership table has at most 16 members"),
            spares: RefCell::new(spares),
            size: Cell::new(table.data_len),
            alignment: Alignment {
                offset: table.lb_size,
                // Mirrored volumes copy into memory of their own.
                memory: if single { memory.unwrap_or(1) } else { 1 },
            },
            single: Cell::new(single),
            paused: Cell::new(false),
            unresolved: RefCell::new(ChunkSet::new(table.data_len)),
            intent: Intent::new(table.region_shift),
            table: RefCell::new(table),
            committed: RefCell::new(committed),
            active: Cell::new(active),
            committed_writers: Cell::new(writers),
            uncommitted: Cell::new(None),
            locks: super::range_lock::RangeLock::default(),
            mode: Cell::new(Mode::Serving),
            lost_unflushed: Cell::new(false),
            running: Cell::new(0),
            requests: Cell::new(0),
            rebuild: RefCell::new(None),
            rebuilt: Cell::default(),
            table_busy: Cell::new(false),
            abandoned: Cell::new(false),
            reshaping: Cell::new(false),
            fault_task: Cell::new(false),
            resolve_task: Cell::new(false),
            races: super::race::Races::default(),
            repairs: super::repair::Repairs::default(),
            scrubbing: super::scrub::Scrubbing::default(),
            watch,
            signal: super::signal::Signal::default(),
        }
    }
}
