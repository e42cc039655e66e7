//! [`Injected`]: a disk that breaks on command, for tests and drills (`docs/fault-injection.md`).
//!
//! A replica is wrapped in one only when `[danger_zone] fault_injection` was set as the daemon started, so that without the
//! switch nothing is checked on the way of an I/O. The faults themselves are shared with the control thread, by [`Faults`].

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::oneshot;

use super::buffer::IoBuffer;
use super::clock::{Clock, Rng, Spawn};
use super::device::{Alignment, BlockDevice, IoError, ZeroOptions};
use super::disk::Disk;
use crate::model::fault::{Effect, Fault, Operations};

/// What goes wrong on one replica now. Belongs to a place, not to an open file: a replica that is opened again in the same
/// pool finds the same faults.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    active: Vec<Active>,
    hung: Vec<Waker>,
}

#[derive(Clone, Copy, Debug)]
struct Active {
    fault: Fault,
    happened: u32,
}

impl Active {
    fn is_spent(&self) -> bool {
        self.fault.count.is_some_and(|count| self.happened >= count)
    }
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what goes wrong. Operations that hang go on unless one of the new faults is a hang too.
    pub fn set(&self, faults: &[Fault]) {
        let start = |fault: &Fault| Active {
            fault: *fault,
            happened: 0,
        };
        let wakers = {
            let mut state = self.state();
            state.active = faults.iter().map(start).collect();
            std::mem::take(&mut state.hung)
        };
        for waker in wakers {
            waker.wake();
        }
    }

    /// What goes wrong now. A hang that has happened as often as it was to stays, as what it holds does.
    #[must_use]
    pub fn active(&self) -> Vec<Fault> {
        let state = self.state();
        let lasting = state
            .active
            .iter()
            .filter(|active| !active.is_spent() || active.fault.effect == Effect::Hang);
        lasting.map(|active| active.fault).collect()
    }

    /// What happens to an operation that begins now.
    fn verdict(&self, kind: Kind, rng: &impl Rng) -> Verdict {
        let mut verdict = Verdict::default();
        for active in &mut self.state().active {
            let fault = active.fault;
            let strikes = fault.one_in == 1
                || rng
                    .random_u128()
                    .is_multiple_of(u128::from(fault.one_in.max(1)));
            if active.is_spent() || !applies(fault.effect, kind) || !strikes {
                continue;
            }
            active.happened += 1;
            match fault.effect {
                Effect::Delay(duration) => verdict.delay += duration,
                Effect::Hang => verdict.hangs = true,
                Effect::Error(_, errno) => verdict.end = End::Fail(errno),
                Effect::TornWrite => verdict.end = End::Tear,
                Effect::LostDevice => verdict.end = End::Fail(libc::ENODEV),
            }
        }
        verdict
    }

