//! Sockets, links and block devices: what a daemon that was killed leaves outside its own folders.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::Facts;
use super::report::{Repair, Report, Severity};

pub(super) fn check(facts: &Facts, report: &mut Report) {
    for path in &facts.dead_sockets {
        report.add(
            Severity::Warning,
            ("socket", "SocketDead"),
            format!("nobody listens on {}", path.display()),
            Repair::Removal(path.clone()),
        );
    }
    for path in &facts.dead_links {
        report.add(
            Severity::Warning,
            ("link", "LinkDead"),
            format!(
                "{} leads to a block device that is not there",
                path.display()
            ),
            Repair::Removal(path.clone()),
        );
    }
    let Ok(database) = &facts.database else {
        return;
    };
    for (id, record) in &database.volumes {
        let Some(number) = record.ublk else { continue };
        let is_there = facts.ublk.contains(&number);
        match (is_there, facts.is_live(*id)) {
            (true, false) => report.add(
                Severity::Warning,
                (format!("ublk.{number}"), "DeviceLeftOver"),
                format!("/dev/ublkb{number} was made for volume {id}, which nobody serves"),
                Repair::Daemon(
                    "it is deleted at the next start, if it is still the same device".to_owned(),
                ),
            ),
            (false, true) => report.add(
                Severity::Error,
                (format!("ublk.{number}"), "DeviceMissing"),
                format!("/dev/ublkb{number} of volume {id} is not there any more"),
                Repair::Person("take the export out of the files and put it back".to_owned()),
            ),
            (false, false) => report.add(
                Severity::Note,
                (format!("ublk.{number}"), "DeviceForgotten"),
                format!(
                    "the database remembers /dev/ublkb{number} for volume {id}, and it is gone"
                ),
                Repair::Daemon("it is forgotten at the next start".to_owned()),
            ),
            (true, true) => {}
        }
    }
}

/// Whether nobody listens on this socket. Anything that is not a socket is none of ours.
pub(super) fn is_dead_socket(path: &Path) -> bool {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && !is_bound(path) && matches!(connect(path), Err(Errno::CONNREFUSED))
}

/// Whether the kernel knows of a socket at this place: one that serves, or is about to, is not to be disturbed by a
/// connection. It may have got there by another path, or by one from a folder of its own. A daemon in another namespace is
/// not seen, so this is not the last word.
fn is_bound(path: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut befores = sockets.lines().filter_map(|line| line.strip_suffix(&*name));
    befores.any(|before| match before.split_once(" /") {
        Some((_, folder)) => is_same(&Path::new("/").join(folder).join(&*name), path),
        None => before.ends_with(['/', ' ']),
    })
}

fn is_same(a: &Path, b: &Path) -> bool {
    let place = |path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((place(a), place(b)), (Ok(a), Ok(b)) if a == b)
}

/// Does not wait for somebody who does not take connections.
fn connect(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

pub(super) fn dead_sockets(folder: &Path) -> Vec<PathBuf> {
    let mut paths = entries(folder);
    paths.retain(|path| path.extension().is_some_and(|end| end == "sock") && is_dead_socket(path));
    paths
}

/// Whether this is a link to a ublk device that is not there.
pub(super) fn is_dead_link(path: &Path) -> bool {
    let target = std::fs::read_link(path).ok();
    let is_ublk = target.as_deref().and_then(number).is_some();
    is_ublk && matches!(path.try_exists(), Ok(false))
}

pub(super) fn dead_links(folder: &Path) -> Vec<PathBuf> {
    let mut paths = entries(folder);
    paths.retain(|path| is_dead_link(path));
    paths
}

pub(super) fn ublk_devices(folder: &Path) -> BTreeSet<u32> {
    entries(folder)
        .iter()
        .filter_map(|path| number(path))
        .collect()
}

/// The number in `ublkbN`.
fn number(path: &Path) -> Option<u32> {
    path.file_name()?
        .to_str()?
        .strip_prefix("ublkb")?
        .parse()
        .ok()
}

/// What is in a folder, by name; nothing when it can't be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use rustix::net::{bind, listen};

    use super::*;

    #[test]
    fn a_socket_whose_server_is_slow_or_has_another_path_for_it_is_not_dead() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let make = |name: &str| {
            let flags = SocketFlags::CLOEXEC;
            let made = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let address = SocketAddrUnix::new(link.join(name)).unwrap();
            let made = made.unwrap();
            bind(&made, &address).unwrap();
            made
        };
        let (server, starting) = (make("slow.sock"), make("starting.sock"));
        listen(&server, 0).unwrap();
        let waits = std::os::unix::net::UnixStream::connect(real.join("slow.sock")).unwrap();
        assert_eq!(connect(&real.join("slow.sock")), Err(Errno::AGAIN));
        assert!(dead_sockets(&real).is_empty());
        drop((server, starting, waits));
        let dead = ["slow.sock", "starting.sock"].map(|name| real.join(name));
        assert_eq!(dead_sockets(&real), dead);
    }
}
