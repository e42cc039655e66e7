//! Reading what is in a pool's directory without opening the pool: no lock is taken, nothing is made or changed. For
//! integrity checks, beside a daemon or without one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::listing::{Place, ReplicaFault, fault_of, replica_of};
use super::{directory, marker};
use crate::model::PoolId;
use crate::replica::{Label, dump};

/// A pool's directory as it was found.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// From its marker.
    pub id: PoolId,
    /// Files that are named like replicas, those in use first, by name.
    pub replicas: Vec<ScannedReplica>,
    /// Files that are not.
    pub strangers: Vec<PathBuf>,
    /// Files that were put aside.
    pub garbage: Vec<PathBuf>,
}

/// A file that is named like a replica.
#[derive(Clone, Debug)]
pub struct ScannedReplica {
    /// Where it is, and which replica its name says it is.
    pub place: Place,
    /// The file.
    pub path: PathBuf,
    /// Its newest label, if that can be used.
    pub label: Option<Label>,
    /// Why it can't be used; none when it can.
    pub fault: Option<String>,
    /// What is wrong with label slots that do not count; empty when there is nothing.
    pub bad_slots: Vec<String>,
    /// Pages of its bitmaps that are not intact.
    pub bad_pages: Vec<String>,
}

/// Reads a pool's directory. Blocks.
///
/// # Errors
/// Why it is no pool that can be read, with its path.
pub fn scan(path: &Path) -> Result<Scanned, String> {
    let marker = path.join(marker::FILE);
    let bytes =
        std::fs::read(&marker).map_err(|error| format!("can't read {marker:?}: {error}"))?;
    let id = marker::parse(&bytes).map_err(|what| format!("{marker:?} {what}"))?;
    let mut scanned = Scanned {
        id,
        replicas: Vec::new(),
        strangers: Vec::new(),
        garbage: files(&path.join(directory::GARBAGE))?,
    };
    for file in files(&path.join(directory::REPLICAS))? {
        match name_of(&file).and_then(replica_of) {
            Some(replica) => scanned.add(file, Place::Active(replica)),
            None => scanned.strangers.push(file),
        }
    }
    for file in files(&path.join(directory::QUARANTINE))? {
        match name_of(&file).and_then(|name| name.parse().ok()) {
            Some(name) => scanned.add(file, Place::Quarantined(name)),
            None => scanned.strangers.push(file),
        }
    }
    Ok(scanned)
}

impl Scanned {
    fn add(&mut self, path: PathBuf, place: Place) {
        let mut replica = ScannedReplica {
            place,
            path,
            label: None,
            fault: None,
            bad_slots: Vec::new(),
            bad_pages: Vec::new(),
        };
        if let Err(error) = replica.look(self.id) {
            replica.fault = Some(error.to_string());
        }
        self.replicas.push(replica);
    }
}

impl ScannedReplica {
    fn look(&mut self, pool: PoolId) -> io::Result<()> {
        let file = open(&self.path)?;
        let slots = dump::read_slots(&file)?;
        match dump::label_of(&slots) {
            Ok(label) => {
                let fault = fault_of(&label, &self.place, pool, file.metadata()?.size());
                self.fault = fault.map(|fault| fault.to_string());
                self.bad_slots = torn(&label, &slots);
                self.label = Some(label);
            }
            Err(error) => self.fault = Some(ReplicaFault::Label(error).to_string()),
        }
        let bitmaps = dump::read(&file)?.bitmaps;
        let bad = bitmaps.into_iter().flat_map(|bitmap| {
            let kind = bitmap.kind;
            let pages = bitmap.bad_pages.into_iter();
            pages.map(move |page| format!("{kind} {page}"))
        });
        self.bad_pages = bad.collect();
        Ok(())
    }
}

/// Slots that should hold a label and do not. The very first label leaves the second slot empty.
fn torn(label: &Label, slots: &[crate::io::slots::Slot; 2]) -> Vec<String> {
    let is_first = label.slot_seq <= 1;
    let bad = dump::bad_slots(slots);
    if is_first { Vec::new() } else { bad }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = options.read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a file"))
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

/// The files of a folder, by name; a folder that is not there has none.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: io::Error| format!("can't list {folder:?}: {error}");
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}
