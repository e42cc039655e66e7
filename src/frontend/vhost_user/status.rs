//! What one export knows about its clients, readable from any thread.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A reading of an export's state and counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportStatus {
    /// Whether a client is there (or its last requests still are).
    pub connected: bool,
    /// Clients served so far, the present one included.
    pub connections: u64,
    /// Clients sent away because another one was there.
    pub refused: u64,
    /// Virtio features that the present or last client accepted.
    pub features: u64,
    /// What last went wrong with a client, if anything did.
    pub last_error: Option<String>,
    /// Per virtqueue, by index.
    pub queues: Vec<QueueStatus>,
}

/// A reading of one virtqueue's counters, over all clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// Whether it is being served.
    pub running: bool,
    /// Wake-ups by the client.
    pub kicks: u64,
    /// Times the client was notified.
    pub calls: u64,
    /// Requests taken.
    pub requests: u64,
    /// Requests that made no sense and were answered with an error.
    pub malformed: u64,
    /// Times the queue was stopped because its ring made no sense.
    pub broken: u64,
}

/// Where the readings come from. Each queue's counters are written by its reactor alone.
#[derive(Debug)]
pub(super) struct Shared {
    /// The volume's name, for logs.
    pub(super) volume: String,
    connected: AtomicBool,
    connections: AtomicU64,
    refused: AtomicU64,
    features: AtomicU64,
    /// What the volume has grown to, bytes; 0 as long as it has not.
    size: AtomicU64,
    last_error: Mutex<Option<String>>,
    pub(super) queues: Vec<QueueCounters>,
}

/// Counters of one virtqueue.
#[derive(Debug, Default)]
pub(super) struct QueueCounters {
    pub(super) running: AtomicBool,
    pub(super) kicks: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) broken: AtomicU64,
}

/// Adds one to a counter that only the calling thread writes.
pub(super) fn count(counter: &AtomicU64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

impl Shared {
    pub(super) fn new(volume: String, queues: u16) -> Self {
        Self {
            volume,
            connected: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            features: AtomicU64::new(0),
            size: AtomicU64::new(0),
            last_error: Mutex::default(),
            queues: (0..queues).map(|_| QueueCounters::default()).collect(),
        }
    }

    pub(super) fn on_connect(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.features.store(0, Ordering::Relaxed);
        let earlier = self.connections.fetch_add(1, Ordering::Relaxed);
        tracing::info!(volume = self.volume, earlier, "vhost-user client connected");
    }

    pub(super) fn on_vacated(&self) {
        self.connected.store(false, Ordering::Relaxed);
        tracing::info!(volume = self.volume, "vhost-user client gone");
    }

    pub(super) fn on_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            volume = self.volume,
            "refused a second vhost-user client while the first is there"
        );
    }

    pub(super) fn on_features(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    /// Notes that the volume has grown.
    pub(super) fn on_resize(&self, bytes: u64) {
        self.size.fetch_max(bytes, Ordering::Relaxed);
    }

    /// What the volume has grown to, bytes; 0 as long as it has not.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Notes what went wrong: in the status until something else does, and in the log.
    pub(super) fn on_error(&self, error: String) {
        tracing::warn!(volume = self.volume, error, "vhost-user client trouble");
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn read(&self) -> ExportStatus {
        let last_error = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        ExportStatus {
            connected: self.connected.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            features: self.features.load(Ordering::Relaxed),
            last_error,
            queues: self.queues.iter().map(QueueCounters::read).collect(),
        }
    }
}

impl QueueCounters {
    fn read(&self) -> QueueStatus {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueueStatus {
            running: self.running.load(Ordering::Relaxed),
            kicks: load(&self.kicks),
            calls: load(&self.calls),
            requests: load(&self.requests),
            malformed: load(&self.malformed),
            broken: load(&self.broken),
        }
    }
}

/// One client's connection as its reactor sees it: where trouble is noted, and how the connection is ended.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    stream: UnixStream,
    killed: AtomicBool,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, stream: UnixStream) -> Self {
        Self {
            shared,
            stream,
            killed: AtomicBool::new(false),
        }
    }

    /// Notes trouble that the client may survive; of one that has been disconnected, nothing more is of interest.
    pub(super) fn note(&self, error: String) {
        if !self.killed.load(Ordering::Relaxed) {
            self.shared.on_error(error);
        }
    }

    /// Ends the connection: the client is disconnected, its protocol thread wakes up and has it drained.
    pub(super) fn kill(&self, error: String) {
        if !self.killed.swap(true, Ordering::Relaxed) {
            self.shared.on_error(error);
        }
        // Fails only if the client has gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The counters of a virtqueue.
    pub(super) fn queue(&self, index: usize) -> &QueueCounters {
        &self.shared.queues[index]
    }
}
