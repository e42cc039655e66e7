//! Whether anybody on this host uses a block device. The kernel does not tell how often a device is open, so this looks
//! at everything that shows it: mounts (of every mount namespace), swap, stacked devices, loop devices, and the open
//! files of all processes. Reads `/proc` and `/sys` only, and never opens the device, so that looking disturbs nobody.
//!
//! What it can't see: kernel targets that were given the device directly (nvmet, LIO), and, without root, other
//! users' processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where to look. Another root than `/` serves the tests.
pub(super) struct Observer {
    root: PathBuf,
}

/// One look around for some devices; what was found so far.
struct Look {
    /// Those whose user is not known yet.
    ids: BTreeSet<u32>,
    /// Their device numbers, as `mountinfo` and sysfs write them.
    numbers: BTreeMap<String, u32>,
    users: BTreeMap<u32, String>,
}

impl Default for Observer {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Observer {
    /// As [`Observer::users`], for every ublk device of the host.
    pub(super) fn all_users(&self) -> BTreeMap<u32, String> {
        let devices = names(&self.root.join("sys/block"));
        self.users(devices.filter_map(|name| node_id(&name)))
    }

    /// Who uses `/dev/ublkb<id>` or one of its partitions, in words, for those of `ids` that somebody uses. Blocks for
    /// as long as it takes to look at every process, once for all of them.
    pub(super) fn users(&self, ids: impl IntoIterator<Item = u32>) -> BTreeMap<u32, String> {
        let ids: BTreeSet<u32> = ids.into_iter().collect();
        let number = |id: &u32| {
            let path = self.root.join(format!("sys/block/ublkb{id}/dev"));
            let number = fs::read_to_string(path).ok()?;
            Some((number.trim_end().to_owned(), *id))
        };
        let mut look = Look {
            numbers: ids.iter().filter_map(number).collect(),
            ids,
            users: BTreeMap::new(),
        };
        look.at_block_devices(&self.root.join("sys/block"));
        look.at_swap(&self.root.join("proc/swaps"));
        look.at_processes(&self.root.join("proc"));
        look.users
    }
}

impl Look {
    fn found(&mut self, id: u32, user: impl FnOnce() -> String) {
        if self.ids.remove(&id) {
            self.users.insert(id, user());
        }
    }

    /// Device mapper, md, bcache and so on, and loop devices.
    fn at_block_devices(&mut self, block: &Path) {
        for id in self.ids.clone() {
            let device = block.join(format!("ublkb{id}"));
            let partitions = names(&device)
                .filter(|name| node_id(name) == Some(id))
                .map(|name| device.join(name));
            let holder = std::iter::once(device.clone())
                .chain(partitions)
                .find_map(|device| names(&device.join("holders")).next());
            if let Some(holder) = holder {
                self.found(id, || format!("the block device \"{holder}\" is on it"));
            }
        }
        for name in names(block).filter(|name| name.starts_with("loop")) {
            let backing = fs::read_to_string(block.join(&name).join("loop/backing_file"));
            if let Some(id) = node_id(backing.unwrap_or_default().trim_end()) {
                self.found(id, || format!("\"/dev/{name}\" is on it"));
            }
        }
    }

    fn at_swap(&mut self, swaps: &Path) {
        for line in fs::read_to_string(swaps).unwrap_or_default().lines() {
            if let Some(id) = line.split(' ').next().and_then(node_id) {
                self.found(id, || "the host swaps to it".into());
            }
        }
    }

    /// Mounts and open files; one walk over the processes for both.
    fn at_processes(&mut self, proc: &Path) {
        let mut namespaces = BTreeSet::new();
        for name in names(proc).filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            if self.ids.is_empty() {
                return;
            }
            let process = proc.join(name);
            let namespace = fs::read_link(process.join("ns/mnt")).unwrap_or_default();
            if namespaces.insert(namespace) {
                self.at_mounts(&process);
            }
            self.at_open_files(&process);
        }
    }

    /// The mounts of a process's namespace (`proc_pid_mountinfo(5)`): field 3 is the device number, field 5 the place,
    /// and the source is the second one behind the lone dash.
    fn at_mounts(&mut self, process: &Path) {
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(number), Some(place)) = (fields.nth(2), fields.nth(1)) else {
                continue;
            };
            let by_number = self.numbers.get(number).copied();
            let mut source = fields.skip_while(|field| *field != "-").skip(2);
            if let Some(id) = by_number.or_else(|| source.next().and_then(node_id)) {
                self.found(id, || format!("it is mounted at \"{place}\""));
            }
        }
    }

    fn at_open_files(&mut self, process: &Path) {
        let folder = process.join("fd");
        for file in names(&folder) {
            let Ok(target) = fs::read_link(folder.join(file)) else {
                continue;
            };
            if let Some(id) = target.to_str().and_then(node_id) {
                self.found(id, || {
                    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                    let pid = process.file_name().unwrap_or_default();
                    format!(
                        "process {} ({}) has it open",
                        pid.display(),
                        name.trim_end()
                    )
                });
            }
        }
    }
}

/// The number in the name of a device's node, or of one of its partitions' (`/dev/ublkb3p1`). The folder may be another
/// one in a container.
fn node_id(path: &str) -> Option<u32> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or_default();
    let numbers = name.strip_prefix("ublkb")?;
    let (id, partition) = numbers.split_once('p').unwrap_or((numbers, "1"));
    partition.parse::<u32>().ok()?;
    id.parse().ok()
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
            let users = observer.users([1, 3]);
            assert_eq!(users.get(&1).map(String::as_str), expected);
            assert_eq!(users.len(), usize::from(expected.is_some()));
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
    fn one_look_serves_many_devices() {
        let root = Root::new();
        root.link("proc/9/fd/1", "/dev/ublkb3");
        root.link("proc/9/fd/2", "/dev/ublkb5");
        root.link("proc/9/fd/3", "/dev/ublkb7");
        let observer = Observer {
            root: root.0.path().into(),
        };
        let users = observer.users([1, 3, 5]);
        assert_eq!(users.into_keys().collect::<Vec<_>>(), [3, 5]);
        root.file("sys/block/ublkb7/dev", "259:9\n");
        let users = observer.all_users();
        assert_eq!(users.into_keys().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn swap_stacked_and_loop_devices_are_uses() {
        let root = Root::new();
        root.file("proc/swaps", "Filename\n/dev/ublkb1p3 partition 1 0 -2\n");
        root.check(Some("the host swaps to it"));
        root.file("sys/block/loop0/loop/backing_file", "/dev/ublkb1\n");
        root.check(Some("\"/dev/loop0\" is on it"));
        root.link("sys/block/ublkb1/ublkb1p1/holders/dm-0", "../dm-0");
        root.check(Some("the block device \"dm-0\" is on it"));
    }

    #[test]
    fn nothing_to_look_at_means_no_user() {
        let root = Root(tempfile::tempdir().unwrap());
        root.check(None);
    }
}
