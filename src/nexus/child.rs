//! A child: one slot of the membership table, and the replica in it if it is here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::durability::Durability;
use super::signal::Signal;
use super::state::{self, ChildEvent, ChildState, FaultReason};
use super::timing::Timing;
use super::watch::Watch;
use crate::io::{BlockDevice, IoError};
use crate::model::{PoolName, ReplicaId};
use crate::replica::{ErrorCounts, Replica};

/// One slot of the membership table. A vacant one has a state and nothing else.
pub(super) struct Child<D> {
    identity: RefCell<Option<Identity>>,
    /// What its flushes prove.
    pub(super) durability: Durability,
    state: Cell<ChildState>,
    replica: RefCell<Option<Rc<Replica<D>>>>,
    inflight: Cell<u32>,
    /// Looks after operations that are not answered.
    pub(super) watch: Rc<Watch>,
    /// How long the last copy has not answered: looks since it was too long (spec G11, R7).
    pub(super) hung: Cell<Option<u32>>,
    /// Errors of replicas that were here before.
    errors: Cell<ErrorCounts>,
    leaving: Cell<bool>,
    /// How long its operations take.
    pub(super) timing: Timing,
}

/// Who is in a slot.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) replica: ReplicaId,
    /// The pool it is in, if a candidate told.
    pub(super) pool: Option<PoolName>,
    /// Lost on stop; never counts as the last copy.
    pub(super) volatile: bool,
    /// More about the state than its reason says, for people.
    pub(super) note: Option<String>,
}

/// Counts one operation on a child as under way until dropped.
pub(super) struct Hold<'a, D: BlockDevice> {
    child: &'a Child<D>,
    signal: &'a Signal,
}

impl<D: BlockDevice> Child<D> {
    /// A slot that nobody is in.
    pub(super) fn vacant() -> Self {
        Self {
            identity: RefCell::new(None),
            state: Cell::new(ChildState::Vacant),
            replica: RefCell::new(None),
            inflight: Cell::new(0),
            watch: Rc::default(),
            hung: Cell::new(None),
            errors: Cell::default(),
            leaving: Cell::new(false),
            timing: Timing::default(),
            durability: Durability::default(),
        }
    }

    /// A slot with a member in it, at creation and at assembly.
    pub(super) fn new(
        identity: Identity,
        state: ChildState,
        replica: Option<Rc<Replica<D>>>,
    ) -> Self {
        Self {
            identity: RefCell::new(Some(identity)),
            state: Cell::new(state),
            replica: RefCell::new(replica),
            ..Self::vacant()
        }
    }

    /// Puts a new member into a vacant slot: [`ChildState::Blank`] from then on, and not here yet.
    pub(super) fn occupy(&self, identity: Identity) {
        self.apply(ChildEvent::Occupied);
        self.identity.replace(Some(identity));
    }

    /// The committed table has this member no more; it stays in its slot until its last operation has ended.
    pub(super) fn leave(&self) {
        self.leaving.set(true);
    }

    /// Empties a slot whose member is out of the table and has nothing under way.
    pub(super) fn vacate(&self) {
        self.apply(ChildEvent::Vacated);
        self.identity.replace(None);
        self.leaving.set(false);
        self.release();
        self.errors.take();
        self.timing.reset();
    }

    /// Whether nobody is in the slot.
    pub(super) fn is_vacant(&self) -> bool {
        self.state.get() == ChildState::Vacant
    }

    /// Whether a member of the table is in the slot.
    pub(super) fn is_member(&self) -> bool {
        !self.is_vacant() && !self.leaving.get()
    }

    /// Who is in the slot.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity.borrow().clone()
    }

    /// The replica's id; none for a vacant slot.
    pub(super) fn replica_id(&self) -> Option<ReplicaId> {
        self.identity.borrow().as_ref().map(|own| own.replica)
    }

    /// Whether its contents are lost on stop.
    pub(super) fn is_volatile(&self) -> bool {
        self.identity
            .borrow()
            .as_ref()
            .is_some_and(|own| own.volatile)
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

    /// Takes a freshly opened replica; what an earlier session of it promised is forgotten (spec E6).
    pub(super) fn enter(&self, identity: Identity, replica: Rc<Replica<D>>) {
        assert!(
            !self.is_busy(),
            "F1: nothing is opened again before its last operation has ended"
        );
        self.durability.reset();
        self.identity.replace(Some(identity));
        self.replica.replace(Some(replica));
    }

    /// Whether there is a replica.
    pub(super) fn is_here(&self) -> bool {
        self.replica.borrow().is_some()
    }

    /// Lets go of the replica; its file closes when the last operation under way has ended.
    pub(super) fn release(&self) {
        if let Some(replica) = self.replica.borrow_mut().take() {
            self.errors.set(self.errors.get().plus(replica.errors()));
        }
    }

    /// How often the member's disk has answered with an error since the volume was assembled.
    pub(super) fn errors(&self) -> ErrorCounts {
        let replica = self.replica.borrow();
        let now = replica.as_ref().map(|replica| replica.errors());
        self.errors.get().plus(now.unwrap_or_default())
    }

    /// Counts an operation as under way.
    pub(super) fn hold<'a>(&'a self, signal: &'a Signal) -> Hold<'a, D> {
        self.inflight.set(self.inflight.get() + 1);
        self.watch.begin();
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
        if left > 0 {
            return;
        }
        let state = self.child.state();
        if matches!(state, ChildState::Draining { .. }) {
            self.child.apply(ChildEvent::Drained);
            // To come back it is opened and locked anew (spec A1, E6).
            self.child.release();
            self.signal.tell();
        } else if !state.is_written() {
            // Somebody may wait for it in order to let go of the member.
            self.signal.notify();
        }
    }
}
