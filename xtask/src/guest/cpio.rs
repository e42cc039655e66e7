//! Writes an uncompressed newc cpio archive, the format of an initramfs (Documentation/driver-api/early-userspace).
//!
//! No root and no mounts are needed: device nodes and links are entries like any other.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written. Paths are absolute, as the guest sees them.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    known: BTreeSet<String>,
}

impl Archive {
    pub(super) fn file(&mut self, path: &str, data: &[u8]) {
        self.with_parents(path, FILE, data, (0, 0));
    }

    pub(super) fn program(&mut self, path: &str, data: &[u8]) {
        self.with_parents(path, PROGRAM, data, (0, 0));
    }

    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.with_parents(path, LINK, to.as_bytes(), (0, 0));
    }

    pub(super) fn directory(&mut self, path: &str) {
        self.with_parents(path, DIRECTORY, &[], (0, 0));
    }

    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.with_parents(path, CHARACTER_DEVICE, &[], (major, minor));
    }

    /// Whether something stands at this path already.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.known.contains(path.trim_start_matches('/'))
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn with_parents(&mut self, path: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            if self.known.insert(path[..at].to_owned()) {
                self.entry(&path[..at], DIRECTORY, &[], (0, 0));
            }
        }
        // An entry that stands twice would be unpacked twice; the first wins.
        if self.known.insert(path.to_owned()) {
            self.entry(path, mode, data, device);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8], (major, minor): (u32, u32)) {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            length(data.len()),
            0,
            0,
            major,
            minor,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a file in an initramfs is far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_newc_header_and_their_parents_come_first() {
        let mut archive = Archive::default();
        archive.file("/a/b", b"hello");
        archive.link("/a/c", "b");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        let text = String::from_utf8_lossy(&bytes);
        let order: Vec<_> = ["a\0", "a/b\0", "a/c\0", "TRAILER!!!\0"]
            .map(|name| text.find(name))
            .into();
        assert!(
            order.is_sorted() && order.iter().all(Option::is_some),
            "{order:?}"
        );
    }
}
