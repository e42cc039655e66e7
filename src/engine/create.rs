//! Creating a volume, and clearing away a creation that was cut short (spec A0, L6).

use std::sync::Arc;

use super::assemble::{Bring, Brought, Starter, file_of, nexus_spec, replica_len};
use super::engine::Engine;
use super::error::EngineError;
use super::live::Books;
use crate::model::observed::{AppliedVolume, RemovalPolicy};
use crate::model::spec::VolumeSpec;
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
            };
            self.shared.store.begin_creation(id, creation).await?;
        }
        let made = self.make((name, id), spec, &replicas, is_memory_only).await;
        if let Err(error) = made {
            tracing::warn!(volume = %name, %error, "could not be created");
            self.undo_creation(id, &replicas).await?;
            return Err(error);
        }
        self.remember(id, spec, Some(replicas.iter().cloned().collect()))
            .await?;
        if !is_memory_only {
            self.shared.store.end_creation(id).await?;
        }
        for (pool, replica) in &replicas {
            self.look_at(pool, *replica).await?;
        }
        tracing::info!(volume = %name, %id, size = %spec.size, "created");
        Ok(())
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

    /// Takes back a creation whose volume nobody has ever been shown.
    async fn undo_creation(
        &self,
        id: VolumeId,
        replicas: &[(PoolName, ReplicaId)],
    ) -> Result<(), EngineError> {
        for (pool, replica) in replicas {
            let discarded = self.open_one(pool)?.discard_creation(*replica).await?;
            if let Discarded::Moved(path) = discarded {
                tracing::warn!(%pool, %replica, path = %path.display(), "a half-made replica was put aside");
            }
        }
        self.shared.state.remove_witness(id)?;
        Ok(self.shared.store.end_creation(id).await?)
    }

    /// Ends creations of `name` that a crash cut short. Returns whether there were any.
    pub(super) async fn clear_unfinished(&self, name: &VolumeName) -> Result<bool, EngineError> {
        let unfinished = self.shared.store.creations_of(name);
        for (id, creation) in &unfinished {
            // The witness commit is the creation's last step: with it, the volume exists and only the journal is late.
            if let Some(record) = self.shared.state.witness(*id)? {
                // It may have got another name since.
                self.witness_names().insert(*id, record.name);
                self.shared.store.end_creation(*id).await?;
            } else {
                tracing::warn!(volume = %name, %id, "clearing away a creation that was cut short");
                self.undo_creation(*id, &creation.replicas).await?;
            }
        }
        Ok(!unfinished.is_empty())
    }
}
