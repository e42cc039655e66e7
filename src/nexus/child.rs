//! A child: one slot of the membership table, and the replica in it if it is here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::durability::Durability;
use super::signal::Signal;
use super::state::{self, ChildEvent, ChildState, FaultReason};
use crate::io::{BlockDevice, IoError};
use crate::model::{PoolName, ReplicaId};
use crate::replica::Replica;

/// One slot of the membership table.
pub(super) struct Child<D> {
    pub(super) replica_id: ReplicaId,
    /// The pool it is in, if a candidate told.
    pub(super) pool: Option<PoolName>,
    /// Lost on stop; never counts as the last copy.
    pub(super) volatile: bool,
    /// More about the state than its reason says, for people.
    pub(super) note: Option<String>,
    /// What its flushes prove.
    pub(super) durability: Durability,
    state: Cell<ChildState>,
    replica: RefCell<Option<Rc<Replica<D>>>>,
    inflight: Cell<u32>,
}

/// Counts one operation on a child as under way until dropped.
pub(super) struct Hold<'a, D: BlockDevice> {
    child: &'a Child<D>,
    signal: &'a Signal,
}

impl<D: BlockDevice> Child<D> {
    pub(super) fn new(
        replica_id: ReplicaId,
        state: ChildState,
        replica: Option<Rc<Replica<D>>>,
    ) -> Self {
        Self {
            replica_id,
            pool: None,
            volatile: false,
            note: None,
            state: Cell::new(state),
            replica: RefCell::new(replica),
            inflight: Cell::new(0),
            durability: Durability::default(),
        }
    }

    pub(super) fn state(&self) -> ChildState {
        self.state.get()
    }

    /// Whether it is the last copy and its file is too short. A write would make the file grow again over a hole that
    /// reads as zeroes without an error, so there must be none (spec section 5, table).
    pub(super) fn is_truncated(&self) -> bool {
        self.state.get() == ChildState::Failing(FaultReason::Truncated)
    }

    /// The only way to change the state. True when it did change.
    pub(super) fn apply(&self, event: ChildEvent) -> bool {
        let before = self.state.get();
        let after = state::next(before, event)
            .expect("the nexus sends a child only events that its state allows");
        self.state.set(after);
        before != after
    }

    /// Whether operations are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.inflight.get() > 0
    }

    pub(super) fn inflight(&self) -> u32 {
        self.inflight.get()
    }

    /// The replica, as long as the volume is not stopped.
    ///
    /// # Errors
    /// [`IoError::Stopped`] when there is none.
    pub(super) fn replica(&self) -> Result<Rc<Replica<D>>, IoError> {
        self.replica.borrow().clone().ok_or(IoError::Stopped)
    }

    /// Puts the replica in, at assembly.
    pub(super) fn set_replica(&self, replica: Rc<Replica<D>>) {
        self.replica.replace(Some(replica));
    }

    /// Whether there is a replica.
    pub(super) fn is_here(&self) -> bool {
        self.replica.borrow().is_some()
    }

    /// Lets go of the replica; its file closes when the last operation under way has ended.
    pub(super) fn release(&self) {
        self.replica.borrow_mut().take();
    }

    /// Counts an operation as under way.
    pub(super) fn hold<'a>(&'a self, signal: &'a Signal) -> Hold<'a, D> {
        self.inflight.set(self.inflight.get() + 1);
        Hold {
            child: self,
            signal,
        }
    }
}

impl<D: BlockDevice> Drop for Hold<'_, D> {
    fn drop(&mut self) {
        let left = self.child.inflight.get() - 1;
        self.child.inflight.set(left);
        if left == 0 && matches!(self.child.state(), ChildState::Draining { .. }) {
            self.child.apply(ChildEvent::Drained);
            self.signal.notify();
        }
    }
}
