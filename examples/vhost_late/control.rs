//! How late the machine itself is: on each of its processors a thread that sleeps a little and sends a byte through a pipe,
//! again and again. A test on a shared or emulated machine may ask nothing of the daemon in the time in which one of them was
//! not served either.
//!
//! On a busy machine whoever only sleeps is served at once, and whoever works, as the daemon does, is not: so there it computes
//! a little as well. In an emulated one, whole processors are taken away, which sleeping shows; computing would take too much.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What the control does in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    Sleeps,
    Works,
}

/// How long it sleeps, if that is all, and if it computes as well.
const NAP: Duration = Duration::from_millis(2);
const NAP_BETWEEN_WORK: Duration = Duration::from_millis(4);
/// It computes so long, at most twice that.
const WORK: Duration = Duration::from_millis(1);
/// What a turn takes beyond that on a machine with nothing else to do; more is the machine's lateness.
const USUAL: Duration = Duration::from_micros(500);
const CALIBRATION_ROUNDS: u32 = 1000;
const CALIBRATION_ROUNDS_MAX: u32 = 1 << 20;

/// From when to when.
pub(crate) type Span = (Instant, Instant);

/// The threads, until [`Control::stop`].
pub(crate) struct Control {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Span>>>>,
}

impl Control {
    pub(crate) fn start(habit: Habit) -> Result<Self> {
        let turn = Turn::new(habit);
        let stop = Arc::new(AtomicBool::new(false));
        let allowed = sched_getaffinity(None)?;
        let processors = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number));
        let threads = processors.map(|number| {
            let seen = Arc::clone(&stop);
            let (input, output) = std::io::pipe()?;
            let thread = std::thread::Builder::new().name("control".to_owned());
            Ok(thread.spawn(move || watch(&seen, turn, number, input, output))?)
        });
        let threads = threads.collect::<Result<_>>()?;
        Ok(Self { stop, threads })
    }

    pub(crate) fn stop(self) -> Result<Stalls> {
        self.stop.store(true, Ordering::Relaxed);
        let mut spans = Vec::new();
        for thread in self.threads {
            let seen = thread.join();
            spans.extend(seen.map_err(|_panic| anyhow!("the control panicked"))??);
        }
        Ok(Stalls::new(spans))
    }
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    nap: Duration,
    rounds: u32,
    /// A turn that takes longer is late.
    most: Duration,
}

impl Turn {
    fn new(habit: Habit) -> Self {
        match habit {
            Habit::Sleeps => Self {
                nap: NAP,
                rounds: 0,
                most: NAP + USUAL,
            },
            Habit::Works => Self {
                nap: NAP_BETWEEN_WORK,
                rounds: rounds_of_work(),
                most: NAP_BETWEEN_WORK + WORK * 2 + USUAL,
            },
        }
    }
}

/// When this processor was late. The turn in which the stop is seen is the last, so that nothing before it is left out.
fn watch(
    stop: &AtomicBool,
    turn: Turn,
    processor: usize,
    mut input: PipeReader,
    mut output: PipeWriter,
) -> Result<Vec<Span>> {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only)?;
    let mut stalls = Vec::new();
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        let due = Instant::now() + turn.most;
        std::thread::sleep(turn.nap);
        compute(turn.rounds);
        output.write_all(b".")?;
        input.read_exact(&mut [0])?;
        let ended = Instant::now();
        if ended > due {
            stalls.push((due, ended));
        }
        if is_last {
            return Ok(stalls);
        }
    }
}

/// How much is to be computed so that it takes [`WORK`] when nothing comes in between.
fn rounds_of_work() -> u32 {
    let mut rounds = CALIBRATION_ROUNDS;
    loop {
        let mut tries = [Duration::ZERO; 5].map(|_| {
            let started = Instant::now();
            compute(rounds);
            started.elapsed()
        });
        tries.sort();
        if tries[2] >= WORK || rounds >= CALIBRATION_ROUNDS_MAX {
            return rounds;
        }
        rounds *= 2;
    }
}

fn compute(rounds: u32) {
    let mut value = u64::from(rounds);
    for _ in 0..rounds {
        value = std::hint::black_box(value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31));
    }
}

/// When the machine was late: one of its processors at least, in order and apart.
#[derive(Debug, Default)]
pub(crate) struct Stalls(Vec<Span>);

impl Stalls {
    fn new(mut spans: Vec<Span>) -> Self {
        spans.sort();
        let mut apart: Vec<Span> = Vec::new();
        for (start, end) in spans {
            match apart.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => apart.push((start, end)),
            }
        }
        Self(apart)
    }

    /// How much of this time it was late.
    pub(crate) fn within(&self, from: Instant, until: Instant) -> Duration {
        let after = self.0.partition_point(|(_, end)| *end <= from);
        let inside = self.0[after..]
            .iter()
            .take_while(|(start, _)| *start < until);
        inside
            .map(|(start, end)| {
                (*end)
                    .min(until)
                    .saturating_duration_since((*start).max(from))
            })
            .sum()
    }

    pub(crate) fn worst(&self) -> Duration {
        let all = self.0.iter().map(|(start, end)| *end - *start);
        all.max().unwrap_or_default()
    }

    pub(crate) fn total(&self) -> Duration {
        self.0.iter().map(|(start, end)| *end - *start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_of_a_stall_inside_the_time_counts() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let stalls = Stalls::new(vec![
            (at(40), at(45)),
            (at(10), at(25)),
            (at(60), at(100)),
            (at(20), at(30)),
            (at(70), at(80)),
        ]);
        let within = |from, until| stalls.within(at(from), at(until)).as_millis();
        assert_eq!(within(0, 10), 0);
        assert_eq!(within(0, 200), 65);
        assert_eq!(within(20, 42), 12);
        assert_eq!(within(70, 80), 10);
        assert_eq!(within(45, 60), 0);
        assert_eq!(within(80, 20), 0);
        assert_eq!(stalls.worst(), Duration::from_millis(40));
        assert_eq!(stalls.total(), Duration::from_millis(65));
    }

    #[test]
    fn a_control_is_never_late_for_longer_than_it_ran() {
        for habit in [Habit::Sleeps, Habit::Works] {
            let began = Instant::now();
            let control = Control::start(habit).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let stalls = control.stop().unwrap();
            assert!(stalls.total() <= began.elapsed());
            assert!(stalls.within(began, Instant::now()) <= stalls.total());
        }
    }
}
