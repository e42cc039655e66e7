//! Looking into pools: what is in them, and how full they are.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::engine::Engine;
use super::error::EngineError;
use super::found::Found;
use crate::model::observed::Problem;
use crate::model::{PoolName, ReplicaId};
use crate::pool::{Pool, PoolError, Survey};

/// The looks into one pool. At a start a thousand volumes want to know what is in it at the same time: who asks while a look
/// is under way shares the next one with all others who ask. It begins after they asked, so it is as good as their own.
#[derive(Debug, Default)]
pub(super) struct Looks {
    begun: AtomicU64,
    last: tokio::sync::Mutex<Ended>,
}

/// The last look that has ended.
#[derive(Debug)]
struct Ended {
    number: u64,
    result: Result<(), EngineError>,
}

impl Default for Ended {
    fn default() -> Self {
        Self {
            number: 0,
            result: Ok(()),
        }
    }
}

impl Looks {
    /// How many have begun.
    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Lets no look end, nor another begin, meanwhile.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> impl Drop {
        self.last.lock().await
    }

    /// The result of a look that begins after this call does.
    async fn share(
        &self,
        look: impl Future<Output = Result<(), EngineError>>,
    ) -> Result<(), EngineError> {
        let asked_after = self.begun.load(Ordering::Relaxed);
        let mut last = self.last.lock().await;
        if last.number > asked_after {
            return last.result.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let result = look.await;
        *last = Ended {
            number,
            result: result.clone(),
        };
        result
    }
}

impl Engine {
    /// Reads again what is in a pool and how full it is.
    ///
    /// # Errors
    /// When the disk does not answer; what was seen before stays, with the problem.
    pub(super) async fn look_into(&self, name: &PoolName) -> Result<(), EngineError> {
        match self.open_with_looks(name) {
            Some((pool, looks)) => looks.share(self.look(name, &pool, &looks)).await,
            None => Ok(()),
        }
    }

    /// As [`Engine::look_into`], of a pool that has to be open. What was seen is in the pool's entry for as long as that
    /// one has the looks that this answers: an entry that took its place may not have been looked into.
    ///
    /// # Errors
    /// When it is not open, or the disk does not answer.
    pub(super) async fn look_into_open(&self, name: &PoolName) -> Result<Arc<Looks>, EngineError> {
        let Some((pool, looks)) = self.open_with_looks(name) else {
            return Err(self.offline(name));
        };
        looks.share(self.look(name, &pool, &looks)).await?;
        Ok(looks)
    }

    /// A pool that is open, and what says which of its openings that is.
    pub(super) fn open_with_looks(&self, name: &PoolName) -> Option<(Pool, Arc<Looks>)> {
        let pools = self.pools();
        let entry = pools.get(name)?;
        Some((entry.pool.clone()?, Arc::clone(&entry.looks)))
    }

    async fn look(
        &self,
        name: &PoolName,
        pool: &Pool,
        looks: &Arc<Looks>,
    ) -> Result<(), EngineError> {
        let looked = async {
            let listing = pool.list().await?;
            Ok::<_, PoolError>((listing, pool.survey().await?))
        };
        let looked = looked.await.map_err(EngineError::from);
        let result = looked.as_ref().map(drop).map_err(EngineError::clone);
        let mut pools = self.pools();
        // It may have been opened anew meanwhile: that is another pool.
        let entry = pools.get_mut(name).filter(|e| e.is_of(looks));
        if let Some(entry) = entry {
            entry.is_known = true;
            entry.problem = looked.as_ref().err().map(EngineError::problem);
            if let Ok((listing, survey)) = looked {
                entry.found = Found::new(listing.replicas);
                entry.strangers = listing.strangers;
                entry.capacity = survey.capacity;
            }
        }
        drop(pools);
        self.touch();
        result
    }

    /// Looks at one file of a pool, which was just made.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub(super) async fn look_at(
        &self,
        name: &PoolName,
        replica: ReplicaId,
    ) -> Result<(), EngineError> {
        let Some((pool, looks)) = self.open_with_looks(name) else {
            return Err(self.offline(name));
        };
        // A look that began before the file was made would take it away again, did it end after this.
        let last = looks.last.lock().await;
        let found = pool.find(replica).await?;
        let mut pools = self.pools();
        let entry = pools.get_mut(name).filter(|entry| entry.is_of(&looks));
        if let (Some(entry), Some(found)) = (entry, found) {
            entry.found.put(found);
        }
        drop(pools);
        drop(last);
        self.touch();
        Ok(())
    }

    /// Reads again how full a pool is and how large its files are, in one go however many there are.
    ///
    /// # Errors
    /// When the disk does not answer; what was seen before stays, with the problem.
    pub(super) async fn survey(
        &self,
        name: &PoolName,
        pool: &Pool,
        looks: &Arc<Looks>,
    ) -> Result<Survey, PoolError> {
        let survey = pool.survey().await;
        let mut came = false;
        let mut pools = self.pools();
        // It may have been opened anew meanwhile: that is another pool.
        let entry = pools.get_mut(name).filter(|e| e.is_of(looks));
        if let Some(entry) = entry {
            let problem = survey.as_ref().err().map(|error| Problem {
                reason: error.fault.reason().to_owned(),
                message: error.to_string(),
            });
            let changed = entry.problem != problem;
            came = entry.problem.is_some() && problem.is_none();
            entry.problem = problem;
            if let Ok(survey) = &survey {
                entry.capacity = survey.capacity;
                for (replica, stat) in &survey.sizes {
                    entry.found.set_stat(*replica, *stat);
                }
            }
            if changed {
                self.touch();
            }
        }
        drop(pools);
        if came {
            self.pool_came(name);
        }
        survey
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// However many ask at a time: one look that had begun, and one for all of them.
    #[tokio::test]
    async fn who_asks_during_a_look_shares_the_next_one() {
        let (looks, count) = (Looks::default(), AtomicUsize::new(0));
        let (open, gate) = tokio::sync::oneshot::channel();
        let first = looks.share(async {
            gate.await.unwrap();
            Ok(())
        });
        let ask = || {
            looks.share(async {
                count.fetch_add(1, Ordering::Relaxed);
                Err(EngineError::new("Test", "it failed"))
            })
        };
        let later = async {
            let (mut asks, mut results) = (tokio::task::JoinSet::<()>::new(), Vec::new());
            asks.spawn(async move { open.send(()).unwrap() });
            let (a, b, c) = tokio::join!(ask(), ask(), ask());
            results.extend([a, b, c]);
            results
        };
        let (first, later) = tokio::join!(first, later);
        assert_eq!(first, Ok(()), "it had begun before the others asked");
        assert!(later.iter().all(Result::is_err), "{later:?}");
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(ask().await.is_err());
        assert_eq!(
            count.load(Ordering::Relaxed),
            2,
            "an old look is no answer to a new question"
        );
    }

    /// Whoever looks may be given up on: what it did not see through counts for nobody.
    #[tokio::test]
    async fn a_look_that_was_dropped_answers_nobody() {
        let looks = Looks::default();
        let dropped = tokio::time::timeout(
            std::time::Duration::ZERO,
            looks.share(std::future::pending()),
        );
        assert!(dropped.await.is_err());
        let failed = looks.share(async { Err(EngineError::new("Test", "it failed")) });
        assert!(failed.await.is_err());
    }
}