    /// Waits until no fault is a hang.
    async fn released(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            let hangs = |active: &Active| active.fault.effect == Effect::Hang;
            if state.active.iter().any(hangs) {
                state.hung.push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// Sorts of operations, as [`Operations`] tells them apart; only a write can be torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// Zeroing and growing.
    Change,
    Flush,
}

fn applies(effect: Effect, kind: Kind) -> bool {
    match effect {
        Effect::Error(Operations::Read, _) => kind == Kind::Read,
        Effect::Error(Operations::Write, _) => matches!(kind, Kind::Write | Kind::Change),
        Effect::Error(Operations::Flush, _) => kind == Kind::Flush,
        Effect::TornWrite => kind == Kind::Write,
        Effect::Error(Operations::All, _)
        | Effect::Delay(_)
        | Effect::Hang
        | Effect::LostDevice => true,
    }
}

#[derive(Debug, Default)]
struct Verdict {
    delay: Duration,
    hangs: bool,
    end: End,
}

#[derive(Clone, Copy, Debug, Default)]
enum End {
    /// As the disk says.
    #[default]
    Pass,
    Fail(i32),
    Tear,
}

/// An operation that may outlive the future that asked for it: it owns what it needs.
#[derive(Clone)]
enum Request {
    Read(u64, IoBuffer),
    Write(u64, IoBuffer, bool),
    WriteZeroes(u64, u64, ZeroOptions),
    Flush,
    Grow(u64),
}

impl Request {
    fn kind(&self) -> Kind {
        match self {
            Self::Read(..) => Kind::Read,
            Self::Write(..) => Kind::Write,
            Self::WriteZeroes(..) | Self::Grow(_) => Kind::Change,
            Self::Flush => Kind::Flush,
        }
    }

    /// Boxed, because a [`Disk`] may be an [`Injected`] itself as far as the compiler knows.
    fn pass(self, disk: &Disk) -> Pin<Box<dyn Future<Output = Result<(), IoError>> + '_>> {
        Box::pin(async move {
            match self {
                Self::Read(offset, buffer) => disk.read(offset, &buffer).await,
                Self::Write(offset, buffer, fua) => disk.write(offset, &buffer, fua).await,
                Self::WriteZeroes(offset, len, options) => {
                    disk.write_zeroes(offset, len, options).await
                }
                Self::Flush => disk.flush().await,
                Self::Grow(size) => disk.grow(size).await,
            }
        })
    }

    /// Writes a random number of its blocks, from the start on or from the end.
    async fn tear(self, disk: &Disk, rng: &impl Rng) -> Result<(), IoError> {
        let Self::Write(offset, buffer, fua) = self else {
            return Err(IoError::EIO);
        };
        let block = TEAR.max(disk.alignment().offset as usize);
        let blocks = u64::try_from(buffer.len() / block).unwrap_or(1).max(1);
        let random = rng.random_u128();
        let kept = usize::try_from(random % u128::from(blocks)).unwrap_or(0) * block;
        let start = if random >> 64 & 1 == 0 {
            0
        } else {
            buffer.len() - kept
        };
        if kept > 0 {
            let part = Self::Write(offset + start as u64, buffer.slice(start, kept), fua);
            part.pass(disk).await?;
        }
        Err(IoError::EIO)
    }
}

/// Disks tear writes at their sectors, bytes; never below what this one takes.
const TEAR: usize = 512;

/// A disk with faults. `H` is its reactor.
pub struct Injected<H> {
    disk: Rc<Disk>,
    faults: Arc<Faults>,
    host: H,
}

impl<H: Clock + Rng + Spawn> Injected<H> {
    /// Wraps `disk`.
    pub fn new(disk: Disk, faults: Arc<Faults>, host: H) -> Self {
        Self {
            disk: Rc::new(disk),
            faults,
            host,
        }
    }

    async fn run(&self, request: Request) -> Result<(), IoError> {
        let verdict = self.faults.verdict(request.kind(), &self.host);
        if !verdict.hangs && verdict.delay.is_zero() {
            return end(request, verdict.end, &self.disk, &self.host).await;
        }
        // A task of its own, as a disk has: who asked may give up and forget it, but it still happens. Until then it keeps
        // memory, file and lock.
        let (answer, answered) = oneshot::channel();
        let (disk, faults) = (Rc::clone(&self.disk), Arc::clone(&self.faults));
        let host = self.host.clone();
        self.host.spawn(async move {
            if !verdict.delay.is_zero() {
                host.sleep(verdict.delay).await;
            }
            if verdict.hangs {
                faults.released().await;
            }
            let result = end(request, verdict.end, &disk, &host).await;
            // Who asked may have given up.
            let _ = answer.send(result);
        });
        // Closed without an answer only when the reactor has stopped.
        answered.await.unwrap_or(Err(IoError::Stopped))
    }
}

async fn end(request: Request, end: End, disk: &Disk, rng: &impl Rng) -> Result<(), IoError> {
    match end {
        End::Pass => request.pass(disk).await,
        End::Fail(errno) => Err(IoError::Os(errno)),
        End::Tear => request.tear(disk, rng).await,
    }
}

impl<H: Clock + Rng + Spawn> BlockDevice for Injected<H> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn alignment(&self) -> Alignment {
        self.disk.alignment()
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        self.run(Request::Read(offset, buf.clone())).await
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        self.run(Request::Write(offset, buf.clone(), fua)).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        self.run(Request::WriteZeroes(offset, len, options)).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.run(Request::Flush).await
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        self.run(Request::Grow(size)).await
    }
}

impl<H> fmt::Debug for Injected<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injected")
            .field("disk", &self.disk)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
