//! Entry points for fuzzing: bytes in, no panic out. Also run over the corpora by the tests.

use std::fs::File;
use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::address::RegionSpec;
use super::chain::Chain;
use super::export::{Desk, ExportConfig, VolumeOnReactor};
use super::memory::{MemoryTable, Region};
use super::request::{Command, decode};
use super::ring::{Ring, RingAddresses};
use crate::io::MemoryDevice;
use crate::io::reactor::{Local, ReactorHandle};
use crate::model::{VolumeId, VolumeName};
use crate::volume::{Geometry, Volume};

/// Guest memory of a fuzzed chain: two regions, so that ranges can cross.
const HALF: u64 = 64 << 10;
/// The most messages of one fuzzed connection; their replies must fit the socket's buffer.
const MESSAGES_MAX: usize = 64;
const HEADER_LEN: usize = 12;
const BODY_MAX: usize = 4096;

/// Takes the first byte as a ring's size and the rest as the memory of a guest that has such a ring at its start, and
/// serves what is available there: follows each chain, understands the request, touches its buffers, answers.
///
/// # Panics
/// When this machine can't make a memory file.
pub fn chains(data: &[u8]) {
    let (&first, memory) = data.split_first().unwrap_or((&0, &[]));
    let size = 1u32 << (first & 7);
    thread_local! {
        /// Mapping memory takes longer than everything that is done with it.
        static TABLE: Rc<MemoryTable> = table(&[]);
    }
    let table = TABLE.with(Rc::clone);
    let mut contents = vec![0; usize::try_from(2 * HALF).unwrap_or(0)];
    let len = memory.len().min(contents.len());
    contents[..len].copy_from_slice(&memory[..len]);
    table
        .write(0, &contents)
        .expect("the contents are as large as the memory");
    let used = (u64::from(size) * 18 + 6).next_multiple_of(4);
    let addresses = RingAddresses {
        descriptors: 0,
        available: u64::from(size) * 16,
        used,
    };
    let event_idx = first & 8 != 0;
    let mut ring = Ring::new(&table, addresses, size, 0, event_idx)
        .expect("a small ring at the start of the memory fits");
    let mut chain = Chain::default();
    for _ in 0..size {
        ring.disarm();
        let Ok(Some(head)) = ring.pop() else { break };
        let followed = chain.read(&ring, &table, head);
        let written = if followed.is_ok() {
            serve(&table, &mut chain)
        } else {
            0
        };
        ring.add_used(head, written);
        ring.publish();
        ring.arm();
    }
}

fn serve(table: &Rc<MemoryTable>, chain: &mut Chain) -> u32 {
    let Ok(request) = decode(table, chain, 1 << 20) else {
        return 0;
    };
    match &request.command {
        Command::Read { buffer, .. } | Command::GetId(buffer) => buffer.fill(0x5a),
        Command::Write { buffer, .. } => assert!(!buffer.is_empty(), "a write has data"),
        Command::Zero(ranges) => {
            let inside = ranges.iter().all(|r| r.offset + r.len <= 1 << 20);
            assert!(inside && !ranges.is_empty(), "ranges lie on the disk");
        }
        Command::Flush => {}
    }
    let answered = table.write_byte(request.status, 0);
    assert!(answered.is_ok(), "a request that is served can be answered");
    request.written
}

fn memory_file(size: u64) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memory files can be made");
    ftruncate(&fd, size).expect("a memory file can grow");
    File::from(fd)
}

/// The memory of a guest: 128 KiB at address zero that start with `contents`.
pub(super) fn table(contents: &[u8]) -> Rc<MemoryTable> {
    let file = memory_file(2 * HALF);
    let region = |start: u64| {
        let spec = RegionSpec {
            guest: start,
            user: start,
            size: HALF,
            offset: start,
        };
        Rc::new(Region::map(spec, &file).expect("a memory file can be mapped"))
    };
    let table = MemoryTable::new(vec![region(0), region(HALF)]);
    let table = Rc::new(table.expect("the halves do not overlap"));
    let len = contents.len().min(usize::try_from(2 * HALF).unwrap_or(0));
    table
        .write(0, &contents[..len])
        .expect("the contents were cut to fit");
    table
}

/// Takes the bytes as a sequence of vhost-user messages, each with a byte before it that says how many files come
/// along (bits 0 to 2) and whether they are eventfds (bit 3), and lets a real export with a small volume in memory
/// serve them.
///
/// # Panics
/// When this machine can't make sockets, threads or rings.
pub fn messages(data: &[u8]) {
    static DESK: OnceLock<Arc<Desk>> = OnceLock::new();
    let desk = DESK.get_or_init(desk);
    let (ours, theirs) = UnixStream::pair().expect("sockets can be made");
    let mut rest = data;
    for _ in 0..MESSAGES_MAX {
        let Some((&files, message)) = rest.split_first() else {
            break;
        };
        let body = message
            .get(8..HEADER_LEN)
            .and_then(|size| <[u8; 4]>::try_from(size).ok())
            .map_or(0, u32::from_le_bytes);
        let body = usize::try_from(body).unwrap_or(BODY_MAX).min(BODY_MAX);
        let (message, after) = message.split_at((HEADER_LEN + body).min(message.len()));
        rest = after;
        if message.is_empty() || !send(&theirs, message, files) {
            break;
        }
    }
    // Fails if the socket is closed already, which is as good.
    let _ = theirs.shutdown(Shutdown::Write);
    let client = desk
        .admit_now(ours)
        .expect("there are file descriptors left");
    client.serve();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime
        .expect("a runtime without drivers needs nothing")
        .block_on(desk.vacated());
}

fn send(stream: &UnixStream, message: &[u8], files: u8) -> bool {
    let file = || -> OwnedFd {
        if files & 8 == 0 {
            memory_file(2 * HALF).into()
        } else {
            eventfd(0, EventfdFlags::NONBLOCK).expect("eventfds can be made")
        }
    };
    let files: Vec<OwnedFd> = (0..files & 7).map(|_| file()).collect();
    let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let message = IoSlice::new(message);
    let sent = stream.send_with_fds(&[&*message], &raw);
    sent.is_ok_and(|sent| sent == message.len())
}

fn desk() -> Arc<Desk> {
    let reactor = ReactorHandle::start(0).expect("io_uring works here");
    let name: VolumeName = "fuzz".parse().expect("a short word is a name");
    let config = ExportConfig {
        socket: PathBuf::new(),
        queues: 2,
        depth: 256,
        pin_guest_memory: false,
    };
    let named = name.clone();
    let volume = VolumeOnReactor::new(name, reactor, move |local: &Local| {
        let geometry = Geometry {
            size: 1 << 20,
            block_size: 512,
            read_only: false,
        };
        let device = MemoryDevice::new(geometry.size);
        let identity = (named.clone(), VolumeId::nil());
        Some(Rc::new(Volume::new(
            identity,
            device,
            local.clone(),
            geometry,
            Arc::default(),
        )))
    });
    Desk::new(&config, volume)
}
