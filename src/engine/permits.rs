//! How many heavy things a node does at a time: rebuilds, scrubs. The limit may change while some are under way.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// A limited number of permits. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Permits {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    given: Mutex<Given>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Given {
    count: u32,
    max: u32,
}

/// The permission to do one of them, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    shared: Arc<Shared>,
}

impl Permits {
    pub(super) fn new(max: u32) -> Self {
        let permits = Self::default();
        permits.set_max(max);
        permits
    }

    /// Changes how many there may be. Those that were given stay.
    pub(super) fn set_max(&self, max: u32) {
        self.shared.given().max = max;
        self.shared.changed.notify_waiters();
    }

    /// Waits until one is to be had.
    pub(super) async fn take(&self) -> Permit {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Before looking: what changes in between must not be missed.
            changed.as_mut().enable();
            if let Some(permit) = self.try_take() {
                return permit;
            }
            changed.await;
        }
    }

    fn try_take(&self) -> Option<Permit> {
        let mut given = self.shared.given();
        if given.count >= given.max {
            return None;
        }
        given.count += 1;
        let shared = Arc::clone(&self.shared);
        Some(Permit { shared })
    }
}

impl Shared {
    fn given(&self) -> std::sync::MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.given().count -= 1;
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_raised_limit_lets_waiters_go_and_a_lowered_one_takes_nothing_back() {
        let permits = Permits::new(1);
        let first = permits.take().await;
        let waiting = tokio::spawn({
            let permits = permits.clone();
            async move { permits.take().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        permits.set_max(2);
        let second = waiting.await.unwrap();
        permits.set_max(1);
        drop(first);
        assert!(permits.try_take().is_none(), "one is still given");
        drop(second);
        assert!(permits.try_take().is_some());
    }
}
