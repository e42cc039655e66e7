//! A simulated disk: a volatile write cache over durable bytes, with delays, reordering, errors and power cuts.
//!
//! [`SimHardware`] is the thing in the rack and survives crashes; a [`SimDisk`] is one open session of it, as a file
//! descriptor is. Operations run as tasks of the hardware, so they go on when the process that submitted them is
//! killed, as io_uring requests do; [`SimHardware::quiesce`] stands for the file lock that waits for them (spec A1).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::executor::{Sim, SimNode};
use super::media::Media;
use crate::io::{Alignment, BlockDevice, BufferPool, Clock, IoBuffer, IoError, Spawn, ZeroOptions};

/// How the bytes of a disk tear and align.
#[derive(Clone, Copy, Debug)]
pub struct SimLayout {
    /// Size in bytes at first; it may grow.
    pub size: u64,
    /// Below this offset, writes tear at 512 bytes; at and above it at `block`. Only there can space run out.
    pub data_offset: u64,
    /// What is written whole or not at all from `data_offset` on; also the alignment of offsets.
    pub block: u64,
}

/// What is wrong with a disk. Rates are "one in n", zero for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimFault {
    /// Reads that fail with `EIO`.
    pub read_errors: u64,
    /// Writes that fail with `EIO`, with any part of them done.
    pub write_errors: u64,
    /// Flushes that fail with `EIO`; what they should have made durable never becomes so by a later flush.
    pub flush_errors: u64,
    /// Operations that fail with `EAGAIN` and have no effect.
    pub transient_errors: u64,
    /// Writes to the data area fail with `ENOSPC`.
    pub full: bool,
    /// Everything fails with `ENODEV`.
    pub lost: bool,
    /// Operations that have not taken effect yet wait until this ends.
    pub hung: bool,
    /// The backing file ends here: what lies beyond can't be read.
    pub end: Option<u64>,
    /// Writes take this much longer per MiB.
    pub per_mib: Duration,
}

/// The disk itself. Clones are the same disk.
#[derive(Clone)]
pub struct SimHardware {
    state: Rc<State>,
}

/// One open session of a disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Rc<State>,
    session: u64,
}

struct State {
    sim: Sim,
    tasks: SimNode,
    layout: SimLayout,
    size: Cell<u64>,
    fault: Cell<SimFault>,
    session: Cell<u64>,
    /// Sessions up to this one lost their device.
    unplugged: Cell<u64>,
    /// When, as [`Sim::tick`].
    unplugged_at: Cell<u64>,
    /// A planted bug: sessions outlive it.
    forgives: Cell<bool>,
    media: RefCell<Media>,
    inflight: RefCell<BTreeMap<u64, Option<Store>>>,
    last_data_write: Cell<u64>,
    /// Units of the data area that fail to be read until they are written.
    unreadable: RefCell<BTreeSet<u64>>,
    /// Told of each write to the data area before it is submitted.
    watcher: RefCell<Option<Watcher>>,
}

type Watcher = Rc<dyn Fn(Range<u64>)>;

/// What a write does to the bytes once it takes effect.
#[derive(Clone)]
struct Store {
    offset: u64,
    data: IoBuffer,
    fua: bool,
}

enum Work {
    Read(u64, IoBuffer),
    Store(Store),
    Flush,
    Grow(u64),
}

impl SimHardware {
    /// A disk full of zeroes.
    #[must_use]
    pub fn new(sim: &Sim, layout: SimLayout) -> Self {
        let state = State {
            sim: sim.clone(),
            tasks: sim.node(),
            layout,
            size: Cell::new(layout.size),
            fault: Cell::default(),
            session: Cell::new(0),
            unplugged: Cell::new(0),
            unplugged_at: Cell::new(0),
            forgives: Cell::new(false),
            media: RefCell::default(),
            inflight: RefCell::default(),
            last_data_write: Cell::new(0),
            unreadable: RefCell::default(),
            watcher: RefCell::default(),
        };
        Self {
            state: Rc::new(state),
        }
    }

    /// Opens a new session.
    #[must_use]
    pub fn open(&self) -> SimDisk {
        let session = self.state.session.get() + 1;
        self.state.session.set(session);
        self.state.media.borrow_mut().forget_errors();
        SimDisk {
            state: Rc::clone(&self.state),
            session,
        }
    }

    /// Sets what is wrong with the disk from now on.
    pub fn set_fault(&self, fault: SimFault) {
        self.state.fault.set(fault);
    }

    /// What is wrong with the disk.
    #[must_use]
    pub fn fault(&self) -> SimFault {
        self.state.fault.get()
    }

    /// Waits until no operation is under way, which is when a lock on the file would be granted.
    pub async fn quiesce(&self) {
        while !self.state.inflight.borrow().is_empty() {
            self.state.tasks.sleep(Duration::from_micros(50)).await;
        }
    }

