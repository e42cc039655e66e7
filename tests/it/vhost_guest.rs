//! A front end with virtqueues of its own making, for what no well-behaved driver does.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volund::frontend::vhost_user::feature;

use super::vhost_rig::PATIENCE;

pub(crate) const RING: u16 = 16;
/// The guest's memory starts here, physically.
pub(crate) const MEMORY: u64 = 0x10_0000;
pub(crate) const MEMORY_LEN: u64 = 1 << 20;
/// And here in the front end's process, as far as the export knows.
const USER: u64 = 0x7000_0000_0000;
/// Each queue has this much memory for its ring, requests and data.
const QUEUE_LEN: u64 = 0x2_0000;
pub(crate) const DATA_LEN: u64 = 0x1_0000;

const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const STATUSES: u64 = 0x3800;
const DATA: u64 = 0x4000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;

pub(crate) type Descriptor = (u64, u32, u16, u16);

/// A guest and its front end.
pub(crate) struct Guest {
    pub(crate) front: Frontend,
    pub(crate) file: File,
    memory: MmapRegion,
    pub(crate) kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    available: Vec<u16>,
    seen: Vec<u16>,
}

impl Guest {
    /// Connects and accepts everything that is offered, less `without`; no queue is set up.
    pub(crate) fn connect(path: &Path, without: u64) -> Self {
        let front = Frontend::connect(path, 64).unwrap();
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        front.set_features(offered & !without).unwrap();
        let mut front = front;
        let protocol = front.get_protocol_features().unwrap();
        let unwanted = VhostUserProtocolFeatures::empty();
        front.set_protocol_features(protocol & !unwanted).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, MEMORY_LEN).unwrap();
        let file = File::from(fd);
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let len = usize::try_from(MEMORY_LEN).unwrap();
        Self {
            front,
            file,
            memory: MmapRegion::from_file(offset, len).unwrap(),
            kicks: Vec::new(),
            calls: Vec::new(),
            available: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Connects, gives the memory and sets up `queues` queues.
    pub(crate) fn start(path: &Path, queues: usize, without: u64) -> Self {
        let mut guest = Self::connect(path, without);
        let region = guest.region();
        guest.front.add_mem_region(&region).unwrap();
        for queue in 0..queues {
            guest.kicks.push(EventFd::new(EFD_NONBLOCK).unwrap());
            guest.calls.push(EventFd::new(EFD_NONBLOCK).unwrap());
            guest.available.push(0);
            guest.seen.push(0);
            guest.start_queue(queue, 0);
        }
        guest
    }

    /// All its memory as one region.
    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: MEMORY,
            memory_size: MEMORY_LEN,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub(crate) fn start_queue(&mut self, queue: usize, base: u16) {
        let at = USER + QUEUE_LEN * queue as u64;
        let config = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: at + DESCRIPTORS,
            used_ring_addr: at + USED,
            avail_ring_addr: at + AVAILABLE,
            log_addr: None,
        };
        self.front.set_vring_num(queue, RING).unwrap();
        self.front.set_vring_base(queue, base).unwrap();
        self.front.set_vring_addr(queue, &config).unwrap();
        self.front
            .set_vring_call(queue, &self.calls[queue])
            .unwrap();
        self.front
            .set_vring_kick(queue, &self.kicks[queue])
            .unwrap();
        self.front.set_vring_enable(queue, true).unwrap();
    }

    /// Where a queue's part of the memory starts, from the start of the memory.
    fn at(queue: usize, what: u64) -> u64 {
        QUEUE_LEN * queue as u64 + what
    }

    /// The guest-physical address of a queue's data.
    pub(crate) fn data(queue: usize) -> u64 {
        MEMORY + Self::at(queue, DATA)
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.memory
            .as_volatile_slice()
            .write_slice(bytes, at)
            .unwrap();
    }

