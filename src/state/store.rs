//! The node's database: redb on a thread of its own, mirrored in memory.
//!
//! Reads come from memory and never wait. A write is durable when its call returns. Everything here helps (which pool is
//! meant by a name, how data was to be removed, what a restart boots from) and nothing here is needed to keep data:
//! labels and witness files have that.

mod journal;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::Serialize;
use tokio::sync::oneshot;

use super::dir::StateError;
use super::records::{AppliedConfig, Creation, History, MemberChange, VolumeRecord};
use crate::model::why::HistoryEvent;
use crate::model::{PoolId, PoolName, ReplicaId, VolumeId, VolumeName};

/// How long a change may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// The database is tiny; redb would keep up to 1 GiB of it in memory.
const CACHE_BYTES: usize = 1 << 20;

/// One table: kind and key to a JSON value.
const RECORDS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("records");

/// What the database holds.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The configuration that was last applied.
    pub applied: Option<AppliedConfig>,
    /// The id that each pool had when it was last opened.
    pub pools: BTreeMap<PoolName, PoolId>,
    /// What is remembered of volumes.
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// Creations that were begun and not ended.
    pub creations: BTreeMap<VolumeId, Creation>,
    /// Changes of members that were begun and not ended.
    pub member_changes: BTreeMap<ReplicaId, MemberChange>,
    histories: BTreeMap<VolumeId, History>,
    /// Until it is taken.
    journal: journal::Journal,
}

/// One change: kind, key, and the new JSON value or none to remove it.
struct Change {
    kind: &'static str,
    key: String,
    value: Option<String>,
    done: oneshot::Sender<Result<(), StateError>>,
}

/// The database. Clones share it; its thread ends with the last one.
#[derive(Clone)]
pub struct Store {
    contents: Arc<Mutex<Contents>>,
    changes: mpsc::Sender<Change>,
}

