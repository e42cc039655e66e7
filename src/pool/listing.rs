//! What is in a pool: every replica with its label, and every file that is none.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

use super::directory::{Directory, Folder};
use super::error::Fault;
use super::files::{FileStat, filesystem, newest, stat};
use super::handle::{Capacity, Survey};
use super::quarantine::QuarantineName;
use crate::io::slots::{SLOT_SIZE, Slot};
use crate::model::{PoolId, ReplicaId};
use crate::replica::layout::LABEL_OFFSETS;
use crate::replica::{Label, OpenError};
use crate::units::Bytes;

/// What the memory of a direct read is aligned to, bytes.
const MEMORY_ALIGNMENT: usize = 4096;

/// A file in a pool whose name is a replica's.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundReplica {
    /// Where it is, and which replica its name says it is.
    pub place: Place,
    /// The file, for messages.
    pub path: PathBuf,
    /// Its size and allocation.
    pub stat: FileStat,
    /// Its newest label, if that could be read, even when there is a fault.
    pub label: Option<Label>,
    /// Why it can't be used (spec A3); such a file is never written to.
    pub fault: Option<ReplicaFault>,
}

/// Where a replica is in its pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Among those in use.
    Active(ReplicaId),
    /// Among those of removed volumes.
    Quarantined(QuarantineName),
}

impl Place {
    /// The replica that the file's name says it is.
    #[must_use]
    pub const fn replica(&self) -> ReplicaId {
        match self {
            Self::Active(replica) => *replica,
            Self::Quarantined(name) => name.replica,
        }
    }
}

/// Why a replica's file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaFault {
    /// Something is wrong with its label or its size.
    #[error("{0}")]
    Label(OpenError),
    /// The label is that of another replica.
    #[error("its label is that of replica {0}: the file was copied or renamed")]
    Misnamed(ReplicaId),
    /// The label is that of a replica of another pool.
    #[error("its label belongs to pool {0}: the file was copied from there")]
    WrongPool(PoolId),
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Unreadable(String),
}

/// Everything in a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Files that are named like replicas, those in use first, by name.
    pub replicas: Vec<FoundReplica>,
    /// Files that are not. They are never touched.
    pub strangers: Vec<PathBuf>,
}

/// How many files are looked at at the same time.
const LOOKS: usize = 64;

/// Looks at every file of the pool.
pub(super) async fn list(directory: Rc<Directory>) -> Result<Listing, Fault> {
    let mut listing = Listing::default();
    let mut places = Vec::new();
    for folder in [directory.replicas(), directory.quarantine()] {
        let is_active = std::ptr::eq(folder, directory.replicas());
        for name in names(folder)? {
            let place = if is_active {
                replica_of(&name).map(Place::Active)
            } else {
                name.parse().ok().map(Place::Quarantined)
            };
            match place {
                Some(place) => places.push(place),
                None => listing.strangers.push(folder.join(&name)),
            }
        }
    }
    for some in places.chunks(LOOKS) {
        let looks = some.iter().map(|place| {
            let directory = Rc::clone(&directory);
            tokio_uring::spawn(look_at(directory, place.clone()))
        });
        for look in looks.collect::<Vec<_>>() {
            let ended = look.await.map_err(|_| Fault::Closed)?;
            // None: it was moved or purged since the folder was read.
            listing.replicas.extend(ended?);
        }
    }
    Ok(listing)
}

