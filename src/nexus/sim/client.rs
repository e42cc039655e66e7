//! Clients that read, write and flush at random, and report everything to the [`History`].

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::history::{History, Tag};
use super::rig::{Rig, SimEnv};
use crate::io::sim::{Sim, SimNode};
use crate::io::{BlockDevice, BufferPool, Clock, IoBuffer, IoError, ZeroOptions};
use crate::nexus::Nexus;

/// The clients of one volume and what they share.
pub(super) struct Clients {
    pub(super) rig: Rig,
    pub(super) history: History,
    /// Requests that have not been answered.
    pub(super) pending: Cell<u64>,
    pub(super) errors: RefCell<Vec<IoError>>,
    pub(super) answered: Cell<u64>,
    buffers: BufferPool,
}

/// Which request a client makes next.
enum Request {
    Read,
    Write { fua: bool },
    Zero,
    Flush,
}

impl Clients {
    pub(super) fn new(rig: Rig) -> Self {
        let block = rig.spec.block_size;
        Self {
            history: History::new(&rig.sim, rig.spec.size / u64::from(block), block),
            rig,
            pending: Cell::new(0),
            errors: RefCell::default(),
            answered: Cell::new(0),
            buffers: BufferPool::default(),
        }
    }

    fn block(&self) -> u64 {
        u64::from(self.rig.spec.block_size)
    }

    /// Gives every block a tag of its own, durably, so that zeroes are a value like any other later.
    pub(super) async fn fill(&self, nexus: &Nexus<SimEnv>) {
        let blocks = self.history.blocks();
        for first in (0..blocks).step_by(16) {
            self.write(nexus, first..(first + 16).min(blocks), true)
                .await;
        }
    }

    /// One client's life: `count` requests.
    pub(super) async fn run(self: Rc<Self>, nexus: Nexus<SimEnv>, clock: SimNode, count: u64) {
        let sim = self.rig.sim.clone();
        for _ in 0..count {
            clock.sleep(Duration::from_micros(sim.below(600))).await;
            let request = match sim.below(20) {
                0..=7 => Request::Read,
                8..=14 => Request::Write { fua: false },
                15 | 16 => Request::Write { fua: true },
                17 => Request::Zero,
                _ => Request::Flush,
            };
            self.pending.set(self.pending.get() + 1);
            match request {
                Request::Read => self.read(&nexus, range(&sim, self.history.blocks())).await,
                Request::Write { fua } => {
                    let blocks = range(&sim, self.history.blocks());
                    self.write(&nexus, blocks, fua).await;
                }
                Request::Zero => self.zero(&nexus, range(&sim, self.history.blocks())).await,
                Request::Flush => self.flush(&nexus).await,
            }
            self.pending.set(self.pending.get() - 1);
            self.answered.set(self.answered.get() + 1);
        }
    }

    fn note(&self, result: Result<(), IoError>) -> bool {
        if let Err(error) = result {
            self.errors.borrow_mut().push(error);
        }
        result.is_ok()
    }

    pub(super) async fn read(&self, nexus: &Nexus<SimEnv>, blocks: std::ops::Range<u64>) {
        let len = (blocks.end - blocks.start) * self.block();
        let buffer = self.buffers.zeroed(usize::try_from(len).unwrap());
        let started = self.rig.sim.tick();
        let result = nexus.read(blocks.start * self.block(), &buffer).await;
        self.history
            .note(|| format!("read {blocks:?} from {started}: {result:?}"));
        if self.note(result) {
            self.history.read(blocks.start, &buffer.to_vec(), started);
        }
    }

    async fn write(&self, nexus: &Nexus<SimEnv>, blocks: std::ops::Range<u64>, fua: bool) {
        let Some(tag) = self.history.begin_write(blocks.clone(), fua, false) else {
            return;
        };
        let buffer = self.payload(tag, blocks.clone());
        let write = nexus.write(blocks.start * self.block(), &buffer, fua);
        // A mirrored volume reads the client's memory once, at the start (spec W2); what the client does to it
        // afterwards must not reach any member.
        let spoil = self.rig.disks.len() > 1 && self.rig.sim.one_in(4);
        let result = polled_then(write, || {
            if spoil {
                buffer.fill(0x5a);
            }
        })
        .await;
        self.written(tag, blocks, fua, result);
    }

    async fn zero(&self, nexus: &Nexus<SimEnv>, blocks: std::ops::Range<u64>) {
        let fua = self.rig.sim.one_in(3);
        let Some(tag) = self.history.begin_write(blocks.clone(), fua, true) else {
            return;
        };
        let options = ZeroOptions { unmap: true, fua };
        let len = (blocks.end - blocks.start) * self.block();
        let result = nexus
            .write_zeroes(blocks.start * self.block(), len, options)
            .await;
        self.written(tag, blocks, fua, result);
    }

    fn payload(&self, tag: Tag, blocks: std::ops::Range<u64>) -> IoBuffer {
        let content = blocks.flat_map(|block| self.history.content(tag, block));
        self.buffers.copy_of(&content.collect::<Vec<u8>>())
    }

    fn written(
        &self,
        tag: Tag,
        blocks: std::ops::Range<u64>,
        fua: bool,
        result: Result<(), IoError>,
    ) {
        let acked = self.note(result);
        self.history.end_write(tag, acked);
        self.history
            .note(|| format!("write {tag} {blocks:?} fua {fua}: {result:?}"));
        if !acked {
            return;
        }
        for member in self.rig.committed() {
            for block in blocks.clone() {
                let at = block * self.block();
                // A disk that lost its cache just now had the write when it answered.
                if !self.rig.disks[member].is_unplugged() {
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
            for block in 0..self.history.blocks() {
                let bytes = self.rig.durable(member, block * self.block(), self.block());
                self.history.check_durable(block, &bytes, member);
            }
        }
    }
}

/// Blocks for a request: mostly a few, close to each other so that requests meet; sometimes whole chunks.
fn range(sim: &Sim, blocks: u64) -> std::ops::Range<u64> {
    if sim.one_in(12) {
        let first = sim.below(blocks) / 16 * 16;
        return first..(first + 16).min(blocks);
    }
    let spot = sim.below(3) * (blocks / 3);
    let first = (spot + sim.below(6)).min(blocks - 1);
    first..(first + 1 + sim.below(4)).min(blocks)
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
