//! One client on its volume's reactor: its memory, its running queues, and the letters by which its protocol thread
//! asks for changes.
//!
//! A session is one task. It ends when the protocol thread has gone (for whatever reason), and only after every queue
//! is drained; until then the export counts as occupied, so that no late write of one client can follow the first
//! write of the next (spec W11).

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use tokio::sync::mpsc::UnboundedReceiver;

use super::address::{MemoryError, RegionSpec};
use super::device::{feature, serial};
use super::event::Event;
use super::memory::{MemoryTable, Region};
use super::pin::{self, Pins};
use super::queue::{Queue, QueueParts};
use super::ring::{Ring, RingAddresses, RingError};
use super::status::Connection;
use crate::io::BlockDevice;
use crate::io::reactor::Local;
use crate::volume::Volume;

/// What a protocol thread can ask for.
#[derive(Debug)]
pub(super) enum Change {
    /// Replace all memory.
    SetMemory(Vec<Region>),
    /// Add a region.
    AddMemory(Region),
    /// Remove a region.
    RemoveMemory(RegionSpec),
    /// Start serving a queue; a running one is stopped first.
    Start(Box<QueueSetup>),
    /// Stop serving a queue, drained.
    Stop(usize),
    /// Notify through another eventfd.
    SetCall(usize, Option<Event>),
}

/// A queue to be served.
#[derive(Debug)]
pub(super) struct QueueSetup {
    pub(super) index: usize,
    pub(super) size: u32,
    pub(super) addresses: RingAddresses,
    /// The available index to go on from.
    pub(super) base: u16,
    /// The virtio features that the driver accepted.
    pub(super) features: u64,
    pub(super) kick: Event,
    pub(super) call: Option<Event>,
    pub(super) error: Option<Event>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A change and where its answer goes: for [`Change::Stop`] the available index, else zero.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) change: Change,
    pub(super) answer: SyncSender<Result<u16, SessionError>>,
}

struct Session<D> {
    local: Local,
    volume: Rc<Volume<D, Local>>,
    connection: Arc<Connection>,
    options: SessionOptions,
    memory: Rc<MemoryTable>,
    queues: Vec<Option<Rc<Queue<D>>>>,
}

/// How a client is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionOptions {
    /// Number of virtqueues.
    pub(super) queues: u16,
    /// The most requests of each that are in flight at a time.
    pub(super) depth: u16,
    /// Whether its memory is pinned.
    pub(super) pin: bool,
}

/// Serves one client until its letters end, then drains it.
pub(super) async fn serve<D: BlockDevice>(
    local: Local,
    volume: Rc<Volume<D, Local>>,
    connection: Arc<Connection>,
    options: SessionOptions,
    mut letters: UnboundedReceiver<Letter>,
) {
    let mut session = Session {
        local,
        volume,
        connection,
        options,
        memory: Rc::default(),
        queues: (0..options.queues).map(|_| None).collect(),
    };
    while let Some(letter) = letters.recv().await {
        let result = session.apply(letter.change).await;
        // The protocol thread may have lost patience, and then ends the connection.
        let _ = letter.answer.send(result);
    }
    session.drain().await;
}

impl<D: BlockDevice> Session<D> {
    async fn apply(&mut self, change: Change) -> Result<u16, SessionError> {
        match change {
            Change::SetMemory(regions) => {
                let regions = regions.into_iter().map(Rc::new).collect();
                self.set_memory(MemoryTable::new(regions)?).await;
            }
            Change::AddMemory(region) => self.set_memory(self.memory.with(region)?).await,
            Change::RemoveMemory(spec) => self.set_memory(self.memory.without(spec)?).await,
            Change::Start(setup) => {
                self.stop(setup.index).await;
                self.start(*setup)?;
            }
            Change::Stop(index) => return Ok(self.stop(index).await),
            Change::SetCall(index, call) => {
                if let Some(queue) = &self.queues[index] {
                    queue.set_call(call);
                }
            }
        }
        Ok(0)
    }

    async fn set_memory(&mut self, mut memory: MemoryTable) {
        if self.options.pin {
            self.pin(&mut memory).await;
        }
        self.memory = Rc::new(memory);
        for queue in self.queues.iter().flatten() {
            queue.set_memory(&self.memory);
        }
    }

    /// All of it or, when the kernel refuses a part, none: half of it would be half as fast for no reason to be seen.
    async fn pin(&mut self, memory: &mut MemoryTable) {
        while let Some(region) = memory.unpinned().cloned() {
            match Pins::new(&self.local, &region).await {
                Ok(pins) => memory.add_pins(pins),
                Err(error) => {
                    memory.unpin();
                    // Once is enough: the next region would fail too.
                    self.options.pin = false;
                    return self.connection.note(pin::explain(&error));
                }
            }
        }
    }

    fn start(&mut self, setup: QueueSetup) -> Result<(), SessionError> {
        let has = |feature: u64| setup.features & feature != 0;
        let ring = Ring::new(
            &self.memory,
            setup.addresses,
            setup.size,
            setup.base,
            has(feature::EVENT_IDX),
        )?;
        let parts = QueueParts {
            index: setup.index,
            local: self.local.clone(),
            volume: Rc::clone(&self.volume),
            connection: Arc::clone(&self.connection),
            serial: serial(self.volume.name(), self.volume.id()),
            depth: u32::from(self.options.depth),
            write_through: !has(feature::FLUSH),
            error: setup.error.map(Event::into_caller),
        };
        let memory = Rc::clone(&self.memory);
        let queue = Queue::start(parts, memory, ring, setup.kick, setup.call);
        self.queues[setup.index] = Some(queue);
        Ok(())
    }

    async fn stop(&mut self, index: usize) -> u16 {
        match self.queues[index].take() {
            Some(queue) => queue.stop().await,
            None => 0,
        }
    }

    async fn drain(&mut self) {
        for queue in self.queues.iter().flatten() {
            queue.stop_taking();
        }
        for index in 0..self.queues.len() {
            self.stop(index).await;
        }
    }
}
