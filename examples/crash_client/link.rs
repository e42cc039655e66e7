//! One connection to the daemon: a virtqueue with many requests in flight, over memory that outlives the connection.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

/// Requests in flight at most.
pub(crate) const DEPTH: usize = 16;
/// What one request moves at most, bytes.
pub(crate) const SLOT: usize = 64 << 10;
/// Entries of the ring: each request takes up to three.
const RING: u16 = 64;

/// One buffer for each request in flight, shared with whichever daemon is there. Mapped until the process ends.
pub(crate) struct Memory {
    file: OwnedFd,
    start: *mut u8,
}

/// A connection. The ring goes before the memory that it is in.
pub(crate) struct Link {
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    _transport: Box<VirtioBlkTransport>,
}

/// What a slot's buffer is submitted for.
#[derive(Clone, Copy)]
pub(crate) enum Verb {
    Read,
    Write,
    Flush,
}

impl Memory {
    pub(crate) fn new() -> Result<Memory> {
        let file = rustix::fs::memfd_create("crash-client", rustix::fs::MemfdFlags::CLOEXEC)?;
        let length = DEPTH * SLOT;
        rustix::fs::ftruncate(&file, length as u64)?;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let start = start.cast();
        Ok(Memory { file, start })
    }

    fn slot(&self, at: usize) -> *mut u8 {
        assert!(at < DEPTH, "a slot is within the mapping");
        self.start.wrapping_add(at * SLOT)
    }

    /// The start of a slot's buffer; no request with it may be in flight.
    pub(crate) fn buffer(&mut self, at: usize, length: usize) -> &mut [u8] {
        assert!(length <= SLOT, "a request fits its slot");
        // SAFETY: the range is mapped for ever and lent out with `self`; the caller has no request in flight with it.
        unsafe { std::slice::from_raw_parts_mut(self.slot(at), length) }
    }
}

impl Link {
    pub(crate) fn connect(socket: &Path, memory: &Memory) -> Result<Link> {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioFeatureFlags::RING_INDIRECT_DESC.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits();
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, features)?);
        let offered = transport.get_features() & VirtioBlkFeatureFlags::FLUSH.bits();
        ensure!(offered != 0, "the device does not offer FLUSH");
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, RING)?;
        let mut queue = queues.pop().context("the device has no queue")?;
        let start = memory.start as usize;
        transport.map_mem_region(start, DEPTH * SLOT, memory.file.as_raw_fd(), 0)?;
        // With EVENT_IDX the device calls only for what it was asked to.
        queue.set_used_notif_enabled(true);
        Ok(Link {
            queue,
            kick: transport.get_submission_notifier(0),
            call: transport.get_completion_fd(0),
            _transport: transport,
        })
    }

    /// Puts a request with a slot's buffer into the ring.
    pub(crate) fn submit(
        &mut self,
        memory: &Memory,
        (slot, verb): (usize, Verb),
        (offset, length): (u64, usize),
    ) -> Result<()> {
        assert!(length <= SLOT, "a request fits its slot");
        let data = memory.slot(slot);
        match verb {
            // SAFETY: the slot is mapped for ever, and its owner leaves it alone until the request is answered.
            Verb::Read => unsafe { self.queue.read_raw(offset, data, length, slot) }?,
            // SAFETY: as for reads.
            Verb::Write => unsafe { self.queue.write_raw(offset, data, length, slot) }?,
            Verb::Flush => self.queue.flush(slot)?,
        }
        Ok(())
    }

    /// Tells the device that there are new requests.
    pub(crate) fn kick(&self) -> Result<()> {
        Ok(self.kick.notify()?)
    }

    /// The slots of requests that were answered, each with whether it succeeded.
    pub(crate) fn answered(&mut self) -> Vec<(usize, bool)> {
        let completions = self.queue.completions();
        completions.map(|one| (one.context, one.ret == 0)).collect()
    }

    /// Waits for answers or for a word on standard input; returns whether the latter came.
    pub(crate) fn wait(&self, limit: &Timespec) -> Result<(bool, bool)> {
        let stdin = std::io::stdin();
        let mut fds = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&*self.call, PollFlags::IN),
        ];
        let count = poll(&mut fds, Some(limit))?;
        let (spoken, called) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if called {
            self.call.read()?;
        }
        Ok((spoken, count == 0))
    }
}
