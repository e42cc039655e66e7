//! Members that come, come back and go (spec section 10, B0, R8).
//!
//! A member is added as `Blank` and gets every write only once its rebuild has begun. The table says so before anything
//! is written to its file, so that a crash leaves a file that nobody trusts.

use std::pin::Pin;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::assemble::{ANOTHER_SLOT, refusal};
use super::child::Identity;
use super::env::{Candidate, NexusEnv, Presence, Silent};
use super::fan_out::{Failure, either};
use super::nexus::{Inner, Mode, Nexus};
use super::slots::SLOTS_MAX;
use super::state::{ChildState, FaultReason};
use super::table::Uncommitted;
use crate::io::slots::SlotPair;
use crate::io::{BlockDevice, Clock, IoError, Spawn};
use crate::model::{GenerationId, PoolId, ReplicaId};
use crate::replica::layout::LABEL_OFFSETS;
use crate::replica::replica::newest_label;
use crate::replica::{Ancestors, Label, Member, MemberState, OpenError, Replica};

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The table has no such member.
    #[error("replica {0} is not a member of the volume")]
    NotMember(ReplicaId),
    /// The table has it already, and it is here.
    #[error("replica {0} is a member of the volume already")]
    AlreadyThere(ReplicaId),
    /// No other copy has everything (spec G7).
    #[error("replica {0} is the only copy in sync: it stays until another one is")]
    LastCopy(ReplicaId),
    /// Operations of its last session have not ended (spec F1).
    #[error("replica {0} still has operations under way: a disk hangs")]
    Draining(ReplicaId),
    /// The table is full.
    #[error("a volume has at most {SLOTS_MAX} replicas")]
    Full,
    /// What was brought can't be used; nothing was written to it.
    #[error("{0}")]
    Refused(String),
    /// The disk failed.
    #[error("its label can't be written: {0}")]
    Label(#[source] IoError),
    /// The only copy could not be flushed (spec B0).
    #[error("the only copy can't be flushed: {0}")]
    Flush(#[source] IoError),
    /// Its disk hangs. What was asked of it may still take effect; it must be opened and locked anew.
    #[error("{0}")]
    Silent(#[from] Silent),
    /// The volume stopped first, or another owner has it.
    #[error("the volume stopped first")]
    Stopped,
}

/// What became of a removed member's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Its label is wiped: the file is no replica any more.
    Wiped,
    /// It was not here, hangs, or could not be written: the file still has its old label, which no table admits.
    LabelKept,
}

/// A candidate with everything that a member needs.
struct Incoming<D> {
    identity: Identity,
    pool: PoolId,
    disk: D,
}

impl From<Uncommitted> for MemberError {
    fn from(error: Uncommitted) -> Self {
        match error {
            Uncommitted::Interrupted => Self::Stopped,
            Uncommitted::Refused => Self::Refused("no label can hold the new table".to_owned()),
        }
    }
}

impl<E: NexusEnv> Nexus<E> {
    /// Adds a member: a blank file or memory that is large enough, or an old copy of this volume that is not in the
    /// table, whose label is wiped. It has no data for the table until it is rebuilt. A volume with one member leaves the
    /// fast path before (spec B0).
    ///
    /// # Errors
    /// [`MemberError`]. After [`MemberError::Label`] and [`MemberError::Silent`] it is a member, blank and not here: try [`Nexus::attach`].
    pub async fn add_member(&self, candidate: Candidate<E::Disk>) -> Result<(), MemberError> {
        let inner = Rc::clone(&self.inner);
        let _reshaping = inner.reshape().await;
        let lock = inner.lock_table().await;
        inner.check_serving()?;
        let incoming = incoming(candidate)?;
        let id = incoming.identity.replica;
        if inner.slot_of(id).is_some() {
            return Err(MemberError::AlreadyThere(id));
        }
        if inner.children.iter().any(|c| c.replica_id() == Some(id)) {
            // It was removed just now, and its label is about to be wiped.
            return Err(MemberError::Draining(id));
        }
        let slot = inner.free_slot(id).ok_or(MemberError::Full)?;
        inner.leave_fast_path().await?;
        let child = &inner.children[slot];
        child.occupy(incoming.identity.clone());
        let volatile = incoming.identity.volatile;
        let change = |table: &mut Label| {
            let member = Member {
                replica: id,
                state: MemberState::Blank,
                volatile,
                since_gen: table.generation,
                insync_id: GenerationId::nil(),
            };
            match table.members.get_mut(slot) {
                Some(entry) => *entry = member,
                None => table.members.push(member),
            }
        };
        if let Err(error) = inner.change_table(&lock, &change).await {
            child.vacate();
            return Err(error.into());
        }
        inner
            .spares
            .borrow_mut()
            .retain(|spare| spare.replica != Some(id));
        // Others must be able to fail while this disk is slow (spec G11).
        drop(lock);
        let made = inner.make_replica(slot, incoming).await?;
        inner.take_in(id, (slot, ChildState::Blank), made).await
    }

    /// Brings back a member that is out of sync and not here: its replica, opened and locked again (spec A1, E6). A blank
    /// one, such as memory after a start, is formatted. Nothing else is written to it before its rebuild.
    ///
    /// # Errors
    /// [`MemberError`]; it may be tried again.
    pub async fn attach(&self, candidate: Candidate<E::Disk>) -> Result<(), MemberError> {
        let inner = Rc::clone(&self.inner);
        // One at a time: what another one read before this one wrote a label would count no more (spec L1).
        let _reshaping = inner.reshape().await;
        inner.check_serving()?;
        let incoming = incoming(candidate)?;
        let id = incoming.identity.replica;
        let (slot, state) = inner.check_absent(id)?;
        let (identity, pool) = (incoming.identity.clone(), incoming.pool);
        // Not under the table's lock: others must be able to fail while this disk is slow (spec G11).
        let made = match inner.open_or_blank(slot, incoming).await? {
            Ok(replica) => (identity, inner.fit(slot, pool, replica).await?),
            Err(incoming) => {
                let lock = inner.lock_table().await;
                inner.check_still(id, (slot, state))?;
                // Whatever it was in sync with is not in this file (spec L2).
                let blank = |table: &mut Label| {
                    table.members[slot].state = MemberState::Blank;
                    table.members[slot].insync_id = GenerationId::nil();
                };
                inner.change_table(&lock, &blank).await?;
                drop(lock);
                inner.make_replica(slot, incoming).await?
            }
        };
        inner.take_in(id, (slot, state), made).await
    }

    /// Takes a member out: commits a table without it, then wipes its label if it is here. A volume that is left with one
    /// member takes the fast path (spec R8).
    ///
    /// # Errors
    /// [`MemberError::LastCopy`] for the only copy in sync (spec G7).
    pub async fn remove_member(&self, replica: ReplicaId) -> Result<Removal, MemberError> {
        let inner = Rc::clone(&self.inner);
        let reshaping = inner.reshape().await;
        let lock = inner.lock_table().await;
        inner.check_serving()?;
        let slot = inner
            .slot_of(replica)
            .ok_or(MemberError::NotMember(replica))?;
        let child = &inner.children[slot];
        if child.state().is_usable() && !inner.can_spare(slot) {
            return Err(MemberError::LastCopy(replica));
        }
        let disk = child.replica().ok();
        if child.state().is_written() {
            inner.leaves(slot, FaultReason::Removed);
            // Out of sync first, and out of the table only once that is committed: a label in which it is gone, of a commit
            // that was cut short, could not tell that it may have gone on alone (spec A5).
            inner.change_table(&lock, &|_| {}).await?;
        }
        let change = |table: &mut Label| {
            let generation = table.generation;
            let member = &mut table.members[slot];
            member.state = MemberState::Removed;
            member.since_gen = generation;
            member.insync_id = GenerationId::nil();
            let left = table
                .members
                .iter()
                .filter(|member| member.state != MemberState::Removed);
            if left.count() == 1 {
                table.missed_base_gen = generation;
            }
        };
        inner.change_table(&lock, &change).await?;
        child.leave();
        inner.enter_fast_path().await;
        drop(lock);
        drop(reshaping);
        inner.forget_missed().await;
        Ok(inner.part_with(slot, disk).await)
    }
}

impl<E: NexusEnv> Inner<E> {
    fn check_serving(&self) -> Result<(), MemberError> {
        match self.mode.get() {
            Mode::Serving => Ok(()),
            Mode::Stopping | Mode::Stopped | Mode::LostOwnership => Err(MemberError::Stopped),
        }
    }

    /// The slot of a member that is out of sync and not here, and its state.
    fn check_absent(&self, id: ReplicaId) -> Result<(usize, ChildState), MemberError> {
        let slot = self.slot_of(id).ok_or(MemberError::NotMember(id))?;
        let child = &self.children[slot];
        if child.is_busy() {
            return Err(MemberError::Draining(id));
        }
        let is_out = matches!(child.state(), ChildState::Stale { .. } | ChildState::Blank);
        if child.is_here() || !is_out {
            return Err(MemberError::AlreadyThere(id));
        }
        Ok((slot, child.state()))
    }

    /// Whether the member is as it was when its file was opened.
    fn check_still(&self, id: ReplicaId, seen: (usize, ChildState)) -> Result<(), MemberError> {
        self.check_serving()?;
        let is_same = self.check_absent(id)? == seen;
        is_same.then_some(()).ok_or(MemberError::AlreadyThere(id))
    }

    /// The end of its coming: the member has its replica, unless something else became of it meanwhile.
    async fn take_in(
        self: &Rc<Self>,
        id: ReplicaId,
        seen: (usize, ChildState),
        (identity, replica): (Identity, Rc<Replica<E::Disk>>),
    ) -> Result<(), MemberError> {
        let _lock = self.lock_table().await;
        self.check_still(id, seen)?;
        self.children[seen.0].enter(identity, replica);
        self.touch();
        Ok(())
    }

    /// Whether a replica is the one for the slot; then it gets the size of the volume, which does not change as long as
    /// somebody may reshape it.
    async fn fit(
        &self,
        slot: usize,
        pool: PoolId,
        replica: Replica<E::Disk>,
    ) -> Result<Rc<Replica<E::Disk>>, MemberError> {
        // Opening it may have taken long: who has lost the volume writes no label any more (spec E4, I6).
        self.check_serving()?;
        let wanted = self.children[slot].replica_id();
        let refused = refusal(&self.spec.borrow(), (Some(pool), wanted), &replica);
        if let Some(reason) = refused {
            return Err(MemberError::Refused(reason));
        }
        if replica.label().own_slot != slot {
            return Err(MemberError::Refused(ANOTHER_SLOT.to_owned()));
        }
        let (len, shift) = {
            let table = self.table.borrow();
            (table.data_len, table.region_shift)
        };
        let replica = Rc::new(replica);
        let own = Rc::clone(&replica);
        let caught_up = self.in_time(Box::pin(async move { catch_up(&own, len, shift).await }));
        caught_up.await?.map_err(MemberError::Label)?;
        Ok(replica)
    }

    /// The replica that was brought; what was brought if it has to be made one.
    async fn open_or_blank(
        &self,
        slot: usize,
        incoming: Incoming<E::Disk>,
    ) -> Result<Result<Replica<E::Disk>, Incoming<E::Disk>>, MemberError> {
        let id = incoming.identity.replica;
        let buffers = self.parts.buffers.clone();
        let read = self.in_time(Box::pin(async move {
            let slots = SlotPair::read(&incoming.disk, &buffers, LABEL_OFFSETS).await;
            let found = slots.map_err(OpenError::from);
            let label = found.and_then(|slots| newest_label(&slots).map(|(_, label)| label));
            (incoming, label)
        }));
        let (incoming, label) = read.await?;
        // A file that the table calls blank may still have the label of a slot that its member had once: what made it a
        // new member was cut short.
        let is_left_over = |label: &Label| {
            let is_its_own = label.volume == self.spec.borrow().id && label.replica == id;
            let is_blank = self.children[slot].state() == ChildState::Blank;
            is_blank && label.own_slot != slot && is_its_own
        };
        if matches!(label, Err(OpenError::Blank { .. })) || label.as_ref().is_ok_and(is_left_over) {
            return Ok(Err(incoming));
        }
        let refused = |error: OpenError| MemberError::Refused(error.to_string());
        label.map_err(refused)?;
        let buffers = self.parts.buffers.clone();
        let open = async move { Replica::open(incoming.disk, &buffers).await };
        let opened = self.in_time(Box::pin(open)).await?;
        opened.map(Ok).map_err(refused)
    }

    /// As [`super::env::Parts::in_time`]: a disk that hangs must not hold up what everybody needs (spec G11).
    async fn in_time<T: 'static>(
        &self,
        work: Pin<Box<dyn Future<Output = T>>>,
    ) -> Result<T, Silent> {
        let patience = self.spec.borrow().policy.timeouts.io;
        self.parts.in_time(patience, work).await
    }

    /// The slot that a member is in.
    pub(super) fn slot_of(&self, replica: ReplicaId) -> Option<usize> {
        let is_it = |slot: &usize| self.children[*slot].replica_id() == Some(replica);
        self.members().iter().find(is_it)
    }

    /// A slot for a new member: the one that it had before; else one that was never used; else that of the member that
    /// has been gone for longest, whose label may turn up and will be refused.
    fn free_slot(&self, replica: ReplicaId) -> Option<usize> {
        let table = self.table.borrow();
        let is_free = |slot: &usize| self.children[*slot].is_vacant();
        let rank = |slot: &usize| {
            table.members.get(*slot).map_or((1, 0), |member| {
                if member.replica == replica {
                    (0, 0)
                } else {
                    (2, member.since_gen)
                }
            })
        };
        let next = table.members.len();
        let slots = (0..SLOTS_MAX).filter(|slot| *slot <= next).filter(is_free);
        slots.min_by_key(rank)
    }

    /// Makes a replica of what was brought for a member that the committed table calls `Blank`.
    async fn make_replica(
        self: &Rc<Self>,
        slot: usize,
        incoming: Incoming<E::Disk>,
    ) -> Result<(Identity, Rc<Replica<E::Disk>>), MemberError> {
        let label = {
            let table = self.table.borrow();
            Label {
                slot_seq: 0,
                replica: incoming.identity.replica,
                pool: incoming.pool,
                own_slot: slot,
                // It has no history: nothing proves that it ever had anything (spec B3).
                ancestors: Ancestors::default(),
                ..table.clone()
            }
        };
        let (disk, buffers) = (incoming.disk, self.parts.buffers.clone());
        let made = self.in_time(Box::pin(async move {
            if disk.size() < label.file_len() {
                disk.grow(label.file_len()).await?;
            }
            Replica::reformat(disk, &buffers, label).await
        }));
        let replica = made.await?.map_err(MemberError::Label)?;
        Ok((incoming.identity, Rc::new(replica)))
    }

    /// B0: from a sole member on the fast path to the full path. What it has acknowledged becomes durable: the fast path
    /// has left no intent bits that could tell.
    async fn leave_fast_path(self: &Rc<Self>) -> Result<(), MemberError> {
        if !self.single.get() {
            return Ok(());
        }
        let _paused = self.pause().await;
        if self.abandoned.get() {
            // It may reach the disk after that place was copied.
            let why = "a write was given up on while it was under way: stop the volume and start it again";
            return Err(MemberError::Refused(why.to_owned()));
        }
        let flush = self.flush_child(self.sole()).await;
        if let Err(failure) = flush {
            self.failed_as_last(self.sole(), failure.reason());
            let (Failure::Label(error)
            | Failure::Data(error)
            | Failure::Read(error)
            | Failure::Flush(error)) = failure;
            return Err(MemberError::Flush(error));
        }
        self.single.set(false);
        Ok(())
    }

    /// R8: onto the fast path, if the committed table has exactly one member.
    async fn enter_fast_path(self: &Rc<Self>) {
        let is_in = |member: &&Member| member.state != MemberState::Removed;
        let left = self.table.borrow().members.iter().filter(is_in).count();
        if left == 1 {
            let _paused = self.pause().await;
            self.single.set(true);
        }
    }

    /// Lets go of a member that is out of the committed table, once its last operation has ended: wipes its label and
    /// empties its slot. Does not wait longer than the I/O timeout; the rest happens in the background.
    async fn part_with(
        self: &Rc<Self>,
        slot: usize,
        replica: Option<Rc<Replica<E::Disk>>>,
    ) -> Removal {
        let (done, wiped) = oneshot::channel();
        let inner = Rc::clone(self);
        self.parts.spawn.spawn(async move {
            let child = &inner.children[slot];
            inner.signal.until(|| !child.is_busy()).await;
            let removal = match replica {
                Some(replica) if replica.wipe_label().await.is_ok() => Removal::Wiped,
                _ => Removal::LabelKept,
            };
            child.vacate();
            inner.touch();
            // The caller may have stopped waiting.
            let _ = done.send(removal);
        });
        let mut removal = Removal::LabelKept;
        let patience = self
            .parts
            .clock
            .sleep(self.spec.borrow().policy.timeouts.io);
        let wiped = async {
            removal = wiped.await.unwrap_or(Removal::LabelKept);
        };
        either(patience, wiped).await;
        removal
    }
}

