//! Puts a guest's root filesystem together: busybox, modules in load order, tools with their libraries, a script.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::{Description, Kernel};
use crate::shell;

/// What a test adds to the guest.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Files of the host, each at a path in the guest; programs bring their shared libraries along.
    pub(crate) programs: Vec<(PathBuf, String)>,
    /// Texts, each at a path in the guest.
    pub(crate) files: Vec<(String, String)>,
    /// Modules beyond those that every guest loads, each with its parameters if it has any: `loop max_loop=2`.
    pub(crate) modules: Vec<String>,
}

/// The initramfs for one kernel and one test.
pub(super) fn build(about: &Description, kernel: &Kernel, contents: &Contents) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("/dev");
    archive.character_device("/dev/console", 5, 1);
    for dir in ["/proc", "/sys", "/run", "/tmp", "/mnt", "/root"] {
        archive.directory(dir);
    }
    archive.program("/init", image_file("init.sh")?.as_bytes());
    archive.file("/lib.sh", image_file("lib.sh")?.as_bytes());
    for (path, text) in &contents.files {
        archive.file(path, text.as_bytes());
    }
    add_busybox(&mut archive)?;
    let modules: Vec<String> = [&about.modules[..], &contents.modules].concat();
    add_modules(&mut archive, &kernel.load_order(&modules)?)?;
    for tool in &about.tools {
        let path = shell::which(tool).with_context(|| format!("{tool} is not installed"))?;
        add_program(&mut archive, &path, &format!("/usr/sbin/{tool}"))?;
    }
    for (path, guest) in &contents.programs {
        add_program(&mut archive, path, guest)?;
    }
    Ok(archive.finish())
}

/// A file of `vm-images/`.
pub(super) fn image_file(name: &str) -> Result<String> {
    let path = shell::root().join("vm-images").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn add_busybox(archive: &mut Archive) -> Result<()> {
    let busybox = shell::which("busybox").context("busybox is not installed")?;
    archive.program("/bin/busybox", &fs::read(&busybox)?);
    for applet in shell::capture(shell::command(&busybox).arg("--list"))?.lines() {
        // Fuller versions of these come with the tools.
        if !["blkdiscard", "blockdev"].contains(&applet) {
            archive.link(&format!("/bin/{applet}"), "busybox");
        }
    }
    Ok(())
}

fn add_modules(archive: &mut Archive, files: &[(PathBuf, String)]) -> Result<()> {
    let mut order = String::new();
    for (file, parameters) in files {
        let name = file
            .file_name()
            .context("a module has a name")?
            .to_string_lossy();
        archive.file(&format!("/modules/{name}"), &fs::read(file)?);
        order.push_str(&format!("/modules/{name}{parameters}\n"));
    }
    archive.file("/modules/order", order.as_bytes());
    Ok(())
}

/// Adds a program without its debug information, and the shared libraries that `ldd` names.
fn add_program(archive: &mut Archive, path: &Path, guest: &str) -> Result<()> {
    if archive.contains(guest) {
        return Ok(());
    }
    archive.program(guest, &stripped(path)?);
    for library in libraries(path) {
        if !archive.contains(&library) {
            archive.program(&library, &fs::read(&library)?);
        }
    }
    Ok(())
}

fn stripped(path: &Path) -> Result<Vec<u8>> {
    let out = shell::temp_path("stripped");
    let strip = shell::capture(shell::command("strip").arg("-o").arg(&out).arg(path));
    // A script or an odd format is taken as it is.
    let bytes = if strip.is_ok() {
        fs::read(&out)?
    } else {
        fs::read(path)?
    };
    let _absent_is_fine = fs::remove_file(&out);
    Ok(bytes)
}

/// The absolute paths that `ldd` prints; none for a static program.
fn libraries(path: &Path) -> BTreeSet<String> {
    let text = shell::capture(shell::command("ldd").arg(path)).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}
