//! Keeps the journal over restarts: whatever is new in it goes to the database, soon and without anybody waiting.

use std::collections::BTreeMap;

use crate::model::journal::Revision;
use crate::model::status::NodeStatus;
use crate::reconcile::Handle;
use crate::state::{StateError, Store};

/// Writes the journal of one daemon.
#[derive(Debug)]
pub(super) struct Keeper {
    handle: Handle,
    store: Store,
    /// What was last written of it.
    progress: Progress,
    /// Whether the last attempt to write failed: said once.
    failing: bool,
}

/// Writes what is left at the end, and waits for what was handed to the database before: all of it is written when this
/// returns.
pub(super) async fn flush(handle: &Handle, store: &Store) {
    if let Err(error) = write_rest(handle, store).await {
        tracing::error!(%error, "the end of the journal is not kept");
    }
}

async fn write_rest(handle: &Handle, store: &Store) -> Result<(), StateError> {
    store.save_journal(&handle.take_unsaved()).await?;
    let snapshot = handle.snapshot();
    if snapshot.status.revisions.applied.is_some() {
        Progress::of(&snapshot.status).save(store).await?;
    }
    Ok(())
}

/// How far things are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    last_good: Option<Revision>,
    drift_since: BTreeMap<String, String>,
}

impl Progress {
    fn of(status: &NodeStatus) -> Self {
        let drift = status.drift.iter();
        Self {
            last_good: status.revisions.last_good.clone(),
            drift_since: drift
                .map(|drift| (drift.object.clone(), drift.since.clone()))
                .collect(),
        }
    }

    async fn save(&self, store: &Store) -> Result<(), StateError> {
        store
            .save_progress(self.last_good.as_ref(), &self.drift_since)
            .await
    }
}

impl Keeper {
    /// Hands what was kept to the reconciler.
    pub(super) fn start(handle: &Handle, store: &Store) -> Self {
        let saved = store.take_journal();
        let progress = Progress {
            last_good: saved.last_good.clone(),
            drift_since: saved.drift_since.clone(),
        };
        handle.resume(saved);
        Self {
            handle: handle.clone(),
            store: store.clone(),
            progress,
            failing: false,
        }
    }

    /// Writes whenever there is something new. What comes while it writes is written together.
    pub(super) async fn run(mut self) {
        let mut events = self.handle.events().changes();
        let mut operations = self.handle.operations().changes();
        let mut snapshots = self.handle.snapshots();
        loop {
            self.save().await;
            let changed = tokio::select! {
                changed = events.changed() => changed.is_ok(),
                changed = operations.changed() => changed.is_ok(),
                changed = snapshots.changed() => changed.is_ok(),
            };
            if !changed {
                return;
            }
        }
    }

    /// Writes what is new.
    pub(super) async fn save(&mut self) {
        let result = self.write().await;
        if let Err(error) = &result
            && !self.failing
        {
            tracing::error!(%error, "the journal is not kept: events and operations are lost at the next start");
        }
        self.failing = result.is_err();
    }

    async fn write(&mut self) -> Result<(), StateError> {
        let unsaved = self.handle.take_unsaved();
        if !unsaved.is_empty() {
            self.store.save_journal(&unsaved).await?;
        }
        let snapshot = self.handle.snapshot();
        // Before the first configuration nothing is known of it.
        if snapshot.status.revisions.applied.is_none() {
            return Ok(());
        }
        let progress = Progress::of(&snapshot.status);
        if progress != self.progress {
            progress.save(&self.store).await?;
            self.progress = progress;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{self, SourceFile};
    use crate::model::observed::Observed;
    use crate::model::time::Times;
    use crate::reconcile::apply::{Failure, Job, Work};
    use crate::reconcile::{self, Config};

    /// The keeper may not have come to it, or have only just handed it to the database.
    #[tokio::test]
    async fn everything_is_written_at_the_end() {
        let work = Work {
            observe: Arc::new(|| -> Job<Observed> { Box::pin(async { Observed::default() }) }),
            execute: Arc::new(|_| -> Job<Result<(), Failure>> { Box::pin(async { Ok(()) }) }),
            changes: tokio::sync::watch::channel(0).1,
        };
        let times = Times {
            monotonic: || tokio::time::Instant::now().into_std(),
            wall: || std::time::UNIX_EPOCH,
        };
        let node = "n1".parse().unwrap();
        let handle = reconcile::start(&node, work, times);
        let files = [SourceFile::new("a.toml", b"version = 1\n".as_slice())];
        let config = Config {
            desired: config::parse(&files, &node).unwrap().0,
            generation: 1,
            hash: "abc".to_owned(),
            commit: None,
            applied_at: String::new(),
        };
        handle.apply(config);
        let mut snapshots = handle.snapshots();
        let good =
            |snapshot: &Arc<reconcile::Snapshot>| snapshot.status.revisions.last_good.is_some();
        drop(snapshots.wait_for(good).await.unwrap());
        handle
            .events()
            .push("t".to_owned(), "config".to_owned(), "Test", "test");
        handle.stop().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let store = Store::open(&path).unwrap();
        flush(&handle, &store).await;
        let copy = folder.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        let saved = Store::open(&copy).unwrap().take_journal();
        assert_eq!(saved.events.len(), 1);
        assert_eq!(
            saved.last_good.map(|good| good.hash).as_deref(),
            Some("abc")
        );
    }
}
