//! `bench_fixed WORK REQUESTS`: always the same work on the data path's own code, for counting instructions under callgrind.
//!
//! `ring` follows chains in a guest's ring (hop 1, by the fuzzer's entry). `read-N` and `write-N` are random requests of 4 KiB, 32
//! at a time, through volume, nexus and N replicas (hops 2 to 4) in memory; `flush-N` has a flush after each 32 writes. One thread, no
//! clock, no system call per request, so that two counts of one program differ by nothing but hash seeds. `cargo xtask
//! bench --guard` compares two commits by it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use uuid::Uuid;
use volund::frontend::vhost_user::fuzz;
use volund::io::{BufferPool, Clock, IoBuffer, MemoryDevice, Rng, Spawn};
use volund::model::{NodeId, PoolId, ReplicaId, VolumeId};
use volund::nexus::{
    Candidate, Nexus, NexusEnv, NexusSpec, Parts, Policy, Presence, Witness, WitnessError,
    WitnessPosition, WitnessRecord,
};
use volund::volume::{Geometry, Request, Volume};

const BLOCK: u64 = 4096;
const SIZE: u64 = 64 << 20;
const DEPTH: u64 = 32;
/// Behind a replica's data: far more than its label and bitmaps need.
const DISK: u64 = SIZE + (16 << 20);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [work, requests] = &args[..] else {
        bail!("usage: bench_fixed ring|read-N|write-N|flush-N REQUESTS");
    };
    let requests = requests.parse()?;
    match work.split_once('-') {
        None if work == "ring" => follow_chains(requests),
        Some((kind, replicas)) => {
            let kind = match kind {
                "read" => Kind::Read,
                "write" => Kind::Write,
                "flush" => Kind::Flush,
                other => bail!("there is no work {other:?}"),
            };
            serve(kind, replicas.parse()?, requests)?;
        }
        None => bail!("there is no work {work:?}"),
    }
    Ok(())
}

/// Requests in a ring of the fuzzer's guest.
const RING: u16 = 128;

