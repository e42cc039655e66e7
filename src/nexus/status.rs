//! What a nexus tells about itself.

use std::sync::Arc;

use super::child::Child;
use super::env::NexusEnv;
use super::nexus::{Inner, Mode};
use super::rebuild_plan::RebuildKind;
use super::repair::Repairs;
use super::scrub::{ScrubProgress, ScrubReport, ScrubTotals};
use super::state::{ChildState, FaultReason};
use super::timing::ChildLatencies;
use crate::io::{BlockDevice, Clock};
use crate::model::status::ReplicaState;
use crate::model::{PoolName, ReplicaId};
use crate::replica::ErrorCounts;

/// A volume's nexus, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexusStatus {
    /// Counts changes; what [`super::Nexus::changed`] returns.
    pub version: u64,
    /// What all of it comes to.
    pub health: Health,
    /// The committed generation's number.
    pub generation: u64,
    /// The ownership term.
    pub epoch: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The members of the table in slot order, then candidates that are not members.
    pub children: Vec<ChildStatus>,
    /// Bytes that are not known to be equal on all in-sync members; they are made so in the background (spec R3).
    pub unresolved_bytes: u64,
    /// Reads that were sent to another member as well because the first took too long (spec R5), since the start.
    pub hedged_reads: u64,
    /// How far a scrub is; none while there is none.
    pub scrub: Option<ScrubProgress>,
    /// What the scrub found that ended last, since the start.
    pub last_scrub: Option<Arc<ScrubReport>>,
    /// What all scrubs found, since the start.
    pub scrubbed: ScrubTotals,
    /// Bytes that were so when the volume was assembled.
    pub resolved_bytes: u64,
    /// Regions that are marked as written and not proven flushed: a crash now would leave them to be resolved.
    pub intent_regions: u64,
    /// Acknowledged writes may be gone: writes and flushes fail until the frontends re-attach (spec F2).
    pub lost_unflushed: bool,
    /// What rebuilds have done since the volume was assembled.
    pub rebuilds: RebuildTotals,
}

/// The rebuilds of a volume since it was assembled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildTotals {
    /// That ended with a member in sync.
    pub finished: u64,
    /// That failed; stopping the volume is no failure.
    pub failed: u64,
    /// Bytes that they copied, zeroes included; those of the one under way, too.
    pub copied_bytes: u64,
}

/// How far a rebuild is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuildProgress {
    /// Which regions are copied.
    pub kind: RebuildKind,
    /// Why those, for people.
    pub reason: String,
    /// What was to be copied when it began, bytes.
    pub total_bytes: u64,
    /// What is left, bytes.
    pub remaining_bytes: u64,
    /// What was copied, bytes.
    pub copied_bytes: u64,
    /// How fast it goes, smoothed.
    pub bytes_per_second: u64,
}

/// What the children's states come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Every member of the table is in sync.
    Online,
    /// Requests are served, with fewer copies than the table has.
    Degraded,
    /// Some requests fail or hang: the last copy fails or does not answer, or unflushed writes were lost, or another owner has the volume.
    Failed,
    /// It does not serve.
    Stopped,
}

/// One child, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildStatus {
    /// The pool that it is in; none for a member that no candidate was brought for.
    pub pool: Option<PoolName>,
    /// The replica.
    pub replica: Option<ReplicaId>,
    /// What the nexus thinks of it.
    pub state: ReplicaState,
    /// Why it is in that state.
    pub reason: Option<String>,
    /// Reads of it that were corrected from another copy (spec R4), since the start.
    pub corrected_reads: u64,
    /// How long its disk took, of the operations that are timed.
    pub latencies: ChildLatencies,
    /// How often its disk has answered with an error, since the volume was assembled.
    pub errors: ErrorCounts,
    /// Whether it is in the table; else it was offered at assembly and is not.
    pub is_member: bool,
    /// Whether it is out of sync, and has to be opened and locked again before it can be rebuilt: [`super::Nexus::attach`].
    pub wants_attach: bool,
    /// Whether it is here and out of sync.
    pub wants_rebuild: bool,
    /// How far its rebuild is, while there is one.
    pub rebuild: Option<RebuildProgress>,
    /// Whether it has not answered for longer than the I/O timeout, and no other copy is there to go on with (spec R7):
    /// requests wait, as on a disk that hangs.
    pub hung: bool,
}