    /// Cuts the power: operations under way end with any part of them done, and of every atomic unit's cached
    /// versions any one, or none, survives.
    pub fn power_loss(&self) {
        self.state.tasks.kill();
        let inflight = std::mem::take(&mut *self.state.inflight.borrow_mut());
        for store in inflight.into_values().flatten() {
            self.state.apply(&store, Some(2));
        }
        self.state.media.borrow_mut().settle(&self.state.sim);
    }

    /// Cuts the power while the sessions stay open: they get `ENODEV` for ever, a new session works.
    pub fn unplug(&self) {
        self.state.unplugged.set(self.state.session.get());
        self.state.unplugged_at.set(self.state.sim.tick());
        self.power_loss();
    }

    /// Plants a bug: a session goes on after the device came back without its cache (spec E6).
    pub fn forgive_unplugging(&self) {
        self.state.forgives.set(true);
    }

    /// The [`Sim::tick`] at which it was last unplugged; zero for never.
    #[must_use]
    pub fn unplugged_at(&self) -> u64 {
        self.state.unplugged_at.get()
    }

    /// What a read of `range` would return.
    #[must_use]
    pub fn visible(&self, range: Range<u64>) -> Vec<u8> {
        self.state.media.borrow().read(range)
    }

    /// What of `range` a power cut can't take away.
    #[must_use]
    pub fn durable(&self, range: Range<u64>) -> Vec<u8> {
        self.state.media.borrow().durable.get(range)
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.state.size.get()
    }

    /// Where a read would return anything but zeroes, in pages.
    #[must_use]
    pub fn nonzero(&self) -> Vec<Range<u64>> {
        self.state.media.borrow().visible.nonzero().collect()
    }

    /// Fills the disk with zeroes, as memory is after a start.
    pub fn erase(&self) {
        self.state.media.replace(Media::default());
    }

    /// Overwrites bytes behind everybody's back, durably.
    pub fn corrupt(&self, offset: u64, bytes: &[u8]) {
        self.state.media.borrow_mut().overwrite(offset, bytes);
    }

    /// Makes a block of the data area fail to be read, with `EIO`, until it is written.
    ///
    /// # Panics
    /// When the offset is below the data area.
    pub fn make_unreadable(&self, offset: u64) {
        assert!(
            offset >= self.state.layout.data_offset,
            "a label is not data"
        );
        let block = offset - offset % self.state.layout.block;
        self.state.unreadable.borrow_mut().insert(block);
    }

    /// How many hold it: whoever can reach the hardware, open sessions, and operations under way.
    #[must_use]
    pub fn holders(&self) -> usize {
        Rc::strong_count(&self.state)
    }

    /// Has each write to the data area told to `watcher`, as bytes of the disk, before it is submitted.
    pub fn watch_data_writes(&self, watcher: impl Fn(Range<u64>) + 'static) {
        self.state.watcher.replace(Some(Rc::new(watcher)));
    }

    /// The [`Sim::tick`] at which a write to the data area was last submitted.
    #[must_use]
    pub fn last_data_write(&self) -> u64 {
        self.state.last_data_write.get()
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("a part of a simulated disk fits memory")
}

impl State {
    /// Length of the atomic unit at `offset`.
    fn unit(&self, offset: u64) -> u64 {
        if offset < self.layout.data_offset {
            512
        } else {
            self.layout.block
        }
    }

    /// Puts a write into the cache, or through it. With `tear`, each unit only with a chance of one in that many.
    fn apply(&self, store: &Store, tear: Option<u64>) {
        let sequence = self.sim.tick();
        let end = store.offset + store.data.len() as u64;
        let mut at = store.offset;
        while at < end {
            let len = self.unit(at);
            let kept = tear.is_none_or(|n| self.sim.one_in(n));
            if kept {
                let mut bytes = vec![0; index(len)];
                store.data.read_at(index(at - store.offset), &mut bytes);
                self.unreadable.borrow_mut().remove(&at);
                let durable = store.fua && tear.is_none();
                self.media.borrow_mut().write(at, bytes, sequence, durable);
            }
            at += len;
        }
    }

    fn delay(&self) -> Duration {
        let slow = self.sim.one_in(40);
        Duration::from_micros(20 + self.sim.below(if slow { 20_000 } else { 400 }))
    }

    /// What a large write takes longer.
    fn toil(&self, work: &Work) -> Duration {
        let Work::Store(store) = work else {
            return Duration::ZERO;
        };
        let mib = u32::try_from(store.data.len() >> 20).expect("a write is not that large");
        self.fault.get().per_mib * mib
    }

