//! A connection to a vhost-user socket with one queue, and memory that is shared with the daemon and never given back.

#![allow(
    unsafe_code,
    reason = "buffers are memory shared with the daemon, seen as bytes"
)]

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

use crate::content::BLOCK;

/// Buffers of a connection: far more than a test answers.
const PLACES: usize = 32 << 10;
const QUEUE: u16 = 256;

/// A buffer of one block, in a mapping that stays until the process ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(*mut u8);

pub(crate) struct Link {
    queue: VirtioBlkQueue<'static, u64>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    start: *mut u8,
    used: usize,
    /// The connection, and the queue's memory.
    _transport: Box<VirtioBlkTransport>,
}

impl Link {
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioFeatureFlags::RING_INDIRECT_DESC.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits();
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(
            VhostUser::new(path, features).with_context(|| format!("cannot connect to {path}"))?,
        );
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, QUEUE)?;
        let mut queue = queues.remove(0);
        queue.set_used_notif_enabled(true);
        let start = share(&mut *transport, PLACES * BLOCK)?;
        Ok(Self {
            queue,
            kick: transport.get_submission_notifier(0),
            call: transport.get_completion_fd(0),
            start,
            used: 0,
            _transport: transport,
        })
    }

    /// A buffer that was never used.
    pub(crate) fn place(&mut self) -> Result<Place> {
        ensure!(self.used < PLACES, "all {PLACES} buffers were used");
        let place = Place(self.start.wrapping_add(self.used * BLOCK));
        self.used += 1;
        Ok(place)
    }

    #[allow(
        clippy::unused_self,
        clippy::needless_pass_by_ref_mut,
        reason = "one borrow at a time"
    )]
    pub(crate) fn bytes(&mut self, place: Place) -> &mut [u8] {
        // SAFETY: the range is mapped for ever, and `self` is borrowed, so that there is one such slice. The daemon may write
        // to it only while a read is in flight, and then nobody asks for it.
        unsafe { std::slice::from_raw_parts_mut(place.0, BLOCK) }
    }

    pub(crate) fn read(&mut self, offset: u64, place: Place, id: u64) -> Result<()> {
        // SAFETY: the range is mapped for ever, and nobody touches it before the answer.
        Ok(unsafe { self.queue.read_raw(offset, place.0, BLOCK, id) }?)
    }

    pub(crate) fn write(&mut self, offset: u64, place: Place, id: u64) -> Result<()> {
        // SAFETY: as in `read`.
        Ok(unsafe { self.queue.write_raw(offset, place.0, BLOCK, id) }?)
    }

    pub(crate) fn flush(&mut self, id: u64) -> Result<()> {
        Ok(self.queue.flush(id)?)
    }

    pub(crate) fn kick(&self) -> Result<()> {
        Ok(self.kick.notify()?)
    }

    /// What has been answered, with the negative errno of each; waits for something until `deadline`.
    pub(crate) fn completed(&mut self, deadline: Instant) -> Result<Vec<(u64, i32)>> {
        self.kick()?;
        loop {
            let completions = self.queue.completions();
            let done: Vec<(u64, i32)> = completions.map(|c| (c.context, c.ret)).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if !done.is_empty() || left.is_zero() {
                return Ok(done);
            }
            let limit = Timespec {
                tv_sec: i64::try_from(left.as_secs())?,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut fds = [PollFd::new(&*self.call, PollFlags::IN)];
            if poll(&mut fds, Some(&limit))? > 0 {
                self.call.read()?;
            }
        }
    }
}

/// Maps anonymous memory that the daemon maps as well.
fn share(transport: &mut VirtioBlkTransport, length: usize) -> Result<*mut u8> {
    let file = rustix::fs::memfd_create("vhost-late", rustix::fs::MemfdFlags::CLOEXEC)?;
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
    transport.map_mem_region(start as usize, length, file.as_raw_fd(), 0)?;
    Ok(start.cast())
}
