//! The programs that take part: volund and its front end in release, fio, perf, and two versions of qemu-storage-daemon.
//!
//! Version 7.2 is Debian 12's own package. Version 10 is unpacked from its backports under `target/`: it takes the same
//! libraries, so nothing of the machine is changed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::guest::apt::Apt;
use crate::{packages, shell};

const BACKPORTS: &str = "bookworm-backports";

/// All that a benchmark starts.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) volund: PathBuf,
    /// The front end.
    pub(crate) client: PathBuf,
    /// volund's frontend on a disk that stores nothing.
    pub(crate) null: PathBuf,
    pub(crate) fio: PathBuf,
    pub(crate) perf: PathBuf,
    /// Name and program of each qemu-storage-daemon.
    pub(crate) qemus: Vec<(String, PathBuf)>,
}

/// How the daemon and the front end are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// As users build them: the only one to measure.
    Release,
    /// As tests do.
    Debug,
    /// The release that is there, whatever it was built from.
    Existing,
}

impl Programs {
    /// Installs, fetches and builds what is missing.
    pub(crate) fn get(how: Build) -> Result<Programs> {
        packages::need(&[packages::BUILD, packages::LOAD, packages::PEERS])?;
        let (volund, client) = build(how)?;
        Ok(Programs {
            null: client.with_file_name("vhost_null"),
            volund,
            client,
            fio: installed("fio")?,
            perf: installed("perf")?,
            qemus: vec![
                ("qemu-7.2".to_owned(), installed("qemu-storage-daemon")?),
                ("qemu-10".to_owned(), backported()?),
            ],
        })
    }
}

fn installed(program: &str) -> Result<PathBuf> {
    shell::which(program).with_context(|| format!("{program} is not installed"))
}

/// Builds all of the project's own, and gives the daemon and the front end.
pub(crate) fn build(how: Build) -> Result<(PathBuf, PathBuf)> {
    let mut cargo = shell::cargo();
    cargo.args(["build", "--quiet", "--bin=volund"]);
    cargo.args(["--example=bench_client", "--example=vhost_null"]);
    let folder = match how {
        Build::Release => {
            cargo.arg("--release");
            "target/release"
        }
        Build::Existing => "target/release",
        Build::Debug => "target/debug",
    };
    if how != Build::Existing {
        shell::run(&mut cargo)?;
    }
    let folder = shell::root().join(folder);
    Ok((folder.join("volund"), folder.join("examples/bench_client")))
}

/// qemu-storage-daemon from the backports: fetched once.
fn backported() -> Result<PathBuf> {
    let cache = shell::root().join("target/bench/qemu-10");
    let program = cache.join("root/usr/bin/qemu-storage-daemon");
    if !program.exists() {
        fetch(&cache)?;
    }
    let libraries = shell::capture(shell::command("ldd").arg(&program))?;
    if let Some(missing) = libraries.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(program)
}

fn fetch(cache: &Path) -> Result<()> {
    println!("bench: fetching qemu-storage-daemon from {BACKPORTS}");
    let apt = Apt::open(&cache.join("apt"), BACKPORTS)?;
    let root = cache.join("root");
    for deb in apt.download(&["qemu-utils".to_owned()], &cache.join("debs"))? {
        // Unpacked beside and renamed, so that a run that is cut off leaves nothing that looks complete.
        let fresh = cache.join("root.new");
        let _absent_is_fine = fs::remove_dir_all(&fresh);
        shell::capture(shell::command("dpkg-deb").arg("-x").arg(&deb).arg(&fresh))?;
        let _absent_is_fine = fs::remove_dir_all(&root);
        fs::rename(&fresh, &root)?;
    }
    Ok(())
}

/// The version that a program says it has, for the report.
pub(crate) fn version(program: &Path) -> String {
    let said = shell::capture(shell::command(program).arg("--version")).unwrap_or_default();
    said.lines().next().unwrap_or("unknown").to_owned()
}
