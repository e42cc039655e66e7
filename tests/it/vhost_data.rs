//! Verified I/O through a real virtio driver: whatever the queues, notifications and sizes, data come back as written.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create};
use vhost::VhostBackend;
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use volund::io::{Alignment, FileDevice, Local, MemoryDevice};
use volund::model::Polling;

use super::vhost_guest::Guest;
use super::vhost_rig::{DISK, Manner, PATIENCE, Rig, geometry};

const BLOCK: usize = 4096;
const BLOCKS: usize = 2048;

/// How a run goes about it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    event_idx: bool,
    queues: usize,
    /// Requests in flight per queue.
    depth: usize,
    /// The largest request, in blocks.
    blocks_max: usize,
    requests: usize,
}

/// What a request in flight did, for when its answer comes.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Read,
    Write,
    Zero,
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    doing: Doing,
    first: usize,
    count: usize,
}

/// A driver, its memory, and what the disk should hold: per block a version, zero for zeroes.
struct Driver {
    shape: Shape,
    transport: Box<VirtioBlkTransport>,
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    memory: MmapRegion,
    versions: Vec<u64>,
    /// Whether a request in flight covers the block.
    busy: Vec<bool>,
    slots: Vec<Vec<Option<InFlight>>>,
    random: u64,
    written: u64,
}

