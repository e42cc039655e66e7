//! When a reactor looks around for a while before it sleeps (`volund run --poll`).
//!
//! Sleeping and being woken costs more than most waits of a busy volume last; looking around costs a core. What is here
//! is arithmetic alone: how long the reactor waited lately, and from that how long it is to look around now.

use std::cell::Cell;
use std::time::Duration;

use crate::model::Polling;

/// With `auto`, the reactor looks around only while the mean wait of late is at most this...
const AUTO_MEAN_MAX: u64 = 60_000;
/// ... and no longer than this. Nanoseconds.
const AUTO_SPIN_MAX: u64 = 200_000;
/// The mean before anything was waited for: too long.
const MEAN_AT_FIRST: u64 = 4 * AUTO_MEAN_MAX;
/// Each wait counts this part of the mean, as a shift...
const WEIGHT_SHIFT: u32 = 5;
/// ... and no more than this, so that one long pause is forgotten after some hundred short ones.
const WAIT_COUNTED_MAX: u64 = 4_000_000;
/// A vain look is forgiven for so many that were not: disks answer late now and then, and one who sleeps and looks around by
/// turns has the worst of both (`docs/performance.md`).
const HITS_FOR_A_MISS: u32 = 16;
/// The most vain looks that are forgiven in a row.
const FORGIVEN_MAX: u32 = 4;
/// After the first one that is not forgiven, so many waits are slept through. Each further one doubles it...
const REST_MIN: u32 = 8;
/// ... up to here...
const REST_MAX: u32 = 4096;
/// ... and so many looks in a row that were not in vain halve it.
const HITS_TO_RECOVER: u32 = 64;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// While the reactor was looking around.
    Seen,
    /// After it had looked around in vain.
    Missed,
    /// Asleep: it had not looked around.
    Slept,
}

/// Decides for one reactor.
#[derive(Debug)]
pub(crate) struct Spinner {
    polling: Polling,
    /// The mean wait of late, nanoseconds.
    mean: Cell<u64>,
    /// So many waits are slept through before the next look.
    rest: Cell<u32>,
    /// How many it will be after the next vain look.
    rest_next: Cell<u32>,
    hits: Cell<u32>,
    /// Hits that no vain look has used up.
    credit: Cell<u32>,
}

impl Spinner {
    /// None when there is nothing to decide.
    pub(crate) fn new(polling: Polling) -> Option<Self> {
        (polling != Polling::Off).then(|| Self {
            polling,
            mean: Cell::new(MEAN_AT_FIRST),
            rest: Cell::new(0),
            rest_next: Cell::new(REST_MIN),
            hits: Cell::new(0),
            credit: Cell::new(0),
        })
    }

    /// How long to look around in the wait that begins; zero for not at all.
    pub(crate) fn budget(&self) -> Duration {
        match self.polling {
            Polling::Off => Duration::ZERO,
            Polling::For(duration) => duration,
            Polling::Auto if self.rest.get() > 0 || self.mean.get() > AUTO_MEAN_MAX => {
                Duration::ZERO
            }
            Polling::Auto => Duration::from_nanos(AUTO_SPIN_MAX),
        }
    }

