//! Making chunks equal that may differ between members (spec R2, R3).

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::chunk_set::CHUNK;
use super::env::NexusEnv;
use super::fan_out::{Failure, Operation};
use super::mutant::Mutant;
use super::nexus::{Inner, Mode, nap};
use super::repair::is_correctable;
use super::slots::SlotSet;
use super::throttle::Pace;
use super::vote::{extend, vote};
use super::write::Work;
use crate::io::{Clock, IoBuffer, IoError, Spawn};

/// Pause after a chunk that could not be made equal.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

impl<E: NexusEnv> Inner<E> {
    /// R2: makes every chunk that `range` touches equal before the caller reads it. Goes on when the caller gives up.
    /// `since` is when the caller began to wait for others, if it had to.
    pub(super) async fn resolve_now(
        self: &Rc<Self>,
        range: Range<u64>,
        since: Option<Duration>,
    ) -> Result<(), IoError> {
        let (answer, answered) = oneshot::channel();
        let running = self.enter();
        let inner = Rc::clone(self);
        self.parts.spawn.spawn(async move {
            let result = inner.resolve_range(range, since).await;
            drop(running);
            // The reader may have given up; then nobody wants to know.
            let _ = answer.send(result);
        });
        answered.await.unwrap_or(Err(IoError::Stopped))
    }

    pub(super) async fn resolve_range(
        self: &Rc<Self>,
        range: Range<u64>,
        since: Option<Duration>,
    ) -> Result<(), IoError> {
        loop {
            let next = self.unresolved.borrow().first_in(&range);
            match next {
                Some(chunk) => self.resolve_run(chunk, since).await?,
                None => return Ok(()),
            }
        }
    }

    /// R3: starts the background task unless it runs or has nothing to do.
    pub(super) fn ensure_resolving(self: &Rc<Self>) {
        if !self.unresolved.borrow().is_empty() && !self.resolve_task.replace(true) {
            self.parts.spawn.spawn(Rc::clone(self).resolve_all());
        }
    }

    /// R3: everything in address order, over and over until nothing is left or the volume stops.
    async fn resolve_all(self: Rc<Self>) {
        let mut from = 0;
        let mut last = Duration::ZERO;
        // Up to here chunks are taken one by one, since one of them could not be made equal.
        let mut one_by_one_until = 0;
        while self.mode.get() == Mode::Serving {
            // Nothing is resolved before a commit that is due (W6). It is waited for without the lock, which would keep
            // requests for this place waiting longer than for the commit (F6).
            let is_committed = || self.uncommitted.get().is_none();
            let over = || self.mode.get() != Mode::Serving;
            self.signal.until(|| is_committed() || over()).await;
            if over() {
                break;
            }
            let pace = self.resolve_pace(last);
            let run_max = if from < one_by_one_until {
                CHUNK
            } else {
                pace.run_max
            };
            let Some(run) = self.unresolved_run(from, run_max) else {
                if self.unresolved.borrow().is_empty() {
                    break;
                }
                from = 0;
                one_by_one_until = 0;
                continue;
            };
            // Not while the way that requests are served changes: on the fast path nobody takes locks (spec R8).
            let Ok(running) = self.admit().await else {
                break;
            };
            let started = self.parts.clock.now();
            let resolved = self.resolve_run(run.clone(), None).await;
            last = self.parts.clock.now().saturating_sub(started);
            drop(running);
            if resolved.is_ok() {
                from = run.end;
                let pause = self.resolve_pace(last).pause;
                if !pause.is_zero() {
                    nap(&self, pause).await;
                }
            } else if run.end - run.start > CHUNK {
                one_by_one_until = run.end;
            } else {
                from = run.end;
                nap(&self, AFTER_FAILURE).await;
            }
        }
        self.resolve_task.set(false);
        self.touch();
    }

    /// Guest I/O goes first, as it does before a rebuild (spec R3, B9), but no longer than what a crash would leave
    /// shrinks: when more regions were marked in this life than were resolved, there are no pauses.
    pub(super) fn resolve_pace(&self, last: Duration) -> Pace {
        let pace = Pace::new(self.running.get() > 0, last);
        if self.intent.len() > self.intent.resolved.get() {
            let pause = Duration::ZERO;
            Pace { pause, ..pace }
        } else {
            pace
        }
    }

    /// The next neighbouring chunks of U, all in one region.
    fn unresolved_run(&self, from: u64, max: u64) -> Option<Range<u64>> {
        let run = self
            .unresolved
            .borrow()
            .run_in(&(from..self.size.get()), max)?;
        let first = self.intent.regions(&run).start;
        let region = self.intent.bytes(&(first..first + 1));
        Some(run.start..run.end.min(region.end))
    }