impl Driver {
    fn connect(path: &Path, shape: Shape) -> Self {
        let wanted = VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::DISCARD
            | VirtioBlkFeatureFlags::WRITE_ZEROES
            | VirtioBlkFeatureFlags::MQ;
        let mut features = wanted.bits() | VirtioFeatureFlags::VERSION_1.bits();
        if shape.event_idx {
            features |= VirtioFeatureFlags::RING_EVENT_IDX.bits();
        }
        let path = path.to_str().unwrap();
        let made = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features).unwrap();
        let mut transport: Box<VirtioBlkTransport> = Box::new(made);
        assert_eq!(
            u64::from(transport.get_config().unwrap().capacity),
            DISK / 512
        );
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, shape.queues, 128).unwrap();
        for queue in &mut queues {
            queue.set_used_notif_enabled(true);
        }
        let len = shape.queues * shape.depth * shape.blocks_max * BLOCK;
        let fd = memfd_create("data", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len as u64).unwrap();
        let file = File::from(fd);
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = MmapRegion::from_file(offset, len).unwrap();
        let base = memory.as_ptr().addr();
        transport
            .map_mem_region(base, len, file.as_raw_fd(), 0)
            .unwrap();
        Self {
            shape,
            transport,
            queues,
            memory,
            versions: vec![0; BLOCKS],
            busy: vec![false; BLOCKS],
            slots: vec![vec![None; shape.depth]; shape.queues],
            random: 0x9e37_79b9_7f4a_7c15,
            written: 0,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).unwrap() % below
    }

    /// Where a slot's data are in the memory.
    fn place(&self, queue: usize, slot: usize) -> usize {
        (queue * self.shape.depth + slot) * self.shape.blocks_max * BLOCK
    }

    fn contents(block: usize, version: u64) -> Vec<u8> {
        if version == 0 {
            return vec![0; BLOCK];
        }
        let stamp = [(block as u64).to_le_bytes(), version.to_le_bytes()].concat();
        stamp.repeat(BLOCK / stamp.len())
    }

    /// Starts something at random in a free slot.
    fn begin(&mut self, queue: usize, slot: usize) {
        let count = 1 + self.random(self.shape.blocks_max);
        let first = self.random(BLOCKS - count);
        if self.busy[first..first + count].contains(&true) {
            return;
        }
        let doing = match self.random(20) {
            0 => Doing::Flush,
            1..=3 => Doing::Zero,
            4..=11 => Doing::Write,
            _ => Doing::Read,
        };
        self.busy[first..first + count].fill(true);
        self.slots[queue][slot] = Some(InFlight {
            doing,
            first,
            count,
        });
        let (offset, len) = ((first * BLOCK) as u64, count * BLOCK);
        let place = self.place(queue, slot);
        match doing {
            Doing::Flush => self.queues[queue].flush(slot).unwrap(),
            Doing::Zero => {
                self.versions[first..first + count].fill(0);
                let unmap = self.random(2) == 0;
                let queue = &mut self.queues[queue];
                if unmap {
                    queue.discard(offset, len as u64, slot).unwrap();
                } else {
                    queue.write_zeroes(offset, len as u64, true, slot).unwrap();
                }
            }
            Doing::Write => {
                for block in first..first + count {
                    self.written += 1;
                    self.versions[block] = self.written;
                    let bytes = Self::contents(block, self.written);
                    let at = place + (block - first) * BLOCK;
                    self.memory
                        .as_volatile_slice()
                        .write_slice(&bytes, at)
                        .unwrap();
                }
                self.transfer(queue, slot, offset, len);
            }
            Doing::Read => self.transfer(queue, slot, offset, len),
        }
    }

    #[allow(unsafe_code, reason = "the driver takes raw pointers to shared memory")]
    fn transfer(&mut self, queue: usize, slot: usize, offset: u64, len: usize) {
        let is_write =
            matches!(self.slots[queue][slot], Some(f) if matches!(f.doing, Doing::Write));
        let base = self.memory.as_ptr().wrapping_add(self.place(queue, slot));
        let queue = &mut self.queues[queue];
        let queued = if is_write {
            // SAFETY: the slot's part of the mapping has `len` bytes and is used by nobody else until the answer.
            unsafe { queue.write_raw(offset, base, len, slot) }
        } else {
            // SAFETY: as above.
            unsafe { queue.read_raw(offset, base, len, slot) }
        };
        queued.unwrap();
    }

    /// Takes the answers of a queue, checking what was read.
    fn reap(&mut self, queue: usize) -> usize {
        let done: Vec<(usize, i32)> = self.queues[queue]
            .completions()
            .map(|completion| (completion.context, completion.ret))
            .collect();
        for (slot, ret) in &done {
            let flight = self.slots[queue][*slot].take().unwrap();
            assert_eq!(*ret, 0, "{flight:?} in {:?}", self.shape);
            let blocks = flight.first..flight.first + flight.count;
            if matches!(flight.doing, Doing::Read) {
                for block in blocks.clone() {
                    let at = self.place(queue, *slot) + (block - flight.first) * BLOCK;
                    let mut found = vec![0; BLOCK];
                    self.memory
                        .as_volatile_slice()
                        .read_slice(&mut found, at)
                        .unwrap();
                    let expected = Self::contents(block, self.versions[block]);
                    assert!(
                        found == expected,
                        "block {block} of {flight:?} in {:?}",
                        self.shape
                    );
                }
            }
            self.busy[blocks].fill(false);
        }
        done.len()
    }

    /// Waits until any queue calls.
    fn wait(&self) {
        let calls: Vec<_> = (0..self.shape.queues)
            .map(|queue| self.transport.get_completion_fd(queue))
            .collect();
        let mut fds: Vec<PollFd<'_>> = calls
            .iter()
            .map(|call| PollFd::new(&**call, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(),
            tv_nsec: 0,
        };
        let ready = poll(&mut fds, Some(&timeout)).unwrap();
        assert!(ready > 0, "hung with {:?} in {:?}", self.slots, self.shape);
        for (call, fd) in calls.iter().zip(&fds) {
            if fd.revents().contains(PollFlags::IN) {
                call.read().unwrap();
            }
        }
    }

    fn run(&mut self) {
        let mut finished = 0;
        while finished < self.shape.requests {
            for queue in 0..self.shape.queues {
                for slot in 0..self.shape.depth {
                    if self.slots[queue][slot].is_none() {
                        self.begin(queue, slot);
                    }
                }
                // Without EVENT_IDX the driver has no barrier before it looks at the flag, so it always kicks.
                if self.queues[queue].avail_notif_needed() || !self.shape.event_idx {
                    self.transport
                        .get_submission_notifier(queue)
                        .notify()
                        .unwrap();
                }
            }
            let done: usize = (0..self.shape.queues).map(|queue| self.reap(queue)).sum();
            finished += done;
            if done == 0 {
                self.wait();
            }
        }
        self.settle();
    }

    /// Waits for what is in flight and reads the whole disk back.
    fn settle(&mut self) {
        let in_flight = |driver: &Self| driver.slots.iter().flatten().flatten().count();
        while in_flight(self) > 0 {
            let done: usize = (0..self.shape.queues).map(|queue| self.reap(queue)).sum();
            if done == 0 {
                self.wait();
            }
        }
        for first in (0..BLOCKS).step_by(self.shape.blocks_max) {
            let count = self.shape.blocks_max.min(BLOCKS - first);
            let doing = Doing::Read;
            self.slots[0][0] = Some(InFlight {
                doing,
                first,
                count,
            });
            self.transfer(0, 0, (first * BLOCK) as u64, count * BLOCK);
            self.transport.get_submission_notifier(0).notify().unwrap();
            while self.reap(0) == 0 {
                self.wait();
            }
        }
    }
}

