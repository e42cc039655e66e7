//! Opening a pool's directory, or making it (spec A0), and what all work on it shares.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags, fstatfs, mkdirat, openat2,
    renameat_with, statx, unlinkat,
};
use rustix::io::Errno;
use tokio_uring::fs::File;

use super::error::{Fault, MissingPool};
use super::{lock, marker};
use crate::io::Alignment;
use crate::model::PoolId;

/// `STATX_DIOALIGN`, Linux 6.1; rustix has the fields but not the flag.
const STATX_DIOALIGN: u32 = 0x2000;
/// `BTRFS_SUPER_MAGIC`.
const BTRFS_MAGIC: i64 = 0x9123_683e;
/// The coarsest direct I/O that labels, bitmap pages and 4096-byte blocks allow, bytes.
const ALIGNMENT_MAX: u32 = 4096;
/// Nothing below a pool's directory is reached through links or leads out of it.
pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

pub(super) const REPLICAS: &str = "replicas";
pub(super) const QUARANTINE: &str = "quarantine";
pub(super) const GARBAGE: &str = "garbage";

/// An opened pool. Holds the lock on it until dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    id: PoolId,
    root: OwnedFd,
    replicas: Folder,
    quarantine: Folder,
    garbage: Folder,
    /// Held while space is checked and then taken.
    pub(super) allocating: tokio::sync::Mutex<()>,
}

/// One of a pool's folders.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Directory {
    /// Opens the pool at `path`, or makes it there when `known` is none and nothing speaks against it. A known pool
    /// that is not there is never made anew (spec A0).
    pub(super) async fn open(path: PathBuf, known: Option<PoolId>) -> Result<Self, Fault> {
        let root = match look(&path)? {
            Some(root) => root,
            None if let Some(known) = known => {
                let why = MissingPool::NoDirectory;
                return Err(Fault::Missing { path, known, why });
            }
            None => create_root(&path).await?,
        };
        // The lock comes first, so that two daemons never make one pool at once.
        let locked = lock::try_lock(&root).map_err(|e| Fault::io("lock", &path, e))?;
        if !locked {
            let holder = lock::holder(root.as_fd());
            return Err(Fault::InUse { path, holder });
        }
        let id = match (read_marker(&root, &path).await?, known) {
            (Some(id), Some(known)) if id != known => {
                let why = MissingPool::Other(id);
                return Err(Fault::Missing { path, known, why });
            }
            (Some(id), _) => id,
            (None, Some(known)) => {
                let why = MissingPool::NoMarker;
                return Err(Fault::Missing { path, known, why });
            }
            (None, None) => {
                must_be_unused(&root, &path)?;
                probe_direct_io(&root, &path)?;
                write_marker(&root, &path).await?
            }
        };
        probe_direct_io(&root, &path)?;
        let replicas = Folder::open(&root, &path, REPLICAS)?;
        let quarantine = Folder::open(&root, &path, QUARANTINE)?;
        let garbage = Folder::open(&root, &path, GARBAGE)?;
        sync_dir(&root, &path).await?;
        Ok(Self {
            path,
            id,
            root,
            replicas,
            quarantine,
            garbage,
            allocating: tokio::sync::Mutex::default(),
        })
    }

    /// The pool's id, from its marker.
    pub(super) fn id(&self) -> PoolId {
        self.id
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Whether files can still be opened: a filesystem that was shut down answers much from its caches, but not that.
    pub(super) fn probe(&self) -> Result<(), Fault> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match openat2(&self.root, marker::FILE, flags, Mode::empty(), BENEATH) {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::io("open", self.path.join(marker::FILE), error)),
        }
    }

    /// Replicas in use.
    pub(super) fn replicas(&self) -> &Folder {
        &self.replicas
    }

    /// Replicas of removed volumes.
    pub(super) fn quarantine(&self) -> &Folder {
        &self.quarantine
    }

    /// Leftovers.
    pub(super) fn garbage(&self) -> &Folder {
        &self.garbage
    }

    /// Whether new files must be made without copy-on-write to be written in place.
    pub(super) fn is_btrfs(&self) -> bool {
        is_btrfs(&self.root)
    }
}

