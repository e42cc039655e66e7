//! Copying to a member that is being rebuilt: one run of chunks at a time under its range lock (spec B4, B5, B6, B9).

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::env::NexusEnv;
use super::fan_out::{Failure, either};
use super::mutant::Mutant;
use super::nexus::{Inner, Mode};
use super::range_lock::Ticket;
use super::rebuild::{Job, RebuildError};
use super::throttle::{Pace, Throttle};
use crate::io::{Clock, IoBuffer, IoError, Spawn, ZeroOptions, join_all};
use crate::replica::BitmapKind;

/// Zeroes are looked for in units of this many bytes, so that a thin target stays as thin as its source.
const ZERO_UNIT: usize = 4096;

/// When the last checkpoint was.
struct Checkpoint {
    at: Duration,
    copied: u64,
}

impl<E: NexusEnv> Inner<E> {
    /// Copies all that is to do, in address order.
    pub(super) async fn copy_all(
        self: &Rc<Self>,
        job: &Rc<Job<E::Disk>>,
    ) -> Result<(), RebuildError> {
        let result = self.start_copies(job).await;
        if let Err(error) = &result {
            job.fail(error.clone());
        }
        self.signal.until(|| job.copying.get() == 0).await;
        result?;
        job.check()
    }

    async fn start_copies(self: &Rc<Self>, job: &Rc<Job<E::Disk>>) -> Result<(), RebuildError> {
        let clock = &self.parts.clock;
        let mut throttle = Throttle::new(clock.now());
        let mut last = Checkpoint {
            at: clock.now(),
            copied: 0,
        };
        let mut requests = self.requests.get();
        let mut from = 0;
        loop {
            self.check_copying(job)?;
            let now = clock.now();
            let (interval, bytes) = E::CHECKPOINT;
            let is_due =
                now.saturating_sub(last.at) >= interval || job.copied.get() - last.copied >= bytes;
            if is_due {
                last.copied = job.copied.get();
                self.checkpoint(job).await?;
                last.at = clock.now();
                continue;
            }
            // Guest I/O goes first (spec B9).
            let guest_is_active = self.running.get() > 0 || has_more(&self.requests, &mut requests);
            let pace = Pace::new(guest_is_active, job.last_copy.get());
            let rate = self.spec.borrow().policy.rebuild_bandwidth;
            if let Some(wait) = throttle.wait(rate, now) {
                self.rest(job, wait).await;
                continue;
            }
            let room = || job.copying.get() < pace.copies_max || job.check().is_err();
            self.signal.until(room).await;
            self.check_copying(job)?;
            let run = {
                let todo = job.todo.borrow();
                todo.run_in(&(from..todo.size()), pace.run_max)
            };
            let Some(run) = run else {
                return Ok(());
            };
            from = run.end;
            throttle.take(run.end - run.start);
            self.start_copy(job, run);
            if !pace.pause.is_zero() {
                self.signal.until(|| job.copying.get() == 0).await;
                self.rest(job, pace.pause).await;
            }
        }
    }

    /// Sleeps, but no longer than more may be copied.
    async fn rest(&self, job: &Job<E::Disk>, duration: Duration) {
        let over = self.signal.until(|| self.check_copying(job).is_err());
        either(self.parts.clock.sleep(duration), over).await;
    }

    /// Whether more may be copied.
    fn check_copying(&self, job: &Job<E::Disk>) -> Result<(), RebuildError> {
        if self.mode.get() != Mode::Serving {
            return Err(RebuildError::Stopped);
        }
        job.check()?;
        self.check_target(job)
    }

    /// One copy as a task of its own.
    fn start_copy(self: &Rc<Self>, job: &Rc<Job<E::Disk>>, run: Range<u64>) {
        job.copying.set(job.copying.get() + 1);
        let (inner, job) = (Rc::clone(self), Rc::clone(job));
        self.parts.spawn.spawn(async move {
            let started = inner.parts.clock.now();
            let result = inner.copy(&job, run).await;
            let now = inner.parts.clock.now();
            job.last_copy.set(now.saturating_sub(started));
            job.copying.set(job.copying.get() - 1);
            match result {
                Ok(copied) => {
                    job.copied.set(job.copied.get() + copied);
                    let mut rate = job.rate.get();
                    let is_news = rate.add(copied, now);
                    job.rate.set(rate);
                    if is_news {
                        inner.touch();
                    }
                }
                Err(error) => job.fail(error),
            }
            inner.signal.notify();
        });
    }

