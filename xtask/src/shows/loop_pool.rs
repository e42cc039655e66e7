//! A filesystem of its own for a pool: an image below `target/` or in memory, on a loop device, mounted; all undone when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::shell::{self, TempDir};

const IMAGE_BYTES: u64 = 512 << 20;
/// The same, for the disk of a filesystem that is itself on a filesystem that can be cut off.
const INNER_BYTES: u64 = 384 << 20;

/// The same, for one that is written whole.
const WRITTEN_BYTES: u64 = 96 << 20;

/// How long a filesystem may stay busy after whoever used it was killed.
const BUSY_FOR: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filesystem {
    Xfs,
    Ext4,
}

/// Mounted from `new` on; may be cut off and mounted again any number of times.
#[derive(Debug)]
pub(super) struct LoopPool {
    folder: TempDir,
    image: PathBuf,
    filesystem: Filesystem,
    is_mounted: bool,
    /// The filesystem that the image is on, when the disk has a volatile cache. Goes after this one.
    below: Option<Box<LoopPool>>,
}

impl LoopPool {
    pub(super) fn new(filesystem: Filesystem) -> Result<LoopPool> {
        LoopPool::sized(filesystem, IMAGE_BYTES)
    }

    pub(super) fn sized(filesystem: Filesystem, bytes: u64) -> Result<LoopPool> {
        let folder = TempDir::below(&shell::root().join("target"), "pool")?;
        let image = folder.path().join("image");
        fs::File::create(&image)?.set_len(bytes)?;
        LoopPool::on(folder, image, filesystem, None)
    }

    /// One whose disk is in memory, for measurements that the machine's disk and whoever else uses it should not be in.
    pub(super) fn in_memory(filesystem: Filesystem) -> Result<LoopPool> {
        let folder = TempDir::below(Path::new("/dev/shm"), "pool")?;
        let image = folder.path().join("image");
        fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
        LoopPool::on(folder, image, filesystem, None)
    }

    /// One whose disk has a volatile cache: the image is on an XFS of its own, which is what a cut shuts down, so that
    /// what the filesystem's disk was not told to flush goes as well. (A cut of the filesystem itself takes only what it
    /// has not written to its disk.)
    pub(super) fn volatile(filesystem: Filesystem) -> Result<LoopPool> {
        let below = LoopPool::new(Filesystem::Xfs)?;
        let folder = TempDir::below(&shell::root().join("target"), "pool")?;
        let image = below.mountpoint().join("image");
        let allocate = ["-f", "-c", &format!("falloc 0 {INNER_BYTES}")];
        shell::capture(shell::command("xfs_io").args(allocate).arg(&image))?;
        LoopPool::on(folder, image, filesystem, Some(Box::new(below)))
    }

    /// The same, with a small disk that was written all over, so that [`LoopPool::destage`] has an effect.
    pub(super) fn volatile_and_written(filesystem: Filesystem) -> Result<LoopPool> {
        let below = LoopPool::new(Filesystem::Xfs)?;
        let folder = TempDir::below(&shell::root().join("target"), "pool")?;
        let image = below.mountpoint().join("image");
        let fill = [
            "-f",
            "-c",
            &format!("pwrite -S 0 -b 1m 0 {WRITTEN_BYTES}"),
            "-c",
            "fsync",
        ];
        shell::capture(shell::command("xfs_io").args(fill).arg(&image))?;
        LoopPool::on(folder, image, filesystem, Some(Box::new(below)))
    }

    fn on(
        folder: TempDir,
        image: PathBuf,
        filesystem: Filesystem,
        below: Option<Box<LoopPool>>,
    ) -> Result<LoopPool> {
        fs::create_dir(folder.path().join("mount"))?;
        let mut mkfs = match filesystem {
            Filesystem::Xfs => shell::command("mkfs.xfs"),
            Filesystem::Ext4 => shell::command("mkfs.ext4"),
        };
        shell::capture(mkfs.arg("-q").arg(&image))?;
        let mut pool = LoopPool {
            folder,
            image,
            filesystem,
            is_mounted: false,
            below,
        };
        pool.mount()?;
        Ok(pool)
    }

    /// Where the filesystem is mounted.
    pub(super) fn mountpoint(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// The pool's folder, below the mountpoint, so that it is gone when the filesystem is.
    pub(super) fn pool(&self) -> PathBuf {
        self.mountpoint().join("pool")
    }

    pub(super) fn mount(&mut self) -> Result<()> {
        shell::capture(
            shell::command("mount")
                .args(["-o", "loop"])
                .arg(&self.image)
                .arg(self.mountpoint()),
        )?;
        self.is_mounted = true;
        Ok(())
    }

    pub(super) fn unmount(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            match shell::capture(shell::command("umount").arg(self.mountpoint())) {
                Ok(_) => break,
                // The kernel may still be at work for a process that was killed a moment ago.
                Err(error) if started.elapsed() > BUSY_FOR => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self.is_mounted = false;
        Ok(())
    }

    /// What a power cut is to the filesystem: every I/O fails from now on, and what was not flushed is lost.
    pub(super) fn cut_power(&self) -> Result<()> {
        if let Some(below) = &self.below {
            return below.cut_power();
        }
        let mut xfs_io = shell::command("xfs_io");
        if self.filesystem == Filesystem::Ext4 {
            xfs_io.arg("-F");
        }
        shell::capture(xfs_io.args(["-x", "-c", "shutdown"]).arg(self.mountpoint()))?;
        Ok(())
    }

    /// The disk writes back what it caches of a file from an offset on, and nothing else: what a disk may do at any time.
    pub(super) fn destage(&self, file: &Path, from: u64) -> Result<()> {
        let extents = shell::capture(shell::command("filefrag").args(["-v", "-b1"]).arg(file))?;
        for line in extents.lines() {
            let fields: Vec<&str> = line.split(':').map(str::trim).collect();
            let start = |at: usize| {
                fields
                    .get(at)?
                    .split("..")
                    .next()?
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            let length = fields.get(3).and_then(|length| length.parse::<u64>().ok());
            let (Some(logical), Some(physical), Some(length)) = (start(1), start(2), length) else {
                continue;
            };
            let skipped = from.saturating_sub(logical).min(length);
            let range = format!(
                "sync_range -abw {} {}",
                physical + skipped,
                length - skipped
            );
            if skipped < length {
                shell::capture(
                    shell::command("xfs_io")
                        .args(["-c", &range])
                        .arg(&self.image),
                )?;
            }
        }
        Ok(())
    }

    /// The filesystem after the power came back. Whoever had files open there must have ended.
    pub(super) fn restore_power(&mut self) -> Result<()> {
        self.unmount()?;
        if let Some(below) = &mut self.below {
            below.restore_power()?;
        }
        self.mount()
    }
}

impl Drop for LoopPool {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            // Whoever still has a file open there keeps the loop device until it ends.
            let lazy = shell::capture(shell::command("umount").arg("-l").arg(self.mountpoint()));
            if let Err(error) = lazy {
                eprintln!(
                    "xtask: {} stays mounted: {error:#}",
                    self.mountpoint().display()
                );
            }
        }
    }
}

/// The line of a configuration that declares a pool.
pub(super) fn pool_table(name: &str, path: &Path) -> String {
    format!(
        "[pool.{name}]\npath = \"{}\"\nreserve = \"0MiB\"\n",
        path.display()
    )
}