    /// Makes chunks of one region equal on all members, from a content that satisfies G4 (spec A9).
    async fn resolve_run(
        self: &Rc<Self>,
        run: Range<u64>,
        since: Option<Duration>,
    ) -> Result<(), IoError> {
        let (_lock, waited) = self.timed(self.locks.exclusive(run.clone())).await;
        if self.unresolved.borrow().first_in(&run).is_none() {
            return Ok(());
        }
        if self.mode.get() == Mode::LostOwnership {
            return Err(IoError::EIO);
        }
        let len = usize::try_from(run.end - run.start).expect("a run is 1 MiB at most");
        let (source, data) = self.source_of(&run, len).await?;
        let note_missed = self.notes_missed();
        let others = (self.writers() - source).iter();
        let operation = |slot| {
            (
                slot,
                self.equalise(slot, run.start, data.clone(), note_missed),
            )
        };
        let mut outcome = self.fan_out(others.map(operation).collect()).await;
        outcome.done = outcome.done | source;
        self.settle(&outcome)?;
        if !self.committed_writers.get().is_within(outcome.done) {
            self.note_missed(outcome.done, run.clone()).await;
        }
        self.acknowledge(outcome.done, since.or(waited)).await?;
        self.unresolved.borrow_mut().remove_covered(&run);
        if !self.is_unresolved(&self.intent.regions(&run)) {
            self.intent.resolved.set(self.intent.resolved.get() + 1);
            self.signal.notify();
        }
        Ok(())
    }

    /// What a run of chunks is to hold, and who holds it already. Each member's blocks satisfy G4, so any of them will do;
    /// but a copy that went bad without a crash, and was perhaps just about to be repaired, must not win. It can't where
    /// two others agree (ADR 8).
    async fn source_of(
        self: &Rc<Self>,
        run: &Range<u64>,
        len: usize,
    ) -> Result<(SlotSet, IoBuffer), IoError> {
        if self.usable().len() > 2 {
            let copies = self.read_all(run).await;
            let found = copies.data();
            if found.len() > 2 {
                let right = vote(found, self.alignment.offset as usize, found.len(), Some(0)).right;
                return Ok((SlotSet::EMPTY, self.parts.buffers.copy_of(&right)));
            }
        }
        self.read_any(run.start, len).await
    }

    /// Writes the blocks that differ from `data` to one member. Bits first, as for every data write (spec W4).
    fn equalise(
        self: &Rc<Self>,
        slot: usize,
        start: u64,
        data: IoBuffer,
        note_missed: bool,
    ) -> Operation {
        let inner = Rc::clone(self);
        Box::pin(async move {
            if inner.parts.breaks(Mutant::ResolveWithoutWriting) {
                return Ok(());
            }
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Data)?;
            let found = inner.parts.buffers.get(data.len());
            let read = inner.retrying(|| replica.read(start, &found)).await;
            let differing = match read {
                Ok(()) => {
                    let block = inner.alignment.offset as usize;
                    differing_runs(&data, &found, block)
                }
                // What can't be read may be writable (spec R4).
                Err(error) if is_correctable(error) => {
                    inner.read_failed(slot, start..start + data.len() as u64, error);
                    std::iter::once(0..data.len()).collect()
                }
                Err(error) => return Err(Failure::Read(error)),
            };
            if differing.is_empty() {
                return Ok(());
            }
            let writing = inner.writing(&(start..start + data.len() as u64));
            if !inner.parts.breaks(Mutant::ResolveWithoutIntent) {
                let marks = writing.marks();
                inner.mark(slot, &replica, &marks, note_missed).await?;
            }
            for run in differing {
                // Durable before anybody reads it: at the next power loss this member could else fall back to what it
                // had, and be the source then; what was read would change a second time (spec G5). The source was flushed
                // when the volume was assembled.
                let work = Work::Write {
                    offset: start + run.start as u64,
                    data: data.slice(run.start, run.len()),
                    fua: true,
                };
                let written = inner.perform(slot, &work, &replica).await;
                written.map_err(Failure::Data)?;
            }
            Ok(())
        })
    }
}

/// The runs of blocks in which two buffers of one length differ, in bytes.
fn differing_runs(a: &IoBuffer, b: &IoBuffer, block: usize) -> Vec<Range<usize>> {
    let (a, b) = (a.to_vec(), b.to_vec());
    let mut runs: Vec<Range<usize>> = Vec::new();
    for start in (0..a.len()).step_by(block) {
        let end = (start + block).min(a.len());
        if a[start..end] != b[start..end] {
            extend(&mut runs, start..end);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BufferPool;

    #[test]
    fn only_blocks_that_differ_are_written_in_runs() {
        let pool = BufferPool::default();
        let check = |changed: &[usize], expected: &[(usize, usize)]| {
            let (a, b) = (pool.zeroed(16 * 512), pool.zeroed(16 * 512));
            changed.iter().for_each(|at| b.write_at(*at, &[1]));
            let runs = differing_runs(&a, &b, 512);
            let runs: Vec<_> = runs.into_iter().map(|r| (r.start, r.end)).collect();
            assert_eq!(runs, expected);
        };
        check(&[], &[]);
        check(&[0, 513, 16 * 512 - 1], &[(0, 1024), (15 * 512, 16 * 512)]);
        check(&[1024], &[(1024, 1536)]);
    }
}
