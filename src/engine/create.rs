//! Creating a volume, and clearing away a creation that was cut short (spec A0, L6).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::assemble::{Bring, Brought, Starter, file_of, nexus_spec, replica_len};
use super::engine::Engine;
use super::error::EngineError;
use super::live::Books;
use crate::io::planted::kill_point;
use crate::model::observed::{AppliedVolume, RemovalPolicy};
use crate::model::spec::{OnCreateFail, OnRemove, VolumeSpec};
use crate::model::{PoolName, ReplicaId, VolumeId, VolumeName};
use crate::pool::{Discarded, Opened};
use crate::state::Creation;

/// A file that was just made is locked by nobody else.
const NEW_FILE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

impl Engine {
    /// Creates a volume that never was. The intent is in the journal before the first file exists and leaves it after
    /// the witness has the first generation, so that leftovers of a crash are known for what they are.
    pub(super) async fn create_volume(
        &self,
        name: &VolumeName,
        spec: &VolumeSpec,
    ) -> Result<(), EngineError> {
        let is_memory_only = spec.replicas.iter().all(|pool| self.is_memory(pool));
        let id = VolumeId::generate();
        let replicas: Vec<(PoolName, ReplicaId)> = spec
            .replicas
            .iter()
            .map(|pool| (pool.clone(), ReplicaId::generate()))
            .collect();
        if !is_memory_only {
            let creation = Creation {
                name: name.clone(),
                replicas: replicas.clone(),
                left: None,
            };
            self.shared.store.begin_creation(id, creation).await?;
        }
        kill_point();
        let made = self.make((name, id), spec, &replicas, is_memory_only).await;
        kill_point();
        if let Err(error) = made {
            tracing::warn!(volume = %name, %error, "could not be created");
            if spec.on_create_fail == OnCreateFail::Leave && !is_memory_only {
                return Err(self.leave_creation(name, (id, replicas), &error).await?);
            }
            self.undo_creation(id, &replicas).await?;
            return Err(error);
        }
        self.remember(id, spec, Some(replicas.iter().cloned().collect()))
            .await?;
        kill_point();
        if !is_memory_only {
            self.shared.store.end_creation(id).await?;
        }
        kill_point();
        for (pool, replica) in &replicas {
            self.look_at(pool, *replica).await?;
        }
        tracing::info!(volume = %name, %id, size = %spec.size, "created");
        Ok(())
    }

    /// Notes in the database how the volume was made and what becomes of it when its table goes.
    pub(super) async fn remember(
        &self,
        id: VolumeId,
        spec: &VolumeSpec,
        replicas: Option<BTreeMap<PoolName, ReplicaId>>,
    ) -> Result<(), EngineError> {
        let mut record = self.shared.store.volume(id).unwrap_or_default();
        record.delete_on_remove = spec.on_remove == OnRemove::Delete;
        record.quarantine_seconds = spec.quarantine_for.as_secs();
        record.thin = Some(record.thin.unwrap_or(spec.thin));
        // What runs is not being purged, whatever was begun once.
        record.purging = false;
        record.replicas.extend(replicas.unwrap_or_default());
        Ok(self.shared.store.set_volume(id, record).await?)
    }

    async fn make(
        &self,
        (name, id): (&VolumeName, VolumeId),
        spec: &VolumeSpec,
        replicas: &[(PoolName, ReplicaId)],
        is_memory_only: bool,
    ) -> Result<(), EngineError> {
        let len = replica_len(spec.size);
        let mut brought = Vec::new();
        for (pool, replica) in replicas {
            let handle = self.open_one(pool)?;
            handle.create(*replica, len, spec.thin).await?;
            kill_point();
            let what = match handle.open(*replica, NEW_FILE_PATIENCE).await? {
                Opened::File(file) => Brought::File(file),
                Opened::Memory { size } => Brought::Memory(size),
            };
            brought.push(Bring {
                pool: pool.clone(),
                pool_id: Some(handle.id()),
                replica: Some(*replica),
                what,
            });
        }
        let applied = AppliedVolume {
            size: spec.size,
            block_size: spec.block_size,
            thin: Some(spec.thin),
            replicas: spec.replicas.iter().cloned().collect(),
            members: replicas.len(),
            removal: RemovalPolicy::default(),
            policy: spec.policy.clone(),
        };
        let witness = match is_memory_only {
            true => None,
            false => Some(self.new_witness(id).await?),
        };
        kill_point();
        let files = brought.iter().filter_map(file_of).collect();
        let starter = Starter {
            spec: nexus_spec(name, id, &applied, None),
            node: self.shared.state.node(),
            witness,
            replicas: brought,
            creates: true,
            counters: Arc::default(),
        };
        self.launch(name, starter, Books { applied, files }).await
    }

    /// Makes the witness file, on a thread that may wait for its disk: a creation flushes it, and many volumes may be
    /// created at a time.
    async fn new_witness(&self, id: VolumeId) -> Result<std::os::fd::OwnedFd, EngineError> {
        let state = self.shared.state.clone();
        let made = tokio::task::spawn_blocking(move || state.open_witness(id));
        Ok(made.await.map_err(|_| EngineError::stopping())??)
    }