    async fn perform(self: Rc<Self>, session: u64, id: u64, work: Work) -> Result<(), IoError> {
        let submitted = self.sim.tick();
        self.tasks.sleep(self.delay() + self.toil(&work)).await;
        while self.fault.get().hung {
            self.tasks.sleep(Duration::from_millis(20)).await;
        }
        let fault = self.fault.get();
        let is_gone = session <= self.unplugged.get() && !self.forgives.get();
        let result = if fault.lost || is_gone {
            Err(IoError::Os(libc::ENODEV))
        } else if chance(&self.sim, fault.transient_errors) {
            Err(IoError::Os(libc::EAGAIN))
        } else {
            self.take_effect(&work, submitted, fault)
        };
        // It has taken effect, or never will: a power cut has nothing to choose any more.
        if let Some(entry) = self.inflight.borrow_mut().get_mut(&id) {
            *entry = None;
        }
        self.tasks.sleep(self.delay()).await;
        self.inflight.borrow_mut().remove(&id);
        result
    }

    fn take_effect(&self, work: &Work, submitted: u64, fault: SimFault) -> Result<(), IoError> {
        match work {
            Work::Read(offset, buffer) => {
                let end = *offset + buffer.len() as u64;
                if fault.end.is_some_and(|limit| end > limit) {
                    return Err(IoError::Short);
                }
                let is_bad = self
                    .unreadable
                    .borrow()
                    .range(*offset..end)
                    .next()
                    .is_some();
                if is_bad || chance(&self.sim, fault.read_errors) {
                    buffer.fill(0xee);
                    return Err(IoError::EIO);
                }
                buffer.write_at(0, &self.media.borrow().read(*offset..end));
                Ok(())
            }
            Work::Store(store) => {
                if fault.full && store.offset >= self.layout.data_offset {
                    return Err(IoError::ENOSPC);
                }
                if chance(&self.sim, fault.write_errors) {
                    self.apply(store, Some(2));
                    if store.fua && self.sim.one_in(2) {
                        // What failed may have been the flush that makes the write durable.
                        self.media.borrow_mut().flush(submitted, true);
                    }
                    return Err(IoError::EIO);
                }
                self.apply(store, None);
                Ok(())
            }
            Work::Flush => {
                let fail = chance(&self.sim, fault.flush_errors);
                self.media.borrow_mut().flush(submitted, fail);
                if fail { Err(IoError::EIO) } else { Ok(()) }
            }
            Work::Grow(_) if fault.full => Err(IoError::ENOSPC),
            Work::Grow(size) => {
                let fail = chance(&self.sim, fault.write_errors);
                if !fail || self.sim.one_in(2) {
                    self.size.set(self.size.get().max(*size));
                }
                if fail { Err(IoError::EIO) } else { Ok(()) }
            }
        }
    }
}

fn chance(sim: &Sim, one_in: u64) -> bool {
    one_in > 0 && sim.one_in(one_in)
}

impl SimDisk {
    fn check(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let end = offset.checked_add(len).ok_or(IoError::EINVAL)?;
        let grid = |at: u64| at.is_multiple_of(self.state.unit(offset).min(4096));
        if end > self.state.size.get() || !grid(offset) || !grid(len) {
            return Err(IoError::EINVAL);
        }
        Ok(())
    }

    /// Starts `work` as a task of the hardware and waits for its answer.
    async fn submit(&self, work: Work) -> Result<(), IoError> {
        let id = self.state.sim.tick();
        let store = match &work {
            Work::Store(store) => {
                if store.offset >= self.state.layout.data_offset {
                    self.state.last_data_write.set(id);
                    let watcher = self.state.watcher.borrow().clone();
                    if let Some(watcher) = watcher {
                        watcher(store.offset..store.offset + store.data.len() as u64);
                    }
                }
                Some(store.clone())
            }
            Work::Read(..) | Work::Flush | Work::Grow(_) => None,
        };
        self.state.inflight.borrow_mut().insert(id, store);
        let (answer, answered) = oneshot::channel();
        let (state, session) = (Rc::clone(&self.state), self.session);
        self.state.tasks.spawn(async move {
            let result = state.perform(session, id, work).await;
            // The submitter may be gone; then nobody wants to know.
            let _ = answer.send(result);
        });
        answered.await.unwrap_or(Err(IoError::Os(libc::ENODEV)))
    }
}

impl BlockDevice for SimDisk {
    fn size(&self) -> u64 {
        self.state.size.get()
    }

    fn alignment(&self) -> Alignment {
        Alignment {
            offset: u32::try_from(self.state.layout.block).expect("a block is small"),
            memory: 512,
        }
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        self.check(offset, buf.len() as u64)?;
        self.submit(Work::Read(offset, buf.clone())).await
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        self.check(offset, buf.len() as u64)?;
        let data = buf.clone();
        self.submit(Work::Store(Store { offset, data, fua })).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        self.check(offset, len)?;
        let data = BufferPool::default().zeroed(index(len));
        let fua = options.fua;
        self.submit(Work::Store(Store { offset, data, fua })).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.submit(Work::Flush).await
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        self.submit(Work::Grow(size)).await
    }
}

impl fmt::Debug for SimHardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHardware")
            .field("layout", &self.state.layout)
            .field("fault", &self.state.fault.get())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
