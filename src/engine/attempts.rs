//! When the keeper tries again what failed: later each time, not in step with others, and at last not for a long while.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::error::EngineError;
use crate::model::policy::RetryPolicy;

/// How long it rests after too many failures in a row.
pub(super) const REST: Duration = Duration::from_secs(3600);
/// The most that a wait is stretched at random, in hundredths.
const JITTER_PERCENT: u64 = 25;

/// The failures in a row of one thing. Times are readings of a monotonic clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    failures: u32,
    due: Option<Duration>,
    resting: bool,
    last: Option<EngineError>,
}

impl Attempts {
    /// Notes a failure. `may_rest`: it counts towards giving up.
    pub(super) fn fail(
        &mut self,
        now: Duration,
        error: EngineError,
        retry: &RetryPolicy,
        may_rest: bool,
    ) {
        let wait = wait_after(self.failures, retry);
        self.failures = self.failures.saturating_add(1);
        self.resting = may_rest && self.failures >= retry.max_attempts;
        let wait = if self.resting { REST } else { wait };
        self.due = Some(now.saturating_add(stretch(wait, random())));
        self.last = Some(error);
    }

    /// Lets the next attempt be made at once, and counts from the start.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Lets the next attempt be made at once unless it rests.
    pub(super) fn hurry(&mut self) {
        if !self.resting {
            self.due = None;
        }
    }

    /// Whether an attempt may be made.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// When the next attempt may be made; none when at once.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Whether there were too many failures in a row.
    pub(super) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The last of them.
    pub(super) fn last(&self) -> Option<&EngineError> {
        self.last.as_ref()
    }
}

/// The wait after so many failures before this one.
fn wait_after(failures: u32, retry: &RetryPolicy) -> Duration {
    let mut wait = retry.initial_wait.min(retry.max_wait);
    for _ in 0..failures.min(64) {
        let longer = wait.saturating_mul(retry.multiplier_percent.max(100)) / 100;
        wait = longer.min(retry.max_wait);
    }
    wait
}

/// `wait`, and up to a quarter more.
pub(super) fn stretch(wait: Duration, random: u64) -> Duration {
    let percent = u32::try_from(random % (JITTER_PERCENT + 1)).unwrap_or(0);
    wait.saturating_add(wait / 100 * percent)
}

/// Not for secrets: the standard library seeds its hashers at random.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> EngineError {
        EngineError::new("Test", "it failed")
    }

    #[test]
    fn waits_grow_up_to_the_limit_and_are_stretched_at_random() {
        let retry = RetryPolicy::default();
        let seconds = |failures| wait_after(failures, &retry).as_secs();
        let waits: Vec<u64> = (0..9).map(seconds).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let wait = Duration::from_secs(8);
        assert_eq!(stretch(wait, 0), wait);
        assert!((0..100).all(|random| stretch(wait, random) <= Duration::from_secs(10)));
    }

    #[test]
    fn a_multiplier_below_one_never_shortens_a_wait() {
        let retry = RetryPolicy {
            multiplier_percent: 1,
            ..RetryPolicy::default()
        };
        assert_eq!(wait_after(5, &retry), retry.initial_wait);
    }

    #[test]
    fn after_too_many_failures_it_rests_and_a_hurry_does_not_wake_it() {
        let retry = RetryPolicy {
            max_attempts: 2,
            ..RetryPolicy::default()
        };
        let mut attempts = Attempts::default();
        let now = Duration::from_secs(100);
        attempts.fail(now, failed(), &retry, true);
        assert!(!attempts.is_resting() && !attempts.is_due(now));
        attempts.hurry();
        assert!(attempts.is_due(now));
        attempts.fail(now, failed(), &retry, true);
        attempts.hurry();
        assert!(attempts.is_resting() && !attempts.is_due(now + Duration::from_secs(3599)));
        assert!(attempts.is_due(now + REST + REST / 4));
        attempts.reset();
        assert!(attempts.is_due(now) && attempts.failures() == 0);
    }

    #[test]
    fn what_may_not_rest_is_tried_for_ever() {
        let retry = RetryPolicy {
            max_attempts: 1,
            ..RetryPolicy::default()
        };
        let mut attempts = Attempts::default();
        for _ in 0..20 {
            attempts.fail(Duration::ZERO, failed(), &retry, false);
        }
        assert!(!attempts.is_resting());
        assert!(attempts.is_due(Duration::from_secs(75)));
    }
}
