//! Data path, hop 1 of 5: take requests from a virtqueue, own their buffers, give the answers back.
//!
//! A queue takes everything that is available whenever the driver kicks, starts a task per request, and publishes the
//! answers of one reactor turn together: one used index, at most one call. It never has more requests in flight than
//! the export's depth, which bounds what a hostile driver can make it do in a turn.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use super::chain::Chain;
use super::event::{Caller, Event};
use super::memory::MemoryTable;
use super::request::{Command, ID_LEN, Refusal, Request, Status, ZeroRange, decode};
use super::ring::{Ring, RingError};
use super::status::{Connection, QueueCounters, count};
use crate::io::reactor::Local;
use crate::io::{AtEndOfTurn, BlockDevice, Door, IoBuffer, IoError, Spawn, ZeroOptions};
use crate::volume::{self, Volume};

/// The most bytes of one request that are given to the volume at a time; the rest follows. Bounds the private memory
/// that a guest can make a mirror use, whatever segments it sends.
const PIECE_MAX: usize = 1 << 20;

const SHRUNK: &str = "the front end has shrunk its guest memory";

/// One virtqueue of a connected client, on its volume's reactor.
pub(super) struct Queue<D> {
    parts: QueueParts<D>,
    memory: RefCell<Rc<MemoryTable>>,
    ring: RefCell<Ring>,
    /// Scratch space for the chain being decoded.
    chain: RefCell<Chain>,
    call: RefCell<Option<Caller>>,
    /// Cleared once, when the queue stops taking requests.
    running: Cell<bool>,
    /// Whether requests were left in the ring because enough are in flight; the driver does not kick for them again.
    full: Cell<bool>,
    /// Whether the driver is told not to kick, because the reactor looks into the ring before it sleeps.
    shut: Cell<bool>,
    /// Requests taken whose answers are not published.
    in_flight: Cell<u32>,
    /// Answers that are not published.
    unpublished: Cell<u32>,
    /// The task that watches for kicks, to be told when `running` changes.
    watcher: RefCell<Option<Waker>>,
    /// Who waits for `in_flight` to become zero.
    drainer: RefCell<Option<Waker>>,
}

/// What a queue is made of and never changes.
pub(super) struct QueueParts<D> {
    pub(super) index: usize,
    pub(super) local: Local,
    pub(super) volume: Rc<Volume<D, Local>>,
    pub(super) connection: Arc<Connection>,
    /// The answer to GET_ID.
    pub(super) serial: [u8; ID_LEN],
    /// The most requests that are in flight at a time.
    pub(super) depth: u32,
    /// Whether writes must be durable before they are answered, because the driver can't flush.
    pub(super) write_through: bool,
    /// Where the front end wants to hear of a broken ring.
    pub(super) error: Option<Caller>,
}

impl<D: BlockDevice> Queue<D> {
    /// Starts serving `ring`. What is available already is taken without a kick (it may have come before us).
    pub(super) fn start(
        parts: QueueParts<D>,
        memory: Rc<MemoryTable>,
        ring: Ring,
        kick: Event,
        call: Option<Event>,
    ) -> Rc<Self> {
        let queue = Rc::new(Self {
            parts,
            memory: RefCell::new(memory),
            ring: RefCell::new(ring),
            chain: RefCell::default(),
            call: RefCell::new(call.map(Event::into_caller)),
            running: Cell::new(true),
            full: Cell::new(false),
            shut: Cell::new(false),
            in_flight: Cell::new(0),
            unpublished: Cell::new(0),
            watcher: RefCell::default(),
            drainer: RefCell::default(),
        });
        queue.counters().running.store(true, Ordering::Relaxed);
        let task = Rc::clone(&queue).watch(kick);
        queue.parts.local.spawn(task);
        queue
    }

