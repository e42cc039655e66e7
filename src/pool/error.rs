//! What can go wrong with a pool or one of its files, told so that a person knows what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::lock::Holder;
use crate::model::{PoolId, PoolName, ReplicaId, VolumeId};
use crate::replica::OpenError;
use crate::units::Bytes;

/// An operation on a pool failed.
#[derive(Debug, thiserror::Error)]
#[error("pool \"{pool}\": {fault}")]
pub struct PoolError {
    /// The pool.
    pub pool: PoolName,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The pool was here once and is not now (spec A0): an unmounted disk, most likely. Nothing was created.
    #[error(
        "{why} at \"{path}\", but this node knows the pool as {known}: is its disk mounted? \
         Nothing was created; to give its data up for good, use another pool name"
    )]
    Missing {
        /// The pool's path.
        path: PathBuf,
        /// The id it had.
        known: PoolId,
        /// What is there instead.
        why: MissingPool,
    },
    /// A pool's directory is created when its parent exists, but that does not.
    #[error("\"{parent}\" does not exist: create it, or mount the disk that has it")]
    ParentMissing {
        /// The missing directory.
        parent: PathBuf,
    },
    /// Something else than a directory is there.
    #[error("\"{path}\" is {found}, expected a directory: move it away or choose another path")]
    NotADirectory {
        /// The pool's path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The path leads elsewhere.
    #[error(
        "\"{path}\" is a symbolic link to \"{target}\": name that directory itself as the path"
    )]
    Symlink {
        /// The pool's path.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The filesystem is mounted read-only, or the daemon may not write.
    #[error(
        "\"{path}\" can't be written ({source}): remount it read-write, or mend its permissions"
    )]
    ReadOnly {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A new pool would be made in a directory that is used for something else.
    #[error(
        "\"{path}\" is not a pool and not empty (it has \"{found}\"): choose an empty or a new directory"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// Replicas are there, but not the marker.
    #[error(
        "\"{path}\" has replicas but its marker \"volund-pool\" is gone: restore it from a backup"
    )]
    MarkerLost {
        /// The directory.
        path: PathBuf,
    },
    /// The marker can't be understood.
    #[error("the marker \"{path}\" {why}")]
    Marker {
        /// The marker.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Another daemon, or this one under another pool name, serves the pool.
    #[error("\"{path}\" is in use by {holder}: a pool serves one daemon and under one name")]
    InUse {
        /// The pool's path.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// The filesystem can't do direct I/O, or does not say with which alignment.
    #[error(
        "the filesystem of \"{path}\" offers no direct I/O ({why}): use XFS, ext4 or btrfs on a disk"
    )]
    NoDirectIo {
        /// The file or directory.
        path: PathBuf,
        /// How it was found out.
        why: String,
    },
    /// Not enough room for a new replica.
    #[error(
        "a replica needs {needed} but only {available} are free above the reserve of {reserve}: \
         free some space or lower the reserve"
    )]
    NoSpace {
        /// What it needs.
        needed: Bytes,
        /// What there is, the reserve taken off.
        available: Bytes,
        /// What is kept free.
        reserve: Bytes,
    },
    /// No such replica.
    #[error("there is no replica file \"{path}\"")]
    ReplicaMissing {
        /// The file.
        path: PathBuf,
    },
    /// A file of that name is there already.
    #[error("\"{path}\" exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Someone has the replica open (spec A1).
    #[error(
        "replica \"{path}\" is locked by {holder}: it will be tried again; end that process if it should not run"
    )]
    ReplicaInUse {
        /// The file.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// The replica's label does not allow what was asked.
    #[error("replica \"{path}\": {source}")]
    Label {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<OpenError>,
    },
    /// The label belongs to another replica than the file's name says.
    #[error("replica \"{path}\" has the label of replica \"{found}\": it was copied or renamed")]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// The replica in the label.
        found: ReplicaId,
    },
    /// It was to be deleted as one of a volume's, and is another's.
    #[error("replica \"{path}\" is of volume {found}: it stays as it is")]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// The volume in the label.
        found: VolumeId,
    },
    /// It was to be cleared away as a leftover of a creation, but its volume has been in use.
    #[error(
        "replica \"{path}\" has reached generation {generation}, so it is no leftover of an unfinished creation: it \
         stays as it is"
    )]
    HasServed {
        /// The file.
        path: PathBuf,
        /// From its label.
        generation: u64,
    },
    /// A label from a future release, that this one may read and not write.
    #[error("replica \"{path}\" has features that this release can't write: use a newer volund")]
    ReadOnlyLabel {
        /// The file.
        path: PathBuf,
    },
    /// The disk did not answer in time. The operation may still take effect later.
    #[error("\"{operation}\" did not end within {} s: the disk hangs or is overloaded", .after.as_secs())]
    Deadline {
        /// What was asked.
        operation: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The pool was closed.
    #[error("the pool was closed")]
    Closed,
    /// The worker thread could not be started.
    #[error("its worker thread can't be started ({0}): is io_uring allowed here?")]
    Worker(io::Error),
    /// Whatever else the kernel says.
    #[error("can't {action} \"{path}\": {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What is at the path of a known pool instead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingPool {
    /// Nothing.
    #[error("there is no directory")]
    NoDirectory,
    /// A directory that is no pool.
    #[error("there is a directory without a pool marker")]
    NoMarker,
    /// Another pool.
    #[error("there is another pool, {0},")]
    Other(PoolId),
}

impl Fault {
    /// Shorthand for [`Fault::Io`], or the more telling fault that its errno stands for.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.raw_os_error() {
            Some(libc::EROFS | libc::EACCES | libc::EPERM) => Self::ReadOnly { path, source },
            Some(libc::EEXIST) => Self::Exists { path },
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    /// One CamelCase word for conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "PoolMissing",
            Self::ParentMissing { .. } => "PoolParentMissing",
            Self::NotADirectory { .. } => "PoolNotADirectory",
            Self::Symlink { .. } => "PoolIsSymlink",
            Self::ReadOnly { .. } => "PoolReadOnly",
            Self::NotEmpty { .. } => "PoolNotEmpty",
            Self::MarkerLost { .. } | Self::Marker { .. } => "PoolMarkerDamaged",
            Self::InUse { .. } => "PoolInUse",
            Self::NoDirectIo { .. } => "NoDirectIo",
            Self::NoSpace { .. } => "NoSpace",
            Self::ReplicaMissing { .. } => "ReplicaMissing",
            Self::Exists { .. } => "FileExists",
            Self::ReplicaInUse { .. } => "ReplicaInUse",
            Self::Label { source, .. } => match **source {
                OpenError::Truncated { .. } => "ReplicaTruncated",
                OpenError::Blank { .. } => "ReplicaBlank",
                _ => "ReplicaUnusable",
            },
            Self::Misplaced { .. } => "ReplicaMisplaced",
            Self::HasServed { .. } => "ReplicaInService",
            Self::Misnamed { .. } => "ReplicaMisnamed",
            Self::ReadOnlyLabel { .. } => "ReplicaReadOnly",
            Self::Deadline { .. } => "PoolTimeout",
            Self::Closed => "PoolClosed",
            Self::Worker(_) | Self::Io { .. } => "PoolError",
        }
    }
}

impl PoolError {
    /// One CamelCase word for conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.fault.reason()
    }
}
