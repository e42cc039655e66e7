//! When something that failed is tried again: exponentially later each time, and given up on after a while.

use std::time::Duration;

/// First wait.
const INITIAL: Duration = Duration::from_secs(1);
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Failures in a row after which a volume counts as being in error.
pub const ATTEMPTS_MAX: u32 = 8;

/// The failures in a row of one object. Times are readings of a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    due: Option<Duration>,
}

impl Backoff {
    /// Notes a failure; the next attempt is due after 1 s, 2 s, 4 s, ... at most `wait_max`.
    pub fn fail(&mut self, now: Duration, wait_max: Duration) {
        let doublings = self.failures.min(16);
        let wait = INITIAL.saturating_mul(1 << doublings);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now.saturating_add(wait.min(wait_max)));
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

    /// The longest wait between attempts at a volume.
    #[must_use]
    pub const fn wait_max() -> Duration {
        WAIT_MAX
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
        let mut waits = Vec::new();
        for _ in 0..9 {
            backoff.fail(now, Backoff::wait_max());
            waits.push((backoff.due().unwrap() - now).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(!backoff.is_due(now + Duration::from_secs(59)));
        assert!(backoff.is_due(now + Duration::from_secs(60)));
        backoff.reset();
        assert!(backoff.is_due(now));
    }
}
