//! What has to be looked at from time to time: sizes of replica files (spec section 5), and how full pools are.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::assemble::replica_len;
use super::engine::{Engine, Shared};
use super::live::{self, Live};
use crate::model::{PoolName, ReplicaId};
use crate::pool::Pool;
use crate::units::Bytes;

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
    /// Looks once at everything.
    pub(super) async fn look_around(&self) {
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
        let Some((pool, looks)) = self.open_with_looks(name) else {
            return;
        };
        let Ok(survey) = self.survey(name, &pool, &looks).await else {
            return;
        };
        let sizes: BTreeMap<_, _> = survey.sizes.into_iter().collect();
        for (live, replica) in self.files_in(name) {
            // Read after the sizes were: while a volume grows, this takes a file for short, never the other way round.
            let needed = replica_len(Bytes(live.status.borrow().size_bytes));
            if sizes.get(&replica).is_some_and(|stat| stat.size < needed) {
                self.check_size(&pool, &live, replica).await;
            }
        }
    }

    /// Looks at one file again, now that it is known how long its label says that it is: a file grows before its label does,
    /// so one that is shorter was cut.
    async fn check_size(&self, pool: &Pool, live: &Live, replica: ReplicaId) {
        let id = live.id;
        let needed = live.reactor.run(move |local| async move {
            live::find(&local, id).and_then(|volume| volume.device().file_len(replica))
        });
        // Nobody writes to it, or its reactor has stopped.
        let Ok(Some(needed)) = needed.await else {
            return;
        };
        let Ok(stat) = pool.stat(replica).await else {
            return;
        };
        if stat.size >= needed {
            return;
        }
        // A reactor that has stopped has no volume that could be short.
        let _ = live
            .reactor
            .run(move |local| async move {
                if let Some(volume) = live::find(&local, id) {
                    volume.device().report_truncated(replica);
                }
            })
            .await;
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
}
