//! The life of a replica's file: creation (spec L6), opening under lock (A1), quarantine, purge.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, FileType, OFlags, RenameFlags, SeekFrom, fstat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use tokio_uring::fs::File;

use super::directory::{self, Directory, Folder};
use super::error::Fault;
use super::listing::{Place, read_slots};
use super::lock;
use super::quarantine::QuarantineName;
use crate::io::Alignment;
use crate::io::planted::{CREATION_UNSYNCED, is_planted, kill_point};
use crate::io::slots::Slot;
use crate::model::{ReplicaId, VolumeId};
use crate::replica::layout::DATA_OFFSET;
use crate::replica::replica::newest_label;
use crate::replica::{Label, OpenError};
use crate::units::{Bytes, MIB};

/// How often a lock that someone else has is tried again.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// What a thin replica takes up at its creation, bytes: labels and bitmaps.
const THIN_LEN: u64 = MIB;
/// What `st_blocks` counts in, bytes.
const STAT_BLOCK: u64 = 512;

/// An open and locked replica file. The fd is the only open file description: data, labels, bitmaps and the lock all
/// belong to it; closing it gives the lock back.
#[derive(Debug)]
pub struct OpenedFile {
    /// The file, opened `O_DIRECT | O_RDWR`.
    pub fd: OwnedFd,
    /// Its size, bytes.
    pub size: u64,
    /// What direct I/O on it needs.
    pub alignment: Alignment,
    /// Whether its label says that it keeps its reservation; none while it has no label.
    pub thick: Option<bool>,
}

/// Size and allocation of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Its size, bytes.
    pub size: u64,
    /// What it takes up on the filesystem, bytes.
    pub allocated: u64,
}

/// What became of a leftover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// There was none.
    Absent,
    /// Nothing was ever written behind its labels, and it was deleted.
    Deleted,
    /// It has, or may have, data, and was moved here.
    Moved(PathBuf),
}

/// Makes an empty file for a replica, durably; its label is written later, through `Replica::format` (spec L6).
pub(super) async fn create(
    directory: Rc<Directory>,
    replica: ReplicaId,
    len: u64,
    thin: bool,
    reserve: Bytes,
) -> Result<(), Fault> {
    let folder = directory.replicas();
    let name = replica.to_string();
    let path = folder.join(&name);
    let needed = if thin { THIN_LEN } else { len };
    // One at a time, so that two creations can't both count on the same free space; what makes them durable is done for
    // many at a time.
    let taking = directory.allocating.lock().await;
    check_space(&directory, needed, reserve)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::DIRECT;
    let fd = folder
        .open_file(&name, flags)
        .map_err(|error| Fault::io("create", &path, error))?;
    let made = async {
        if directory.is_btrfs() {
            set_nocow(&fd)
                .map_err(|error| Fault::io("switch copy-on-write off for", &path, error))?;
        }
        directory::alignment(&fd, &path)?;
        let failed = |error: io::Error| {
            if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
                return no_space(&directory, needed, reserve);
            }
            Fault::io("allocate", &path, error)
        };
        let file = allocate(fd, len, thin).await.map_err(failed)?;
        drop(taking);
        kill_point();
        if is_planted(CREATION_UNSYNCED) {
            return file.close().await.map_err(failed);
        }
        file.sync_all().await.map_err(failed)?;
        file.close().await.map_err(failed)?;
        folder.sync().await
    }
    .await;
    if made.is_err() {
        // Made by this very call (O_EXCL) and never written to.
        let _ = unlinkat(&folder.fd, &name, AtFlags::empty());
    }
    made
}

async fn allocate(fd: OwnedFd, len: u64, thin: bool) -> io::Result<File> {
    if thin {
        rustix::fs::ftruncate(&fd, len)?;
    }
    let file = File::from_std(fd.into());
    if !thin {
        file.fallocate(0, len, 0).await?;
    }
    Ok(file)
}

fn set_nocow(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::ioctl_getflags(fd)?;
    rustix::fs::ioctl_setflags(fd, flags | rustix::fs::IFlags::NOCOW)
}

fn check_space(directory: &Directory, needed: u64, reserve: Bytes) -> Result<(), Fault> {
    let (_, free) = filesystem(directory)?;
    if free.saturating_sub(reserve).get() < needed {
        return Err(no_space(directory, needed, reserve));
    }
    Ok(())
}

/// Whether a file could become `len` bytes long. A sparse one takes up nothing before it is written to.
pub(super) fn check_room(
    directory: &Directory,
    replica: ReplicaId,
    len: u64,
    thin: bool,
    reserve: Bytes,
) -> Result<(), Fault> {
    let found = stat(directory.replicas(), &replica.to_string())?;
    let needed = if thin {
        0
    } else {
        len.saturating_sub(found.size)
    };
    check_space(directory, needed, reserve)
}

fn no_space(directory: &Directory, needed: u64, reserve: Bytes) -> Fault {
    let free = filesystem(directory).map_or(Bytes(0), |(_, free)| free);
    Fault::NoSpace {
        needed: Bytes(needed),
        available: free.saturating_sub(reserve),
        reserve,
    }
}

