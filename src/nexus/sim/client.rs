//! Clients that read, write and flush at random, and report everything to the [`History`].

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::history::{History, Tag};
use super::rig::{Rig, SimEnv};
use super::scenario::{Kind, Request};
use crate::io::sim::SimNode;
use crate::io::{BlockDevice, BufferPool, Clock, IoBuffer, IoError, ZeroOptions};
use crate::nexus::Nexus;

/// Requests that take longer are remembered.
const SLOW: Duration = Duration::from_secs(1);

/// The clients of one volume and what they share.
pub(super) struct Clients {
    pub(super) rig: Rig,
    pub(super) history: History,
    /// Requests that have not been answered.
    pub(super) pending: Cell<u64>,
    pub(super) errors: RefCell<Vec<IoError>>,
    /// From when to when the requests of this cycle were under way that took longer than [`SLOW`].
    pub(super) slow: RefCell<Vec<Range<Duration>>>,
    buffers: BufferPool,
}

impl Clients {
    pub(super) fn new(rig: Rig, islands: &[Range<u64>]) -> Self {
        let block = rig.spec.block_size;
        Self {
            history: History::new(&rig.sim, islands, block),
            rig,
            pending: Cell::new(0),
            errors: RefCell::default(),
            slow: RefCell::default(),
            buffers: BufferPool::default(),
        }
    }

    fn block(&self) -> u64 {
        u64::from(self.rig.spec.block_size)
    }

    /// Gives every block a tag of its own, durably, so that zeroes are a value like any other later.
    pub(super) async fn fill(&self, nexus: &Nexus<SimEnv>, islands: &[Range<u64>]) {
        let write = Kind::Write {
            fua: true,
            spoil: false,
        };
        for island in islands {
            for first in island.clone().step_by(16) {
                let end = (first + 16).min(island.end);
                let end = end.min(nexus.size() / self.block());
                if first < end {
                    self.perform(nexus, write, first..end).await;
                }
            }
        }
    }

    /// One client's life.
    pub(super) async fn run(
        self: Rc<Self>,
        nexus: Nexus<SimEnv>,
        clock: SimNode,
        requests: Vec<Request>,
    ) {
        for request in requests {
            clock.sleep(request.pause).await;
            if request.blocks.end * self.block() > nexus.size() {
                // The volume has not grown that far.
                continue;
            }
            self.pending.set(self.pending.get() + 1);
            let begun = clock.now();
            self.perform(&nexus, request.kind, request.blocks).await;
            let life = begun..clock.now();
            if life.end - life.start > SLOW {
                self.slow.borrow_mut().push(life);
            }
            self.pending.set(self.pending.get() - 1);
        }
    }

    async fn perform(&self, nexus: &Nexus<SimEnv>, kind: Kind, blocks: Range<u64>) {
        match kind {
            Kind::Read => self.read(nexus, blocks).await,
            Kind::Write { fua, spoil } => self.write(nexus, blocks, (fua, spoil)).await,
            Kind::Zero { fua, unmap } => self.zero(nexus, blocks, ZeroOptions { unmap, fua }).await,
            Kind::Flush => self.flush(nexus).await,
        }
    }

    fn note(&self, result: Result<(), IoError>) -> bool {
        if let Err(error) = result {
            self.errors.borrow_mut().push(error);
        }
        result.is_ok()
    }

    pub(super) async fn read(&self, nexus: &Nexus<SimEnv>, blocks: Range<u64>) {
        let len = (blocks.end - blocks.start) * self.block();
        let buffer = self.buffers.zeroed(usize::try_from(len).unwrap());
        let started = self.history.begin_read(blocks.clone());
        let result = nexus.read(blocks.start * self.block(), &buffer).await;
        self.history
            .note(|| format!("read {blocks:?} from {started}: {result:?}"));
        if self.note(result) {
            self.history.read(blocks.start, &buffer.to_vec(), started);
        } else {
            self.history.read_failed(started);
        }
    }

    async fn write(&self, nexus: &Nexus<SimEnv>, blocks: Range<u64>, (fua, spoil): (bool, bool)) {
        let Some(tag) = self.history.begin_write(blocks.clone(), fua, false) else {
            return;
        };
        let buffer = self.payload(tag, blocks.clone());
        let write = nexus.write(blocks.start * self.block(), &buffer, fua);
        // A mirrored volume reads the client's memory once, at the start (spec W2); what the client does to it
        // afterwards must not reach any member.
        let spoil = spoil && self.rig.committed().len() > 1;
        let result = polled_then(write, || {
            if spoil {
                buffer.fill(0x5a);
            }
        })
        .await;
        self.written(tag, blocks, fua, result);
    }

    async fn zero(&self, nexus: &Nexus<SimEnv>, blocks: Range<u64>, options: ZeroOptions) {
        let fua = options.fua;
        let Some(tag) = self.history.begin_write(blocks.clone(), fua, true) else {
            return;
        };
        let len = (blocks.end - blocks.start) * self.block();
        let result = nexus
            .write_zeroes(blocks.start * self.block(), len, options)
            .await;
        self.written(tag, blocks, fua, result);
    }

    fn payload(&self, tag: Tag, blocks: Range<u64>) -> IoBuffer {
        let content = blocks.flat_map(|block| self.history.content(tag, block));
        self.buffers.copy_of(&content.collect::<Vec<u8>>())
    }

    fn written(&self, tag: Tag, blocks: Range<u64>, fua: bool, result: Result<(), IoError>) {
        let acked = self.note(result);
        self.history.end_write(tag, acked);
        self.history
            .note(|| format!("write {tag} {blocks:?} fua {fua}: {result:?}"));
        if !acked {
            return;
        }
        self.check_noted(
            tag,
            &(blocks.start * self.block()..blocks.end * self.block()),
        );
        for member in self.rig.committed() {
            for block in blocks.clone() {
                let at = block * self.block();
                // A disk that lost its cache just now had the write when it answered.
                if !self.rig.lost_cache(member, tag) {
                    let bytes = self.rig.visible(member, at, self.block());
                    self.history.check_member(tag, block, &bytes, member);
                }
                if fua && !self.rig.volatile[member] {
                    let bytes = self.rig.durable(member, at, self.block());
                    self.history.check_durable(block, &bytes, member);
                }
            }
        }
    }

    async fn flush(&self, nexus: &Nexus<SimEnv>) {
        let started = self.rig.sim.tick();
        let result = nexus.flush().await;
        self.history
            .note(|| format!("flush from {started}: {result:?}"));
        if self.note(result) {
            self.history.flushed(started);
            self.check_all_durable();
        }
    }

    fn check_all_durable(&self) {
        for member in self.rig.committed() {
            if self.rig.volatile[member] {
                continue;
            }
            for block in self.history.blocks() {
                let bytes = self.rig.durable(member, block * self.block(), self.block());
                self.history.check_durable(block, &bytes, member);
            }
        }
    }
}

/// Polls a future once, then does something, then waits for it.
async fn polled_then<T>(future: impl Future<Output = T>, then: impl FnOnce()) -> T {
    let mut future = pin!(future);
    let mut first = Some(then);
    poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        if let Some(then) = first.take()
            && polled.is_pending()
        {
            then();
        }
        match polled {
            Poll::Ready(value) => Poll::Ready(value),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
