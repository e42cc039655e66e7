//! Directory pools on filesystems of their own: mounted, unmounted, read-only, full, cut off; and under a killed daemon.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "what is skipped is said aloud; parent and child talk over stdout"
)]

use std::fs;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use volund::io::{BlockDevice, BufferPool, Local, ReactorHandle, Spawn};
use volund::model::{PoolId, ReplicaId};
use volund::pool::{Opened, OpenedFile, Pool, PoolError};
use volund::units::{Bytes, MIB};

const FILE_LEN: u64 = 9 * MIB;

async fn open(path: &Path, known: Option<PoolId>) -> Result<Pool, PoolError> {
    let name = "main".parse().expect("a valid name");
    Pool::open_directory(name, path.to_owned(), Bytes(0), known).await
}

async fn open_file(pool: &Pool, replica: ReplicaId) -> OpenedFile {
    let patience = Duration::from_secs(60);
    match pool.open(replica, patience).await {
        Ok(Opened::File(file)) => file,
        other => panic!("expected a file, got {other:?}"),
    }
}

/// Writes a block at 1 MiB of a replica through a reactor and flushes it.
async fn write_block(file: OpenedFile, byte: u8) {
    let reactor = ReactorHandle::start(0).expect("a reactor starts");
    let written = reactor.run(move |local: Local| async move {
        let disk = local.file(file.fd, file.size, file.alignment, false);
        let block = local.buffers().copy_of(&[byte; 4096]);
        disk.write(MIB, &block, false).await?;
        disk.flush().await
    });
    let written = written.await.expect("the reactor answers");
    written.expect("the block is written");
    reactor.stop();
}

/// A filesystem in a file, mounted on a loop device. Unmounted and removed when dropped.
struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    /// None, loudly, where this can't be done.
    fn new(mkfs: &str, size: u64) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = folder.path().join("image");
        let file = fs::File::create(&image).expect("an image file");
        file.set_len(size).expect("an image of that size");
        fs::create_dir(folder.path().join("mnt")).expect("a mount point");
        let made = Command::new(mkfs).arg(&image).output();
        let mounted = Self { folder };
        if made.is_ok_and(|output| output.status.success()) && mounted.mount(&["loop"]) {
            return Some(mounted);
        }
        eprintln!("SKIPPED: {mkfs} or loop mounts are not available here");
        None
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn mount(&self, options: &[&str]) -> bool {
        let image = self.folder.path().join("image");
        succeeds(
            Command::new("mount")
                .args(["-o", &options.join(",")])
                .args([&image, &self.mount_point()]),
        )
    }

    fn unmount(&self) -> bool {
        succeeds(Command::new("umount").arg(self.mount_point()))
    }

    /// From here on nothing reaches the disk, until it is mounted anew.
    fn cut_power(&self) {
        let shutdown = Command::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(self.mount_point())
            .status();
        assert!(shutdown.is_ok_and(|status| status.success()));
        assert!(self.unmount() && self.mount(&["loop"]));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A worker that is just letting go may hold the mount for a moment: lazily is good enough for a test.
        if !self.unmount() {
            succeeds(Command::new("umount").arg("-l").arg(self.mount_point()));
        }
    }
}

fn succeeds(command: &mut Command) -> bool {
    let output = command.output();
    output.is_ok_and(|output| output.status.success())
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).expect("a folder").count()
}

/// A0 and Show 8: nothing is created on the mount point of a disk that is not mounted.
#[tokio::test]
async fn an_unmounted_disk_is_a_missing_pool_and_comes_back_with_its_data() {
    let Some(disk) = Mounted::new("mkfs.xfs", 320 * MIB) else {
        return;
    };
    let path = disk.mount_point();
    let pool = open(&path, None).await.expect("a new pool");
    let (id, replica) = (pool.id(), ReplicaId::generate());
    pool.create(replica, FILE_LEN, true).await.expect("room");
    write_block(open_file(&pool, replica).await, 7).await;
    pool.close().await.expect("it closes");
    drop(pool);
    assert!(disk.unmount());

    let missing = open(&path, Some(id)).await.expect_err("no disk");
    assert_eq!(missing.reason(), "PoolMissing");
    assert_eq!(entries(&path), 0);

    assert!(disk.mount(&["loop", "ro"]));
    let read_only = open(&path, Some(id)).await.expect_err("read-only");
    assert_eq!(read_only.reason(), "PoolReadOnly", "{read_only}");
    assert!(disk.unmount() && disk.mount(&["loop"]));

    let pool = open(&path, Some(id)).await.expect("the disk is back");
    let file = fs::File::open(path.join("replicas").join(replica.to_string())).expect("the file");
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, MIB).expect("a block");
    assert_eq!(block, [7; 4096]);
    drop(file);
    pool.close().await.expect("it closes");
}