    /// B4 for one run of chunks: what is left to do of it once it is locked. What was resolved or written by clients
    /// meanwhile is on the target, and a checkpoint may have taken it off the target's list. Answers the bytes copied.
    async fn copy(
        self: &Rc<Self>,
        job: &Rc<Job<E::Disk>>,
        run: Range<u64>,
    ) -> Result<u64, RebuildError> {
        let lock = self.lock_resolved(&run).await?;
        let _lock = (!self.parts.breaks(Mutant::CopyWithoutLock)).then_some(lock);
        let (mut from, mut copied) = (run.start, 0);
        loop {
            let left = from..run.end;
            let part = job.todo.borrow().run_in(&left, run.end - run.start);
            let Some(part) = part else {
                return Ok(copied);
            };
            (from, copied) = (part.end, copied + part.end - part.start);
            self.check_copying(job)?;
            self.copy_locked(job, part).await?;
        }
    }

    async fn copy_locked(
        self: &Rc<Self>,
        job: &Rc<Job<E::Disk>>,
        run: Range<u64>,
    ) -> Result<(), RebuildError> {
        let len = usize::try_from(run.end - run.start).expect("a run is 1 MiB at most");
        let data = match self.read_any(run.start, len).await {
            Ok((_, data)) => data,
            Err(_) => return Err(self.find_unreadable(&run).await),
        };
        let regions = job.target.regions(run.start, run.end - run.start);
        for region in regions.clone() {
            assert!(
                job.target.is_set(BitmapKind::Missed, region),
                "W4: what is copied is on the target's list until it was flushed"
            );
        }
        let (inner, own, start) = (Rc::clone(self), Rc::clone(job), run.start);
        let put = async move {
            // Durably: a client's write may have listed them in memory, and its page be still under way (W4, B3).
            let target = &own.target;
            let listed = || target.set_durable(BitmapKind::Missed, regions.clone());
            inner.retrying(listed).await.map_err(Failure::Label)?;
            inner.put(&own, start, data).await
        };
        self.on_target(job, put).await?;
        job.todo.borrow_mut().remove_covered(&run);
        Ok(())
    }

    /// The range lock on a range in which the members of the active set are equal.
    async fn lock_resolved(self: &Rc<Self>, run: &Range<u64>) -> Result<Ticket, RebuildError> {
        loop {
            let lock = self.locks.exclusive(run.clone()).await;
            let unresolved = self.unresolved.borrow().first_in(run);
            let Some(chunk) = unresolved else {
                return Ok(lock);
            };
            drop(lock);
            let offset = chunk.start;
            let resolved = self.resolve_now(run.clone(), None).await;
            resolved.map_err(|_| RebuildError::Source { offset })?;
        }
    }

    /// B6: where exactly nobody can read.
    async fn find_unreadable(self: &Rc<Self>, run: &Range<u64>) -> RebuildError {
        let block = u64::from(self.alignment.offset);
        let len = usize::try_from(block).expect("a block is small");
        let mut offset = run.start;
        while offset < run.end && self.read_any(offset, len).await.is_ok() {
            offset += block;
        }
        RebuildError::Source {
            // Readable after all: it was a moment's failure, somewhere in the run.
            offset: if offset < run.end { offset } else { run.start },
        }
    }