impl<E: NexusEnv> Inner<E> {
    pub(super) fn status(&self) -> NexusStatus {
        let committed = self.committed.borrow();
        let rebuild = |slot: usize| {
            let job = self.rebuild.borrow();
            let job = job.as_ref().filter(|job| job.slot == slot);
            job.map(|job| job.progress(self.parts.clock.now()))
        };
        let status = |(slot, child)| {
            child_status(child, &self.repairs).map(|status| ChildStatus {
                rebuild: rebuild(slot),
                hung: self.children[slot].hung.get().is_some(),
                reason: self.hung_reason(slot).or(status.reason),
                ..status
            })
        };
        let children = self.children.iter().enumerate().filter_map(status);
        let spares = self.spares.borrow();
        NexusStatus {
            version: self.signal.news(),
            health: self.health(),
            generation: committed.generation,
            epoch: committed.epoch,
            size_bytes: self.size.get(),
            children: children.chain(spares.iter().cloned()).collect(),
            unresolved_bytes: self.unresolved.borrow().bytes(),
            hedged_reads: self.races.hedged.get(),
            scrub: self.scrubbing.progress(),
            last_scrub: self.scrubbing.last(),
            scrubbed: self.scrubbing.totals(),
            resolved_bytes: self.intent.resolved_bytes.get(),
            intent_regions: self.intent_regions(),
            lost_unflushed: self.lost_unflushed.get(),
            rebuilds: self.rebuild_totals(),
        }
    }

    fn health(&self) -> Health {
        let failing = |child: &Child<E::Disk>| matches!(child.state(), ChildState::Failing(_));
        match self.mode.get() {
            Mode::Stopping | Mode::Stopped => Health::Stopped,
            Mode::LostOwnership => Health::Failed,
            Mode::Serving if self.lost_unflushed.get() => Health::Failed,
            Mode::Serving if self.children.iter().any(failing) => Health::Failed,
            Mode::Serving if self.nobody_answers() => Health::Failed,
            Mode::Serving if self.is_healthy() => Health::Online,
            Mode::Serving => Health::Degraded,
        }
    }
}

fn child_status<D: BlockDevice>(child: &Child<D>, repairs: &Repairs) -> Option<ChildStatus> {
    let own = child.identity()?;
    let here = child.is_here();
    let state = match child.state() {
        ChildState::InSync | ChildState::Failing(_) => ReplicaState::InSync,
        ChildState::Rebuilding => ReplicaState::Rebuilding,
        ChildState::Stale {
            reason: FaultReason::Absent,
            ..
        } if !here => ReplicaState::Absent,
        ChildState::Faulted(_) | ChildState::Draining { .. } | ChildState::Stale { .. } => {
            ReplicaState::Stale
        }
        ChildState::Blank => ReplicaState::Blank,
        ChildState::Vacant => return None,
    };
    let reason = child.state().reason().map(|reason| reason.to_string());
    let reason = match (reason, &own.note) {
        (Some(reason), Some(note)) => Some(format!("{reason}: {note}")),
        (reason, note) => reason.or_else(|| note.clone()),
    };
    let is_out = matches!(child.state(), ChildState::Stale { .. } | ChildState::Blank);
    Some(ChildStatus {
        pool: own.pool,
        replica: Some(own.replica),
        state,
        reason,
        corrected_reads: repairs.corrected(own.replica),
        latencies: child.timing.latencies(),
        errors: child.errors(),
        is_member: true,
        wants_attach: is_out && !here,
        wants_rebuild: here && (is_out || child.state() == ChildState::Rebuilding),
        rebuild: None,
        hung: false,
    })
}
