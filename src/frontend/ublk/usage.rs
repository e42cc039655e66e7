//! Whether anybody on this host uses a block device. The kernel does not tell how often a device is open, so this looks
//! at everything that shows it: mounts (of every mount namespace), swap, stacked devices, loop devices, and the open
//! files of all processes. Reads `/proc` and `/sys` only, and never opens the device, so that looking disturbs nobody.
//!
//! What it can't see: kernel targets that were given the device directly (nvmet, LIO), and, without root, other
//! users' processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where to look. Another root than `/` serves the tests.
pub(super) struct Observer {
    root: PathBuf,
}

impl Default for Observer {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Observer {
    /// Who uses `/dev/ublkb<id>` or one of its partitions, in words; none when nobody does. Blocks for as long as it
    /// takes to look at every process.
    pub(super) fn user_of(&self, id: u32) -> Option<String> {
        self.stacked(id)
            .or_else(|| self.swap(id))
            .or_else(|| self.loop_device(id))
            .or_else(|| self.process(id))
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Device mapper, md, bcache and so on.
    fn stacked(&self, id: u32) -> Option<String> {
        let block = self.path(&format!("sys/block/ublkb{id}"));
        let partitions = names(&block)
            .filter(|name| name.starts_with("ublkb"))
            .map(|name| block.join(name));
        std::iter::once(block.clone())
            .chain(partitions)
            .find_map(|device| names(&device.join("holders")).next())
            .map(|holder| format!("the block device \"{holder}\" is on it"))
    }

    fn swap(&self, id: u32) -> Option<String> {
        let swaps = fs::read_to_string(self.path("proc/swaps")).unwrap_or_default();
        let used = |line: &str| line.split(' ').next().is_some_and(|path| is_node(path, id));
        let swaps = swaps.lines().any(used);
        swaps.then(|| "the host swaps to it".into())
    }

    fn loop_device(&self, id: u32) -> Option<String> {
        let block = self.path("sys/block");
        names(&block)
            .filter(|name| name.starts_with("loop"))
            .find(|name| {
                let backing = fs::read_to_string(block.join(name).join("loop/backing_file"));
                backing.is_ok_and(|path| is_node(path.trim_end(), id))
            })
            .map(|name| format!("\"/dev/{name}\" is on it"))
    }

    /// Mounts and open files; one walk over the processes for both.
    fn process(&self, id: u32) -> Option<String> {
        let device = fs::read_to_string(self.path(&format!("sys/block/ublkb{id}/dev")));
        let device = device.unwrap_or_default();
        let proc = self.path("proc");
        let mut namespaces = BTreeSet::new();
        names(&proc)
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            .find_map(|pid| {
                let process = proc.join(&pid);
                let namespace = fs::read_link(process.join("ns/mnt")).unwrap_or_default();
                let new = namespaces.insert(namespace);
                let mounted = new.then(|| mount_of(&process, id, device.trim_end()));
                mounted.flatten().or_else(|| open_file_of(&process, id))
            })
    }
}

/// Where the process's mount namespace has the device mounted (`proc_pid_mountinfo(5)`): field 3 is the device number,
/// field 5 the place, and the source is the second one behind the lone dash.
fn mount_of(process: &Path, id: u32, device: &str) -> Option<String> {
    let mounts = fs::read_to_string(process.join("mountinfo")).ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let number = fields.nth(2)?;
        let place = fields.nth(1)?;
        let source = fields.skip_while(|field| *field != "-").nth(2);
        let used = (number == device && !device.is_empty())
            || source.is_some_and(|source| is_node(source, id));
        used.then(|| format!("it is mounted at \"{place}\""))
    })
}

fn open_file_of(process: &Path, id: u32) -> Option<String> {
    let folder = process.join("fd");
    let is_open = |name: String| {
        fs::read_link(folder.join(name))
            .is_ok_and(|target| target.to_str().is_some_and(|target| is_node(target, id)))
    };
    names(&folder).any(is_open).then(|| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let pid = process.file_name().unwrap_or_default();
        format!(
            "process {} ({}) has it open",
            pid.display(),
            name.trim_end()
        )
    })
}

/// Whether the path is that of the device's node, or of one of its partitions' (`/dev/ublkb3p1`). The folder may be
/// another one in a container.
fn is_node(path: &str, id: u32) -> bool {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(rest) = name.strip_prefix(&format!("ublkb{id}")) else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    rest.is_empty() || rest.strip_prefix('p').is_some_and(is_number)
}

/// Names in a folder; none when it can't be read.
fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = Self(tempfile::tempdir().unwrap());
            root.file("sys/block/ublkb1/dev", "259:7\n");
            root.file("proc/swaps", "Filename\tType\n/dev/sda2 partition 1 0 -2\n");
            root.file("proc/9/comm", "mkfs.ext4\n");
            root.file("proc/9/mountinfo", "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
            root.link("proc/9/ns/mnt", "mnt:[1]");
            root.link("proc/9/fd/0", "/dev/null");
            root
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, path: &str, target: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }

        fn check(&self, expected: Option<&str>) {
            let observer = Observer {
                root: self.0.path().into(),
            };
            assert_eq!(observer.user_of(1).as_deref(), expected);
        }
    }

    #[test]
    fn an_unused_device_has_no_user() {
        let root = Root::new();
        root.link("proc/9/fd/1", "/dev/ublkb10");
        root.link("proc/9/fd/2", "/dev/ublkc1");
        root.link("proc/9/fd/3", "/tmp/ublkb1.img");
        root.check(None);
    }

    #[test]
    fn an_open_device_or_partition_is_in_use() {
        for target in ["/dev/ublkb1", "/dev/ublkb1p2", "/dev/ublkb1 (deleted)"] {
            let root = Root::new();
            root.link("proc/9/fd/1", target);
            root.check(Some("process 9 (mkfs.ext4) has it open"));
        }
    }

    #[test]
    fn a_mount_is_found_by_number_and_by_source_in_every_namespace() {
        for line in [
            "30 24 259:7 / /mnt rw shared:1 - ext4 /dev/root rw\n",
            "30 24 0:44 / /mnt rw - btrfs /dev/ublkb1p1 rw\n",
        ] {
            let root = Root::new();
            root.file("proc/10/mountinfo", line);
            root.link("proc/10/ns/mnt", "mnt:[2]");
            root.check(Some("it is mounted at \"/mnt\""));
        }
    }

    #[test]
    fn swap_stacked_and_loop_devices_are_uses() {
        let root = Root::new();
        root.file("sys/block/loop0/loop/backing_file", "/dev/ublkb1\n");
        root.check(Some("\"/dev/loop0\" is on it"));
        root.file("proc/swaps", "Filename\n/dev/ublkb1p3 partition 1 0 -2\n");
        root.check(Some("the host swaps to it"));
        root.link("sys/block/ublkb1/ublkb1p1/holders/dm-0", "../dm-0");
        root.check(Some("the block device \"dm-0\" is on it"));
    }

    #[test]
    fn nothing_to_look_at_means_no_user() {
        let root = Root(tempfile::tempdir().unwrap());
        root.check(None);
    }
}