/// L6 and A0: what was answered is there after a power cut, without anybody having synced the filesystem.
#[tokio::test]
async fn creation_quarantine_and_purge_outlive_a_power_cut() {
    let Some(disk) = Mounted::new("mkfs.xfs", 320 * MIB) else {
        return;
    };
    let path = disk.mount_point();
    let pool = open(&path, None).await.expect("a new pool");
    let id = pool.id();
    pool.close().await.expect("it closes");
    disk.cut_power();

    let pool = open(&path, Some(id)).await.expect("the marker is there");
    let replicas: Vec<ReplicaId> = (0..4).map(|_| ReplicaId::generate()).collect();
    for (index, replica) in replicas.iter().enumerate() {
        let thin = index % 2 == 0;
        pool.create(*replica, FILE_LEN, thin).await.expect("room");
    }
    pool.close().await.expect("it closes");
    disk.cut_power();

    let pool = open(&path, Some(id)).await.expect("the marker is there");
    for replica in &replicas {
        let stat = pool.stat(*replica).await.expect("the file is there");
        assert_eq!(stat.size, FILE_LEN);
    }
    let name = |replica: ReplicaId| {
        let at = "2026-11-21T09:14:03Z".parse().expect("a time");
        let volume = "db".parse().expect("a name");
        let id = volund::model::VolumeId::generate();
        volund::pool::QuarantineName::new(volume, id, replica, at)
    };
    let (kept, purged, back) = (name(replicas[0]), name(replicas[1]), name(replicas[2]));
    for name in [&kept, &purged, &back] {
        pool.quarantine(name.clone()).await.expect("it is closed");
    }
    pool.purge(purged.clone()).await.expect("it is closed");
    pool.restore(back).await.expect("it is closed");
    pool.close().await.expect("it closes");
    disk.cut_power();

    let pool = open(&path, Some(id)).await.expect("the marker is there");
    assert_eq!(entries(&path.join("quarantine")), 1);
    assert!(path.join("quarantine").join(kept.to_string()).exists());
    assert!(pool.stat(replicas[2]).await.is_ok());
    assert!(pool.stat(replicas[3]).await.is_ok());
    assert_eq!(entries(&path.join("replicas")), 2);
    pool.close().await.expect("it closes");
}

#[tokio::test]
async fn a_full_disk_refuses_and_keeps_nothing() {
    let Some(disk) = Mounted::new("mkfs.ext4", 64 * MIB) else {
        return;
    };
    let path = disk.mount_point();
    let pool = open(&path, None).await.expect("lost+found may be there");
    let refused = pool.create(ReplicaId::generate(), 65 * MIB, false).await;
    assert_eq!(refused.expect_err("no room").reason(), "NoSpace");
    let available = pool.survey().await.expect("survey").capacity.available;
    pool.set_reserve(Bytes(available.get() - 2 * MIB));
    let thin = ReplicaId::generate();
    pool.create(thin, 65 * MIB, true).await.expect("thin fits");
    let thick = pool.create(ReplicaId::generate(), 3 * MIB, false).await;
    let message = thick.expect_err("the reserve stays free").to_string();
    assert!(message.contains("reserve"), "{message}");
    assert_eq!(entries(&path.join("replicas")), 1);
    // Under the whole disk gone, errors and no more.
    pool.set_reserve(Bytes(0));
    let filler = fs::File::create(path.join("filler")).expect("a file");
    let junk = vec![1; 1 << 20];
    while std::io::Write::write_all(&mut &filler, &junk).is_ok() {}
    let full = pool.create(ReplicaId::generate(), FILE_LEN, true).await;
    assert_eq!(full.expect_err("no room").reason(), "NoSpace");
    drop(filler);
    pool.close().await.expect("it closes");
}

/// btrfs is skipped where it is not installed.
#[tokio::test]
async fn files_on_btrfs_are_made_without_copy_on_write() {
    let Some(disk) = Mounted::new("mkfs.btrfs", 256 * MIB) else {
        return;
    };
    let path = disk.mount_point();
    let pool = open(&path, None).await.expect("a new pool");
    let replica = ReplicaId::generate();
    pool.create(replica, FILE_LEN, true).await.expect("room");
    let file = open_file(&pool, replica).await;
    assert_eq!(file.alignment.offset, 4096);
    write_block(file, 9).await;
    pool.close().await.expect("it closes");
}

