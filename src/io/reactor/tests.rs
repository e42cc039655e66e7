//! Tests of the reactor, its ring and file devices, on real files.

use std::os::fd::AsFd;

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};

use super::*;
use crate::io::mailbox::EVENT;
use crate::io::{BlockDevice, ZeroOptions};

const MIB: u64 = 1 << 20;

/// Runs one task on a fresh reactor and stops it.
fn on_reactor<T: Send + 'static, Fut: Future<Output = T> + 'static>(
    make: impl FnOnce(Local) -> Fut + Send + 'static,
) -> T {
    let reactor = ReactorHandle::start(0).unwrap();
    let answer = reactor.run(make).blocking_recv().unwrap();
    reactor.stop();
    answer
}

/// An O_DIRECT file of `size` bytes in the project's target directory (tmpfs has no O_DIRECT everywhere).
fn scratch(size: u64) -> OwnedFd {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir.path().join("scratch"), flags, Mode::RUSR | Mode::WUSR).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    fd
}

fn device(local: &Local, size: u64, thick: bool) -> FileDevice {
    let fd = scratch(size);
    local.file(
        fd,
        size,
        Alignment {
            offset: 512,
            memory: 512,
        },
        thick,
    )
}

#[test]
fn data_written_is_read_back_through_odd_memory_too() {
    on_reactor(|local| async move {
        let file = device(&local, MIB, false);
        let data: Vec<u8> = (0..8192u32).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
        let odd = local.buffers().get(9000).slice(3, 8192);
        odd.write_at(0, &data);
        file.write(4096, &odd, true).await.unwrap();
        let even = local.buffers().get(8192);
        file.read(4096, &even).await.unwrap();
        assert_eq!(even.to_vec(), data);
        let odd_back = local.buffers().get(9000).slice(1, 8192);
        file.read(4096, &odd_back).await.unwrap();
        assert_eq!(odd_back.to_vec(), data);
        file.flush().await.unwrap();
    });
}

#[test]
fn ranges_outside_the_device_or_off_its_grid_are_refused() {
    on_reactor(|local| async move {
        let file = device(&local, MIB, false);
        let buffer = local.buffers().get(4096);
        for offset in [MIB, MIB - 512, 1, u64::MAX - 4095] {
            assert_eq!(
                file.read(offset, &buffer).await,
                Err(IoError::EINVAL),
                "{offset}"
            );
            assert_eq!(
                file.write(offset, &buffer, false).await,
                Err(IoError::EINVAL),
                "{offset}"
            );
        }
    });
}

#[test]
fn a_file_shorter_than_it_should_be_is_a_short_read_not_zeroes() {
    on_reactor(|local| async move {
        let file = device(&local, MIB, false);
        rustix::fs::ftruncate(file.fd(), 8192).unwrap();
        let buffer = local.buffers().get(8192);
        assert_eq!(file.read(4096, &buffer).await, Err(IoError::Short));
    });
}

#[test]
fn zeroing_clears_ragged_ranges_and_unmaps_only_thin_files() {
    on_reactor(|local| async move {
        for thick in [false, true] {
            let file = device(&local, MIB, thick);
            let ones = local.buffers().get(256 << 10);
            ones.fill(1);
            file.write(0, &ones, false).await.unwrap();
            let before = rustix::fs::fstat(file.fd()).unwrap().st_blocks;
            let options = ZeroOptions {
                unmap: true,
                fua: true,
            };
            file.write_zeroes(512, 200 << 10, options).await.unwrap();
            file.read(0, &ones).await.unwrap();
            assert!(ones.slice(512, 200 << 10).is_zero());
            assert_eq!(ones.slice(0, 512).to_vec(), [1; 512]);
            assert_eq!(ones.slice(512 + (200 << 10), 512).to_vec(), [1; 512]);
            let after = rustix::fs::fstat(file.fd()).unwrap().st_blocks;
            assert_eq!(
                after < before,
                !thick,
                "thick: {thick}, blocks {before} -> {after}"
            );
        }
    });
}

#[test]
fn growing_extends_the_file_with_zeroes() {
    on_reactor(|local| async move {
        let file = device(&local, MIB, false);
        file.grow(2 * MIB).await.unwrap();
        assert_eq!(rustix::fs::fstat(file.fd()).unwrap().st_size, 2 << 20);
        let buffer = local.buffers().get(4096);
        buffer.fill(7);
        file.read(2 * MIB - 4096, &buffer).await.unwrap();
        assert!(buffer.is_zero());
        assert_eq!(file.grow(MIB).await, Err(IoError::EINVAL));
    });
}

#[test]
fn a_thousand_operations_in_one_turn_all_complete() {
    on_reactor(|local| async move {
        let file = Rc::new(device(&local, 4 * MIB, false));
        let (done, mut all) = tokio::sync::mpsc::unbounded_channel();
        for index in 0..1000u64 {
            let (file, done, local) = (Rc::clone(&file), done.clone(), local.clone());
            local.clone().spawn(async move {
                let buffer = local.buffers().get(4096);
                buffer.fill(u8::try_from(index % 251).unwrap());
                let result = file.write(index * 4096, &buffer, false).await;
                done.send(result).unwrap();
            });
        }
        for _ in 0..1000 {
            assert_eq!(all.recv().await, Some(Ok(())));
        }
        let buffer = local.buffers().get(4096);
        file.read(500 * 4096, &buffer).await.unwrap();
        assert_eq!(buffer.to_vec(), [u8::try_from(500 % 251).unwrap(); 4096]);
    });
}