impl Store {
    /// Opens the database, making it when it is missing, and reads all of it. Blocks.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when it can't be read.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let damaged = |error: &dyn fmt::Display| StateError::Damaged {
            path: path.to_owned(),
            detail: error.to_string(),
        };
        // redb reports most damage as errors, but asserts some of what it reads.
        let opened = catch_unwind(|| -> Result<_, Trouble> {
            let database = Database::builder()
                .set_cache_size(CACHE_BYTES)
                .create(path)
                .map_err(|error| match error {
                    redb::DatabaseError::Storage(redb::StorageError::Io(error)) => error.into(),
                    error => Trouble::from(error),
                })?;
            let contents = read_all(&database)?;
            Ok((database, contents))
        });
        let (database, contents) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                return Err(match error.downcast::<std::io::Error>() {
                    Ok(error) if error.raw_os_error().is_some() => {
                        StateError::io("open", path)(*error)
                    }
                    Ok(error) => damaged(&error),
                    Err(error) => damaged(&error),
                });
            }
            Err(_) => return Err(damaged(&"its structure makes no sense")),
        };
        let (changes, queue) = mpsc::channel();
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("state".into())
            .spawn(move || write_changes(&database, &path, &queue))
            .map_err(StateError::io(
                "start the thread of",
                Path::new("volund.redb"),
            ))?;
        Ok(Self {
            contents: Arc::new(Mutex::new(contents)),
            changes,
        })
    }

    /// Reads a database without opening it: from a copy in memory, so that nothing is repaired in passing. Blocks.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when it can't be read.
    pub fn peek(path: &Path) -> Result<Contents, StateError> {
        let bytes = std::fs::read(path).map_err(StateError::io("read", path))?;
        let damaged = |detail: String| StateError::Damaged {
            path: path.to_owned(),
            detail,
        };
        let read = catch_unwind(|| -> Result<Contents, Trouble> {
            let copy = InMemoryBackend::new();
            copy.set_len(u64::try_from(bytes.len())?)?;
            StorageBackend::write(&copy, 0, &bytes)?;
            read_all(&Database::builder().create_with_backend(copy)?)
        });
        match read {
            Ok(Ok(contents)) => Ok(contents),
            Ok(Err(error)) => Err(damaged(error.to_string())),
            Err(_) => Err(damaged("its structure makes no sense".to_owned())),
        }
    }

    /// All of it, as it is now.
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.read(|contents| contents.clone())
    }

    fn read<T>(&self, look: impl FnOnce(&mut Contents) -> T) -> T {
        look(&mut self.contents.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn write<V: Serialize>(
        &self,
        kind: &'static str,
        key: String,
        value: Option<&V>,
    ) -> Result<(), StateError> {
        let asked = self.ask(kind, key, value)?;
        written(asked).await
    }

    /// Hands a change to the database's thread: changes are written in this order.
    fn ask<V: Serialize>(
        &self,
        kind: &'static str,
        key: String,
        value: Option<&V>,
    ) -> Result<Asked, StateError> {
        let value = value
            .map(|value| serde_json::to_string(value).expect("these records have only text keys"));
        let (done, answer) = oneshot::channel();
        let change = Change {
            kind,
            key,
            value,
            done,
        };
        self.changes.send(change).map_err(|_| StateError::Closed)?;
        Ok(answer)
    }

    /// The configuration that was last applied.
    #[must_use]
    pub fn applied(&self) -> Option<AppliedConfig> {
        self.read(|contents| contents.applied.clone())
    }

    /// Records the configuration in force.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn set_applied(&self, applied: AppliedConfig) -> Result<(), StateError> {
        self.write("config", "applied".into(), Some(&applied))
            .await?;
        self.read(|contents| contents.applied = Some(applied));
        Ok(())
    }

    /// The id that a pool had when it was last opened.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<PoolId> {
        self.read(|contents| contents.pools.get(name).copied())
    }

    /// Remembers a pool for good: without its marker it is missing, not new (spec A0).
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn set_pool(&self, name: PoolName, id: PoolId) -> Result<(), StateError> {
        self.write("pool", name.to_string(), Some(&id)).await?;
        self.read(|contents| contents.pools.insert(name, id));
        Ok(())
    }

    /// What is remembered of a volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<VolumeRecord> {
        self.read(|contents| contents.volumes.get(&id).cloned())
    }

    /// Every volume that something is remembered of.
    #[must_use]
    pub fn volumes(&self) -> BTreeMap<VolumeId, VolumeRecord> {
        self.read(|contents| contents.volumes.clone())
    }

    /// Replaces what is remembered of a volume; nothing happens when it is the same.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn set_volume(&self, id: VolumeId, record: VolumeRecord) -> Result<(), StateError> {
        if self.volume(id).as_ref() == Some(&record) {
            return Ok(());
        }
        self.write("volume", id.to_string(), Some(&record)).await?;
        self.read(|contents| contents.volumes.insert(id, record));
        Ok(())
    }

    /// Forgets a volume.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn remove_volume(&self, id: VolumeId) -> Result<(), StateError> {
        self.write::<VolumeRecord>("volume", id.to_string(), None)
            .await?;
        self.read(|contents| contents.volumes.remove(&id));
        Ok(())
    }

    /// Creations that were begun and not ended.
    #[must_use]
    pub fn creations(&self) -> BTreeMap<VolumeId, Creation> {
        self.read(|contents| contents.creations.clone())
    }

    /// Those of a volume of this name.
    #[must_use]
    pub fn creations_of(&self, name: &VolumeName) -> Vec<(VolumeId, Creation)> {
        self.read(|contents| {
            let its = contents.creations.iter();
            let its = its.filter(|(_, creation)| creation.name == *name);
            its.map(|(id, creation)| (*id, creation.clone())).collect()
        })
    }

    /// Whether the creation of this volume was begun and not ended.
    #[must_use]
    pub fn has_creation(&self, id: VolumeId) -> bool {
        self.read(|contents| contents.creations.contains_key(&id))
    }

    /// Notes that a creation begins.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn begin_creation(&self, id: VolumeId, creation: Creation) -> Result<(), StateError> {
        self.write("creation", id.to_string(), Some(&creation))
            .await?;
        self.read(|contents| contents.creations.insert(id, creation));
        Ok(())
    }

    /// Notes that a creation has ended, one way or the other.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn end_creation(&self, id: VolumeId) -> Result<(), StateError> {
        self.write::<Creation>("creation", id.to_string(), None)
            .await?;
        self.read(|contents| contents.creations.remove(&id));
        Ok(())
    }

    /// Changes of members that were begun and not ended.
    #[must_use]
    pub fn member_changes(&self) -> BTreeMap<ReplicaId, MemberChange> {
        self.read(|contents| contents.member_changes.clone())
    }

    /// Notes that a replica is becoming a member, or is ceasing to be one.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn begin_member_change(
        &self,
        replica: ReplicaId,
        change: MemberChange,
    ) -> Result<(), StateError> {
        self.write("member", replica.to_string(), Some(&change))
            .await?;
        self.read(|contents| contents.member_changes.insert(replica, change));
        Ok(())
    }

    /// Notes that a change of members has ended, one way or the other.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn end_member_change(&self, replica: ReplicaId) -> Result<(), StateError> {
        self.write::<MemberChange>("member", replica.to_string(), None)
            .await?;
        self.read(|contents| contents.member_changes.remove(&replica));
        Ok(())
    }

    /// What happened to a volume.
    #[must_use]
    pub fn history(&self, id: VolumeId) -> History {
        self.read(|contents| contents.histories.get(&id).cloned())
            .unwrap_or_default()
    }

    /// Adds to what is remembered to have happened to a volume. It has its place among the changes when this returns, and is
    /// shown at once, also when it can't be written; what it answers says when it was written.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_history(
        &self,
        id: VolumeId,
        events: Vec<HistoryEvent>,
    ) -> impl Future<Output = Result<(), StateError>> + use<> {
        // In one go, so that changes are written in the order that they were made in, however many at a time.
        let asked = self.read(|contents| {
            let history = contents.histories.entry(id).or_default();
            events.into_iter().for_each(|event| history.push(event));
            self.ask("history", id.to_string(), Some(&*history))
        });
        async move { written(asked?).await }
    }

    /// Forgets what happened to a volume, also what was added and is not written yet.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn remove_history(&self, id: VolumeId) -> Result<(), StateError> {
        // In one go, so that an addition is either deleted by this or begins anew.
        let asked = self.read(|contents| {
            contents.histories.remove(&id);
            self.ask::<History>("history", id.to_string(), None)
        });
        written(asked?).await
    }
}