    /// Stops taking requests, waits until all that were taken are answered and published, and returns the available
    /// index to go on from (spec W11, I12). In no hurry: that can take as long as the disk does.
    pub(super) async fn stop(&self) -> u16 {
        self.stop_taking();
        poll_fn(|context| {
            if self.in_flight.get() == 0 {
                return Poll::Ready(());
            }
            *self.drainer.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.ring.borrow().base()
    }

    /// The first half of [`Queue::stop`], for those who stop several queues at once.
    pub(super) fn stop_taking(&self) {
        self.running.set(false);
        self.counters().running.store(false, Ordering::Relaxed);
        wake(&self.watcher);
    }

    /// Uses another memory table from the next request on.
    pub(super) fn set_memory(&self, memory: &Rc<MemoryTable>) {
        self.ring.borrow_mut().follow(memory);
        *self.memory.borrow_mut() = Rc::clone(memory);
    }

    /// Uses another eventfd for calls, at once: what the old one was to say is said again.
    pub(super) fn set_call(&self, call: Option<Event>) {
        let call = call.map(Event::into_caller);
        if let Some(call) = &call {
            call.signal();
        }
        *self.call.borrow_mut() = call;
    }

    async fn watch(self: Rc<Self>, kick: Event) {
        let mut kicks = self.parts.local.poll_readable(Rc::new(kick.into_fd()));
        loop {
            self.take_all();
            match self.unless_stopped(kicks.next()).await {
                Some(Ok(())) => count(&self.counters().kicks),
                Some(Err(error)) => {
                    let index = self.parts.index;
                    let error = format!("the kick eventfd of virtqueue {index} failed: {error}");
                    return self.parts.connection.kill(error);
                }
                None => return,
            }
        }
    }

    /// Waits for `future`, or gives up when the queue is stopped.
    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if !self.running.get() {
                return Poll::Ready(None);
            }
            let polled = future.as_mut().poll(context).map(Some);
            if polled.is_pending() {
                *self.watcher.borrow_mut() = Some(context.waker().clone());
            }
            polled
        })
        .await
    }

    /// Takes every available request, or as many as may be in flight.
    fn take_all(self: &Rc<Self>) {
        let taken = self.try_take_all();
        // First, because a ring in memory that is gone makes no sense either.
        self.check_memory();
        if let Err(error) = taken {
            self.on_broken(&error);
        }
    }

    fn try_take_all(self: &Rc<Self>) -> Result<(), RingError> {
        self.full.set(false);
        while self.running.get() {
            self.ring.borrow().disarm();
            while let Some(head) = self.take()? {
                self.dispatch(head);
            }
            // When full, the next answers are followed by a look into the ring, so that no kick is needed.
            if self.full.get() {
                break;
            }
            if self.parts.local.looks_around() {
                self.shut();
                break;
            }
            if !self.ring.borrow().arm() {
                break;
            }
        }
        Ok(())
    }

    /// Leaves it to the reactor to look for further requests.
    fn shut(self: &Rc<Self>) {
        if !self.shut.replace(true) {
            let door = Rc::downgrade(self);
            self.parts.local.shut(door);
        }
    }

    fn take(&self) -> Result<Option<u16>, RingError> {
        if self.in_flight.get() >= self.parts.depth {
            self.full.set(true);
            return Ok(None);
        }
        let mut ring = self.ring.borrow_mut();
        let head = ring.pop()?;
        if head.is_some() {
            if self.in_flight.get() >= u32::from(ring.size()) {
                return Err(RingError::Reused(ring.size()));
            }
            self.in_flight.set(self.in_flight.get() + 1);
            count(&self.counters().requests);
        }
        Ok(head)
    }

    /// Decodes one chain and starts its request, or refuses it.
    fn dispatch(self: &Rc<Self>, head: u16) {
        let memory = Rc::clone(&self.memory.borrow());
        match self.decode(&memory, head) {
            Ok(request) => {
                let queue = Rc::clone(self);
                self.parts.local.start(async move {
                    let (status, written) = queue.serve(&request.command, request.written).await;
                    queue.answer(&memory, Some(request.status), status);
                    queue.complete(head, written);
                });
            }
            Err(refusal) => {
                count(&self.counters().malformed);
                let index = self.parts.index;
                tracing::debug!(index, head, error = %refusal.error, "refused a request");
                self.answer(&memory, refusal.status, refusal.code());
                self.complete(head, 0);
            }
        }
    }

    fn decode(&self, memory: &Rc<MemoryTable>, head: u16) -> Result<Request, Refusal> {
        let mut chain = self.chain.borrow_mut();
        let followed = chain.read(&self.ring.borrow(), memory, head);
        followed.map_err(|error| Refusal {
            error,
            status: chain.status(),
        })?;
        decode(memory, &mut chain, self.parts.volume.geometry().size)
    }

    /// Does what the driver asked for. Returns the status and how many bytes were written from the start of the
    /// chain's writable part on (none when the status behind them is all).
    async fn serve(&self, command: &Command, written: u32) -> (Status, u32) {
        let result = match command {
            Command::Read { offset, buffer } => {
                let read = |offset, buffer| volume::Request::Read { offset, buffer };
                self.transfer(*offset, buffer, read).await
            }
            Command::Write { offset, buffer } => {
                let fua = self.parts.write_through;
                let write = |offset, buffer| volume::Request::Write {
                    offset,
                    buffer,
                    fua,
                };
                self.transfer(*offset, buffer, write).await
            }
            Command::Flush => self.parts.volume.submit(&volume::Request::Flush).await,
            Command::Zero(ranges) => self.zero(ranges).await,
            Command::GetId(buffer) => {
                buffer.write_at(0, &self.parts.serial[..buffer.len()]);
                Ok(())
            }
        };
        match result {
            Ok(()) => (Status::Ok, written),
            Err(IoError::EOPNOTSUPP) => (Status::Unsupported, 0),
            Err(IoError::Os(libc::EFAULT)) => {
                // The kernel met what makes our own accesses raise SIGBUS.
                self.parts.connection.kill(SHRUNK.to_owned());
                (Status::IoErr, 0)
            }
            Err(_) => (Status::IoErr, 0),
        }
    }

    /// Reads or writes `buffer` in pieces. The whole range was checked against the disk's size before.
    async fn transfer(
        &self,
        offset: u64,
        buffer: &IoBuffer,
        request: impl Fn(u64, IoBuffer) -> volume::Request,
    ) -> Result<(), IoError> {
        for start in (0..buffer.len()).step_by(PIECE_MAX) {
            let piece = buffer.slice(start, PIECE_MAX.min(buffer.len() - start));
            let request = request(offset + start as u64, piece);
            self.parts.volume.submit(&request).await?;
        }
        Ok(())
    }

    async fn zero(&self, ranges: &[ZeroRange]) -> Result<(), IoError> {
        for range in ranges {
            let options = ZeroOptions {
                unmap: range.unmap,
                fua: self.parts.write_through,
            };
            let request = volume::Request::WriteZeroes {
                offset: range.offset,
                len: range.len,
                options,
            };
            self.parts.volume.submit(&request).await?;
        }
        Ok(())
    }

    /// Writes the status byte, in the memory that the request came from.
    fn answer(&self, memory: &MemoryTable, at: Option<u64>, status: Status) {
        if let Some(at) = at {
            // A chain that was refused may name an address that is not there; then nobody hears of it.
            let _ = memory.write_byte(at, status as u8);
        }
    }

    /// Gives a chain back. The first to do so in a turn publishes for all of them when the turn ends.
    fn complete(self: &Rc<Self>, head: u16, written: u32) {
        self.ring.borrow_mut().add_used(head, written);
        let before = self.unpublished.replace(self.unpublished.get() + 1);
        if before == 0 {
            let queue = Rc::clone(self);
            self.parts.local.at_end_of_turn(queue);
        }
    }

    fn publish(self: &Rc<Self>) {
        let wants_call = self.ring.borrow_mut().publish();
        let published = self.unpublished.take();
        self.in_flight.set(self.in_flight.get() - published);
        if let (true, Some(call)) = (wants_call, &*self.call.borrow()) {
            call.signal_with(&self.parts.local);
            count(&self.counters().calls);
        }
        if self.full.get() {
            // In a task, after all queues have published: what is taken may be served at once, and at length.
            let queue = Rc::clone(self);
            self.parts.local.spawn(async move { queue.take_all() });
        }
        if self.in_flight.get() == 0 {
            wake(&self.drainer);
        }
        self.check_memory();
    }

    /// Ends the connection if the guest's memory has been shrunk under it.
    fn check_memory(&self) {
        if self.memory.borrow().is_damaged() {
            self.parts.connection.kill(SHRUNK.to_owned());
        }
    }

    /// Stops a queue whose ring makes no sense; the others of the client go on.
    fn on_broken(&self, error: &RingError) {
        count(&self.counters().broken);
        self.stop_taking();
        let index = self.parts.index;
        self.parts
            .connection
            .note(format!("virtqueue {index} is stopped: {error}"));
        if let Some(event) = &self.parts.error {
            event.signal();
        }
    }

    fn counters(&self) -> &QueueCounters {
        self.parts.connection.queue(self.parts.index)
    }
}

impl<D: BlockDevice> AtEndOfTurn for Queue<D> {
    fn run(self: Rc<Self>) {
        self.publish();
    }
}

impl<D: BlockDevice> Door for Queue<D> {
    fn has_work(&self) -> bool {
        // When full, nothing more is taken before something is answered.
        self.running.get() && !self.full.get() && self.ring.borrow().has_available()
    }

    fn take_work(self: Rc<Self>) {
        self.take_all();
    }

    fn open(&self) -> bool {
        self.shut.set(false);
        self.running.get() && !self.full.get() && self.ring.borrow().arm()
    }
}

fn wake(waiting: &RefCell<Option<Waker>>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}
