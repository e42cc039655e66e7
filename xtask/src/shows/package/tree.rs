//! A Debian system of its own: a tree made by debootstrap once, copied for each use, and booted with systemd in namespaces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::guest::apt;
use crate::shell::{self, TempDir};

const SUITE: &str = "bookworm";
/// Beyond what is essential.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,man-db";
/// Until its systemd has started everything.
const BOOT_MAX: Duration = Duration::from_secs(120);

/// A running system; ended when dropped.
pub(super) struct System {
    child: Child,
    groups: String,
    tree: TempDir,
}

/// The tree that others are copied from.
fn original() -> Result<PathBuf> {
    let tree = shell::root().join("target/xtask/debian");
    if tree.join("complete").exists() {
        return Ok(tree);
    }
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    println!("package: making a Debian tree (once, some minutes)");
    let (mirror, keyring) = apt::mirror(SUITE)?;
    let mut debootstrap = shell::command("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}")]);
    if let Some(keyring) = keyring {
        debootstrap.arg(format!("--keyring={keyring}"));
    }
    shell::capture(debootstrap.arg(SUITE).arg(&tree).arg(mirror))?;
    fs::write(tree.join("complete"), "")?;
    Ok(tree)
}

impl System {
    pub(super) fn boot() -> Result<System> {
        let original = original()?;
        let tree = TempDir::below(&shell::root().join("target"), "tree")?;
        let mut copy = shell::command("cp");
        copy.args(["--archive", "--reflink=auto"]);
        shell::capture(copy.arg(original.join(".")).arg(tree.path()))?;
        let groups = format!("volund-package-{}", std::process::id());
        let child = shell::command("xtask/src/shows/package/boot.sh")
            .arg(tree.path())
            .arg(&groups)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start boot.sh")?;
        let system = System {
            child,
            groups,
            tree,
        };
        system.wait()?;
        Ok(system)
    }

    /// Until it has started everything, or what it could.
    fn wait(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            // It is asked with a word that fails until then, so the answer is what counts.
            let state = self.run("systemctl is-system-running || true");
            let state = state.unwrap_or_default();
            if matches!(state.trim(), "running" | "degraded") {
                return Ok(());
            }
            ensure!(
                started.elapsed() < BOOT_MAX,
                "the tree's systemd has not started within {} s: {state}",
                BOOT_MAX.as_secs()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Where its root is on this machine.
    pub(super) fn root(&self) -> &Path {
        self.tree.path()
    }

    /// Runs a shell script in it as root.
    pub(super) fn run(&self, script: &str) -> Result<String> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let init = children
            .split_whitespace()
            .next()
            .context("its systemd is not there")?;
        let mut enter = shell::command("nsenter");
        enter.args(["--target", init, "--mount", "--uts", "--ipc", "--pid"]);
        enter.args(["--root", "--wd", "sh", "-euc", script]);
        enter.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        shell::capture(&mut enter)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let groups = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup")
                .then(|| Path::new(place).join(&self.groups))
        });
        for group in groups.filter(|group| group.exists()) {
            // Its processes have ended or are about to.
            let remove = "for i in $(seq 50); do find \"$1\" -depth -type d -delete 2>/dev/null && exit 0; sleep 0.1; done; exit 1";
            let removed =
                shell::capture(shell::command("sh").args(["-c", remove, "sh"]).arg(&group));
            if removed.is_err() {
                eprintln!("xtask: {} is left behind", group.display());
            }
        }
    }
}