    /// Writes what was read to the target. Zeroes are zeroed, so that a thin target stays thin and nothing old is left.
    async fn put(
        self: &Rc<Self>,
        job: &Rc<Job<E::Disk>>,
        start: u64,
        data: IoBuffer,
    ) -> Result<(), Failure> {
        let parts = pieces(&data, ZERO_UNIT);
        let write = |piece: Piece| {
            let at = start + piece.range.start as u64;
            let len = piece.range.len();
            let (inner, job) = (Rc::clone(self), Rc::clone(job));
            let part = data.slice(piece.range.start, len);
            async move {
                let target = &job.target;
                let options = ZeroOptions {
                    unmap: true,
                    fua: false,
                };
                if piece.is_zero {
                    let zero = || target.write_zeroes(at, len as u64, options);
                    inner.submitting(job.slot, zero).await
                } else {
                    let write = || target.write(at, &part, false);
                    inner.submitting(job.slot, write).await
                }
            }
        };
        // To the end of each, also when one fails.
        let written = join_all(parts.into_iter().map(write)).await;
        let written: Result<(), IoError> = written.into_iter().collect();
        written.map_err(Failure::Data)
    }

    /// B5: what was copied so far becomes durable and leaves the target's list.
    pub(super) async fn checkpoint(
        self: &Rc<Self>,
        job: &Rc<Job<E::Disk>>,
    ) -> Result<(), RebuildError> {
        let mut finished = self.finished(job);
        if finished.is_empty() {
            return Ok(());
        }
        // Submitted only now: what was finished later is not believed.
        if !self.parts.breaks(Mutant::NoFlushAfterCopy) {
            self.on_target(job, self.flush_child(job.slot)).await?;
        }
        if self.parts.breaks(Mutant::FinishedWhileFlushing) {
            finished = self.finished(job);
        }
        let target = Rc::clone(&job.target);
        self.on_target(job, async move {
            for run in finished {
                target.unset(BitmapKind::Missed, run);
            }
            // Durable, or a power cut could tear the page, and all of it would have to be copied again.
            let written = target.write_back(BitmapKind::Missed, true).await;
            written.map_err(Failure::Label)
        })
        .await
    }

    /// The regions on the target's list of which no chunk is left to do.
    fn finished(&self, job: &Job<E::Disk>) -> Vec<Range<u64>> {
        let (todo, shift) = (job.todo.borrow(), job.target.region_shift());
        let mut finished: Vec<Range<u64>> = Vec::new();
        for region in job
            .target
            .set_regions(BitmapKind::Missed)
            .into_iter()
            .flatten()
        {
            let bytes = region << shift..((region + 1) << shift).min(todo.size());
            if todo.first_in(&bytes).is_some() {
                continue;
            }
            match finished.last_mut() {
                Some(run) if run.end == region => run.end += 1,
                _ => finished.push(region..region + 1),
            }
        }
        finished
    }
}

/// Whether a counter has moved since the last look.
fn has_more(counter: &Cell<u64>, seen: &mut u64) -> bool {
    let now = counter.get();
    std::mem::replace(seen, now) != now
}

impl<D> Job<D> {
    /// Notes the first reason for which no more copies are started.
    fn fail(&self, error: RebuildError) {
        self.failed.borrow_mut().get_or_insert(error);
    }

    fn check(&self) -> Result<(), RebuildError> {
        match &*self.failed.borrow() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// A part of what was read: either all zero or not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    range: Range<usize>,
    is_zero: bool,
}

/// Cuts a buffer into pieces that are all zero and pieces in which no unit is.
fn pieces(data: &IoBuffer, unit: usize) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for start in (0..data.len()).step_by(unit) {
        let end = (start + unit).min(data.len());
        let is_zero = data.slice(start, end - start).is_zero();
        match pieces.last_mut() {
            Some(piece) if piece.is_zero == is_zero => piece.range.end = end,
            _ => pieces.push(Piece {
                range: start..end,
                is_zero,
            }),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BufferPool;

    #[test]
    fn zeroes_and_data_are_told_apart_in_units() {
        let check = |set: &[usize], expected: &[(usize, usize, bool)]| {
            let data = BufferPool::default().zeroed(4 * 4096);
            set.iter().for_each(|at| data.write_at(*at, &[1]));
            let found = pieces(&data, 4096);
            let found: Vec<_> = found
                .iter()
                .map(|p| (p.range.start / 4096, p.range.end / 4096, p.is_zero))
                .collect();
            assert_eq!(found, expected);
        };
        check(&[], &[(0, 4, true)]);
        check(&[0, 8191, 9000, 16383], &[(0, 4, false)]);
        check(&[5000], &[(0, 1, true), (1, 2, false), (2, 4, true)]);
    }
}
