//! The load on one queue: requests in flight up to a depth, paced or not, with flushes in between; and what came of it.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use rustix::thread::set_current_timer_slack;

use crate::latency::Histogram;
use crate::queue::{self, Queue, Request};

/// What the load is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: u32,
    pub(crate) is_random: bool,
    pub(crate) block: u32,
    pub(crate) depth: u16,
    /// Blocks from where to where this queue works.
    pub(crate) blocks: (u64, u64),
    pub(crate) flush_every: u64,
    /// From one request to the next, if they are paced; `Duration::MAX` for none at all.
    pub(crate) interval: Option<Duration>,
    pub(crate) seed: u64,
}

/// Where the run is; the main thread goes from one to the next.
#[derive(Clone, Debug)]
pub(crate) struct Phase(Arc<AtomicU8>);

pub(crate) const WARMING: u8 = 0;
pub(crate) const MEASURING: u8 = 1;
pub(crate) const ENDING: u8 = 2;

impl Phase {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(WARMING)))
    }

    pub(crate) fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What came of it in the measured time.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub(crate) latency: Histogram,
    pub(crate) errors: u64,
    pub(crate) flushes: u64,
    pub(crate) kicks: u64,
    pub(crate) calls: u64,
}

impl Counts {
    pub(crate) fn new() -> Self {
        Self {
            latency: Histogram::new(),
            errors: 0,
            flushes: 0,
            kicks: 0,
            calls: 0,
        }
    }

    pub(crate) fn add(&mut self, other: &Counts) {
        self.latency.add(&other.latency);
        self.errors += other.errors;
        self.flushes += other.flushes;
        self.kicks += other.kicks;
        self.calls += other.calls;
    }
}

/// The load while it runs.
pub(crate) struct Load {
    queue: Queue,
    plan: Plan,
    phase: Phase,
    seen: u8,
    random: Random,
    next_block: u64,
    /// When a paced request is due.
    due: Option<Instant>,
    free: Vec<u16>,
    /// When a slot's request was made available, until it is answered.
    started: Vec<Option<Instant>>,
    writes_since_flush: u64,
    is_flushing: bool,
    counts: Counts,
}

impl Load {
    pub(crate) fn new(queue: Queue, plan: Plan, phase: Phase) -> Self {
        let now = Instant::now();
        Self {
            queue,
            plan,
            phase,
            seen: WARMING,
            random: Random::new(plan.seed),
            next_block: plan.blocks.0,
            due: plan.interval.map(|_| now),
            free: (0..plan.depth).rev().collect(),
            started: vec![None; usize::from(plan.depth)],
            writes_since_flush: 0,
            is_flushing: false,
            counts: Counts::new(),
        }
    }

    /// Works until the end is near, waits for what is in flight, and says what came of it.
    pub(crate) fn run(mut self) -> Result<Counts> {
        // A paced request starts when it is due, not up to 50 us later.
        set_current_timer_slack(NonZeroU64::new(1))?;
        loop {
            let phase = self.look_at_phase();
            if phase == ENDING && self.is_quiet() {
                return Ok(self.counts);
            }
            if phase != ENDING {
                self.submit()?;
            }
            self.queue.wait(self.until_due())?;
            self.take_answers()?;
        }
    }

    fn is_quiet(&self) -> bool {
        self.free.len() == self.started.len()
    }

    /// Kicks and calls count from the measurement's start to its end.
    fn look_at_phase(&mut self) -> u8 {
        let phase = self.phase.get();
        if phase != self.seen {
            let (kicks, calls) = (self.queue.kicks, self.queue.calls);
            if phase == MEASURING {
                (self.queue.kicks, self.queue.calls) = (0, 0);
            } else {
                (self.counts.kicks, self.counts.calls) = (kicks, calls);
            }
            self.seen = phase;
        }
        phase
    }

    /// How long to wait for a call at most; without end if only a call can bring something to do.
    fn until_due(&self) -> Option<Duration> {
        let due = self.due?;
        let can_submit = !self.free.is_empty() && !self.is_flush_due();
        let is_idle = self.plan.interval == Some(Duration::MAX);
        (can_submit && !is_idle && self.seen != ENDING)
            .then(|| due.saturating_duration_since(Instant::now()))
    }

    fn is_flush_due(&self) -> bool {
        self.is_flushing
            || (self.plan.flush_every > 0 && self.writes_since_flush >= self.plan.flush_every)
    }

    /// Everything that may start now, with one kick.
    fn submit(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.is_flush_due() {
            if !self.is_flushing && self.is_quiet() {
                self.is_flushing = true;
                self.writes_since_flush = 0;
                self.start(now, queue::FLUSH, 0);
            }
            return self.queue.kick();
        }
        while !self.free.is_empty() && !self.is_flush_due() && self.takes_turn(now) {
            let block = self.choose();
            self.start(now, self.plan.kind, block * u64::from(self.plan.block));
            self.writes_since_flush += 1;
        }
        self.queue.kick()
    }

    /// Whether the pace allows a request now; one that is late is made up for.
    fn takes_turn(&mut self, now: Instant) -> bool {
        let (Some(due), Some(interval)) = (self.due, self.plan.interval) else {
            return true;
        };
        if interval == Duration::MAX || now < due {
            return false;
        }
        self.due = Some(due + interval);
        true
    }

    fn choose(&mut self) -> u64 {
        let (from, to) = self.plan.blocks;
        if self.plan.is_random {
            return from + self.random.below(to - from);
        }
        let block = self.next_block;
        self.next_block = if block + 1 == to { from } else { block + 1 };
        block
    }

    fn start(&mut self, now: Instant, kind: u32, offset: u64) {
        let slot = self.free.pop().expect("a slot is free");
        self.started[usize::from(slot)] = Some(now);
        let len = self.plan.block;
        self.queue.add(slot, Request { kind, offset, len });
    }

    /// As `virtblk_done` does it.
    fn take_answers(&mut self) -> Result<()> {
        loop {
            self.queue.disable_calls();
            if self.queue.has_answers() {
                let now = Instant::now();
                let is_counted = self.phase.get() == MEASURING;
                while let Some((slot, status)) = self.queue.next_answer()? {
                    self.answered(slot, status, now, is_counted)?;
                }
            }
            if self.queue.enable_calls() {
                return Ok(());
            }
        }
    }

    fn answered(&mut self, slot: u16, status: u8, now: Instant, is_counted: bool) -> Result<()> {
        let started = self.started[usize::from(slot)].take();
        let started = started.with_context(|| format!("slot {slot} is answered twice"))?;
        self.free.push(slot);
        let was_flush = std::mem::take(&mut self.is_flushing);
        if !is_counted {
            return Ok(());
        }
        if status != 0 {
            self.counts.errors += 1;
        } else if was_flush {
            self.counts.flushes += 1;
        } else {
            let took = now.saturating_duration_since(started).as_nanos();
            let nanos = u64::try_from(took).unwrap_or(u64::MAX);
            self.counts.latency.record(nanos);
        }
        Ok(())
    }
}

/// xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 20) % limit
    }
}
