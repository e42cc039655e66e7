//! The state folder: locked by one daemon, with this node's id and the witness files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, StatxFlags};

use super::witness;
use crate::model::{NodeId, VolumeId};
use crate::nexus::WitnessRecord;

/// `STATX_DIOALIGN`, Linux 6.1.
const STATX_DIOALIGN: u32 = 0x2000;

/// Why the state folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon has it.
    #[error(
        "state folder \"{path}\" is in use by process {holder}: one daemon per state folder; stop that one or give \
         this one another --state-dir"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process id that it left in the lock file.
        holder: String,
    },
    /// A file operation failed.
    #[error("can't {what} \"{path}\"")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The database can't be read.
    #[error(
        "the state database \"{path}\" is damaged ({detail}): mount the disks of all pools, move it away and start \
         again; data and labels are in the pools and stay as they are, but removal policies go back to \"retain\""
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A witness file is longer than it should be, or shorter but not empty.
    #[error(
        "witness \"{path}\" does not have the {} bytes that it was made with: restore it, or move it away, and its \
         volume starts once every one of its replicas is there",
        witness::FILE_LEN
    )]
    Witness {
        /// The file.
        path: PathBuf,
    },
    /// This node's id can't be understood.
    #[error("\"{path}\" does not hold a uuid: restore it or remove it, then a new id is made")]
    NodeId {
        /// The file.
        path: PathBuf,
    },
    /// The disk did not answer in time. The change may still come later.
    #[error("the state database did not answer within {} s: its disk hangs or is overloaded", .0.as_secs())]
    Deadline(Duration),
    /// The database's thread has ended.
    #[error("the state database is closed")]
    Closed,
}

impl StateError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// The folder, locked until dropped. All calls block: they belong to the start and to threads that may wait.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    node: NodeId,
    _lock: Arc<File>,
}

impl StateDir {
    /// Makes the folder when it is missing, and locks it.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another daemon has it; else what the filesystem says.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        make_dir(path)?;
        make_dir(&path.join("witness"))?;
        let lock = lock(path)?;
        let node = node_id(&path.join("node"), path)?;
        Ok(Self {
            path: path.to_owned(),
            node,
            _lock: Arc::new(lock),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// This node's id, made with the folder.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Where the database is.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.path.join("volund.redb")
    }

    fn witness_path(&self, volume: VolumeId) -> PathBuf {
        self.path.join("witness").join(volume.to_string())
    }

    /// Opens a volume's witness file, making an empty one when it is missing. For direct I/O if the filesystem does it,
    /// so that a later reader never sees from the page cache what a failed write did not bring to the disk.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn open_witness(&self, volume: VolumeId) -> Result<OwnedFd, StateError> {
        let path = self.witness_path(volume);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW);
        match options.open(&path) {
            Ok(file) if file_len(&file, &path)? == witness::FILE_LEN => {
                return Ok(direct(&path).unwrap_or(file).into());
            }
            // Its creation was cut short, so nothing was ever recorded in it. Finish it.
            Ok(file) if is_unfinished(&file, &path)? => {}
            Ok(_) => return Err(StateError::Witness { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StateError::io("open", &path)(error)),
        }
        let file = options
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(StateError::io("create", &path))?;
        // Written, not only allocated, so that later updates are pure overwrites.
        let zeroes = vec![0; usize::try_from(witness::FILE_LEN).unwrap_or_default()];
        file.write_all_at(&zeroes, 0)
            .and_then(|()| file.sync_all())
            .map_err(StateError::io("write", &path))?;
        sync_dir(&self.path.join("witness"))?;
        Ok(direct(&path).unwrap_or(file).into())
    }