const SHAPES: [Shape; 6] = [
    shape(true, 4, 16, 16, 6000),
    shape(false, 4, 16, 16, 6000),
    shape(true, 1, 32, 1, 6000),
    shape(true, 1, 1, 4, 500),
    shape(true, 2, 8, 32, 2000),
    shape(false, 2, 8, 32, 2000),
];

const fn shape(
    event_idx: bool,
    queues: usize,
    depth: usize,
    blocks_max: usize,
    requests: usize,
) -> Shape {
    Shape {
        event_idx,
        queues,
        depth,
        blocks_max,
        requests,
    }
}

#[test]
fn memory_keeps_what_was_written() {
    for shape in SHAPES {
        let rig = Rig::new(geometry(4096, false), |_| MemoryDevice::new(DISK));
        Driver::connect(&rig.path, shape).run();
        let status = rig.status();
        assert_eq!(status.last_error, None);
        let queues = &status.queues[..shape.queues];
        assert!(
            queues
                .iter()
                .all(|queue| queue.requests > 0 && queue.malformed == 0)
        );
    }
}

/// Makes a fresh file a device.
fn file() -> impl Fn(&Local) -> FileDevice + Send + Sync {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).unwrap();
    ftruncate(&fd, DISK).unwrap();
    move |local| {
        let alignment = Alignment {
            offset: 4096,
            memory: 512,
        };
        local.file(fd.try_clone().unwrap(), DISK, alignment, false)
    }
}

#[test]
fn a_file_keeps_what_was_written_over_reconnects() {
    keeps_what_was_written(&Rig::new(geometry(4096, false), file()));
}

#[test]
fn a_reactor_that_looks_around_misses_no_request() {
    for polling in [Polling::Auto, Polling::For(Duration::from_micros(300))] {
        let manner = Manner {
            polling,
            ..Manner::default()
        };
        keeps_what_was_written(&Rig::with(manner, geometry(4096, false), file()));
    }
}

#[test]
fn pinned_memory_holds_the_same_data() {
    let manner = Manner {
        pinned: true,
        ..Manner::default()
    };
    let rig = Rig::with(manner, geometry(4096, false), file());
    keeps_what_was_written(&rig);
    // More numbers than there are, one after the other; and memory that comes and goes under a running queue.
    let mut guest = Guest::start(&rig.path, 1, 0);
    for _ in 0..5000 {
        guest.front.set_mem_table(&[guest.region()]).unwrap();
    }
    assert_eq!(guest.write(0, 8, &[7; 4096]), 0);
    ftruncate(&guest.file, 0x1_0000).unwrap();
    ftruncate(&guest.file, 0x10_0000).unwrap();
    guest.front.set_mem_table(&[guest.region()]).unwrap();
    assert_eq!(guest.read(0, 8, 4096), (0, vec![7; 4096]));
    assert_eq!(rig.status().last_error, None);
}

fn keeps_what_was_written(rig: &Rig) {
    let mut versions = None;
    for shape in SHAPES {
        let shape = Shape {
            requests: shape.requests / 8,
            ..shape
        };
        let mut driver = Driver::connect(&rig.path, shape);
        if let Some((versions, written)) = versions.take() {
            (driver.versions, driver.written) = (versions, written);
        }
        driver.run();
        versions = Some((driver.versions.clone(), driver.written));
    }
    let status = rig.status();
    assert_eq!((status.last_error, status.refused), (None, 0));
    assert_eq!(status.connections, SHAPES.len() as u64);
}
