//! What has to be looked at from time to time: sizes of replica files (spec section 5), and how full pools are.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::engine::{Engine, Shared};
use super::live::{self, Live};
use crate::model::observed::Problem;
use crate::model::{PoolName, ReplicaId};

/// How often (spec section 5: every 10 s).
const PERIOD: Duration = Duration::from_secs(10);

/// Starts to look, until the engine is gone.
pub(super) fn start(engine: &Engine) {
    let shared: Weak<Shared> = Arc::downgrade(&engine.shared);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(PERIOD).await;
            let Some(shared) = shared.upgrade() else {
                return;
            };
            Engine { shared }.look_around().await;
        }
    });
}

impl Engine {
    async fn look_around(&self) {
        let names: Vec<PoolName> = self.pools().keys().cloned().collect();
        let mut pools = tokio::task::JoinSet::new();
        for name in names {
            let engine = self.clone();
            // Each pool by itself: one that hangs holds up nobody else.
            pools.spawn(async move { engine.look_at_pool(&name).await });
        }
        while pools.join_next().await.is_some() {}
    }

    async fn look_at_pool(&self, name: &PoolName) {
        let Ok(pool) = self.open_one(name) else {
            return;
        };
        let capacity = pool.capacity().await;
        let mut came = false;
        if let Some(entry) = self.pools().get_mut(name) {
            let problem = capacity.as_ref().err().map(|error| Problem {
                reason: error.fault.reason().to_owned(),
                message: error.to_string(),
            });
            let changed = entry.problem != problem;
            came = entry.problem.is_some() && problem.is_none();
            entry.problem = problem;
            if let Ok(capacity) = capacity {
                entry.capacity = capacity;
            }
            if changed {
                self.touch();
            }
        }
        if came {
            self.pool_came(name);
        }
        for (live, replica) in self.files_in(name) {
            if let Ok(stat) = pool.stat(replica).await {
                self.note_allocation(name, replica, stat);
                let id = live.id;
                // A reactor that has stopped has no volume that could be short.
                let _ = live
                    .reactor
                    .run(move |local| async move {
                        if let Some(volume) = live::find(&local, id) {
                            volume.device().report_size(replica, stat.size);
                        }
                    })
                    .await;
            }
        }
    }

    /// Running volumes with a file in this pool.
    fn files_in(&self, pool: &PoolName) -> Vec<(Arc<Live>, ReplicaId)> {
        let volumes = self.volumes();
        let files = volumes.values().flat_map(|live| {
            let files = live.books().files.clone();
            let here = files.into_iter().filter(|(p, _)| p == pool);
            here.map(|(_, replica)| (Arc::clone(live), replica))
        });
        files.collect()
    }

    fn note_allocation(&self, pool: &PoolName, replica: ReplicaId, stat: crate::pool::FileStat) {
        if let Some(entry) = self.pools().get_mut(pool) {
            for found in &mut entry.found {
                if found.place.replica() == replica {
                    found.stat = stat;
                }
            }
        }
    }
}