/// A full ring of reads of 512 bytes with indirect tables, again and again.
fn follow_chains(requests: u64) {
    const TABLES: u64 = 4096;
    const HEADERS: u64 = 12288;
    const STATUS: u64 = 16384;
    const DATA: u64 = 20480;
    let mut guest = vec![0; 24 << 10];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = usize::try_from(at).expect("a small place");
        guest[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for index in 0..RING {
        let number = u64::from(index);
        let (table, header) = (TABLES + 48 * number, HEADERS + 16 * number);
        put(16 * number, &descriptor(table, 48, 4, 0));
        put(table, &descriptor(header, 16, 1, 1));
        put(table + 16, &descriptor(DATA, 512, 3, 2));
        put(table + 32, &descriptor(STATUS, 1, 2, 0));
        put(header + 8, &number.to_le_bytes());
        let entry = 16 * u64::from(RING) + 4 + 2 * number;
        put(entry, &index.to_le_bytes());
    }
    put(16 * u64::from(RING) + 2, &RING.to_le_bytes());
    // What the entry takes first: the size as a power of two, and event indices.
    let mut input = vec![7 | 8];
    input.extend(guest);
    for _ in 0..requests.div_ceil(u64::from(RING)) {
        fuzz::chains(&input);
    }
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
}

type Disk = Volume<Nexus<Env>, Env>;

/// Requests through a volume in memory.
fn serve(kind: Kind, replicas: usize, requests: u64) -> Result<()> {
    let env = Env::default();
    let disk = Rc::new(env.run(volume(env.clone(), replicas))??);
    let pool = BufferPool::default();
    let buffers: Vec<IoBuffer> = (0..DEPTH).map(|_| pool.zeroed(4096)).collect();
    buffers.iter().for_each(|buffer| buffer.fill(0xa5));
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let failed = Rc::new(Cell::new(0));
    for _ in 0..requests.div_ceil(DEPTH) {
        for buffer in &buffers {
            let offset = random(&mut state) % (SIZE / BLOCK) * BLOCK;
            let buffer = buffer.clone();
            let request = match kind {
                Kind::Read => Request::Read { offset, buffer },
                Kind::Write | Kind::Flush => Request::Write {
                    offset,
                    buffer,
                    fua: false,
                },
            };
            let (disk, failed) = (Rc::clone(&disk), Rc::clone(&failed));
            env.spawn(async move {
                let result = disk.submit(&request).await;
                failed.set(failed.get() + u64::from(result.is_err()));
            });
        }
        env.run_ready();
        if kind == Kind::Flush {
            let disk = Rc::clone(&disk);
            env.run(async move { disk.submit(&Request::Flush).await })??;
        }
    }
    let missing = disk.counters().inflight();
    ensure!(
        failed.get() == 0 && missing == 0,
        "{} requests failed, {missing} were never answered",
        failed.get()
    );
    Ok(())
}

async fn volume(env: Env, replicas: usize) -> Result<Disk> {
    let id = VolumeId::from_uuid(Uuid::from_u128(0xdb));
    let spec = NexusSpec {
        name: "fixed".parse()?,
        id,
        size: SIZE,
        block_size: 4096,
        thick: false,
        policy: Policy::default(),
        force_start: None,
    };
    let candidates = (0..replicas).map(|number| {
        let uuid = |base: u128| Uuid::from_u128(base + number as u128);
        Ok(Candidate {
            pool: format!("pool{number}").parse()?,
            pool_id: Some(PoolId::from_uuid(uuid(0x2000))),
            replica: Some(ReplicaId::from_uuid(uuid(0x1000))),
            volatile: false,
            presence: Presence::Present(MemoryDevice::new(DISK)),
        })
    });
    let candidates = candidates.collect::<Result<Vec<_>>>()?;
    let parts = Parts::new(
        env.clone(),
        env.clone(),
        env.clone(),
        Record::default(),
        BufferPool::default(),
        NodeId::from_uuid(Uuid::from_u128(1)),
    );
    let nexus = Nexus::create(parts, spec.clone(), candidates).await?;
    let geometry = Geometry {
        size: SIZE,
        block_size: 4096,
        read_only: false,
    };
    Ok(Volume::new(
        (spec.name, id),
        nexus,
        env,
        geometry,
        Arc::default(),
    ))
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20
}

/// The witness: the last record.
#[derive(Debug, Default)]
struct Record(RefCell<Option<WitnessRecord>>);

impl Witness for Record {
    async fn load(&self) -> Result<Option<WitnessRecord>, WitnessError> {
        Ok(self.0.borrow().clone())
    }

    async fn commit(
        &self,
        _expected: Option<WitnessPosition>,
        new: &WitnessRecord,
    ) -> Result<(), WitnessError> {
        self.0.replace(Some(new.clone()));
        Ok(())
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// One thread's tasks in the order in which they became ready, and a clock that goes on with each look at it. Timers never
/// fire: nothing here takes time.
#[derive(Clone, Default)]
struct Env(Rc<World>);

#[derive(Default)]
struct World {
    now_us: Cell<u64>,
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    ready: Arc<Mutex<VecDeque<usize>>>,
}

struct Ready {
    task: usize,
    queue: Arc<Mutex<VecDeque<usize>>>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        let mut queue = self.queue.lock().expect("one thread");
        queue.push_back(self.task);
    }
}

impl NexusEnv for Env {
    type Disk = MemoryDevice;
    type Clock = Env;
    type Rng = Env;
    type Spawn = Env;
    type Witness = Record;
}

impl Clock for Env {
    fn now(&self) -> Duration {
        self.0.now_us.set(self.0.now_us.get() + 1);
        Duration::from_micros(self.0.now_us.get())
    }

    fn wall_ns(&self) -> u64 {
        self.0.now_us.get() * 1000
    }

    fn sleep(&self, _: Duration) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }
}

impl Rng for Env {
    fn random_u128(&self) -> u128 {
        u128::from(self.0.now_us.get()) << 64 | 0x5eed
    }
}

impl Spawn for Env {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.tasks.borrow_mut();
        let free = self.0.free.borrow_mut().pop();
        let index = free.unwrap_or(tasks.len());
        if index == tasks.len() {
            tasks.push(None);
        }
        tasks[index] = Some(Box::pin(task));
        let mut ready = self.0.ready.lock().expect("one thread");
        ready.push_back(index);
    }
}

impl Env {
    /// Runs everything that can run.
    fn run_ready(&self) {
        loop {
            let next = self.0.ready.lock().expect("one thread").pop_front();
            let Some(index) = next else { return };
            // A task may have been woken twice, or have ended.
            let task = self.0.tasks.borrow_mut()[index].take();
            let Some(mut task) = task else { continue };
            let waker = Waker::from(Arc::new(Ready {
                task: index,
                queue: Arc::clone(&self.0.ready),
            }));
            match task.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => self.0.tasks.borrow_mut()[index] = Some(task),
                Poll::Ready(()) => self.0.free.borrow_mut().push(index),
            }
        }
    }

    /// Runs until this has ended.
    fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Result<T> {
        let answer = Rc::new(Cell::new(None));
        let told = Rc::clone(&answer);
        self.spawn(async move { told.set(Some(work.await)) });
        self.run_ready();
        answer
            .take()
            .context("the work waits for something that never comes")
    }
}
