//! The kernels that guests boot: fetched as Debian packages, unpacked to a plain `vmlinux` and a tree of plain modules.
//!
//! Suites roll, so a kernel is named by a meta-package and cached by version under `target/guest-cache`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::apt::{Apt, Record};
use crate::shell;

/// How long a resolved version is taken without asking the archive again.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// `vm-images/guest.json`: what guests are made of.
#[derive(Debug, Deserialize)]
pub(super) struct Description {
    pub(super) kernels: Vec<Wanted>,
    pub(super) modules: Vec<String>,
    pub(super) tools: Vec<String>,
}

/// One kernel, and the suites that may have it, best first.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    pub(super) name: String,
    sources: Vec<Source>,
}

#[derive(Debug, Deserialize)]
struct Source {
    suite: String,
    package: String,
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As in the description: `6.12`, `7.x`.
    pub(crate) name: String,
    /// Debian's version, for messages.
    pub(crate) version: String,
    pub(super) vmlinux: PathBuf,
    /// The folder with `modules.dep` and `kernel/`.
    pub(super) modules: PathBuf,
}

/// Reads the description.
pub(super) fn description() -> Result<Description> {
    let path = shell::root().join("vm-images/guest.json");
    let text = fs::read_to_string(&path)?;
    serde_json::from_str(&text).with_context(|| format!("{} is not readable", path.display()))
}

/// The kernel from the cache, fetched first when it is not there or the cached choice is old.
pub(super) fn get(wanted: &Wanted) -> Result<Kernel> {
    let cache = shell::root().join("target/guest-cache");
    let chosen = cache.join(format!("{}.version", wanted.name));
    if is_fresh(&chosen)
        && let Some(kernel) = cached(&cache, wanted, fs::read_to_string(&chosen)?.trim())
    {
        return Ok(kernel);
    }
    match fetch(&cache, wanted) {
        Ok(kernel) => {
            fs::write(&chosen, &kernel.version)?;
            Ok(kernel)
        }
        Err(error) => {
            let version = fs::read_to_string(&chosen).unwrap_or_default();
            let kernel = cached(&cache, wanted, version.trim()).ok_or(error)?;
            println!(
                "guest: the archive does not answer; kernel {version} is taken from the cache"
            );
            Ok(kernel)
        }
    }
}

fn is_fresh(chosen: &Path) -> bool {
    let modified = fs::metadata(chosen).and_then(|meta| meta.modified());
    modified.is_ok_and(|time| {
        SystemTime::now()
            .duration_since(time)
            .is_ok_and(|age| age < FRESH)
    })
}

fn cached(cache: &Path, wanted: &Wanted, version: &str) -> Option<Kernel> {
    let dir = cache.join(format!("linux-{version}"));
    let kernel = Kernel {
        name: wanted.name.clone(),
        version: version.to_owned(),
        vmlinux: dir.join("vmlinux"),
        modules: dir.join("modules"),
    };
    (!version.is_empty() && dir.join("complete").exists()).then_some(kernel)
}

fn fetch(cache: &Path, wanted: &Wanted) -> Result<Kernel> {
    let mut last = None;
    for source in &wanted.sources {
        match fetch_from(cache, wanted, source) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => last = Some(error.context(format!("from {}", source.suite))),
        }
    }
    let error = last.with_context(|| format!("kernel {} names no source", wanted.name))?;
    Err(error.context(format!("kernel {} could not be fetched", wanted.name)))
}

fn fetch_from(cache: &Path, wanted: &Wanted, source: &Source) -> Result<Kernel> {
    let apt = Apt::open(&cache.join("apt").join(&source.suite), &source.suite)?;
    let records = resolve(&apt, &source.package)?;
    let version = records
        .first()
        .map(|record| record.version.clone())
        .unwrap_or_default();
    if let Some(kernel) = cached(cache, wanted, &version) {
        return Ok(kernel);
    }
    println!("guest: fetching kernel {version} from {}", source.suite);
    let dir = cache.join(format!("linux-{version}"));
    let unpacked = dir.join("unpacked");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let names: Vec<String> = records.into_iter().map(|record| record.name).collect();
    for deb in apt.download(&names, &dir)? {
        let into = unpacked.join(deb.file_stem().unwrap_or_default());
        fs::create_dir_all(&into)?;
        shell::capture(shell::command("dpkg-deb").arg("-x").arg(&deb).arg(&into))?;
        fs::remove_file(&deb)?;
    }
    extract_vmlinux(&find(&unpacked, "vmlinuz")?, &dir.join("vmlinux"))?;
    let tree = find(&unpacked, "kernel")?;
    fs::rename(
        tree.parent().context("the modules have a folder")?,
        dir.join("modules"),
    )?;
    unpack_modules(&dir)?;
    fs::remove_dir_all(&unpacked)?;
    fs::write(dir.join("complete"), "")?;
    cached(cache, wanted, &version).context("the kernel was unpacked but is not in the cache")
}

