//! Looking at a state folder without using it, for integrity checks: nothing in it is made or changed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::store::{Contents, Store};
use super::witness;
use crate::model::VolumeId;
use crate::nexus::WitnessRecord;

/// A state folder as it was found. While this lives, no daemon can start on it.
#[derive(Debug)]
pub struct Peeked {
    /// The database, or what is wrong with it. An absent one is empty.
    pub database: Result<Contents, String>,
    /// Held against daemons that start meanwhile; none when there is no lock file yet.
    _lock: Option<File>,
}

/// A file in the folder of witnesses.
#[derive(Clone, Debug)]
pub struct WitnessFound {
    /// The file.
    pub path: PathBuf,
    /// The volume that its name says.
    pub volume: Option<VolumeId>,
    /// The newest record; none when nothing was ever committed. An error says what is wrong.
    pub record: Result<Option<WitnessRecord>, String>,
}

/// Looks at a folder that no daemon uses.
///
/// # Errors
/// That one does, or that it can't be read.
pub fn peek(folder: &Path) -> Result<Peeked, String> {
    let found = std::fs::metadata(folder);
    found.map_err(|error| format!("can't read the state folder {folder:?}: {error}"))?;
    let lock = folder.join("lock");
    let lock = match File::open(&lock) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("can't open {lock:?}: {error}")),
    };
    if let Some(file) = &lock
        && rustix::fs::flock(file, FlockOperation::NonBlockingLockShared).is_err()
    {
        return Err(format!(
            "a daemon uses the state folder {folder:?} and does not answer on its admin socket (--socket, --runtime-dir)"
        ));
    }
    let path = folder.join("volund.redb");
    let database = match Store::peek(&path) {
        _ if !path.exists() => Ok(Contents::default()),
        read => read.map_err(|error| error.to_string()),
    };
    Ok(Peeked {
        database,
        _lock: lock,
    })
}

/// Every file in the folder of witnesses.
///
/// # Errors
/// When the folder can't be listed.
pub fn witnesses(folder: &Path) -> Result<Vec<WitnessFound>, String> {
    let folder = folder.join("witness");
    let failed = |error: io::Error| format!("can't list {folder:?}: {error}");
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        found.push(WitnessFound {
            volume: name.and_then(|name| name.parse().ok()),
            record: record(&path),
            path,
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn record(path: &Path) -> Result<Option<WitnessRecord>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let is_blank = bytes.iter().all(|byte| *byte == 0);
    if len != witness::FILE_LEN && !(is_blank && len < witness::FILE_LEN) {
        return Err(format!(
            "it has {len} bytes, expected {}",
            witness::FILE_LEN
        ));
    }
    witness::newest_record(&bytes).map_err(|error| error.to_string())
}
