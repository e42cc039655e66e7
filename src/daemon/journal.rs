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

/// Writes what is left at the end.
pub(super) async fn flush(handle: &Handle, store: &Store) {
    if let Err(error) = store.save_journal(&handle.take_unsaved()).await {
        tracing::error!(%error, "the end of the journal is not kept");
    }
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
            let Progress {
                last_good,
                drift_since,
            } = &progress;
            self.store
                .save_progress(last_good.as_ref(), drift_since)
                .await?;
            self.progress = progress;
        }
        Ok(())
    }
}
