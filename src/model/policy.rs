//! What may be changed about a running volume, or about how a node looks after its volumes, without a restart.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::milliseconds;
use super::{PoolName, ReplicaId};

/// How one volume is looked after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumePolicy {
    /// A replica that does not answer for this long is left behind (spec G11).
    #[serde(rename = "ioTimeoutMilliseconds", with = "milliseconds")]
    pub io_timeout: Duration,
    /// A request that waits for a membership change is answered with an error after this (spec F6).
    #[serde(rename = "commitTimeoutMilliseconds", with = "milliseconds")]
    pub commit_timeout: Duration,
    /// A read that takes longer is sent to another replica as well (spec R5).
    #[serde(rename = "readHedgeMilliseconds", with = "milliseconds")]
    pub read_hedge: Duration,
    /// How long a start waits for a replica that should be there or that somebody else has locked (spec A1, A6).
    #[serde(rename = "degradedWaitMilliseconds", with = "milliseconds")]
    pub degraded_wait: Duration,
    /// How many regions may be marked as written and not proven flushed (spec W9).
    pub intent_max: u64,
    /// The most that a rebuild copies, bytes per second; 0 for as much as it can.
    pub rebuild_bandwidth: u64,
    /// How often all replicas are compared; none for only when asked.
    #[serde(rename = "scrubEveryMilliseconds", with = "milliseconds::optional")]
    pub scrub_every: Option<Duration>,
    /// Whose data a scrub believes where two replicas differ and nothing else decides; none to report only.
    pub scrub_repair_from: Option<PoolName>,
}

impl Default for VolumePolicy {
    fn default() -> Self {
        Self {
            io_timeout: Duration::from_secs(10),
            commit_timeout: Duration::from_secs(30),
            read_hedge: Duration::from_millis(500),
            degraded_wait: Duration::from_secs(10),
            intent_max: 16384,
            rebuild_bandwidth: 0,
            scrub_every: None,
            scrub_repair_from: None,
        }
    }
}

/// An operator's decision to start a volume from one replica although nothing proves that it is the newest (spec A5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForceStart {
    /// The replica.
    pub from: ReplicaId,
    /// The generation that its label had when the operator decided; with any other, the decision does not count.
    pub at_gen: u64,
}

/// How a node looks after its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePolicy {
    /// How many rebuilds may run at a time.
    pub rebuild_max: u32,
    /// When what failed is tried again.
    pub retry: RetryPolicy,
}

impl Default for NodePolicy {
    fn default() -> Self {
        Self {
            rebuild_max: 2,
            retry: RetryPolicy::default(),
        }
    }
}

/// When what failed is tried again, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures in a row after which it rests.
    pub max_attempts: u32,
    /// Wait after the first failure.
    pub initial_wait: Duration,
    /// Each wait is this many hundredths of the one before, at least 100.
    pub multiplier_percent: u32,
    /// Longest wait.
    pub max_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            initial_wait: Duration::from_secs(1),
            multiplier_percent: 200,
            max_wait: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// The wait after so many failures in a row; none after none.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let mut wait = self.initial_wait.min(self.max_wait);
        for _ in 1..failures {
            if wait >= self.max_wait || self.multiplier_percent <= 100 {
                break;
            }
            let longer = wait.saturating_mul(self.multiplier_percent) / 100;
            wait = longer.min(self.max_wait);
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_the_multiplier_up_to_the_limit() {
        let waits = |policy: RetryPolicy| -> Vec<u128> {
            let failures = [0, 1, 2, 3, 4, 1000];
            failures
                .map(|failures| policy.wait(failures).as_millis())
                .to_vec()
        };
        let built_in = RetryPolicy::default();
        assert_eq!(waits(built_in), [0, 1000, 2000, 4000, 8000, 60_000]);
        let gentle = RetryPolicy {
            multiplier_percent: 150,
            max_wait: Duration::from_secs(2),
            ..built_in
        };
        assert_eq!(waits(gentle), [0, 1000, 1500, 2000, 2000, 2000]);
        let even = RetryPolicy {
            multiplier_percent: 100,
            ..built_in
        };
        assert_eq!(waits(even), [0, 1000, 1000, 1000, 1000, 1000]);
    }
}