    pub(crate) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = usize::try_from(at).unwrap();
        self.memory
            .as_volatile_slice()
            .read_slice(&mut bytes, at)
            .unwrap();
        bytes
    }

    fn u16_at(&self, at: u64) -> u16 {
        let at = usize::try_from(at).unwrap();
        let order = std::sync::atomic::Ordering::Acquire;
        self.memory.as_volatile_slice().load(at, order).unwrap()
    }

    /// How many answers the device has published.
    pub(crate) fn used(&self, queue: usize) -> u16 {
        self.u16_at(Self::at(queue, USED + 2))
    }

    pub(crate) fn status(&self, queue: usize, slot: u16) -> u8 {
        self.get(Self::at(queue, STATUSES + u64::from(slot)), 1)[0]
    }

    /// Writes a descriptor of the queue's table.
    pub(crate) fn describe(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = Self::at(queue, DESCRIPTORS + 16 * u64::from(index));
        let (address, len, flags, next) = descriptor;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes a descriptor available, without a kick.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let entry = u64::from(self.available[queue] % RING);
        self.put(
            Self::at(queue, AVAILABLE + 4 + 2 * entry),
            &head.to_le_bytes(),
        );
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.put_available(queue, self.available[queue]);
    }

    /// Sets the available index.
    pub(crate) fn put_available(&self, queue: usize, index: u16) {
        let at = usize::try_from(Self::at(queue, AVAILABLE + 2)).unwrap();
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory
            .as_volatile_slice()
            .store(index, at, order)
            .unwrap();
    }

    pub(crate) fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Starts a request in one of five slots. `data` is the address and length of its data.
    pub(crate) fn begin(
        &mut self,
        (queue, slot): (usize, u16),
        kind: u32,
        sector: u64,
        data: Option<(u64, u32)>,
    ) {
        let header = Self::at(queue, HEADERS + 16 * u64::from(slot));
        self.put(header, &kind.to_le_bytes());
        self.put(header + 8, &sector.to_le_bytes());
        let status = Self::at(queue, STATUSES + u64::from(slot));
        self.put(status, &[0xff]);
        let first = 3 * slot;
        let last = (MEMORY + status, 1, WRITE, 0);
        self.describe(queue, first, (MEMORY + header, 16, NEXT, first + 1));
        if let Some((address, len)) = data {
            let write = if matches!(kind, IN | GET_ID) {
                WRITE
            } else {
                0
            };
            self.describe(queue, first + 1, (address, len, write | NEXT, first + 2));
            self.describe(queue, first + 2, last);
        } else {
            self.describe(queue, first + 1, last);
        }
        self.offer(queue, first);
        self.kick(queue);
    }

    /// Waits for the next answer: which head, how many bytes written. `None` if the queue stays silent.
    pub(crate) fn next_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        while self.used(queue) == self.seen[queue] {
            let timeout = Timespec {
                tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(),
                tv_nsec: 0,
            };
            // With EVENT_IDX the device calls when the event is crossed.
            let event = Self::at(queue, AVAILABLE + 4 + 2 * u64::from(RING));
            self.put(event, &self.seen[queue].to_le_bytes());
            if self.used(queue) != self.seen[queue] {
                break;
            }
            let call = &self.calls[queue];
            let borrowed = file_of(call);
            let mut fds = [PollFd::new(&borrowed, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout)).unwrap() == 0 {
                return None;
            }
            let _ = call.read();
        }
        let entry = u64::from(self.seen[queue] % RING);
        let at = Self::at(queue, USED + 4 + 8 * entry);
        self.seen[queue] = self.seen[queue].wrapping_add(1);
        let word = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
        Some((word(self.get(at, 4)), word(self.get(at + 4, 4))))
    }

    /// Does one request and returns its status.
    pub(crate) fn request(&mut self, queue: usize, kind: u32, sector: u64, len: u32) -> u8 {
        let data = (len > 0).then_some((Self::data(queue), len));
        self.begin((queue, 0), kind, sector, data);
        let (head, _) = self.next_used(queue).expect("an answer in time");
        assert_eq!(head, 0);
        self.status(queue, 0)
    }

    pub(crate) fn write(&mut self, queue: usize, sector: u64, data: &[u8]) -> u8 {
        self.put(Self::at(queue, DATA), data);
        self.request(queue, OUT, sector, u32::try_from(data.len()).unwrap())
    }

    pub(crate) fn read(&mut self, queue: usize, sector: u64, len: u32) -> (u8, Vec<u8>) {
        let status = self.request(queue, IN, sector, len);
        let len = usize::try_from(len).unwrap();
        (status, self.get(Self::at(queue, DATA), len))
    }
}

/// An `EventFd` for rustix, which wants to know that it stays open.
fn file_of(event: &EventFd) -> impl AsFd {
    let clone = event.try_clone().unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(clone);
    adopt(fd)
}

#[allow(unsafe_code, reason = "the crate's EventFd has no AsFd")]
fn adopt(fd: i32) -> File {
    // SAFETY: the descriptor was just given up by its owner.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

/// What a driver that can't flush accepts.
pub(crate) const WITHOUT_FLUSH: u64 = feature::FLUSH;
