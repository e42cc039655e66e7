//! What a task needs on a fresh Debian 12 with Rust: installed when missing, silently when there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use crate::shell;

/// A Debian package, and a file or program that shows it is installed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    name: &'static str,
    probe: Probe,
}

#[derive(Debug, Clone, Copy)]
enum Probe {
    Program(&'static str),
    /// A file whose name starts so, in a folder of shared libraries.
    Library(&'static str),
    /// A Python module.
    Python(&'static str),
    /// A path.
    File(&'static str),
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package {
        name,
        probe: Probe::Program(program),
    }
}

/// To build the daemon: bindgen, inside libublk, loads libclang.
pub(crate) const BUILD: &[Package] = &[Package {
    name: "libclang1-14",
    probe: Probe::Library("libclang-14.so"),
}];

/// To boot test guests.
pub(crate) const GUEST: &[Package] = &[
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("busybox-static", "busybox"),
    program("kmod", "depmod"),
    program("xz-utils", "xz"),
    program("zstd", "zstd"),
    program("lz4", "lz4"),
    program("binutils", "strip"),
    program("xfsprogs", "mkfs.xfs"),
    program("e2fsprogs", "mkfs.ext4"),
    program("util-linux", "blkdiscard"),
];

/// Device-mapper, to be put into guests.
pub(crate) const MAPPER: &[Package] = &[program("dmsetup", "dmsetup")];

/// Linux's software RAID, to be put into guests.
pub(crate) const RAID: &[Package] = &[program("mdadm", "mdadm")];

/// Pools on loop-mounted filesystems.
pub(crate) const POOLS: &[Package] = &[
    program("xfsprogs", "xfs_io"),
    program("e2fsprogs", "mkfs.ext4"),
    program("mount", "losetup"),
];

/// Programs that judge the daemon's output: Prometheus, libvirt's schema, TOML linters.
pub(crate) const JUDGES: &[Package] = &[
    program("prometheus", "promtool"),
    program("libvirt-clients", "virt-xml-validate"),
    Package {
        name: "python3-venv",
        probe: Probe::Python("ensurepip"),
    },
];

/// To look at the status page, with a font.
pub(crate) const BROWSER: &[Package] = &[
    program("chromium", "chromium"),
    Package {
        name: "fonts-dejavu-core",
        probe: Probe::File("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
    },
];

/// To make a Debian package and to install it into a tree of its own.
pub(crate) const DIST: &[Package] = &[
    program("dpkg-dev", "dpkg-shlibdeps"),
    program("debootstrap", "debootstrap"),
    program("man-db", "man"),
];

/// Counts instructions.
pub(crate) const GUARD: &[Package] = &[program("valgrind", "valgrind")];

/// Load for a look at speed.
pub(crate) const LOAD: &[Package] = &[program("fio", "fio")];

/// What benchmarks compare with and measure by. Its libraries serve the newer qemu-storage-daemon too.
pub(crate) const PEERS: &[Package] = &[
    program("qemu-system-common", "qemu-storage-daemon"),
    program("linux-perf", "perf"),
    program("e2fsprogs", "filefrag"),
    program("util-linux", "fallocate"),
];

/// To build fuzz targets: libFuzzer itself is C++.
pub(crate) const FUZZ: &[Package] = &[program("g++", "g++")];

impl Package {
    fn is_installed(&self) -> bool {
        match self.probe {
            Probe::Program(program) => shell::which(program).is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Python(module) => {
                let import = format!("import {module}");
                shell::capture(shell::command("python3").args(["-c", &import])).is_ok()
            }
            Probe::Library(prefix) => ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
                .iter()
                .any(|dir| has_prefix(Path::new(dir), prefix)),
        }
    }
}

fn has_prefix(dir: &Path, prefix: &str) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
    })
}

/// Installs the Debian packages of these sets that are missing.
pub(crate) fn need(sets: &[&[Package]]) -> Result<()> {
    let missing: Vec<&str> = sets
        .iter()
        .flat_map(|set| set.iter())
        .filter(|package| !package.is_installed())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    println!("packages: installing {names}");
    require_root(&format!("apt-get install {names}"))?;
    let mut install = apt_get();
    install
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing);
    if shell::capture(&mut install).is_ok() {
        return Ok(());
    }
    // The lists may be absent or old: a fresh image has none.
    update_once()?;
    shell::capture(&mut install).context("Debian's packages could not be installed")?;
    Ok(())
}

fn apt_get() -> std::process::Command {
    let mut apt = shell::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--quiet", "--quiet"]);
    apt
}

fn update_once() -> Result<()> {
    static UPDATED: AtomicBool = AtomicBool::new(false);
    if UPDATED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    shell::capture(apt_get().arg("update")).context("apt-get cannot refresh its lists")?;
    Ok(())
}

/// Says which command a person would have to run, when this process may not.
fn require_root(instead: &str) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|uids| uids.split_whitespace().nth(1));
    if uid == Some("0") {
        return Ok(());
    }
    bail!("installing packages takes root: run `sudo {instead}` once, then this task again")
}

/// The test runner. The machine's own is taken when there; else cargo builds it once.
pub(crate) fn need_nextest() -> Result<()> {
    if shell::capture(shell::cargo().args(["nextest", "--version"])).is_ok() {
        return Ok(());
    }
    println!("packages: building cargo-nextest (once, some minutes)");
    shell::run(shell::cargo().args(["install", "--quiet", "--locked", "cargo-nextest"]))
}

/// Makes Debian packages of cargo's. Built once, into `target/xtask`, when the machine has none.
pub(crate) fn need_cargo_deb() -> Result<PathBuf> {
    if let Some(installed) = shell::which("cargo-deb") {
        return Ok(installed);
    }
    let root = shell::root().join("target/xtask/cargo-deb");
    let program = root.join("bin/cargo-deb");
    if !program.exists() {
        println!("packages: building cargo-deb (once, some minutes)");
        shell::run(
            shell::cargo()
                .args(["install", "--quiet", "--locked", "cargo-deb", "--root"])
                .arg(&root),
        )?;
    }
    Ok(program)
}