/// Size of the pool's filesystem, and what is free on it.
pub(super) fn filesystem(directory: &Directory) -> Result<(Bytes, Bytes), Fault> {
    let found = rustix::fs::fstatvfs(directory.root())
        .map_err(|error| Fault::io("inspect", directory.path(), error))?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(found.f_frsize));
    Ok((bytes(found.f_blocks), bytes(found.f_bavail)))
}

/// Opens a replica and waits until its lock is granted (spec A1).
pub(super) async fn open(
    directory: Rc<Directory>,
    replica: ReplicaId,
    patience: Duration,
) -> Result<OpenedFile, Fault> {
    let folder = directory.replicas();
    let name = replica.to_string();
    let path = folder.join(&name);
    let fd = open_locked(folder, &name, patience).await?;
    let alignment = directory::alignment(&fd, &path)?;
    let stat = stat_fd(&fd, &path)?;
    let thick = match newest(&fd, &path, stat.size).await {
        Ok((_, label, _)) => Some(label.is_thick()),
        Err(Fault::Label { .. }) => None,
        Err(other) => return Err(other),
    };
    Ok(OpenedFile {
        fd,
        size: stat.size,
        alignment,
        thick,
    })
}

/// Opens a file for direct reading and writing, and waits for its lock.
pub(super) async fn open_locked(
    folder: &Folder,
    name: &str,
    patience: Duration,
) -> Result<OwnedFd, Fault> {
    let path = folder.join(name);
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::NONBLOCK;
    let fd = folder.open_file(name, flags).map_err(|error| match error {
        Errno::NOENT => Fault::ReplicaMissing { path: path.clone() },
        Errno::INVAL => Fault::NoDirectIo {
            path: path.clone(),
            why: error.to_string(),
        },
        error => Fault::io("open", &path, error),
    })?;
    let opened = fstat(&fd).map_err(|error| Fault::io("inspect", &path, error))?;
    if FileType::from_raw_mode(opened.st_mode) != FileType::RegularFile {
        return Err(Fault::io("open", path, Errno::INVAL));
    }
    wait_for_lock(&fd, &path, patience).await?;
    // Whoever had the lock may have moved or purged the file.
    match statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(now) if (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino) => Ok(fd),
        Ok(_) | Err(Errno::NOENT) => Err(Fault::ReplicaMissing { path }),
        Err(error) => Err(Fault::io("inspect", path, error)),
    }
}

async fn wait_for_lock(fd: &OwnedFd, path: &Path, patience: Duration) -> Result<(), Fault> {
    let try_lock = || lock::try_lock(fd).map_err(|error| Fault::io("lock", path, error));
    let granted = tokio::time::timeout(patience, async {
        while !try_lock()? {
            tokio::time::sleep(LOCK_POLL).await;
        }
        Ok(())
    });
    match granted.await {
        Ok(result) => result,
        Err(_) => Err(Fault::ReplicaInUse {
            path: path.to_owned(),
            holder: lock::holder(fd.as_fd()),
        }),
    }
}

/// Both slots, the newest label, and which slot it is in.
pub(super) async fn newest(
    fd: &OwnedFd,
    path: &Path,
    size: u64,
) -> Result<(usize, Label, [Slot; 2]), Fault> {
    let unusable = |source| Fault::Label {
        path: path.to_owned(),
        source: Box::new(source),
    };
    if size < MIB {
        return Err(unusable(OpenError::Truncated {
            expected: MIB,
            found: size,
        }));
    }
    let slots = read_slots(fd)
        .await
        .map_err(|error| Fault::io("read", path, error))?;
    let (slot, label) = newest_label(&slots).map_err(unusable)?;
    Ok((slot, label, slots))
}

/// Size and allocation of a replica's file.
pub(super) fn stat(folder: &Folder, name: &str) -> Result<FileStat, Fault> {
    let path = folder.join(name);
    match statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(file_stat(&found)),
        Err(Errno::NOENT) => Err(Fault::ReplicaMissing { path }),
        Err(error) => Err(Fault::io("inspect", path, error)),
    }
}

fn stat_fd(fd: &OwnedFd, path: &Path) -> Result<FileStat, Fault> {
    let found = fstat(fd).map_err(|error| Fault::io("inspect", path, error))?;
    Ok(file_stat(&found))
}

fn file_stat(found: &rustix::fs::Stat) -> FileStat {
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    FileStat {
        size: unsigned(found.st_size),
        allocated: unsigned(found.st_blocks).saturating_mul(STAT_BLOCK),
    }
}