#[tokio::test]
async fn a_filesystem_without_direct_io_is_refused() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: no /dev/shm");
        return;
    };
    let path = folder.path().join("p");
    let error = open(&path, None)
        .await
        .expect_err("memory has no direct I/O");
    assert_eq!(error.reason(), "NoDirectIo", "{error}");
    assert_eq!(entries(&path), 0, "no marker was left behind");
}

/// What the child of the test below works on; unset, the child's part does nothing.
const CHILD_POOL: &str = "VOLUND_TEST_CHILD_POOL";
const CHILD_REPLICA: &str = "VOLUND_TEST_CHILD_REPLICA";
const CHUNK: u64 = 4 * MIB;
const CHUNKS: u64 = 48;

/// The child: holds the lock, has many large writes under way, says so, and waits to be killed.
#[tokio::test]
async fn child_that_is_killed_with_writes_in_flight() {
    let Ok(path) = std::env::var(CHILD_POOL) else {
        return;
    };
    let replica = std::env::var(CHILD_REPLICA).expect("set together with the pool");
    let replica = replica.parse().expect("a replica's uuid");
    let pool = open(Path::new(&path), None).await.expect("the pool");
    let file = open_file(&pool, replica).await;
    let reactor = ReactorHandle::start(0).expect("a reactor starts");
    let started = reactor.run(move |local: Local| async move {
        let disk = std::rc::Rc::new(local.file(file.fd, file.size, file.alignment, false));
        let ones = local.buffers().get(usize::try_from(CHUNK).expect("fits"));
        ones.fill(0xff);
        for round in 0..4 {
            for chunk in 0..CHUNKS {
                let (disk, ones) = (std::rc::Rc::clone(&disk), ones.clone());
                local.spawn(async move {
                    let written = disk.write(chunk * CHUNK, &ones, false).await;
                    assert!(written.is_ok() || round > 0);
                });
            }
        }
        local.end_of_turn().await;
    });
    started.await.expect("the reactor answers");
    println!("\nwriting");
    std::future::pending::<()>().await;
}

/// A1: the lock of a killed process is granted only when its last write has landed.
#[tokio::test]
async fn the_lock_of_a_killed_daemon_is_granted_after_its_last_write() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("p");
    let pool = open(&path, None).await.expect("a new pool");
    let replica = ReplicaId::generate();
    let len = CHUNK * CHUNKS;
    pool.create(replica, len, false).await.expect("room");
    for _ in 0..3 {
        pool.close().await.expect("it closes");
        let mut child = Command::new(std::env::current_exe().expect("this test's program"))
            .args(["--exact", "--nocapture"])
            .arg("pool::child_that_is_killed_with_writes_in_flight")
            .env(CHILD_POOL, &path)
            .env(CHILD_REPLICA, replica.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let output = child.stdout.take().expect("it is piped");
        let mut lines = std::io::BufReader::new(output).lines();
        let writing = lines.any(|line| line.is_ok_and(|line| line.trim() == "writing"));
        assert!(writing, "the child ended early");
        child.kill().expect("it runs");
        child.wait().expect("it is dead");

        // Its lock on the pool may be held by those writes, too.
        let pool = reopen(&path).await;
        let file = open_file(&pool, replica).await;
        let reactor = ReactorHandle::start(0).expect("a reactor starts");
        let foreign = reactor.run(move |local: Local| async move {
            let disk = local.file(file.fd, file.size, file.alignment, true);
            overwrite_and_look(&disk, local.buffers()).await
        });
        let foreign = foreign.await.expect("the reactor answers");
        assert_eq!(foreign, None, "a write landed after the lock was granted");
        reactor.stop();
        pool.close().await.expect("it closes");
    }
}

async fn reopen(path: &Path) -> Pool {
    for _ in 0..1000 {
        match open(path, None).await {
            Ok(pool) => return pool,
            Err(error) => assert_eq!(error.reason(), "PoolInUse", "{error}"),
        }
    }
    panic!("the dead daemon's lock is never given back");
}

/// Writes zeroes everywhere, last chunk first, and returns the first chunk that then has something else.
async fn overwrite_and_look(disk: &impl BlockDevice, buffers: &BufferPool) -> Option<u64> {
    let len = usize::try_from(CHUNK).expect("fits");
    let zeroes = buffers.zeroed(len);
    for chunk in (0..CHUNKS).rev() {
        let written = disk.write(chunk * CHUNK, &zeroes, false).await;
        written.expect("the zeroes are written");
    }
    disk.flush().await.expect("a flush");
    let buffer = buffers.get(len);
    for chunk in 0..CHUNKS {
        let read = disk.read(chunk * CHUNK, &buffer).await;
        read.expect("the chunk is read");
        if !buffer.is_zero() {
            return Some(chunk);
        }
    }
    None
}
