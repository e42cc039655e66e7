//! When something that failed is tried again: exponentially later each time, and not all at the same moment.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::model::policy::RetryPolicy;

/// The failures in a row of one object. Times are readings of a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    due: Option<Duration>,
}

/// Takes up to a quarter off each wait, so that what failed together is not tried again together.
#[derive(Clone, Debug, Default)]
pub struct Jitter {
    random: RandomState,
    used: u64,
}

impl Jitter {
    /// `wait`, or up to a quarter less.
    fn shorten(&mut self, wait: Duration) -> Duration {
        self.used = self.used.wrapping_add(1);
        let thousandths = self.random.hash_one(self.used) % 1001;
        let off = wait.as_nanos() / 4 * u128::from(thousandths) / 1000;
        wait.saturating_sub(Duration::from_nanos(u64::try_from(off).unwrap_or(0)))
    }
}

impl Backoff {
    /// Notes a failure; the next attempt is due after the policy's wait, or up to a quarter of it sooner.
    pub fn fail(&mut self, now: Duration, policy: &RetryPolicy, jitter: &mut Jitter) {
        self.failures = self.failures.saturating_add(1);
        let wait = jitter.shorten(policy.wait(self.failures));
        self.due = Some(now.saturating_add(wait));
    }

    /// Forgets the failures: it went well, or something changed.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether an attempt may be made.
    #[must_use]
    pub fn is_due(&self, now: Duration) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// When the next attempt may be made; none when at once.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_lose_at_most_a_quarter() {
        let (mut backoff, mut jitter) = (Backoff::default(), Jitter::default());
        let now = Duration::from_secs(100);
        assert!(backoff.is_due(now));
        let policy = RetryPolicy::default();
        for whole in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            backoff.fail(now, &policy, &mut jitter);
            let wait = backoff.due().unwrap().checked_sub(now).unwrap();
            let whole = Duration::from_secs(whole);
            assert!(
                wait <= whole && wait >= whole * 3 / 4,
                "{wait:?} of {whole:?}"
            );
        }
        assert!(!backoff.is_due(now + Duration::from_secs(44)));
        assert!(backoff.is_due(now + Duration::from_secs(60)));
        backoff.reset();
        assert!(backoff.is_due(now));
    }

    #[test]
    fn what_failed_together_is_not_tried_again_together() {
        let (mut jitter, policy) = (Jitter::default(), RetryPolicy::default());
        let mut dues = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let mut backoff = Backoff::default();
            backoff.fail(Duration::ZERO, &policy, &mut jitter);
            dues.insert(backoff.due());
        }
        assert!(dues.len() > 25, "{} moments for 50 volumes", dues.len());
    }
}
