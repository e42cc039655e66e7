//! What the vhost-user tests stand on: an export of a volume whose device can be held up, and the tests' patience.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use volund::frontend::vhost_user::{ExportConfig, ExportStatus, VhostUserExport, VolumeOnReactor};
use volund::io::clock::monotonic;
use volund::io::{
    Alignment, BlockDevice, IoBuffer, IoError, Local, MemoryDevice, ReactorHandle, ZeroOptions,
};
use volund::model::{Polling, VolumeId, VolumeName};
use volund::volume::{Geometry, Volume};

/// How long anything may take before the test fails as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const DISK: u64 = 8 << 20;

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = monotonic();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "still not: {what}");
        pause(2);
    }
}

/// Gives other threads a moment; nothing may depend on how long it is.
pub(crate) fn pause(milliseconds: u64) {
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: i64::try_from(milliseconds).unwrap() * 1_000_000,
    };
    rustix::event::poll(&mut [], Some(&timeout)).unwrap();
}

/// An export on a reactor of its own.
pub(crate) struct Rig {
    pub(crate) path: PathBuf,
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
    reactor: ReactorHandle,
    _folder: tempfile::TempDir,
}

/// How a volume is exported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) depth: u16,
    pub(crate) pinned: bool,
    pub(crate) polling: Polling,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            depth: 256,
            pinned: false,
            polling: Polling::Off,
        }
    }
}

enum Order {
    Status(Sender<ExportStatus>),
    Stop,
}

impl Rig {
    /// Exports a volume over the device that `make` makes on the reactor.
    pub(crate) fn new<D: BlockDevice>(
        geometry: Geometry,
        make: impl Fn(&Local) -> D + Send + Sync + 'static,
    ) -> Self {
        Self::with(Manner::default(), geometry, make)
    }

    /// The same, exported in this manner.
    pub(crate) fn with<D: BlockDevice>(
        manner: Manner,
        geometry: Geometry,
        make: impl Fn(&Local) -> D + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/disk.sock");
        let reactor = ReactorHandle::start_polling(0, manner.polling).unwrap();
        let name: VolumeName = "disk".parse().unwrap();
        let named = name.clone();
        let volume = VolumeOnReactor::new(name, reactor.clone(), move |local: &Local| {
            let made: Rc<Volume<D, Local>> = local.extension(|| {
                let identity = (named.clone(), VolumeId::nil());
                let device = make(local);
                Volume::new(identity, device, local.clone(), geometry, Arc::default())
            });
            Some(made)
        });
        let config = ExportConfig {
            socket: path.clone(),
            queues: 4,
            depth: manner.depth,
            pin_guest_memory: manner.pinned,
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        let (started, ready) = channel();
        let thread = std::thread::spawn(move || control(&config, volume, inbox, &started));
        ready.recv_timeout(PATIENCE).unwrap();
        Self {
            path,
            orders,
            thread: Some(thread),
            reactor,
            _folder: folder,
        }
    }

    /// Exports a writable volume over a device that can be held up.
    pub(crate) fn gated() -> (Self, Arc<Gate>) {
        Self::gated_with(256)
    }

    /// The same, with `depth` requests in flight per queue.
    pub(crate) fn gated_with(depth: u16) -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        let inside = Arc::clone(&gate);
        let manner = Manner {
            depth,
            ..Manner::default()
        };
        let rig = Self::with(manner, geometry(512, false), move |_| Gated {
            inner: MemoryDevice::new(DISK),
            gate: Arc::clone(&inside),
        });
        (rig, gate)
    }

    pub(crate) fn status(&self) -> ExportStatus {
        let (answer, answers) = channel();
        self.orders.send(Order::Status(answer)).unwrap();
        answers.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits for a status.
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&ExportStatus) -> bool) {
        until(what, || condition(&self.status()));
    }

    /// Stops the export and waits for it.
    pub(crate) fn stop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
        self.reactor.stop();
    }
}

pub(crate) fn geometry(block_size: u32, read_only: bool) -> Geometry {
    Geometry {
        size: DISK,
        block_size,
        read_only,
    }
}

fn control(
    config: &ExportConfig,
    volume: VolumeOnReactor,
    mut inbox: mpsc::UnboundedReceiver<Order>,
    started: &Sender<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let export = VhostUserExport::start(config, volume).unwrap();
        assert_eq!(export.socket(), config.socket);
        started.send(()).unwrap();
        while let Some(Order::Status(answer)) = inbox.recv().await {
            answer.send(export.status()).unwrap();
        }
        tokio::time::timeout(PATIENCE, export.stop()).await.unwrap();
    });
}

/// Holds up a [`Gated`] device, and counts what it was asked.
#[derive(Debug)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    pub(crate) started: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) durable_writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            open: watch::Sender::new(true),
            started: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            durable_writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }
    }
}

impl Gate {
    /// Requests that come from now on wait.
    pub(crate) fn close(&self) {
        self.open.send_replace(false);
    }

    /// All requests go on.
    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(crate) fn until_started(&self, count: u64) {
        until("requests have reached the device", || {
            self.started.load(Ordering::Relaxed) >= count
        });
    }

    async fn pass(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// A memory device that answers only while its gate is open.
pub(crate) struct Gated {
    inner: MemoryDevice,
    gate: Arc<Gate>,
}

impl BlockDevice for Gated {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    async fn read(&self, offset: u64, buf: &IoBuffer) -> Result<(), IoError> {
        self.gate.pass().await;
        self.inner.read(offset, buf).await
    }

    async fn write(&self, offset: u64, buf: &IoBuffer, fua: bool) -> Result<(), IoError> {
        self.gate.pass().await;
        self.gate.writes.fetch_add(1, Ordering::Relaxed);
        self.gate
            .durable_writes
            .fetch_add(u64::from(fua), Ordering::Relaxed);
        self.inner.write(offset, buf, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        self.gate.pass().await;
        self.gate
            .durable_writes
            .fetch_add(u64::from(options.fua), Ordering::Relaxed);
        self.inner.write_zeroes(offset, len, options).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.gate.pass().await;
        self.gate.flushes.fetch_add(1, Ordering::Relaxed);
        self.inner.flush().await
    }

    async fn grow(&self, size: u64) -> Result<(), IoError> {
        self.inner.grow(size).await
    }
}
