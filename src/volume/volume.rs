//! Data path, hop 2 of 5: bounds, read-only, pause, counters.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::counters::{Counters, Operation};
use crate::io::{BlockDevice, Clock, IoBuffer, IoError, ZeroOptions};
use crate::model::{VolumeId, VolumeName};

/// A block device with a name, that a frontend exports. Belongs to one reactor, as everything below it.
pub struct Volume<D, C> {
    name: VolumeName,
    id: VolumeId,
    device: D,
    clock: C,
    geometry: Cell<Geometry>,
    counters: Arc<Counters>,
    inflight: Cell<usize>,
    paused: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// What a client may know about a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes, a multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes, 512 or 4096.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What a client can ask for. Offsets and lengths are bytes.
#[derive(Clone, Debug)]
pub enum Request {
    /// Fill the buffer from `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Where the data goes.
        buffer: IoBuffer,
    },
    /// Write the buffer at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// The data.
        buffer: IoBuffer,
        /// Durable before the answer.
        fua: bool,
    },
    /// Zero a range; also what DISCARD becomes (spec section 10).
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// May deallocate; durable before the answer.
        options: ZeroOptions,
    },
    /// Make every write answered before this durable.
    Flush,
}

impl Request {
    fn operation(&self) -> Operation {
        match self {
            Self::Read { .. } => Operation::Read,
            Self::Write { .. } => Operation::Write,
            Self::WriteZeroes { .. } => Operation::Discard,
            Self::Flush => Operation::Flush,
        }
    }

    /// The range in bytes; empty at zero for a flush.
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, buffer } | Self::Write { offset, buffer, .. } => {
                (*offset, buffer.len() as u64)
            }
            Self::WriteZeroes { offset, len, .. } => (*offset, *len),
            Self::Flush => (0, 0),
        }
    }
}

impl<D: BlockDevice, C: Clock> Volume<D, C> {
    /// Shows `device` under a name. The counters outlive the volume, so that a re-assembled volume goes on counting.
    pub fn new(
        (name, id): (VolumeName, VolumeId),
        device: D,
        clock: C,
        geometry: Geometry,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            name,
            id,
            device,
            clock,
            geometry: Cell::new(geometry),
            counters,
            inflight: Cell::new(0),
            paused: Cell::new(false),
            waiting: RefCell::default(),
        }
    }

    /// Its name in the files.
    pub fn name(&self) -> &VolumeName {
        &self.name
    }

    /// Its id.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// What a client may know about it.
    pub fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    /// Refuses writes from now on, or takes them again. For the time between two clients: one that is there was told
    /// otherwise.
    pub fn set_read_only(&self, read_only: bool) {
        let geometry = self.geometry.get();
        self.geometry.set(Geometry {
            read_only,
            ..geometry
        });
    }

    /// Shows a larger device from now on. A client that is there has to be told.
    pub fn set_size(&self, size: u64) {
        let geometry = self.geometry.get();
        debug_assert!(size >= geometry.size, "a volume never shrinks");
        self.geometry.set(Geometry { size, ..geometry });
    }

    /// What lies below.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Its counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Answers one request. Waits while the volume is paused.
    ///
    /// # Errors
    /// `EINVAL` outside the volume or off its block grid, `EROFS` when it is read-only, both without side effect
    /// (spec W1); else what the device below says.
    pub async fn submit(&self, request: &Request) -> Result<(), IoError> {
        self.counters.start();
        let started = self.clock.now();
        let operation = request.operation();
        let (_, len) = request.range();
        let result = self.checked(request).await;
        let took = self.clock.now().saturating_sub(started);
        self.counters.finish(operation, len, result.is_ok(), took);
        result
    }

    async fn checked(&self, request: &Request) -> Result<(), IoError> {
        self.check(request)?;
        let _running = self.admit().await;
        match request {
            Request::Read { offset, buffer } => self.device.read(*offset, buffer).await,
            Request::Write {
                offset,
                buffer,
                fua,
            } => self.device.write(*offset, buffer, *fua).await,
            Request::WriteZeroes {
                offset,
                len,
                options,
            } => self.device.write_zeroes(*offset, *len, *options).await,
            Request::Flush => self.device.flush().await,
        }
    }

    /// Spec W1.
    fn check(&self, request: &Request) -> Result<(), IoError> {
        let geometry = self.geometry.get();
        if geometry.read_only
            && matches!(request, Request::Write { .. } | Request::WriteZeroes { .. })
        {
            return Err(IoError::EROFS);
        }
        if matches!(request, Request::Flush) {
            return Ok(());
        }
        let (offset, len) = request.range();
        let end = offset.checked_add(len).ok_or(IoError::EINVAL)?;
        let block = u64::from(geometry.block_size);
        let on_grid = offset.is_multiple_of(block) && len.is_multiple_of(block);
        if len == 0 || end > geometry.size || !on_grid {
            return Err(IoError::EINVAL);
        }
        Ok(())
    }

    /// Waits until the volume is not paused, then counts the caller as running.
    async fn admit(&self) -> Running<'_, D, C> {
        poll_fn(|context| {
            if self.paused.get() {
                self.waiting.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        self.inflight.set(self.inflight.get() + 1);
        Running { volume: self }
    }

    /// Holds new requests back and returns when none is running any more. [`Volume::resume`] lets them go.
    pub async fn pause(&self) {
        self.paused.set(true);
        poll_fn(|context| {
            if self.inflight.get() > 0 {
                self.waiting.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.paused.set(false);
        self.wake_all();
    }

    fn wake_all(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }
}

/// Counts one request as running until dropped.
struct Running<'a, D: BlockDevice, C: Clock> {
    volume: &'a Volume<D, C>,
}

impl<D: BlockDevice, C: Clock> Drop for Running<'_, D, C> {
    fn drop(&mut self) {
        let left = self.volume.inflight.get() - 1;
        self.volume.inflight.set(left);
        if left == 0 && self.volume.paused.get() {
            self.volume.wake_all();
        }
    }
}

impl<D, C> fmt::Debug for Volume<D, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A volume as frontends hold it.
pub type SharedVolume<D, C> = Rc<Volume<D, C>>;
