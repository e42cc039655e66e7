//! A pool in RAM: only its capacity is kept here; the memory itself belongs to the reactors that serve it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::error::Fault;
use crate::model::ReplicaId;
use crate::units::Bytes;

/// The capacity of a memory pool, and who has it.
#[derive(Debug)]
pub(super) struct MemoryPool {
    size: Bytes,
    replicas: Mutex<BTreeMap<ReplicaId, u64>>,
}

impl MemoryPool {
    pub(super) fn new(size: Bytes) -> Self {
        let replicas = Mutex::default();
        Self { size, replicas }
    }

    pub(super) fn size(&self) -> Bytes {
        self.size
    }

    fn replicas(&self) -> std::sync::MutexGuard<'_, BTreeMap<ReplicaId, u64>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `len` bytes for a replica; nothing happens when it has them already.
    pub(super) fn reserve(&self, replica: ReplicaId, len: u64, kept: Bytes) -> Result<(), Fault> {
        let mut replicas = self.replicas();
        if replicas.contains_key(&replica) {
            return Ok(());
        }
        let taken = Bytes(replicas.values().sum());
        let available = self.size.saturating_sub(taken).saturating_sub(kept);
        if len > available.get() {
            return Err(Fault::NoSpace {
                needed: Bytes(len),
                available,
                reserve: kept,
            });
        }
        replicas.insert(replica, len);
        Ok(())
    }

    /// Takes what a replica needs beyond what it has to have `len` bytes.
    pub(super) fn enlarge(&self, replica: ReplicaId, len: u64, kept: Bytes) -> Result<(), Fault> {
        let mut replicas = self.replicas();
        let own = replicas.get(&replica).copied().unwrap_or(0);
        let taken = Bytes(replicas.values().sum());
        let available = self.size.saturating_sub(taken).saturating_sub(kept);
        let needed = len.saturating_sub(own);
        if needed > available.get() {
            return Err(Fault::NoSpace {
                needed: Bytes(needed),
                available,
                reserve: kept,
            });
        }
        replicas.insert(replica, len.max(own));
        Ok(())
    }

    /// The bytes that a replica has.
    pub(super) fn len_of(&self, replica: ReplicaId) -> Option<u64> {
        self.replicas().get(&replica).copied()
    }

    /// Gives a replica's bytes back.
    pub(super) fn release(&self, replica: ReplicaId) {
        self.replicas().remove(&replica);
    }

    /// Bytes taken by all replicas.
    pub(super) fn taken(&self) -> Bytes {
        Bytes(self.replicas().values().sum())
    }
}