/// What becomes of a change.
type Asked = oneshot::Receiver<Result<(), StateError>>;

async fn written(asked: Asked) -> Result<(), StateError> {
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(answer) => answer.map_err(|_| StateError::Closed)?,
        Err(_) => Err(StateError::Deadline(DEADLINE)),
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Something that redb or serde has to say.
type Trouble = Box<dyn std::error::Error + Send + Sync>;

fn read_all(database: &Database) -> Result<Contents, Trouble> {
    let begun = database.begin_write()?;
    drop(begun.open_table(RECORDS)?);
    begun.commit()?;
    let table = database.begin_read()?.open_table(RECORDS)?;
    let mut contents = Contents::default();
    for entry in table.iter()? {
        let (key, value) = entry?;
        let (kind, key) = key.value();
        let value = value.value();
        match kind {
            "config" => contents.applied = Some(serde_json::from_str(value)?),
            "pool" => {
                contents
                    .pools
                    .insert(key.parse()?, serde_json::from_str(value)?);
            }
            "volume" => {
                contents
                    .volumes
                    .insert(key.parse()?, serde_json::from_str(value)?);
            }
            "creation" => {
                contents
                    .creations
                    .insert(key.parse()?, serde_json::from_str(value)?);
            }
            "member" => {
                contents
                    .member_changes
                    .insert(key.parse()?, serde_json::from_str(value)?);
            }
            "history" => {
                contents
                    .histories
                    .insert(key.parse()?, serde_json::from_str(value)?);
            }
            _ => contents.journal.take(kind, key, value)?,
        }
    }
    Ok(contents)
}

/// The database's thread: one transaction for whatever has gathered.
fn write_changes(database: &Database, path: &Path, queue: &mpsc::Receiver<Change>) {
    while let Ok(first) = queue.recv() {
        let changes: Vec<Change> = std::iter::once(first).chain(queue.try_iter()).collect();
        let result = write_all(database, &changes);
        for change in changes {
            let answer = result.as_ref().copied().map_err(|error| {
                StateError::io("write", path)(std::io::Error::other(error.to_string()))
            });
            // The caller may have given up waiting.
            let _ = change.done.send(answer);
        }
    }
}

fn write_all(database: &Database, changes: &[Change]) -> Result<(), Trouble> {
    let begun = database.begin_write()?;
    {
        let mut table = begun.open_table(RECORDS)?;
        for change in changes {
            let key = (change.kind, change.key.as_str());
            match &change.value {
                Some(value) => drop(table.insert(key, value.as_str())?),
                None => drop(table.remove(key)?),
            }
        }
    }
    begun.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests;