/// Moves a closed replica between folders, durably. Doing it twice is doing it once.
pub(super) async fn relocate(
    from: (&Folder, &str),
    to: (&Folder, &str),
    patience: Duration,
) -> Result<(), Fault> {
    let source = from.0.join(from.1);
    let _lock = match open_locked(from.0, from.1, patience).await {
        Ok(fd) => fd,
        Err(Fault::ReplicaMissing { .. }) if stat(to.0, to.1).is_ok() => {
            return to.0.sync().await;
        }
        Err(fault) => return Err(fault),
    };
    renameat_with(&from.0.fd, from.1, &to.0.fd, to.1, RenameFlags::NOREPLACE).map_err(|error| {
        match error {
            Errno::EXIST => Fault::Exists {
                path: to.0.join(to.1),
            },
            error => Fault::io("move", source, error),
        }
    })?;
    kill_point();
    to.0.sync().await?;
    from.0.sync().await
}

/// Deletes a quarantined replica for good. Its space becomes free while this runs.
pub(super) async fn purge(
    directory: Rc<Directory>,
    name: QuarantineName,
    patience: Duration,
) -> Result<(), Fault> {
    let folder = directory.quarantine();
    let name = name.to_string();
    match open_locked(folder, &name, patience).await {
        Ok(_lock) => {}
        // A file without direct I/O can still be deleted; nobody can have opened it.
        Err(Fault::NoDirectIo { .. }) => {}
        Err(Fault::ReplicaMissing { .. }) => return folder.sync().await,
        Err(fault) => return Err(fault),
    }
    delete(folder, &name).await
}

/// Deletes a replica that its volume has no use for.
pub(super) async fn delete_of(
    directory: Rc<Directory>,
    replica: ReplicaId,
    volume: VolumeId,
    patience: Duration,
) -> Result<(), Fault> {
    let folder = directory.replicas();
    let name = replica.to_string();
    let path = folder.join(&name);
    let fd = match open_locked(folder, &name, patience).await {
        Ok(fd) => fd,
        Err(Fault::ReplicaMissing { .. }) => return folder.sync().await,
        Err(fault) => return Err(fault),
    };
    let size = stat_fd(&fd, &path)?.size;
    match newest(&fd, &path, size).await {
        Ok((_, label, _)) if label.volume != volume => {
            let found = label.volume;
            return Err(Fault::Misplaced { path, found });
        }
        Ok(_) => {}
        // Wiped, or never written: what is behind it is nobody's.
        Err(Fault::Label { source, .. }) if matches!(*source, OpenError::Blank { .. }) => {}
        Err(fault) => return Err(fault),
    }
    delete(folder, &name).await
}

async fn delete(folder: &Folder, name: &str) -> Result<(), Fault> {
    // tokio-uring takes paths only; this one leads through our own fd of the folder.
    let fd = std::os::fd::AsRawFd::as_raw_fd(&folder.fd);
    let through = format!("/proc/self/fd/{fd}/{name}");
    match tokio_uring::fs::remove_file(through).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Fault::io("delete", folder.join(name), error)),
    }
    folder.sync().await
}

/// Clears away what a creation left that never served: to be called only for a replica whose creation is journalled,
/// and whose volume has no witness record. Deletes it when nothing was ever written behind its labels; keeps anything else
/// in `garbage/`. A label past the first generation was assembled once (spec A8), so its volume was created whatever the caller believes.
pub(super) async fn discard(
    directory: Rc<Directory>,
    replica: ReplicaId,
    patience: Duration,
) -> Result<Discarded, Fault> {
    let folder = directory.replicas();
    let name = replica.to_string();
    let path = folder.join(&name);
    let fd = match open_locked(folder, &name, patience).await {
        Ok(fd) => fd,
        Err(Fault::ReplicaMissing { .. }) => return Ok(Discarded::Absent),
        Err(fault) => return Err(fault),
    };
    let size = stat_fd(&fd, &path)?.size;
    match newest(&fd, &path, size).await {
        Ok((_, label, _)) if label.generation > 1 => {
            let generation = label.generation;
            return Err(Fault::HasServed { path, generation });
        }
        Ok(_) | Err(Fault::Label { .. }) => {}
        Err(fault) => return Err(fault),
    }
    if is_unwritten(&fd) {
        delete(folder, &name).await?;
        return Ok(Discarded::Deleted);
    }
    drop(fd);
    let garbage = directory.garbage();
    let time = jiff::Timestamp::try_from(crate::io::clock::wall()).unwrap_or_default();
    let new_name = format!("{name}@{}", time.strftime("%Y%m%dT%H%M%SZ"));
    relocate((folder, &name), (garbage, &new_name), patience).await?;
    Ok(Discarded::Moved(garbage.join(new_name)))
}

/// Whether the filesystem knows for sure that nothing was ever written to the data area: then it is all zeroes, and
/// deleting the file loses nothing. Filesystems that can't tell say that there is data.
fn is_unwritten(fd: &OwnedFd) -> bool {
    rustix::fs::seek(fd, SeekFrom::Data(DATA_OFFSET)) == Err(Errno::NXIO)
}

impl Place {
    /// The folder and the name of the file.
    pub(super) fn locate<'a>(&self, directory: &'a Directory) -> (&'a Folder, String) {
        match self {
            Self::Active(replica) => (directory.replicas(), replica.to_string()),
            Self::Quarantined(name) => (directory.quarantine(), name.to_string()),
        }
    }
}
