//! A split virtqueue from the driver's side, as Linux's virtio_ring and virtio_blk keep it: each request is published by itself
//! with one kick for all that are new; a call disables calls, all answers are taken, calls are enabled again, and what came in
//! between is taken as well.

#![allow(
    unsafe_code,
    reason = "an eventfd of vmm-sys-util does not say that it stays open"
)]

use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost::VringConfigData;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Memory;

pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const DISCARD: u32 = 11;

/// What a ring has at least, as QEMU's virtio-blk devices do.
const RING_MIN: u16 = 128;
const PAGE: usize = 4096;
/// Descriptors of a request without indirect ones: header, data, status.
const CHAIN: u16 = 3;

// Flags of a descriptor.
pub(crate) const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// Flag of the available ring.
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring.
const NO_NOTIFY: u16 = 1;

/// Added to the call eventfd, it wakes the queue's thread and is no call.
pub(crate) const WAKE: u64 = 1 << 32;

/// Each slot has its indirect table, header, range to discard, and status here.
const SLOT: usize = 128;
const HEADER: usize = 64;
const RANGE: usize = 80;
const STATUS: usize = 96;
const NO_STATUS: u8 = 0xff;

/// How the two sides speak.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    pub(crate) has_event_idx: bool,
    pub(crate) has_indirect: bool,
}

/// Where the parts of a queue are in the memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    size: u16,
    depth: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    slots: usize,
    buffers: usize,
    block: usize,
    end: usize,
}

impl Layout {
    /// From `start`, for `depth` requests with buffers of `block` bytes.
    pub(crate) fn new(start: usize, depth: u16, block: usize, dialect: Dialect) -> Self {
        let per_request = if dialect.has_indirect { 1 } else { CHAIN };
        let size = (depth * per_request).next_power_of_two().max(RING_MIN);
        let entries = usize::from(size);
        let descriptors = start.next_multiple_of(PAGE);
        let available = (descriptors + 16 * entries).next_multiple_of(PAGE);
        let used = (available + 6 + 2 * entries).next_multiple_of(PAGE);
        let slots = (used + 6 + 8 * entries).next_multiple_of(PAGE);
        let buffers = (slots + SLOT * usize::from(depth)).next_multiple_of(PAGE);
        let block = block.next_multiple_of(PAGE);
        Self {
            size,
            depth,
            descriptors,
            available,
            used,
            slots,
            buffers,
            block,
            end: buffers + block * usize::from(depth),
        }
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn end(&self) -> usize {
        self.end
    }

    pub(crate) fn buffer(&self, slot: u16) -> usize {
        self.buffers + self.block * usize::from(slot)
    }

    fn slot(&self, slot: u16) -> usize {
        self.slots + SLOT * usize::from(slot)
    }

    pub(crate) fn config(&self, memory: &Memory) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: memory.user(self.descriptors),
            used_ring_addr: memory.user(self.used),
            avail_ring_addr: memory.user(self.available),
            log_addr: None,
        }
    }
}

/// A request: what it does, where, with how many bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

pub(crate) struct Queue {
    memory: Arc<Memory>,
    layout: Layout,
    dialect: Dialect,
    kick: EventFd,
    call: EventFd,
    available: u16,
    added: u16,
    last_used: u16,
    calls_disabled: bool,
    /// A call came with event indices: the device sends none before they are set anew.
    was_called: bool,
    pub(crate) kicks: u64,
    pub(crate) calls: u64,
}

impl Queue {
    pub(crate) fn new(memory: Arc<Memory>, layout: Layout, dialect: Dialect) -> Result<Self> {
        Ok(Self {
            memory,
            layout,
            dialect,
            kick: EventFd::new(0)?,
            call: EventFd::new(0)?,
            available: 0,
            added: 0,
            last_used: 0,
            calls_disabled: false,
            was_called: false,
            kicks: 0,
            calls: 0,
        })
    }

