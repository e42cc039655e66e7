//! Each fault by itself, on memory and in simulated time.

use std::cell::Cell;

use super::*;
use crate::io::buffer::BufferPool;
use crate::io::memory::MemoryDevice;
use crate::io::sim::executor::{Sim, SimNode};

const SIZE: u64 = 1 << 20;

/// A disk of memory under faults, and the world that it is in.
struct Rig {
    sim: Sim,
    faults: Arc<Faults>,
    disk: Rc<Injected<SimNode>>,
    buffers: BufferPool,
}

impl Rig {
    fn new(faults: &[&str]) -> Self {
        let sim = Sim::new(7);
        let shared = Arc::new(Faults::default());
        let memory = Disk::Memory(MemoryDevice::new(SIZE));
        let disk = Rc::new(Injected::new(memory, Arc::clone(&shared), sim.node()));
        let rig = Self {
            sim,
            faults: shared,
            disk,
            buffers: BufferPool::default(),
        };
        rig.inject(faults);
        rig
    }

    fn inject(&self, faults: &[&str]) {
        let faults: Vec<Fault> = faults.iter().map(|text| text.parse().unwrap()).collect();
        self.faults.set(&faults);
    }

    fn write(&self, value: u8) -> Result<(), IoError> {
        let (disk, buffer) = (Rc::clone(&self.disk), self.filled(value));
        self.sim
            .block_on(async move { disk.write(0, &buffer, false).await })
    }

    fn filled(&self, value: u8) -> IoBuffer {
        self.buffers.copy_of(&[value; 8192])
    }

    fn read(&self) -> Result<Vec<u8>, IoError> {
        let (disk, buffer) = (Rc::clone(&self.disk), self.buffers.get(8192));
        self.sim.block_on(async move {
            disk.read(0, &buffer).await?;
            Ok(buffer.to_vec())
        })
    }

    fn flush(&self) -> Result<(), IoError> {
        let disk = Rc::clone(&self.disk);
        self.sim.block_on(async move { disk.flush().await })
    }

    fn now(&self) -> Duration {
        self.sim.node().now()
    }
}

#[test]
fn without_faults_it_is_the_disk() {
    let rig = Rig::new(&[]);
    rig.write(1).unwrap();
    assert_eq!(rig.read().unwrap(), [1; 8192]);
    rig.flush().unwrap();
    assert_eq!(rig.disk.size(), SIZE);
}

#[test]
fn errors_hit_the_operations_they_are_for_and_change_nothing() {
    let rig = Rig::new(&[]);
    rig.write(1).unwrap();
    rig.inject(&["error=write:ENOSPC", "error=flush"]);
    assert_eq!(rig.write(2), Err(IoError::ENOSPC));
    assert_eq!(rig.flush(), Err(IoError::EIO));
    assert_eq!(rig.read().unwrap(), [1; 8192]);
    rig.inject(&["error=read"]);
    assert_eq!(rig.read(), Err(IoError::EIO));
    rig.write(2).unwrap();
}

#[test]
fn an_error_with_a_count_ends_by_itself() {
    let rig = Rig::new(&["error=write,count=2"]);
    let failed = (0..5).filter(|_| rig.write(1).is_err()).count();
    assert_eq!(failed, 2);
    assert_eq!(rig.faults.active(), []);
}

#[test]
fn an_error_with_a_chance_hits_some() {
    let rig = Rig::new(&["error=read,one-in=4"]);
    let failed = (0..400).filter(|_| rig.read().is_err()).count();
    assert!((50..150).contains(&failed), "{failed} of 400");
}

#[test]
fn a_lost_device_answers_nothing_but_that() {
    let rig = Rig::new(&["lost-device"]);
    let gone = IoError::Os(libc::ENODEV);
    assert_eq!(rig.write(1), Err(gone));
    assert_eq!(rig.read(), Err(gone));
    assert_eq!(rig.flush(), Err(gone));
    let disk = Rc::clone(&rig.disk);
    let grown = rig.sim.block_on(async move { disk.grow(2 * SIZE).await });
    assert_eq!(grown, Err(gone));
}

#[test]
fn a_delay_takes_its_time() {
    let rig = Rig::new(&["delay=50ms"]);
    let before = rig.now();
    rig.write(1).unwrap();
    assert_eq!(rig.now() - before, Duration::from_millis(50));
}

#[test]
fn a_torn_write_leaves_whole_sectors_and_an_error() {
    let rig = Rig::new(&[]);
    let mut partial = 0;
    for value in 1..=20u8 {
        rig.inject(&[]);
        rig.write(0).unwrap();
        rig.inject(&["torn-write"]);
        assert_eq!(rig.write(value), Err(IoError::EIO));
        rig.inject(&[]);
        let found = rig.read().unwrap();
        for sector in found.chunks(TEAR) {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
        }
        let written = found.iter().filter(|byte| **byte == value).count();
        assert!(written < found.len());
        partial += usize::from(written > 0);
    }
    assert!(partial > 10, "{partial} of 20");
}

#[test]
fn what_hangs_happens_once_the_fault_is_cleared() {
    let rig = Rc::new(Rig::new(&["hang"]));
    let inner = Rc::clone(&rig);
    rig.sim.block_on(async move {
        let rig = inner;
        let node = rig.sim.node();
        let answered = Rc::new(Cell::new(false));
        let (disk, buffer, done) = (Rc::clone(&rig.disk), rig.filled(9), Rc::clone(&answered));
        node.spawn(async move {
            disk.write(0, &buffer, false).await.unwrap();
            done.set(true);
        });
        node.sleep(Duration::from_secs(3600)).await;
        assert!(!answered.get());
        rig.inject(&[]);
        node.sleep(Duration::from_secs(1)).await;
        assert!(answered.get());
    });
    assert_eq!(rig.read().unwrap(), [9; 8192]);
}

/// Spec F1: local I/O can't be recalled. Who gives up waiting still has to reckon with the write, and its memory and its
/// file stay lent until then.
#[test]
fn an_abandoned_operation_hangs_on_and_lands_late() {
    let rig = Rc::new(Rig::new(&["hang,count=1"]));
    let inner = Rc::clone(&rig);
    rig.sim.block_on(async move {
        let rig = inner;
        let node = rig.sim.node();
        {
            let buffer = rig.filled(9);
            let write = std::pin::pin!(rig.disk.write(0, &buffer, false));
            let patience = std::pin::pin!(node.sleep(Duration::from_secs(2)));
            assert!(gives_up(write, patience).await);
        }
        // One operation was to hang, and this is another.
        rig.disk.write(0, &rig.filled(1), false).await.unwrap();
        assert!(Rc::strong_count(&rig.disk.disk) > 1, "the file stays open");
        assert_eq!(rig.faults.active().len(), 1, "it still holds the operation");
        rig.inject(&[]);
        node.sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(rig.read().unwrap(), [9; 8192]);
    assert_eq!(Rc::strong_count(&rig.disk.disk), 1);
}

/// Whether the second future ended before the first.
async fn gives_up<T>(
    mut first: Pin<&mut impl Future<Output = T>>,
    mut second: Pin<&mut impl Future<Output = ()>>,
) -> bool {
    poll_fn(|context| {
        if first.as_mut().poll(context).is_ready() {
            return Poll::Ready(false);
        }
        second.as_mut().poll(context).map(|()| true)
    })
    .await
}