impl Folder {
    fn open(root: &OwnedFd, pool: &Path, name: &str) -> Result<Self, Fault> {
        let path = pool.join(name);
        match mkdirat(root, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Fault::io("create", path, error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat2(root, name, flags, Mode::empty(), BENEATH)
            .map_err(|error| Fault::io("open", &path, error))?;
        Ok(Self { fd, path })
    }

    /// The path of a file in the folder, for messages.
    pub(super) fn join(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    /// Opens a file in the folder; links are not followed.
    pub(super) fn open_file(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = if flags.contains(OFlags::CREATE) {
            Mode::RUSR | Mode::WUSR
        } else {
            Mode::empty()
        };
        openat2(&self.fd, name, flags, mode, BENEATH)
    }

    /// Makes the folder's entries durable.
    pub(super) async fn sync(&self) -> Result<(), Fault> {
        sync_dir(&self.fd, &self.path).await
    }
}

/// Opens what is at the pool's path, if there is anything; refuses everything but a directory.
fn look(path: &Path) -> Result<Option<OwnedFd>, Fault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Ok(root) => Ok(Some(root)),
        Err(Errno::NOENT) => Ok(None),
        Err(error @ (Errno::LOOP | Errno::NOTDIR)) => Err(not_a_directory(path, error)),
        Err(error) => Err(Fault::io("open", path, error)),
    }
}

fn not_a_directory(path: &Path, error: Errno) -> Fault {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        // Something above it is no directory either.
        return match path.parent() {
            Some(parent) if parent.parent().is_some() => not_a_directory(parent, error),
            _ => Fault::io("open", path, error),
        };
    };
    if found.is_symlink() {
        return Fault::Symlink {
            path: path.to_owned(),
            target: std::fs::read_link(path).unwrap_or_default(),
        };
    }
    Fault::NotADirectory {
        path: path.to_owned(),
        found: if found.is_file() {
            "a file"
        } else {
            "a device, a pipe or a socket"
        },
    }
}

/// Creates the pool's directory, durably. Its parent must be there.
async fn create_root(path: &Path) -> Result<OwnedFd, Fault> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        return Err(Fault::io("create", path, error));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = openat2(
        CWD,
        parent,
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    );
    let above = above.map_err(|error| match error {
        Errno::NOENT => Fault::ParentMissing {
            parent: parent.to_owned(),
        },
        Errno::NOTDIR => not_a_directory(parent, error),
        error => Fault::io("open", parent, error),
    })?;
    match mkdirat(&above, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(Fault::io("create", path, error)),
    }
    sync_dir(&above, parent).await?;
    look(path)?.ok_or_else(|| Fault::io("open", path, Errno::NOENT))
}

async fn read_marker(root: &OwnedFd, pool: &Path) -> Result<Option<PoolId>, Fault> {
    let path = pool.join(marker::FILE);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match openat2(root, marker::FILE, flags, Mode::empty(), BENEATH) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Fault::io("open", path, error)),
    };
    let file = File::from_std(fd.into());
    let (read, bytes) = file.read_at(Vec::with_capacity(marker::LEN_MAX), 0).await;
    read.map_err(|error| Fault::io("read", &path, error))?;
    match marker::parse(&bytes) {
        Ok(id) => Ok(Some(id)),
        Err(why) => Err(Fault::Marker { path, why }),
    }
}