    pub(crate) fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    pub(crate) fn call_fd(&self) -> &EventFd {
        &self.call
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes a request with this slot's buffer available.
    pub(crate) fn add(&mut self, slot: u16, request: Request) {
        let at = self.layout.slot(slot);
        let memory = &self.memory;
        memory.store(at + HEADER, u64::from(request.kind), Ordering::Relaxed);
        memory.store(at + HEADER + 8, request.offset / 512, Ordering::Relaxed);
        memory.store(at + STATUS, NO_STATUS, Ordering::Relaxed);
        let data = match request.kind {
            FLUSH => None,
            READ => Some((self.layout.buffer(slot), request.len, DEVICE_WRITES)),
            DISCARD => {
                memory.store(at + RANGE, request.offset / 512, Ordering::Relaxed);
                memory.store(
                    at + RANGE + 8,
                    u64::from(request.len / 512),
                    Ordering::Relaxed,
                );
                Some((at + RANGE, 16, 0))
            }
            _ => Some((self.layout.buffer(slot), request.len, 0)),
        };
        let head = match self.dialect.has_indirect {
            true => {
                let count = self.chain(at, 0, at, data);
                let table = self.layout.descriptors + 16 * usize::from(slot);
                self.describe(table, at, u32::from(count) * 16, INDIRECT, 0);
                slot
            }
            false => {
                self.chain(self.layout.descriptors, CHAIN * slot, at, data);
                CHAIN * slot
            }
        };
        self.publish(head);
    }

    /// Makes a descriptor available that no driver would write: its place, length, flags and next.
    pub(crate) fn add_raw(&mut self, slot: u16, (at, len, flags, next): (usize, u32, u16, u16)) {
        let entry = self.layout.descriptors + 16 * usize::from(slot);
        self.describe(entry, at, len, flags, next);
        self.publish(slot);
    }

    /// Claims that far more was made available than the ring can hold.
    pub(crate) fn jump(&mut self) {
        self.available = self.available.wrapping_add(0x4000);
        self.added += 1;
        let index = self.layout.available + 2;
        self.memory.store(index, self.available, Ordering::Release);
    }

    fn publish(&mut self, head: u16) {
        let entry = usize::from(self.available % self.layout.size);
        let ring = self.layout.available;
        self.memory
            .store(ring + 4 + 2 * entry, head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        self.added += 1;
        self.memory
            .store(ring + 2, self.available, Ordering::Release);
    }

    /// Writes the descriptors of a request to a table, from its entry `first` on; returns how many there are.
    fn chain(&self, table: usize, first: u16, slot: usize, data: Option<(usize, u32, u16)>) -> u16 {
        let entry = |index: u16| table + 16 * usize::from(first + index);
        self.describe(entry(0), slot + HEADER, 16, NEXT, first + 1);
        let mut count = 1;
        if let Some((at, len, flags)) = data {
            self.describe(entry(1), at, len, flags | NEXT, first + 2);
            count = 2;
        }
        self.describe(entry(count), slot + STATUS, 1, DEVICE_WRITES, 0);
        count + 1
    }

    fn describe(&self, entry: usize, at: usize, len: u32, flags: u16, next: u16) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory
            .store(entry, Memory::guest(at), Ordering::Relaxed);
        self.memory.store(entry + 8, rest, Ordering::Relaxed);
    }

    /// Tells the device of what was added since the last time, if it wants to know.
    pub(crate) fn kick(&mut self) -> Result<()> {
        if self.added == 0 {
            return Ok(());
        }
        fence(Ordering::SeqCst);
        let (new, old) = (self.available, self.available.wrapping_sub(self.added));
        self.added = 0;
        let used = self.layout.used;
        let is_wanted = if self.dialect.has_event_idx {
            let event = used + 4 + 8 * usize::from(self.layout.size);
            need_event(self.memory.load(event, Ordering::Relaxed), new, old)
        } else {
            self.memory.load::<u16>(used, Ordering::Relaxed) & NO_NOTIFY == 0
        };
        if is_wanted {
            self.kick.write(1).context("cannot kick")?;
            self.kicks += 1;
        }
        Ok(())
    }

    /// Kicks without a look into the ring.
    pub(crate) fn kick_anyway(&self) -> Result<()> {
        self.kick.write(1).context("cannot kick")
    }

    /// Asks for no more calls while answers are taken.
    pub(crate) fn disable_calls(&mut self) {
        if self.calls_disabled {
            return;
        }
        self.calls_disabled = true;
        if !self.dialect.has_event_idx {
            let flags = self.layout.available;
            self.memory.store(flags, NO_INTERRUPT, Ordering::Relaxed);
        } else if !self.was_called {
            // Any index that is far away will do; it is Linux's.
            self.set_used_event(0);
        }
    }

    /// Asks for calls again; false if there are answers already.
    pub(crate) fn enable_calls(&mut self) -> bool {
        self.was_called = false;
        self.calls_disabled = false;
        if self.dialect.has_event_idx {
            self.set_used_event(self.last_used);
        } else {
            self.memory
                .store(self.layout.available, 0u16, Ordering::Relaxed);
        }
        // The device looks at it after it publishes an answer; an answer that came too early for that is seen here.
        fence(Ordering::SeqCst);
        self.used() == self.last_used
    }

    fn set_used_event(&self, index: u16) {
        let event = self.layout.available + 4 + 2 * usize::from(self.layout.size);
        self.memory.store(event, index, Ordering::Relaxed);
    }

    fn used(&self) -> u16 {
        self.memory.load(self.layout.used + 2, Ordering::Acquire)
    }

    pub(crate) fn has_answers(&self) -> bool {
        self.used() != self.last_used
    }

    /// The next answered slot, and its status.
    pub(crate) fn next_answer(&mut self) -> Result<Option<(u16, u8)>> {
        if !self.has_answers() {
            return Ok(None);
        }
        let entry = usize::from(self.last_used % self.layout.size);
        let at = self.layout.used + 4 + 8 * entry;
        let head = self.memory.load::<u32>(at, Ordering::Relaxed);
        self.last_used = self.last_used.wrapping_add(1);
        let head = u16::try_from(head).context("the used ring names no descriptor")?;
        let slot = match self.dialect.has_indirect {
            true => head,
            false => head / CHAIN,
        };
        ensure!(
            slot < self.layout.depth,
            "descriptor {head} heads no request"
        );
        let status = self.layout.slot(slot) + STATUS;
        Ok(Some((slot, self.memory.load(status, Ordering::Relaxed))))
    }

    /// Sleeps until the device calls, or for so long.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<()> {
        // SAFETY: the eventfd is this queue's own, and so open for as long as `self` is borrowed.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        if let Some(limit) = limit {
            let limit = Timespec {
                tv_sec: i64::try_from(limit.as_secs())?,
                tv_nsec: i64::from(limit.subsec_nanos()),
            };
            if poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&limit))? == 0 {
                return Ok(());
            }
        }
        loop {
            match self.call.read() {
                Ok(calls) => {
                    self.calls += calls % WAKE;
                    break;
                }
                // The flag is shared with the backend, which may set it for itself; waiting is one system call without it.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    fcntl_setfl(call, fcntl_getfl(call)? & !OFlags::NONBLOCK)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot wait for calls"),
            }
        }
        self.was_called = self.dialect.has_event_idx;
        Ok(())
    }
}

/// Whether the other side wants to be told of index `new` after `old` (virtio 1.2, section 2.7.7.2).
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_wanted_when_its_index_is_passed() {
        assert!(need_event(5, 6, 5));
        assert!(need_event(5, 9, 3));
        assert!(!need_event(5, 5, 3));
        assert!(!need_event(5, 9, 6));
        assert!(need_event(u16::MAX, 0, u16::MAX));
    }

    #[test]
    fn the_parts_of_a_queue_do_not_overlap() {
        let dialect = Dialect {
            has_event_idx: true,
            has_indirect: false,
        };
        let layout = Layout::new(100, 128, 512, dialect);
        assert_eq!((layout.size, layout.descriptors), (512, PAGE));
        assert!(layout.used >= layout.available + 6 + 2 * 512);
        assert!(layout.slots >= layout.used + 6 + 8 * 512);
        assert_eq!(layout.end, layout.buffer(127) + PAGE);
        assert_eq!(layout.buffers % PAGE, 0);
    }
}