    /// The record in a volume's witness file; none when there is no file, or nothing was ever committed to it.
    ///
    /// # Errors
    /// When the file is there but can't be read.
    pub fn witness(&self, volume: VolumeId) -> Result<Option<WitnessRecord>, StateError> {
        let path = self.witness_path(volume);
        match fs::read(&path) {
            Ok(read) => witness::newest_record(&read)
                .map_err(|error| StateError::io("read", &path)(io::Error::other(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::io("read", &path)(error)),
        }
    }

    /// Every record that is in the witness files, whatever their volumes are doing. Unreadable files are left out: the
    /// volume's own assembly reports them.
    ///
    /// # Errors
    /// When the folder can't be listed.
    pub fn witnesses(&self) -> Result<Vec<WitnessRecord>, StateError> {
        let folder = self.path.join("witness");
        let entries = fs::read_dir(&folder).map_err(StateError::io("list", &folder))?;
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(StateError::io("list", &folder))?.path();
            let record = fs::read(&path)
                .and_then(|read| witness::newest_record(&read).map_err(io::Error::other));
            match record {
                Ok(record) => records.extend(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a witness file can't be read");
                }
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name).then(a.volume.cmp(&b.volume)));
        Ok(records)
    }

    /// Removes a volume's witness: its data has been purged.
    ///
    /// # Errors
    /// What the filesystem says; a missing file is a success.
    pub fn remove_witness(&self, volume: VolumeId) -> Result<(), StateError> {
        let path = self.witness_path(volume);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StateError::io("remove", &path)(error))
            }
            _ => sync_dir(&self.path.join("witness")),
        }
    }
}

fn file_len(file: &File, path: &Path) -> Result<u64, StateError> {
    let metadata = file.metadata().map_err(StateError::io("stat", path))?;
    Ok(metadata.len())
}

/// The file for direct I/O, if the filesystem does it in units of a slot.
fn direct(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECT);
    let file = options.open(path).ok()?;
    let asked = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    let found = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, asked).ok()?;
    let usable = |unit: u32| unit.is_power_of_two() && unit <= 4096;
    (usable(found.stx_dio_offset_align) && usable(found.stx_dio_mem_align)).then_some(file)
}

/// Whether a witness file is shorter than it should be, and has nothing but zeroes.
fn is_unfinished(file: &File, path: &Path) -> Result<bool, StateError> {
    let len = file_len(file, path)?;
    if len > witness::FILE_LEN {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0)
        .map_err(StateError::io("read", path))?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

fn make_dir(path: &Path) -> Result<(), StateError> {
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StateError::io("create the folder", path))
}

fn sync_dir(path: &Path) -> Result<(), StateError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(StateError::io("sync", path))
}

/// Spec E5.
fn lock(folder: &Path) -> Result<File, StateError> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StateError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let read = file.read_to_string(&mut holder);
            let holder = match (read, holder.trim()) {
                (Ok(_), pid) if !pid.is_empty() => pid.to_owned(),
                _ => "(unknown)".to_owned(),
            };
            return Err(StateError::InUse {
                path: folder.to_owned(),
                holder,
            });
        }
        Err(errno) => return Err(StateError::io("lock", &path)(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(StateError::io("write", &path))?;
    Ok(file)
}

/// Reads this node's id, or makes one.
fn node_id(path: &Path, folder: &Path) -> Result<NodeId, StateError> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => {
            text.trim().parse().map_err(|_| StateError::NodeId {
                path: path.to_owned(),
            })
        }
        // Empty: its creation was cut short, and nothing can have used it.
        Ok(_) => make_node_id(path, folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_node_id(path, folder),
        Err(error) => Err(StateError::io("read", path)(error)),
    }
}

fn make_node_id(path: &Path, folder: &Path) -> Result<NodeId, StateError> {
    let id = NodeId::generate();
    let new = path.with_extension("new");
    File::create(&new)
        .and_then(|mut file| {
            writeln!(file, "{id}")?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path))
        .map_err(StateError::io("write", path))?;
    sync_dir(folder)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(folder.path()).unwrap();
        let error = StateDir::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        let node = first.node();
        drop(first);
        assert_eq!(StateDir::open(folder.path()).unwrap().node(), node);
    }

    #[test]
    fn a_witness_file_is_made_once_and_removed_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let volume = VolumeId::generate();
        drop(state.open_witness(volume).unwrap());
        assert!(state.witnesses().unwrap().is_empty());
        let path = state.witness_path(volume);
        assert_eq!(fs::metadata(&path).unwrap().len(), witness::FILE_LEN);
        // A creation that was cut short is finished.
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(100)
            .unwrap();
        drop(state.open_witness(volume).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), witness::FILE_LEN);
        state.remove_witness(volume).unwrap();
        state.remove_witness(volume).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_witness_file_of_the_wrong_length_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        for len in [4096_u16, 8193] {
            let volume = VolumeId::generate();
            let path = state.witness_path(volume);
            let bytes = vec![7; usize::from(len)];
            fs::write(&path, &bytes).unwrap();
            let error = state.open_witness(volume).unwrap_err();
            assert!(matches!(error, StateError::Witness { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}