/// The meta-package and the packages of the kernel it leads to.
fn resolve(apt: &Apt, meta: &str) -> Result<Vec<Record>> {
    let mut records = vec![apt.show(meta)?];
    let mut seen = BTreeSet::from([meta.to_owned()]);
    let mut at = 0;
    while at < records.len() {
        for name in records[at].depends.clone() {
            let is_kernel = ["linux-image-", "linux-binary-", "linux-modules-"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if is_kernel && seen.insert(name.clone()) {
                records.push(apt.show(&name)?);
            }
        }
        at += 1;
    }
    Ok(records)
}

/// The first file or folder below `dir` whose name is `name` or starts with `name-`.
fn find(dir: &Path, name: &str) -> Result<PathBuf> {
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if file == name || (file.starts_with(&format!("{name}-")) && entry.path().is_file()) {
                return Ok(entry.path());
            }
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bail!("the kernel packages have no {name:?}")
}

/// Takes the compressed kernel out of a bzImage: Documentation/arch/x86/boot.rst, fields `setup_sects`,
/// `payload_offset` and `payload_length`.
fn extract_vmlinux(vmlinuz: &Path, vmlinux: &Path) -> Result<()> {
    let image = fs::read(vmlinuz)?;
    ensure!(
        image.get(0x202..0x206) == Some(b"HdrS".as_slice()) || image.len() > 0x250,
        "no bzImage"
    );
    let word = |at: usize| {
        let bytes = [image[at], image[at + 1], image[at + 2], image[at + 3]];
        u32::from_le_bytes(bytes) as usize
    };
    let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248);
    // The last four bytes are the length after decompression, which the tools would take for garbage.
    let end = start + word(0x24c) - 4;
    let payload = image
        .get(start..end)
        .context("the bzImage is shorter than its header says")?;
    let tool = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', ..] => "xz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("{}: compressed in a way not known here", vmlinuz.display()),
    };
    let mut child = shell::command(tool)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(fs::File::create(vmlinux)?)
        .spawn()
        .with_context(|| format!("cannot start {tool}"))?;
    child
        .stdin
        .take()
        .context("the pipe was asked for")?
        .write_all(payload)?;
    ensure!(
        child.wait()?.success(),
        "{tool} cannot decompress {}",
        vmlinuz.display()
    );
    Ok(())
}

/// Decompresses every module and writes `modules.dep`.
fn unpack_modules(dir: &Path) -> Result<()> {
    // depmod wants DIR/lib/modules/VERSION, and a version that looks like one.
    let version = "1.0.0-guest";
    let root = dir.join("root");
    fs::create_dir_all(root.join("lib/modules"))?;
    let tree = root.join("lib/modules").join(version);
    fs::rename(dir.join("modules"), &tree)?;
    let compressed = shell::capture(shell::command("find").arg(&tree).args(["-name", "*.ko.xz"]))?;
    let files: Vec<&str> = compressed.lines().collect();
    for chunk in files.chunks(200) {
        shell::capture(shell::command("xz").arg("-d").args(chunk))?;
    }
    shell::capture(shell::command("depmod").arg("-b").arg(&root).arg(version))?;
    fs::rename(&tree, dir.join("modules"))?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

impl Kernel {
    /// The files of these modules and of all they depend on, in the order to load them, each with its parameters (a
    /// space before each). Unknown names are taken for built in.
    pub(super) fn load_order(&self, wanted: &[String]) -> Result<Vec<(PathBuf, String)>> {
        let dep = fs::read_to_string(self.modules.join("modules.dep"))?;
        let mut order = Vec::new();
        for module in wanted {
            add_with_dependencies(&dep, module, &mut order);
        }
        Ok(order
            .into_iter()
            .map(|(path, parameters)| (self.modules.join(path), parameters))
            .collect())
    }
}

/// Adds `wanted`, a module's name and perhaps its parameters, after what it needs.
fn add_with_dependencies(dep: &str, wanted: &str, order: &mut Vec<(String, String)>) {
    let (module, parameters) = wanted.split_at(wanted.find(' ').unwrap_or(wanted.len()));
    let line = dep.lines().find_map(|line| {
        let (path, needs) = line.split_once(':')?;
        (module_name(path) == module.replace('-', "_")).then_some((path, needs))
    });
    let Some((path, needs)) = line else { return };
    // modules.dep lists what to load last first.
    let needed = needs.split_whitespace().rev().map(|file| (file, ""));
    for (file, parameters) in needed.chain([(path, parameters)]) {
        if !order.iter().any(|(known, _)| known == file) {
            order.push((file.to_owned(), parameters.to_owned()));
        }
    }
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need_and_once() {
        let dep = "kernel/fs/xfs/xfs.ko: kernel/lib/b.ko kernel/lib/a-x.ko\nkernel/lib/a-x.ko:\n\
                   kernel/lib/b.ko: kernel/lib/a-x.ko\n";
        let mut order = Vec::new();
        for module in ["a-x", "xfs size=1 fast=0", "built_in"] {
            add_with_dependencies(dep, module, &mut order);
        }
        let expected = [
            ("kernel/lib/a-x.ko", ""),
            ("kernel/lib/b.ko", ""),
            ("kernel/fs/xfs/xfs.ko", " size=1 fast=0"),
        ];
        assert_eq!(
            order,
            expected.map(|(path, parameters)| (path.to_owned(), parameters.to_owned()))
        );
    }
}
