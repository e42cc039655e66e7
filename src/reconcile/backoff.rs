//! When something that failed is tried again: exponentially later each time, and given up on after a while.

use std::time::Duration;

use crate::model::policy::RetryPolicy;

/// The failures in a row of one object. Times are readings of a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    due: Option<Duration>,
}

impl Backoff {
    /// Notes a failure; the next attempt is due after the policy's wait.
    pub fn fail(&mut self, now: Duration, policy: &RetryPolicy) {
        self.failures = self.failures.saturating_add(1);
        let wait = policy.wait(self.failures);
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
    fn waits_double_up_to_the_limit() {
        let mut backoff = Backoff::default();
        let now = Duration::from_secs(100);
        assert!(backoff.is_due(now));
        let policy = RetryPolicy::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            backoff.fail(now, &policy);
            waits.push((backoff.due().unwrap() - now).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(!backoff.is_due(now + Duration::from_secs(59)));
        assert!(backoff.is_due(now + Duration::from_secs(60)));
        backoff.reset();
        assert!(backoff.is_due(now));
    }
}