fn incoming<D>(candidate: Candidate<D>) -> Result<Incoming<D>, MemberError> {
    let refused = |why: &str| MemberError::Refused(why.to_owned());
    let disk = match candidate.presence {
        Presence::Present(disk) => disk,
        Presence::Absent(reason) => return Err(MemberError::Refused(reason)),
    };
    Ok(Incoming {
        identity: Identity {
            replica: candidate.replica.ok_or_else(|| refused("it has no id"))?,
            pool: Some(candidate.pool),
            volatile: candidate.volatile,
            note: None,
        },
        pool: candidate
            .pool_id
            .ok_or_else(|| refused("its pool has no id"))?,
        disk,
    })
}

/// Gives the file of a member that nobody uses, and its own label, the size of the volume; the label keeps the generation
/// that it has. The volume grew while the member was away. Or the member's label is all that is left of a growth that
/// was never committed, or that the copy of a forced start does not have (spec A5): what is behind the volume's end then
/// is nobody's data.
pub(super) async fn catch_up<D: BlockDevice>(
    replica: &Replica<D>,
    data_len: u64,
    region_shift: u32,
) -> Result<(), IoError> {
    let own = replica.label();
    if own.data_len < data_len {
        replica.grow(data_len).await?;
    }
    if (own.data_len, own.region_shift) != (data_len, region_shift) {
        replica.take_size(data_len, region_shift).await?;
    }
    Ok(())
}
