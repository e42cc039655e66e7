//! What a plan consists of: steps per object, what each costs, and what was refused or has to wait.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::observed::RemovalPolicy;
use crate::model::policy::VolumePolicy;
use crate::model::spec::{ExportSpec, PoolSpec, VolumeSpec};
use crate::model::{PoolName, VolumeName};
use crate::units::Bytes;

/// What a step costs those who use the object, from harmless to fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Impact {
    /// Nothing.
    None,
    /// There are fewer copies than before, or than there should be, for a while.
    DegradesRedundancy,
    /// Requests wait meanwhile.
    StallsIo,
    /// Data is gone afterwards.
    DestroysData,
}

/// All that has to change, in no particular order between objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Names the plan for `volund approve`: the same removals give the same id.
    pub id: String,
    /// Pools of this node.
    pub pools: BTreeMap<PoolName, PoolPlan>,
    /// Volumes of this node, those without changes included.
    pub volumes: BTreeMap<VolumeName, VolumePlan>,
    /// Quarantined data whose time has come.
    pub purges: BTreeMap<String, Purge>,
    /// Removals that wait for `volund approve`.
    pub held: BTreeSet<VolumeName>,
    /// Volumes on disk that nobody declares and that this node never had: nothing is done to them.
    pub orphans: BTreeSet<VolumeName>,
}

/// What has to change about a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolPlan {
    /// The one thing to do, if any.
    pub action: Option<PoolAction>,
    /// What can't be done, and why.
    pub blocked: Vec<Blocked>,
}

/// What can be done to a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolAction {
    /// Open it, or try again, or tell it its new reserve.
    Open(PoolSpec),
    /// Let go of it. Its data stays where it is.
    Close,
}

/// What has to change about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePlan {
    /// Whether the files have it.
    pub goal: Goal,
    /// What to do, in this order; each relies on those before that are not independent.
    pub steps: Vec<VolumeStep>,
    /// Pools that nobody has looked into yet: the steps may turn out otherwise and must wait.
    pub unknown_until: BTreeSet<PoolName>,
    /// Volumes whose own steps come first, because they still hold this one's socket or device number.
    pub after: BTreeSet<VolumeName>,
    /// What can't be done, and why.
    pub blocked: Vec<Blocked>,
    /// What people should know although nothing is wrong.
    pub notes: Vec<Blocked>,
}

impl VolumePlan {
    pub(super) fn new(goal: Goal) -> Self {
        Self {
            goal,
            steps: Vec::new(),
            unknown_until: BTreeSet::new(),
            after: BTreeSet::new(),
            blocked: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, action: VolumeAction) {
        let impact = action.impact();
        self.steps.push(VolumeStep { action, impact });
    }
}

/// Whether the files have a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// They do, and this node runs it.
    Present,
    /// They do not.
    Absent,
    /// Another node runs it.
    Elsewhere,
}

/// One thing to do to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStep {
    /// What.
    pub action: VolumeAction,
    /// What it costs.
    pub impact: Impact,
}

/// What can be done to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeAction {
    /// Give the data of the volume `from` this name.
    Rename {
        /// The name so far.
        from: VolumeName,
    },
    /// Take the data of a quarantine entry back under this name.
    Restore {
        /// The entry's id.
        entry: String,
    },
    /// Assemble it from its replicas, or make them.
    Ensure {
        /// As it is to be; local pools only.
        spec: Box<VolumeSpec>,
        /// Whether replicas are made.
        creates: bool,
    },
    /// Note what becomes of the data when the table goes.
    SetPolicy(RemovalPolicy),
    /// Make it reachable, or reachable in another way.
    EnsureExport {
        /// How.
        export: ExportSpec,
        /// Whether clients may only read.
        read_only: bool,
    },
    /// Make it unreachable.
    RemoveExport,
    /// Stop it and move its replicas to the quarantine.
    Quarantine,
    /// Look after it in another way from now on.
    Configure(VolumePolicy),
    /// Enlarge it, and all of its replicas.
    Grow {
        /// Its new size.
        size: Bytes,
    },
    /// Make it one more replica, which is built in the background.
    AddReplica {
        /// Where.
        pool: PoolName,
    },
    /// Take a replica out of its table, and delete it.
    RemoveReplica {
        /// Where it is.
        pool: PoolName,
    },
}

impl VolumeAction {
    fn impact(&self) -> Impact {
        match self {
            // A rename stops the volume, which has no client then; whoever connects meanwhile waits.
            Self::Rename { .. } => Impact::StallsIo,
            Self::Restore { .. }
            | Self::Ensure { .. }
            | Self::SetPolicy(_)
            | Self::EnsureExport { .. }
            | Self::RemoveExport
            | Self::Quarantine
            | Self::Configure(_)
            | Self::Grow { .. }
            | Self::AddReplica { .. } => Impact::None,
            Self::RemoveReplica { .. } => Impact::DegradesRedundancy,
        }
    }

    /// Whether no other step relies on this one: the steps after it are done although it failed.
    #[must_use]
    pub fn is_independent(&self) -> bool {
        match self {
            Self::Configure(_)
            | Self::Grow { .. }
            | Self::AddReplica { .. }
            | Self::RemoveReplica { .. }
            | Self::SetPolicy(_) => true,
            Self::Rename { .. }
            | Self::Restore { .. }
            | Self::Ensure { .. }
            | Self::EnsureExport { .. }
            | Self::RemoveExport
            | Self::Quarantine => false,
        }
    }
}

/// Quarantined data whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// The volume's name when it was removed.
    pub volume: VolumeName,
    /// Bytes that are freed.
    pub allocated: Bytes,
}

/// Something that can't be done now, or at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Type of the condition that tells it.
    pub kind: BlockedKind,
    /// One CamelCase word that programs can match.
    pub reason: String,
    /// Why, in a sentence with the next step.
    pub message: String,
    /// Code for `volund explain`, for what is wrong with the files.
    pub code: Option<String>,
}

/// Types of condition that a plan can give rise to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BlockedKind {
    /// The table is gone, the volume stays for the time being.
    RemovalBlocked,
    /// The change is never done; the object stays as it is.
    ChangeRefused,
    /// The change is done once what it waits for has happened: a client has gone, a replica is in sync.
    ChangePending,
    /// The volume can't be opened or created.
    Blocked,
    /// A replica belongs to another node.
    Waiting,
    /// All copies are in memory and are lost when the daemon stops.
    MemoryOnly,
}

impl BlockedKind {
    /// Every type, for conditions that have to be taken back.
    pub const ALL: [Self; 6] = [
        Self::RemovalBlocked,
        Self::ChangeRefused,
        Self::ChangePending,
        Self::Blocked,
        Self::Waiting,
        Self::MemoryOnly,
    ];

    /// The condition's type.
    #[must_use]
    pub const fn condition(self) -> &'static str {
        match self {
            Self::RemovalBlocked => "RemovalBlocked",
            Self::ChangeRefused => "ChangeRefused",
            Self::ChangePending => "ChangePending",
            Self::Blocked => "Blocked",
            Self::Waiting => "Waiting",
            Self::MemoryOnly => "MemoryOnly",
        }
    }
}