/// Looks at one file; none when it is not there.
pub(super) async fn look_at(
    directory: Rc<Directory>,
    place: Place,
) -> Result<Option<FoundReplica>, Fault> {
    let (folder, name) = place.locate(&directory);
    match look(folder, &name, place, directory.id()).await {
        Ok(found) => Ok(Some(found)),
        Err(Fault::ReplicaMissing { .. }) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// The replica whose file has this name; only the spelling that we use.
pub(super) fn replica_of(name: &str) -> Option<ReplicaId> {
    name.parse::<ReplicaId>()
        .ok()
        .filter(|replica| replica.to_string() == name)
}

fn names(folder: &Folder) -> Result<Vec<String>, Fault> {
    let failed = |error: Errno| Fault::io("list", &folder.path, error);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&folder.fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

async fn look(
    folder: &Folder,
    name: &str,
    place: Place,
    pool: PoolId,
) -> Result<FoundReplica, Fault> {
    let stat = stat(folder, name)?;
    let path = folder.join(name);
    let (label, fault) = match read_label(folder, name, &path).await {
        Ok(label) => {
            let fault = fault_of(&label, &place, pool, stat.size);
            (Some(label), fault)
        }
        Err(fault) => (None, Some(fault)),
    };
    Ok(FoundReplica {
        place,
        path,
        stat,
        label,
        fault,
    })
}

async fn read_label(
    folder: &Folder,
    name: &str,
    path: &std::path::Path,
) -> Result<Label, ReplicaFault> {
    let unreadable = |error: io::Error| ReplicaFault::Unreadable(error.to_string());
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::NONBLOCK;
    let fd = folder
        .open_file(name, flags)
        .map_err(|error| unreadable(error.into()))?;
    let found = fstat(&fd).map_err(|error| unreadable(error.into()))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(ReplicaFault::Unreadable("it is not a file".to_owned()));
    }
    let size = u64::try_from(found.st_size).unwrap_or(0);
    match newest(&fd, path, size).await {
        Ok((_, label, _)) => Ok(label),
        Err(Fault::Label { source, .. }) => Err(ReplicaFault::Label(*source)),
        Err(other) => Err(ReplicaFault::Unreadable(other.to_string())),
    }
}

/// Spec A3.
pub(super) fn fault_of(
    label: &Label,
    place: &Place,
    pool: PoolId,
    found: u64,
) -> Option<ReplicaFault> {
    let expected = label.file_len();
    if label.replica != place.replica() {
        Some(ReplicaFault::Misnamed(label.replica))
    } else if label.pool != pool {
        Some(ReplicaFault::WrongPool(label.pool))
    } else if found < expected {
        let truncated = OpenError::Truncated { expected, found };
        Some(ReplicaFault::Label(truncated))
    } else {
        None
    }
}

/// How full the pool is, and how large each file in use: one call for all of them.
pub(super) fn survey(directory: &Directory, reserve: Bytes) -> Result<Survey, Fault> {
    directory.probe()?;
    let (size, free) = filesystem(directory)?;
    let mut survey = Survey {
        capacity: Capacity {
            size,
            available: free.saturating_sub(reserve),
            ..Capacity::default()
        },
        sizes: Vec::new(),
    };
    let capacity = &mut survey.capacity;
    for folder in [directory.replicas(), directory.quarantine()] {
        let is_active = std::ptr::eq(folder, directory.replicas());
        for name in names(folder)? {
            let Ok(found) = stat(folder, &name) else {
                continue;
            };
            capacity.allocated.0 = capacity.allocated.0.saturating_add(found.allocated);
            capacity.committed.0 = capacity.committed.0.saturating_add(found.size);
            let replica = replica_of(&name).filter(|_| is_active);
            survey.sizes.extend(replica.map(|replica| (replica, found)));
        }
    }
    Ok(survey)
}

/// Both label slots of a file opened for direct I/O.
pub(super) async fn read_slots(fd: &OwnedFd) -> io::Result<[Slot; 2]> {
    let file = File::from_std(fd.try_clone()?.into());
    let mut slots = [[0; SLOT_SIZE]; 2];
    let mut result = Ok(());
    for (slot, offset) in slots.iter_mut().zip(LABEL_OFFSETS) {
        let (buffer, start) = aligned();
        let (read, buffer) = file
            .read_exact_at(buffer.slice(start..start + SLOT_SIZE), offset)
            .await;
        slot.copy_from_slice(&buffer.get_ref()[start..start + SLOT_SIZE]);
        result = result.and(read);
    }
    // Closed before the answer: while this copy of the fd is open, so is the file's lock held.
    file.close().await?;
    result.map(|()| slots)
}

/// Memory for one slot, and where in it the aligned part starts.
pub(super) fn aligned() -> (Vec<u8>, usize) {
    let buffer = vec![0; SLOT_SIZE + MEMORY_ALIGNMENT];
    let address = buffer.as_ptr().addr();
    let start = address.next_multiple_of(MEMORY_ALIGNMENT) - address;
    (buffer, start)
}
