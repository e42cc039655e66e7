//! How fast a rebuild goes: the configured limit, the precedence of guest I/O, and what to tell about it (spec B9).
//!
//! Nothing here knows a clock: the time is handed in, so that everything can be tested in a table.

use std::time::Duration;

/// The longest sleep before a limit is looked at again, so that a raised one takes effect soon.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// What may be saved up while nothing is copied, in time at the configured rate.
const BURST: Duration = Duration::from_millis(100);
/// The longest pause that one copy makes for guest I/O.
const YIELD_MAX: Duration = Duration::from_millis(200);
/// The rate is measured over windows of at least this length.
const WINDOW: Duration = Duration::from_secs(1);
/// A rate that was not measured anew for so long says nothing any more.
const FORGET: Duration = Duration::from_secs(5);

/// A token bucket that may go into debt: whoever finds it in credit takes as much as it wants, and the next one waits
/// until the debt is paid. So a limit below one copy per second still works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throttle {
    /// Nanoseconds times the rate are bytes; kept as bytes with nine decimals, in credit when positive.
    credit: i128,
    refilled: Duration,
}

const NANOS: i128 = 1_000_000_000;

impl Throttle {
    pub(super) const fn new(now: Duration) -> Self {
        Self {
            credit: 0,
            refilled: now,
        }
    }

    /// How long to sleep before asking again; none when a copy may start now. `rate` is in bytes per second, 0 for no
    /// limit.
    pub(super) fn wait(&mut self, rate: u64, now: Duration) -> Option<Duration> {
        self.refill(rate, now);
        if rate == 0 || self.credit >= 0 {
            return None;
        }
        let nanos = (-self.credit).div_euclid(i128::from(rate)) + 1;
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        Some(Duration::from_nanos(nanos).min(WAIT_MAX))
    }

    /// Takes the bytes of one copy.
    pub(super) fn take(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_sub(i128::from(bytes) * NANOS);
    }

    fn refill(&mut self, rate: u64, now: Duration) {
        let earned = |time: Duration| {
            let nanos = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
            nanos.saturating_mul(i128::from(rate))
        };
        let elapsed = now.saturating_sub(self.refilled);
        self.refilled = now;
        self.credit = if rate == 0 {
            0
        } else {
            self.credit
                .saturating_add(earned(elapsed))
                .min(earned(BURST))
        };
    }
}

/// How many copies may be under way at once, how large they are, and what pause follows one. While guests do I/O, a
/// rebuild uses the disks half of the time at most: it pauses as long as its last copy took. That time is measured
/// under the guests' own load, so a disk that gets slower makes the rebuild give way more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) copies_max: u32,
    pub(super) run_max: u64,
    pub(super) pause: Duration,
}

impl Pace {
    /// The pace after a copy that took `last`.
    pub(super) fn new(guest_is_active: bool, last: Duration) -> Self {
        if guest_is_active {
            Self {
                copies_max: 1,
                run_max: 256 << 10,
                pause: last.min(YIELD_MAX),
            }
        } else {
            Self {
                copies_max: 4,
                run_max: 1 << 20,
                pause: Duration::ZERO,
            }
        }
    }
}

/// Bytes per second, smoothed over some windows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    since: Duration,
    bytes: u64,
    smoothed: Option<u64>,
}

impl Rate {
    pub(super) const fn new(now: Duration) -> Self {
        Self {
            since: now,
            bytes: 0,
            smoothed: None,
        }
    }

    /// Counts bytes. True when a window has ended, which is when people should be told: once a second at most.
    pub(super) fn add(&mut self, bytes: u64, now: Duration) -> bool {
        self.bytes += bytes;
        let elapsed = now.saturating_sub(self.since);
        if elapsed < WINDOW {
            return false;
        }
        let measured = per_second(self.bytes, elapsed);
        // The newest window counts a third.
        let smooth = |old: u64| old - old / 3 + measured / 3;
        self.smoothed = Some(self.smoothed.map_or(measured, smooth));
        self.since = now;
        self.bytes = 0;
        true
    }

    /// The rate as of now.
    pub(super) fn bytes_per_second(&self, now: Duration) -> u64 {
        let elapsed = now.saturating_sub(self.since);
        match self.smoothed {
            Some(smoothed) if elapsed < FORGET => smoothed,
            _ => per_second(self.bytes, elapsed),
        }
    }
}

fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let millis = elapsed.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{KIB, MIB};

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Copies runs of `run` bytes for `seconds`, at a rate that may change with time; the bytes copied.
    fn copied(run: u64, seconds: u64, rate: impl Fn(Duration) -> u64) -> u64 {
        let (mut now, mut bytes) = (Duration::ZERO, 0);
        let mut throttle = Throttle::new(now);
        while now < Duration::from_secs(seconds) {
            match throttle.wait(rate(now), now) {
                Some(wait) => now += wait,
                None => {
                    throttle.take(run);
                    bytes += run;
                    now += Duration::from_micros(100);
                }
            }
        }
        bytes
    }

    #[test]
    fn the_limit_is_kept_whatever_the_size_of_a_copy() {
        let check = |run: u64, rate: u64, seconds: u64| {
            let (bytes, wanted) = (copied(run, seconds, |_| rate), rate * seconds);
            let slack = run + rate / 5;
            assert!(bytes.abs_diff(wanted) <= slack, "{bytes} of {wanted}");
        };
        check(MIB, 100 * MIB, 10);
        check(64 * KIB, 10 * MIB, 10);
        check(MIB, 64 * KIB, 100);
    }

    #[test]
    fn without_a_limit_nobody_waits_and_a_new_limit_takes_effect_at_once() {
        assert_eq!(copied(MIB, 1, |_| 0), 10_000 * MIB);
        let raised = copied(MIB, 20, |now| if now < ms(10_000) { 1 } else { 10 * MIB });
        assert!(
            raised.abs_diff(100 * MIB) < 5 * MIB,
            "a debt is paid at the new rate: {raised}"
        );
        let lifted = copied(MIB, 2, |now| if now < ms(1000) { 1 } else { 0 });
        assert!(lifted > 7_000 * MIB, "{lifted}");
    }

    #[test]
    fn guests_come_first_and_idle_ones_cost_nothing() {
        let idle = Pace::new(false, ms(50));
        assert_eq!((idle.pause, idle.copies_max), (ms(0), 4));
        let busy = Pace::new(true, ms(50));
        assert_eq!((busy.pause, busy.copies_max), (ms(50), 1));
        assert!(busy.run_max < idle.run_max);
        assert_eq!(Pace::new(true, ms(60_000)).pause, YIELD_MAX);
    }

    #[test]
    fn the_rate_is_smooth_and_told_once_a_second() {
        let mut rate = Rate::new(ms(0));
        let mut told = 0;
        for tenth in 1..=100 {
            told += u32::from(rate.add(MIB, ms(tenth * 100)));
        }
        assert_eq!(told, 10);
        assert!(rate.bytes_per_second(ms(10_000)).abs_diff(10 * MIB) < 10);
        rate.add(0, ms(11_000));
        let slower = rate.bytes_per_second(ms(11_000));
        assert!(slower > 6 * MIB && slower < 7 * MIB, "{slower}");
        assert_eq!(rate.bytes_per_second(ms(30_000)), 0, "it hangs");
    }
}
