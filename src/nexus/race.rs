//! One read, asked of several members until one has answered: the next is asked when one fails (spec R4) and when none
//! has answered for too long (R5).
//!
//! No timer is set per read: while reads that another member could answer are under way, one task wakes all of them a
//! few times per `read_hedge`, and each looks at the clock itself.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::env::NexusEnv;
use super::fan_out::{Failure, Operation};
use super::nexus::Inner;
use super::slots::{SLOTS_MAX, SlotSet};
use super::state::FaultReason;
use super::write::Verdict;
use crate::io::{Clock, IoBuffer, IoError, Spawn};

/// How many members may work on one read at the same time.
const RUNNERS_MAX: usize = 3;
/// How often the clock is looked at within `read_hedge`.
const LOOKS: u32 = 4;
/// But not more often than this.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(5);

/// What the reads of a volume share.
#[derive(Debug, Default)]
pub(super) struct Races {
    /// Reads under way.
    running: Cell<usize>,
    /// Whether the task that wakes them is under way.
    ticking: Cell<bool>,
    /// Reads that were sent to another member because the first took too long.
    pub(super) hedged: Cell<u64>,
    /// Per slot, reads that nobody waits for any more and that are still under way.
    overdue: [Cell<u32>; SLOTS_MAX],
}

impl Races {
    /// Whether a member has not answered a read that another one did: it may hang.
    pub(super) fn is_overdue(&self, slot: usize) -> bool {
        self.overdue[slot].get() > 0
    }
}

/// One read.
pub(super) struct Race<E: NexusEnv> {
    inner: Rc<Inner<E>>,
    range: Range<u64>,
    runners: [Option<Runner>; RUNNERS_MAX],
    /// The members that are not asked any more.
    tried: SlotSet,
    /// Those of them that failed, and how.
    failed: [Option<IoError>; SLOTS_MAX],
    /// When the next member is asked although nobody failed; none while there is nobody to ask.
    hedge_at: Option<Duration>,
}

/// One member at work on it, with a buffer of its own: an abandoned one belongs to the kernel (spec R5, R7).
struct Runner {
    slot: usize,
    buffer: IoBuffer,
    read: Operation,
}

impl<E: NexusEnv> Race<E> {
    pub(super) fn new(inner: Rc<Inner<E>>, range: Range<u64>, but: SlotSet) -> Self {
        let running = &inner.races.running;
        running.set(running.get() + 1);
        Self {
            inner,
            range,
            runners: [const { None }; RUNNERS_MAX],
            tried: but,
            failed: [None; SLOTS_MAX],
            hedge_at: None,
        }
    }

    /// The first good answer and whose it is; none when nobody has the data.
    ///
    /// # Errors
    /// `EIO` when the request itself is at fault.
    pub(super) async fn run(&mut self) -> Result<Option<(usize, IoBuffer)>, IoError> {
        let inner = Rc::clone(&self.inner);
        let mut listener = inner.signal.listen();
        poll_fn(|context| {
            loop {
                if let Poll::Ready(answer) = self.poll_runners(context) {
                    return Poll::Ready(answer.map(Some));
                }
                let idle = self.runners.iter().all(Option::is_none);
                let late = self.is_late();
                if (idle || late) && self.start() {
                    if late && !idle {
                        inner.races.hedged.set(inner.races.hedged.get() + 1);
                    }
                    continue;
                }
                if idle {
                    return Poll::Ready(Ok(None));
                }
                listener.register(context);
                inner.ensure_ticking(self.hedge_at.is_some());
                return Poll::Pending;
            }
        })
        .await
    }