/// Writes a new marker so that a crash leaves either none or a whole one.
async fn write_marker(root: &OwnedFd, pool: &Path) -> Result<PoolId, Fault> {
    let path = pool.join(marker::NEW_FILE);
    let failed = |action| {
        let path = path.clone();
        move |error: io::Error| Fault::io(action, path, error)
    };
    match unlinkat(root, marker::NEW_FILE, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(failed("remove")(error.into())),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let fd = openat2(root, marker::NEW_FILE, flags, mode, BENEATH)
        .map_err(|error| failed("create")(error.into()))?;
    let id = PoolId::generate();
    let file = File::from_std(fd.into());
    let text = marker::text(id).into_bytes();
    let (written, _) = file.write_all_at(text, 0).await;
    written.map_err(failed("write"))?;
    file.sync_all().await.map_err(failed("flush"))?;
    renameat_with(
        root,
        marker::NEW_FILE,
        root,
        marker::FILE,
        RenameFlags::NOREPLACE,
    )
    .map_err(|error| failed("rename")(error.into()))?;
    sync_dir(root, pool).await?;
    Ok(id)
}

/// A directory becomes a pool only when nothing else is in it.
fn must_be_unused(root: &OwnedFd, pool: &Path) -> Result<(), Fault> {
    let failed = |error: Errno| Fault::io("list", pool, error);
    let mut found = None;
    for entry in rustix::fs::Dir::read_from(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.file_name().to_bytes() {
            b"." | b".." | b"lost+found" => {}
            name if name == marker::NEW_FILE.as_bytes() => {}
            name if name == REPLICAS.as_bytes() || name == QUARANTINE.as_bytes() => {
                let path = pool.to_owned();
                return Err(Fault::MarkerLost { path });
            }
            name => found = Some(String::from_utf8_lossy(name).into_owned()),
        }
    }
    match found {
        None => Ok(()),
        Some(found) => Err(Fault::NotEmpty {
            path: pool.to_owned(),
            found,
        }),
    }
}

/// Finds out with a nameless file whether the filesystem does direct I/O, and that it can be written.
fn probe_direct_io(root: &OwnedFd, pool: &Path) -> Result<(), Fault> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    match openat2(root, ".", flags, Mode::RUSR | Mode::WUSR, BENEATH) {
        Ok(_) if is_btrfs(root) => Ok(()),
        Ok(fd) => alignment(&fd, pool).map(drop),
        Err(error @ (Errno::INVAL | Errno::OPNOTSUPP)) => Err(Fault::NoDirectIo {
            path: pool.to_owned(),
            why: error.to_string(),
        }),
        Err(error) => Err(Fault::io("create a file in", pool, error)),
    }
}

fn is_btrfs(fd: &OwnedFd) -> bool {
    fstatfs(fd).is_ok_and(|found| found.f_type == BTRFS_MAGIC)
}

/// The alignment that direct I/O on an open file needs. Btrfs does not report it, but serves a file without
/// copy-on-write in place.
pub(super) fn alignment(fd: &OwnedFd, path: &Path) -> Result<Alignment, Fault> {
    let flags = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    let found = statx(fd, "", AtFlags::EMPTY_PATH, flags)
        .map_err(|error| Fault::io("inspect", path, error))?;
    let (offset, memory) = (found.stx_dio_offset_align, found.stx_dio_mem_align);
    let is_nocow = || {
        let flags = rustix::fs::ioctl_getflags(fd);
        flags.is_ok_and(|flags| flags.contains(rustix::fs::IFlags::NOCOW))
    };
    let refused = |why: &str| Fault::NoDirectIo {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    if offset == 0 || memory == 0 {
        if is_btrfs(fd) && is_nocow() {
            let (offset, memory) = (ALIGNMENT_MAX, ALIGNMENT_MAX);
            return Ok(Alignment { offset, memory });
        }
        return Err(refused("it reports no alignment"));
    }
    let usable = |align: u32| align.is_power_of_two() && align <= ALIGNMENT_MAX;
    if !usable(offset) || !usable(memory) {
        return Err(refused(&format!(
            "it wants units of {offset} bytes at multiples of {memory} in memory"
        )));
    }
    Ok(Alignment { offset, memory })
}

/// Makes a directory's entries durable.
pub(super) async fn sync_dir(fd: &OwnedFd, path: &Path) -> Result<(), Fault> {
    let synced = async {
        let file = File::from_std(fd.try_clone()?.into());
        file.sync_all().await?;
        file.close().await
    };
    synced
        .await
        .map_err(|error| Fault::io("flush", path, error))
}
