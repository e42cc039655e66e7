//! `vhost_blocks run|check SOCKET ...`: the same verified load as `cargo xtask blocks`, over vhost-user.
//!
//! A native front end (the crate `virtio-driver`), so that tests with a real daemon need no guest. Each job has a queue of
//! its own with one request at a time, in memory shared with the daemon. A request that is not answered within a minute is
//! an error: the daemon died or hangs.

#![allow(
    unsafe_code,
    reason = "the buffer is memory shared with the daemon, seen as bytes"
)]
#![allow(
    clippy::print_stderr,
    reason = "a program for tests tells why it failed"
)]

#[path = "../xtask/src/blocks/mod.rs"]
#[allow(
    dead_code,
    reason = "opening a device of the host is for the other program"
)]
mod blocks;

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

const ANSWER_SECONDS_MAX: i64 = 60;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = blocks::on_disks(&args, connect) {
        eprintln!("vhost_blocks: {error:#}");
        std::process::exit(1);
    }
}

/// One job's queue, and its part of the shared memory.
struct Queue {
    queue: VirtioBlkQueue<'static, ()>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffer: Buffer,
    /// Keeps the connection and the queues' memory while any queue lives.
    _transport: Arc<Mutex<Box<VirtioBlkTransport>>>,
}

/// A range of the shared mapping that one queue alone uses. The mapping lives until the process ends.
struct Buffer {
    start: *mut u8,
    length: usize,
}

// SAFETY: each buffer is a range of its own, and the mapping is never unmapped.
unsafe impl Send for Buffer {}

fn connect(socket: &Path, jobs: usize, buffer: usize) -> Result<Vec<Box<dyn blocks::Disk>>> {
    let features = VirtioFeatureFlags::VERSION_1.bits()
        | VirtioFeatureFlags::RING_EVENT_IDX.bits()
        | VirtioFeatureFlags::RING_INDIRECT_DESC.bits()
        | VirtioBlkFeatureFlags::FLUSH.bits()
        | VirtioBlkFeatureFlags::DISCARD.bits()
        | VirtioBlkFeatureFlags::MQ.bits();
    let path = socket.to_str().context("the socket's path is not UTF-8")?;
    let mut transport: Box<VirtioBlkTransport> = Box::new(
        VhostUser::new(path, features).with_context(|| format!("cannot connect to {path}"))?,
    );
    let offered = transport.get_features() & VirtioBlkFeatureFlags::FLUSH.bits();
    ensure!(offered != 0, "the device does not offer FLUSH");
    let queues = VirtioBlkQueue::setup_queues(&mut *transport, jobs, 64)?;
    let start = share(&mut *transport, jobs * buffer)?;
    let notifiers: Vec<_> = (0..jobs)
        .map(|at| {
            (
                transport.get_submission_notifier(at),
                transport.get_completion_fd(at),
            )
        })
        .collect();
    let transport = Arc::new(Mutex::new(transport));
    let mut disks: Vec<Box<dyn blocks::Disk>> = Vec::new();
    for (at, (mut queue, (kick, call))) in queues.into_iter().zip(notifiers).enumerate() {
        // With EVENT_IDX the device calls only for what it was asked to.
        queue.set_used_notif_enabled(true);
        disks.push(Box::new(Queue {
            queue,
            kick,
            call,
            buffer: Buffer {
                start: start.wrapping_add(at * buffer),
                length: buffer,
            },
            _transport: Arc::clone(&transport),
        }));
    }
    Ok(disks)
}

/// Maps anonymous memory that the daemon maps as well.
fn share(transport: &mut VirtioBlkTransport, length: usize) -> Result<*mut u8> {
    let file = rustix::fs::memfd_create("vhost-blocks", rustix::fs::MemfdFlags::CLOEXEC)?;
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

impl Queue {
    /// Kicks and waits for the one request in flight.
    fn finish(&mut self) -> Result<()> {
        self.kick.notify()?;
        loop {
            if let Some(completion) = self.queue.completions().next() {
                if completion.ret != 0 {
                    bail!("the device answered with error {}", -completion.ret);
                }
                return Ok(());
            }
            let mut fds = [PollFd::new(&*self.call, PollFlags::IN)];
            let limit = Timespec {
                tv_sec: ANSWER_SECONDS_MAX,
                tv_nsec: 0,
            };
            ensure!(
                poll(&mut fds, Some(&limit))? > 0,
                "no answer within a minute"
            );
            self.call.read()?;
        }
    }
}

impl blocks::Disk for Queue {
    fn buffer(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= self.buffer.length, "a request fits the buffer");
        // SAFETY: the range is mapped for ever, this queue alone hands it out, and no request is in flight while
        // `self` is borrowed, so the daemon does not write to it.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.start, length) }
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<()> {
        // SAFETY: the range is mapped and stays so; `finish` waits for the daemon to be done with it.
        unsafe { self.queue.read_raw(offset, self.buffer.start, length, ()) }?;
        self.finish()
    }

    fn write(&mut self, offset: u64, length: usize) -> Result<()> {
        // SAFETY: as in `read`.
        unsafe { self.queue.write_raw(offset, self.buffer.start, length, ()) }?;
        self.finish()
    }

    fn flush(&mut self) -> Result<()> {
        self.queue.flush(())?;
        self.finish()
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<()> {
        self.queue.discard(offset, length, ())?;
        self.finish()
    }
}