    /// Polls everybody at work. Who was faulted meanwhile is not waited for (spec F1).
    fn poll_runners(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(usize, IoBuffer), IoError>> {
        let usable = self.inner.usable();
        for place in &mut self.runners {
            let Some(runner) = place else { continue };
            let slot = runner.slot;
            match runner.read.as_mut().poll(context) {
                Poll::Ready(Ok(())) => {
                    let answer = place.take().map(|runner| (slot, runner.buffer));
                    return Poll::Ready(answer.ok_or(IoError::EIO));
                }
                Poll::Ready(Err(failure)) => {
                    *place = None;
                    if blames_nobody(failure) {
                        return Poll::Ready(Err(IoError::EIO));
                    }
                    self.failed[slot] = Some(failure.error());
                }
                Poll::Pending if usable.contains(slot) => {}
                Poll::Pending => abandon(&self.inner, &self.range, place.take()),
            }
        }
        Poll::Pending
    }

    /// Asks one more member; false when there is none, or enough are at work.
    fn start(&mut self) -> bool {
        self.hedge_at = None;
        let Some(place) = self.runners.iter_mut().find(|place| place.is_none()) else {
            return false;
        };
        let (inner, range) = (&self.inner, &self.range);
        let Some(slot) = inner.choose(range.start, self.tried) else {
            return false;
        };
        self.tried.insert(slot);
        let len = usize::try_from(range.end - range.start).expect("a request fits memory");
        let buffer = inner.parts.buffers.payload(len);
        let read = inner.read_on(slot, range.start, buffer.clone());
        *place = Some(Runner { slot, buffer, read });
        let hedge = inner.spec.borrow().policy.timeouts.read_hedge;
        let others = !(inner.usable() - self.tried).is_empty();
        self.hedge_at = (others && !hedge.is_zero()).then(|| inner.parts.clock.now() + hedge);
        true
    }

    fn is_late(&self) -> bool {
        let now = || self.inner.parts.clock.now();
        self.hedge_at.is_some_and(|at| now() >= at)
    }

    /// After a good answer: whoever failed is corrected or faulted (spec R4, section 5).
    pub(super) fn blame(&self) {
        for slot in self.tried.iter() {
            if let Some(error) = self.failed[slot] {
                self.inner.read_failed(slot, self.range.clone(), error);
            }
        }
    }

    /// The end. Who is still at work goes on for nobody, with its buffer, and its member counts it until it is answered:
    /// that keeps other reads away from a member that hangs.
    pub(super) fn end(mut self) {
        for place in &mut self.runners {
            abandon(&self.inner, &self.range, place.take());
        }
    }

    /// Who failed and how, when only one did.
    pub(super) fn sole_failure(&self) -> Option<(usize, FaultReason)> {
        let mut failed = self.tried.iter().filter_map(|slot| {
            match Verdict::of(Failure::Read(self.failed[slot]?)) {
                Verdict::Child(reason) => Some((slot, reason)),
                Verdict::Full | Verdict::Request => None,
            }
        });
        let first = failed.next();
        first.filter(|_| failed.next().is_none())
    }
}

impl<E: NexusEnv> Drop for Race<E> {
    fn drop(&mut self) {
        let running = &self.inner.races.running;
        running.set(running.get() - 1);
    }
}

/// Lets a read go on for nobody; if it fails, its member still has something to be put right.
fn abandon<E: NexusEnv>(inner: &Rc<Inner<E>>, range: &Range<u64>, runner: Option<Runner>) {
    let Some(Runner { slot, read, .. }) = runner else {
        return;
    };
    let (later, range) = (Rc::clone(inner), range.clone());
    let overdue = &inner.races.overdue[slot];
    overdue.set(overdue.get() + 1);
    inner.parts.spawn.spawn(async move {
        let result = read.await;
        let overdue = &later.races.overdue[slot];
        overdue.set(overdue.get() - 1);
        if let Err(failure) = result
            && !blames_nobody(failure)
        {
            later.read_failed(slot, range, failure.error());
        }
    });
}

/// Whether the request, not the member, is at fault.
fn blames_nobody(failure: Failure) -> bool {
    match Verdict::of(failure) {
        Verdict::Child(_) => false,
        Verdict::Full | Verdict::Request => true,
    }
}

impl<E: NexusEnv> Inner<E> {
    /// Starts the task that wakes reads so that they look at the clock, unless it runs or is of no use.
    fn ensure_ticking(self: &Rc<Self>, wanted: bool) {
        if wanted && !self.races.ticking.replace(true) {
            self.parts.spawn.spawn(Rc::clone(self).tick());
        }
    }

    async fn tick(self: Rc<Self>) {
        while self.races.running.get() > 0 {
            let hedge = self.spec.borrow().policy.timeouts.read_hedge;
            let pause = (hedge / LOOKS).max(LOOK_PAUSE_MIN);
            self.parts.clock.sleep(pause).await;
            self.signal.notify();
        }
        self.races.ticking.set(false);
    }
}
