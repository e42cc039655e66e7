//! A disk for crash tests: it remembers every write and flush, so that a power cut can be staged between any two.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::buffer::IoBuffer;
use super::device::{Alignment, BlockDevice, IoError, ZeroOptions};

/// What a power cut may tear a write at, bytes.
const SECTOR: usize = 512;

/// A step that may or may not have reached the medium.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write {
        offset: u64,
        bytes: Vec<u8>,
        fua: bool,
    },
    Flush,
    /// The disk has so many bytes now, durably.
    Grow(usize),
}

/// Memory that remembers how it became what it is. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct RecordingDisk {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    start: Vec<u8>,
    now: RefCell<Vec<u8>>,
    steps: RefCell<Vec<Step>>,
    /// Fails the write with this number, counted from 0, without effect.
    failing_write: Cell<Option<usize>>,
    writes: Cell<usize>,
    /// Writes wait while this is set.
    held: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
}

impl RecordingDisk {
    pub(crate) fn new(size: usize) -> Self {
        Self::with(vec![0; size])
    }

    pub(crate) fn with(start: Vec<u8>) -> Self {
        let now = RefCell::new(start.clone());
        Self {
            shared: Rc::new(Shared {
                start,
                now,
                steps: RefCell::default(),
                failing_write: Cell::new(None),
                writes: Cell::new(0),
                held: Cell::new(false),
                wakers: RefCell::default(),
            }),
        }
    }

    /// The contents as they are now.
    pub(crate) fn contents(&self) -> Vec<u8> {
        self.shared.now.borrow().clone()
    }

    /// Changes contents behind everyone's back.
    pub(crate) fn corrupt(&self, offset: usize, bytes: &[u8]) {
        self.shared.now.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        self.shared.steps.borrow().clone()
    }

    pub(crate) fn write_count(&self) -> usize {
        self.shared.writes.get()
    }

    /// Makes the `n`th write from now on fail with EIO; 0 is the next one.
    pub(crate) fn fail_write(&self, n: usize) {
        self.shared
            .failing_write
            .set(Some(self.shared.writes.get() + n));
    }

    /// Keeps writes from completing until released.
    pub(crate) fn hold(&self, held: bool) {
        self.shared.held.set(held);
        for waker in self.shared.wakers.take() {
            waker.wake();
        }
    }

    /// Every state that a power cut after `done` steps (the next one perhaps under way) may leave: what was flushed is
    /// there; of the rest nothing, everything, or the first `n` sectors of the last write, for every `n`.
    pub(crate) fn after_power_cut(&self, done: usize) -> Vec<Self> {
        let steps = self.shared.steps.borrow();
        let started = &steps[..steps.len().min(done + 1)];
        let completed = &steps[..done];
        let flushed = completed
            .iter()
            .rposition(|step| matches!(step, Step::Flush))
            .unwrap_or(0);
        let durable = |index: usize, step: &Step| {
            let at_once = matches!(step, Step::Write { fua: true, .. } | Step::Grow(_));
            index < flushed || (index < done && at_once)
        };
        let mut least = self.shared.start.clone();
        let mut most = self.shared.start.clone();
        for (index, step) in started.iter().enumerate() {
            apply(&mut most, step, usize::MAX);
            if durable(index, step) {
                apply(&mut least, step, usize::MAX);
            }
        }
        let mut states = vec![Self::with(least.clone()), Self::with(most)];
        if let Some(last @ Step::Write { bytes, .. }) = started.last() {
            for sectors in 1..(bytes.len() / SECTOR).min(16) {
                let mut torn = least.clone();
                apply(&mut torn, last, sectors * SECTOR);
                states.push(Self::with(torn));
            }
        }
        states
    }

    fn range(&self, offset: u64, len: usize) -> Result<std::ops::Range<usize>, IoError> {
        let start = usize::try_from(offset).map_err(|_| IoError::EINVAL)?;
        let end = start.checked_add(len).ok_or(IoError::EINVAL)?;
        if end > self.shared.now.borrow().len() || !(start | len).is_multiple_of(SECTOR) {
            return Err(IoError::EINVAL);
        }
        Ok(start..end)
    }

    async fn released(&self) {
        std::future::poll_fn(|context| {
            if self.shared.held.get() {
                self.shared
                    .wakers
                    .borrow_mut()
                    .push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }
}

fn apply(contents: &mut Vec<u8>, step: &Step, len_max: usize) {
    match step {
        Step::Write { offset, bytes, .. } => {
            let start = usize::try_from(*offset).expect("test disks are small");
            let len = bytes.len().min(len_max);
            contents[start..start + len].copy_from_slice(&bytes[..len]);
        }
        Step::Flush => {}
        Step::Grow(len) => contents.resize(*len, 0),
    }
}

impl BlockDevice for RecordingDisk {
    fn size(&self) -> u64 {
        self.shared.now.borrow().len() as u64
    }

    fn alignment(&self) -> Alignment {
        Alignment {
            offset: 512,
            memory: 512,
        }
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        let range = self.range(offset, buf.len())?;
        buf.write_at(0, &self.shared.now.borrow()[range]);
        Ok(())
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        let range = self.range(offset, buf.len())?;
        let number = self.shared.writes.replace(self.shared.writes.get() + 1);
        let bytes = buf.to_vec();
        self.released().await;
        if self.shared.failing_write.get() == Some(number) {
            return Err(IoError::EIO);
        }
        self.shared.now.borrow_mut()[range].copy_from_slice(&bytes);
        self.shared
            .steps
            .borrow_mut()
            .push(Step::Write { offset, bytes, fua });
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        let len = usize::try_from(len).map_err(|_| IoError::EINVAL)?;
        let zeroes = super::buffer::BufferPool::default().zeroed(len);
        self.write(offset, &zeroes, options.fua).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.shared.steps.borrow_mut().push(Step::Flush);
        Ok(())
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        let len = usize::try_from(size).map_err(|_| IoError::EINVAL)?;
        if len < self.shared.now.borrow().len() {
            return Err(IoError::EINVAL);
        }
        self.shared.now.borrow_mut().resize(len, 0);
        self.shared.steps.borrow_mut().push(Step::Grow(len));
        Ok(())
    }
}

/// Runs a future that never has to wait for anything outside the test.
///
/// # Panics
/// When it does wait.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1000 {
        if let Poll::Ready(value) = poll_once(&mut future) {
            return value;
        }
    }
    panic!("the future waits for something that never happens");
}

/// Polls a future once.
pub(crate) fn poll_once<T>(future: &mut std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}