    /// Ends a creation that succeeded but for this.
    pub(super) async fn close_journal(&self, id: VolumeId) -> Result<(), EngineError> {
        if self.shared.store.has_creation(id) {
            self.shared.store.end_creation(id).await?;
        }
        Ok(())
    }

    /// Notes that the files of a failed creation stay as they are. Answers what to tell about it.
    async fn leave_creation(
        &self,
        name: &VolumeName,
        (id, replicas): (VolumeId, Vec<(PoolName, ReplicaId)>),
        error: &EngineError,
    ) -> Result<EngineError, EngineError> {
        let creation = Creation {
            name: name.clone(),
            replicas,
            left: Some(error.to_string()),
        };
        let left = creation_left(&creation, error.reason());
        self.shared.store.begin_creation(id, creation).await?;
        Ok(left)
    }

    /// Takes back a creation whose volume nobody has ever been shown.
    pub(super) async fn undo_creation(
        &self,
        id: VolumeId,
        replicas: &[(PoolName, ReplicaId)],
    ) -> Result<(), EngineError> {
        // First, as with a record the volume would count as created, and as lost once its files are gone.
        self.shared.state.remove_witness(id)?;
        kill_point();
        for (pool, replica) in replicas {
            let discarded = self.open_one(pool)?.discard_creation(*replica).await?;
            if let Discarded::Moved(path) = discarded {
                tracing::warn!(%pool, %replica, path = %path.display(), "a half-made replica was put aside");
            }
        }
        Ok(self.shared.store.end_creation(id).await?)
    }

    /// Ends creations of `name` that a crash cut short, or that failed. Returns whether there were any.
    ///
    /// # Errors
    /// `CreationLeft` when one failed and its files are to stay.
    pub(super) async fn clear_unfinished(
        &self,
        name: &VolumeName,
        on_create_fail: OnCreateFail,
    ) -> Result<bool, EngineError> {
        let unfinished = self.shared.store.creations_of(name);
        for (id, creation) in &unfinished {
            // The witness commit is the creation's last step: with it, the volume exists and only the journal is late.
            if let Some(record) = self.shared.state.witness(*id)? {
                // It may have got another name since.
                self.witness_names().insert(*id, record.name);
                self.shared.store.end_creation(*id).await?;
            } else if on_create_fail == OnCreateFail::Leave && self.is_left(creation).await {
                return Err(creation_left(creation, "CreationLeft"));
            } else {
                tracing::warn!(volume = %name, %id, "clearing away a creation that was cut short");
                self.undo_creation(*id, &creation.replicas).await?;
            }
        }
        Ok(!unfinished.is_empty())
    }

    /// Whether a creation failed and there still is something of it to look at.
    async fn is_left(&self, creation: &Creation) -> bool {
        if creation.left.is_none() {
            return false;
        }
        self.look_into_all(creation).await;
        self.has_any_of(&creation.replicas)
    }

    /// Clears away, in the background, every creation that a crash cut short and whose pools are all open: whether or not
    /// anybody asks for its volume again.
    pub(super) fn collect_unfinished(&self) {
        for (id, creation) in self.shared.store.creations() {
            let mut pools = creation.replicas.iter().map(|(pool, _)| pool);
            if creation.left.is_some() || !pools.all(|pool| self.open_one(pool).is_ok()) {
                continue;
            }
            let engine = self.clone();
            tokio::spawn(async move {
                // Whoever is making that volume right now has its turn, and none of its creations is unfinished then.
                let _turn = engine.turn(&creation.name).await;
                if !engine.shared.store.has_creation(id) || engine.live(&creation.name).is_some() {
                    return;
                }
                let cleared = engine.clear_unfinished(&creation.name, OnCreateFail::Leave);
                if let Err(error) = cleared.await {
                    tracing::warn!(volume = %creation.name, %id, %error, "what a crash left could not be cleared away");
                }
                engine.look_into_all(&creation).await;
            });
        }
    }

    /// What is left of a creation is shown as it is now.
    async fn look_into_all(&self, creation: &Creation) {
        for (pool, _) in &creation.replicas {
            if let Err(error) = self.look_into(pool).await {
                tracing::warn!(%pool, %error, "could not be looked into");
            }
        }
    }
}

/// What there is to say of a creation whose files stay.
fn creation_left(creation: &Creation, reason: &str) -> EngineError {
    let places = creation.replicas.iter();
    let places = places.map(|(pool, replica)| format!("{replica} in pool \"{pool}\""));
    let places = places.collect::<Vec<_>>().join(", ");
    let why = creation.left.as_deref().unwrap_or("a crash");
    EngineError::new(
        reason,
        format!(
            "the creation of volume \"{}\" failed: {why}; what there is of it is left for inspection ({places}), and nothing \
             is attempted before that is purged (`volund orphans list`) or the table has on_create_fail = \"delete\"",
            creation.name
        ),
    )
}