    /// Notes how long a wait took, and how it ended.
    pub(crate) fn waited(&self, took: Duration, how: Wait) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let took = took.min(WAIT_COUNTED_MAX);
        let mean = self.mean.get();
        self.mean
            .set(mean - (mean >> WEIGHT_SHIFT) + (took >> WEIGHT_SHIFT));
        match how {
            Wait::Slept => self.rest.set(self.rest.get().saturating_sub(1)),
            Wait::Missed if self.credit.get() >= HITS_FOR_A_MISS => {
                self.credit.set(self.credit.get() - HITS_FOR_A_MISS);
            }
            Wait::Missed => {
                let rest = self.rest_next.get();
                self.rest.set(rest);
                self.rest_next.set((rest * 2).min(REST_MAX));
                self.hits.set(0);
            }
            Wait::Seen => {
                let credit = self.credit.get() + 1;
                self.credit.set(credit.min(HITS_FOR_A_MISS * FORGIVEN_MAX));
                self.hits.set(self.hits.get() + 1);
                if self.hits.get() == HITS_TO_RECOVER {
                    self.hits.set(0);
                    let rest = self.rest_next.get() / 2;
                    self.rest_next.set(rest.max(REST_MIN));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What looking around did in a sequence of waits.
    #[derive(Debug, Default)]
    struct Outcome {
        waited: Duration,
        spun: Duration,
        seen: usize,
    }

    impl Outcome {
        /// Of all time that passed, in percent.
        fn cost(&self) -> f64 {
            100.0 * self.spun.as_secs_f64() / self.waited.as_secs_f64()
        }
    }

    /// Lets the waits (microseconds) happen one after the other.
    fn run(spinner: &Spinner, waits: impl IntoIterator<Item = u64>) -> Outcome {
        let mut outcome = Outcome::default();
        for wait in waits {
            let wait = Duration::from_micros(wait);
            let budget = spinner.budget();
            let how = match budget {
                Duration::ZERO => Wait::Slept,
                _ if wait <= budget => Wait::Seen,
                _ => Wait::Missed,
            };
            spinner.waited(wait, how);
            outcome.waited += wait;
            outcome.spun += wait.min(budget);
            outcome.seen += usize::from(how == Wait::Seen);
        }
        outcome
    }

    fn auto() -> Spinner {
        Spinner::new(Polling::Auto).unwrap()
    }

    fn repeat(pattern: &[u64], times: usize) -> impl Iterator<Item = u64> {
        pattern.repeat(times).into_iter()
    }

    #[test]
    fn under_a_steady_load_nearly_every_wait_is_seen() {
        // One request at a time: the disk's answer, then the next kick.
        let outcome = run(&auto(), repeat(&[34, 25], 10_000));
        assert!(outcome.seen > 19_900, "{outcome:?}");
    }

    #[test]
    fn a_disk_that_is_slow_now_and_then_is_no_reason_to_stop() {
        let mut waits = [30, 20].repeat(500);
        waits.push(400);
        let outcome = run(&auto(), repeat(&waits, 20));
        assert!(outcome.seen > 19_000, "{outcome:?}");
    }

    #[test]
    fn so_is_one_whose_answers_are_late_once_in_twenty() {
        let mut waits = [45, 30].repeat(10);
        waits[10] = 350;
        let outcome = run(&auto(), repeat(&waits, 1000));
        assert!(outcome.seen > 17_000, "{outcome:?}");
    }

    #[test]
    fn idle_and_paced_volumes_cost_less_than_a_twentieth() {
        let hundred = [35, 9_965];
        let thousand = [35, 965];
        let three_thousand = [35, 298];
        let timers = [1_000_000];
        let slow_disk = [8_000, 20];
        let patterns: [&[u64]; 5] = [&hundred, &thousand, &three_thousand, &timers, &slow_disk];
        for pattern in patterns {
            let spinner = auto();
            // Also right after a load that was worth it.
            run(&spinner, repeat(&[30, 20], 1000));
            let outcome = run(&spinner, repeat(pattern, 1000));
            assert!(outcome.cost() < 1.0, "{pattern:?}: {outcome:?}");
        }
    }

    #[test]
    fn bursts_with_pauses_cost_less_than_a_twentieth() {
        for (length, pause) in [(5, 10_000), (10, 10_000), (32, 32_000), (100, 100_000)] {
            let mut burst = [34, 25].repeat(length);
            burst.push(pause);
            let outcome = run(&auto(), repeat(&burst, 1000));
            assert!(outcome.cost() < 5.0, "{length} {pause}: {outcome:?}");
        }
    }

    #[test]
    fn a_fixed_time_is_always_looked_around() {
        let spinner = Spinner::new(Polling::For(Duration::from_micros(20))).unwrap();
        let outcome = run(&spinner, repeat(&[10, 1000], 100));
        assert_eq!(outcome.spun, Duration::from_micros(3000));
        assert!(Spinner::new(Polling::Off).is_none());
    }
}
