//! What the contenders work on: volumes of volund whose files are fully written, made once and kept between runs.
//!
//! They are below `target/bench/store`, or where `VOLUND_BENCH_STORE` says. A file that has been written whole, with direct
//! I/O, has no hole and no unwritten extent that reads faster than a disk does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::contenders::{Volumes, start_volund};
use crate::shell;

/// Where a replica's file has the volume's data (`docs/formats/replica.md`).
pub(crate) const DATA_OFFSET: u64 = 1 << 20;

/// The folder of all disks, and the programs to make them.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) folder: PathBuf,
    pub(crate) volund: PathBuf,
    pub(crate) fio: PathBuf,
}

/// One volume's replicas, each in a pool of its own.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    ways: u32,
    pub(crate) size: u64,
}

impl Store {
    /// The disk of this name with at least its first `written` bytes written, made if it is not there.
    pub(crate) fn disk(&self, name: &str, ways: u32, size: u64, written: u64) -> Result<Disk> {
        let disk = Disk {
            folder: self.folder.join(name),
            ways,
            size,
        };
        let mark = disk.folder.join("written");
        let already = fs::read_to_string(&mark)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if already.is_none() {
            let _absent_is_fine = fs::remove_dir_all(&disk.folder);
            fs::create_dir_all(&disk.folder)?;
            let (daemon, _site) =
                start_volund(&self.volund, &disk.volumes(1, ""), Some(&disk.state()), &[])?;
            daemon.stop()?;
        }
        let already = already.unwrap_or(0);
        if already < written {
            for file in disk.files()? {
                println!(
                    "bench: writing {} MiB of {}",
                    (written - already) >> 20,
                    file.display()
                );
                self.write(&file, already, written)?;
                check_whole(&file, written)?;
            }
            fs::write(&mark, written.to_string())?;
        }
        Ok(disk)
    }

    /// Reads the first bytes of every file. A virtual disk may keep what was used lately in a cache of its host, so that whoever
    /// comes to a file first would be measured on another disk than those after it.
    pub(crate) fn warm(&self, disk: &Disk, span: u64) -> Result<()> {
        for file in disk.files()? {
            shell::capture(
                shell::command(&self.fio)
                    .args(["--name=warm", "--rw=read", "--bs=1m", "--iodepth=4"])
                    .args(["--ioengine=io_uring", "--direct=1"])
                    .arg(format!("--filename={}", file.display()))
                    .arg(format!("--offset={DATA_OFFSET}"))
                    .arg(format!("--size={span}")),
            )?;
        }
        Ok(())
    }

    /// Writes this part of a file's data.
    fn write(&self, file: &Path, from: u64, to: u64) -> Result<()> {
        shell::capture(
            shell::command(&self.fio)
                .args(["--name=fill", "--rw=write", "--bs=1m", "--iodepth=4"])
                .args(["--ioengine=io_uring", "--direct=1", "--end_fsync=1"])
                .arg(format!("--filename={}", file.display()))
                .arg(format!("--offset={}", DATA_OFFSET + from))
                .arg(format!("--size={}", to - from)),
        )?;
        Ok(())
    }
}

/// Every byte up to `written` lies in an extent that has been written.
fn check_whole(file: &Path, written: u64) -> Result<()> {
    const BLOCK: u64 = 4096;
    let map = shell::capture(shell::command("filefrag").args(["-v", "-b4096"]).arg(file))?;
    let mut next = 0;
    for line in map.lines() {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let [_, logical, _, length, ..] = fields[..] else {
            continue;
        };
        let Some((start, _)) = logical.split_once("..") else {
            continue;
        };
        let start: u64 = start.trim().parse()?;
        if start != next || (line.contains("unwritten") && start * BLOCK < DATA_OFFSET + written) {
            bail!("{} is not fully written: {line}", file.display());
        }
        next = start + length.parse::<u64>()?;
    }
    ensure!(
        next * BLOCK >= DATA_OFFSET + written,
        "{} is written up to block {next} only",
        file.display()
    );
    Ok(())
}

impl Disk {
    /// The daemon's records about it.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn pools(&self) -> Vec<PathBuf> {
        (0..self.ways)
            .map(|number| self.folder.join(format!("pool{number}")))
            .collect()
    }

    /// The volume as the daemon is to be told of it.
    pub(crate) fn volumes(&self, queues: u32, more: &str) -> Volumes {
        Volumes {
            pools: self
                .pools()
                .iter()
                .map(|path| Volumes::pool_at(path))
                .collect(),
            count: 1,
            size: self.size,
            queues,
            more: more.to_owned(),
        }
    }

    /// The replicas' files.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        self.pools()
            .iter()
            .map(|pool| {
                let mut files = replicas(pool)?;
                ensure!(
                    files.len() == 1,
                    "{} has {} replicas",
                    pool.display(),
                    files.len()
                );
                Ok(files.remove(0))
            })
            .collect()
    }
}

/// The files of a pool's replicas, by name.
pub(crate) fn replicas(pool: &Path) -> Result<Vec<PathBuf>> {
    let folder = pool.join("replicas");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}