#[test]
fn an_abandoned_operation_keeps_its_buffer_until_it_is_done() {
    on_reactor(|local| async move {
        let file = device(&local, MIB, false);
        for _ in 0..100 {
            let buffer = local.buffers().get(65536);
            let mut read = Box::pin(file.read(0, &buffer));
            let polled = std::future::poll_fn(|c| Poll::Ready(read.as_mut().poll(c))).await;
            drop(read);
            drop(buffer);
            // Memory that the kernel may still write to must not be handed out again.
            let other = local.buffers().get(65536);
            other.fill(0xee);
            local.sleep(Duration::from_micros(200)).await;
            assert_eq!(other.to_vec(), [0xee; 65536], "first poll: {polled:?}");
        }
        while local.shared.ring.in_flight() > 1 {
            local.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn an_eventfd_that_is_never_read_reports_every_burst() {
    on_reactor(|local| async move {
        let event = Rc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let mut kicks = local.poll_readable(Rc::clone(&event));
        for _ in 0..50 {
            rustix::io::write(event.as_fd(), &EVENT).unwrap();
            kicks.next().await.unwrap();
        }
        drop(kicks);
        while local.shared.ring.in_flight() > 1 {
            local.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn end_of_turn_comes_after_all_ready_tasks() {
    on_reactor(|local| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        let (late, early) = (Rc::clone(&order), Rc::clone(&order));
        let waiter = local.clone();
        local.spawn(async move {
            waiter.end_of_turn().await;
            late.borrow_mut().push("late");
        });
        local.spawn(async move { early.borrow_mut().push("early") });
        local.sleep(Duration::from_millis(1)).await;
        assert_eq!(*order.borrow(), ["early", "late"]);
    });
}

#[test]
fn stopping_answers_nobody_but_frees_the_thread() {
    let reactor = ReactorHandle::start(0).unwrap();
    let never = reactor.run(|_| std::future::pending::<()>());
    reactor.stop();
    assert!(never.blocking_recv().is_err());
    assert!(reactor.run(|_| async {}).blocking_recv().is_err());
}

#[test]
fn an_extension_is_made_once_per_reactor() {
    on_reactor(|local| async move {
        let first = local.extension(|| Cell::new(1));
        first.set(5);
        assert_eq!(local.extension(|| Cell::new(1)).get(), 5);
    });
}

/// What a reactor's extensions do when they go is not the reactor's to know.
#[test]
fn an_extension_may_ask_for_others_when_it_is_dropped() {
    struct Asks(Local);
    impl Drop for Asks {
        fn drop(&mut self) {
            self.0.extension(|| 7u8);
        }
    }
    on_reactor(|local| async move {
        drop(local.extension(|| Asks(local.clone())));
    });
}

#[test]
fn a_file_that_ends_inside_a_block_is_a_short_read_too() {
    on_reactor(|local| async move {
        let fd = scratch(5000);
        let (offset, memory) = (512, 512);
        let file = local.file(fd, 8192, Alignment { offset, memory }, false);
        let buffer = local.buffers().get(8192);
        assert_eq!(file.read(0, &buffer).await, Err(IoError::Short));
        let odd = local.buffers().get(9000).slice(3, 8192);
        assert_eq!(file.read(0, &odd).await, Err(IoError::Short));
    });
}

/// Four per CPU is what the kernel gives: eight fallocates on a disk that hangs would stop everybody's flushes.
#[test]
fn a_few_operations_that_hang_leave_threads_for_the_others() {
    let limit = on_reactor(|local| async move { local.shared.ring.workers_max() });
    assert!(limit >= 256, "{limit} operations can block at a time");
}

/// Whoever is told not to ring is seen although others keep the reactor busy in every turn.
#[test]
fn a_shut_door_is_looked_at_however_busy_the_reactor_is() {
    struct Busy(Local, Cell<u32>);
    impl AtEndOfTurn for Busy {
        fn run(self: Rc<Self>) {
            self.1.set(self.1.get() + 1);
            if self.1.get() < 1000 {
                let local = self.0.clone();
                local.at_end_of_turn(self);
            }
        }
    }
    struct Left(Rc<Busy>, Cell<Option<u32>>);
    impl Door for Left {
        fn has_work(&self) -> bool {
            self.1.get().is_none()
        }
        fn take_work(self: Rc<Self>) {
            self.1.set(Some(self.0.1.get()));
        }
        fn open(&self) -> bool {
            false
        }
    }
    let polling = Polling::For(Duration::from_millis(1));
    let reactor = ReactorHandle::start_polling(0, polling).unwrap();
    let seen = reactor.run(|local| async move {
        let busy = Rc::new(Busy(local.clone(), Cell::new(0)));
        let door = Rc::new(Left(Rc::clone(&busy), Cell::new(None)));
        let weak: Weak<Left> = Rc::downgrade(&door);
        local.shut(weak);
        local.at_end_of_turn(Rc::clone(&busy) as Rc<dyn AtEndOfTurn>);
        while busy.1.get() < 1000 {
            local.end_of_turn().await;
        }
        door.1.get()
    });
    let seen = seen.blocking_recv().unwrap();
    reactor.stop();
    assert!(
        seen.is_some_and(|turns| turns < 10),
        "seen in turn {seen:?}"
    );
}
