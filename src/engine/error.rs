//! [`EngineError`]: why something could not be done, as a condition's reason and message.

use std::error::Error;

use crate::frontend::ublk::UblkError;
use crate::frontend::vhost_user::SocketError;
use crate::model::observed::Problem;
use crate::nexus::{AssemblyError, CreateError, MemberError, RebuildError, ScrubError};
use crate::pool::PoolError;
use crate::state::StateError;

/// Why a call of the engine failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    reason: String,
    message: String,
    chain: Vec<String>,
}

impl EngineError {
    pub(super) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self::with_chain(reason, vec![message.into()])
    }

    /// An error whose message is that of `error` and everything behind it.
    pub(super) fn of(reason: &str, error: &dyn Error) -> Self {
        Self::with_chain(reason, chain(error))
    }

    fn with_chain(reason: &str, chain: Vec<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: chain.join(": "),
            chain,
        }
    }

    /// The reactor that the call needed has stopped.
    pub(super) fn stopping() -> Self {
        Self::new("Stopping", "the daemon is stopping")
    }

    /// Somebody uses the object.
    pub(super) fn in_use(message: impl Into<String>) -> Self {
        Self::new("InUse", message)
    }

    /// A condition's reason: one CamelCase word that programs can match.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The error and then what caused it, down to the first cause: the parts of the message.
    #[must_use]
    pub fn chain(&self) -> &[String] {
        &self.chain
    }

    pub(super) fn problem(&self) -> Problem {
        Problem {
            reason: self.reason.clone(),
            message: self.message.clone(),
        }
    }
}

/// An error and its sources, each of which prints only its own part.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        // Some errors print their source as well.
        if !chain.last().is_some_and(|text| text.ends_with(&part)) {
            chain.push(part);
        }
        source = cause.source();
    }
    chain
}

impl From<StateError> for EngineError {
    fn from(error: StateError) -> Self {
        Self::of("StateFailed", &error)
    }
}

impl From<PoolError> for EngineError {
    fn from(error: PoolError) -> Self {
        Self::of(error.fault.reason(), &error)
    }
}

impl From<SocketError> for EngineError {
    fn from(error: SocketError) -> Self {
        let reason = match error {
            SocketError::InUse(_) => "SocketInUse",
            SocketError::TooLong { .. } | SocketError::NotASocket(_) | SocketError::Io { .. } => {
                "SocketFailed"
            }
        };
        Self::of(reason, &error)
    }
}

impl From<UblkError> for EngineError {
    fn from(error: UblkError) -> Self {
        Self::of(error.reason(), &error)
    }
}

impl From<CreateError> for EngineError {
    fn from(error: CreateError) -> Self {
        let reason = match &error {
            CreateError::Spec { .. } => "Invalid",
            CreateError::Absent { .. } => "ReplicaAbsent",
            CreateError::Alignment { .. } => "AlignmentMismatch",
            CreateError::Format { source, .. } if source.is_no_space() => "NoSpace",
            CreateError::Format { .. } => "PoolFailed",
            CreateError::Witness(_) => "WitnessFailed",
        };
        Self::of(reason, &error)
    }
}

impl From<MemberError> for EngineError {
    fn from(error: MemberError) -> Self {
        let reason = match &error {
            MemberError::NotMember(_) => "NotMember",
            MemberError::AlreadyThere(_) => "AlreadyThere",
            MemberError::LastCopy(_) => "LastCopy",
            MemberError::Draining(_) => "Draining",
            MemberError::Full => "TooManyReplicas",
            MemberError::Refused(_) => "ReplicaRefused",
            MemberError::Label(_) | MemberError::Flush(_) | MemberError::Silent(_) => "PoolFailed",
            MemberError::Stopped => "Stopping",
        };
        Self::of(reason, &error)
    }
}

impl From<ScrubError> for EngineError {
    fn from(error: ScrubError) -> Self {
        let reason = match &error {
            ScrubError::Busy => "Busy",
            ScrubError::Stopped => "Stopping",
            ScrubError::NotInSync(_) => "NotInSync",
        };
        Self::of(reason, &error)
    }
}

impl From<RebuildError> for EngineError {
    fn from(error: RebuildError) -> Self {
        let reason = match &error {
            RebuildError::NotMember(_) => "NotMember",
            RebuildError::NotHere(_) => "NotHere",
            RebuildError::InSync(_) => "InSync",
            RebuildError::Busy => "Busy",
            RebuildError::Source { .. } => "SourceFailed",
            RebuildError::Target(_) => "TargetFailed",
            RebuildError::Stopped => "Stopping",
        };
        Self::of(reason, &error)
    }
}

impl From<AssemblyError> for EngineError {
    fn from(error: AssemblyError) -> Self {
        let reason = match &error {
            AssemblyError::Blocked(_) => "Blocked",
            AssemblyError::Witness(_) => "WitnessFailed",
            AssemblyError::LostOwnership(_) => "LostOwnership",
            AssemblyError::Failed(_) => "PoolFailed",
        };
        Self::of(reason, &error)
    }
}
