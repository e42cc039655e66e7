//! What a simulated disk holds: durable bytes, and over them the cached versions of what was written since.

use std::collections::BTreeMap;
use std::ops::Range;

use super::executor::Sim;
use super::sparse::Sparse;

/// The bytes of a disk, in units that are written whole or not at all.
#[derive(Default)]
pub(super) struct Media {
    /// What a read returns.
    pub(super) visible: Sparse,
    /// What survives a power cut for certain.
    pub(super) durable: Sparse,
    /// Per unit: the cached versions newer than the durable one, oldest first.
    cached: BTreeMap<u64, Vec<Version>>,
}

struct Version {
    sequence: u64,
    bytes: Vec<u8>,
    /// A flush failed over it: no later flush makes it durable.
    poisoned: bool,
}

impl Media {
    /// Writes a unit, into the cache or through it. `sequence` orders it among flushes.
    pub(super) fn write(&mut self, at: u64, bytes: Vec<u8>, sequence: u64, durable: bool) {
        let range = at..at + bytes.len() as u64;
        if self.visible.is_untouched(&range)
            && self.durable.is_untouched(&range)
            && bytes.iter().all(|byte| *byte == 0)
        {
            // Zeroes over what was never anything else: no power cut can tell.
            return;
        }
        self.visible.set(at, &bytes);
        if durable {
            self.durable.set(at, &bytes);
            self.cached.remove(&at);
        } else {
            self.cached.entry(at).or_default().push(Version {
                sequence,
                bytes,
                poisoned: false,
            });
        }
    }

    /// Makes durable what was written before `until`, unless `fail`ing, which spoils it.
    pub(super) fn flush(&mut self, until: u64, fail: bool) {
        let durable = &mut self.durable;
        self.cached.retain(|at, versions| {
            let covered = versions.partition_point(|v| v.sequence < until);
            if fail {
                versions[..covered]
                    .iter_mut()
                    .for_each(|v| v.poisoned = true);
                return true;
            }
            if let Some(last) = versions[..covered].iter().rposition(|v| !v.poisoned) {
                durable.set(*at, &versions[last].bytes);
                versions.drain(..=last);
            }
            !versions.is_empty()
        });
    }

    /// The power is cut: of every unit, one of the cached versions or the durable one becomes the only one.
    pub(super) fn settle(&mut self, sim: &Sim) {
        for (at, versions) in std::mem::take(&mut self.cached) {
            let chosen = sim.below(versions.len() as u64 + 1);
            let chosen = usize::try_from(chosen).expect("an index fits a usize");
            if let Some(version) = chosen.checked_sub(1).map(|index| &versions[index]) {
                self.durable.set(at, &version.bytes);
                self.visible.set(at, &version.bytes);
            } else {
                let len = versions[0].bytes.len() as u64;
                self.visible.set(at, &self.durable.get(at..at + len));
            }
        }
    }

    /// A new open file does not remember the old one's writeback errors.
    pub(super) fn forget_errors(&mut self) {
        let versions = self.cached.values_mut().flatten();
        versions.for_each(|version| version.poisoned = false);
    }

    /// Overwrites bytes, durably, whatever the units.
    pub(super) fn overwrite(&mut self, offset: u64, bytes: &[u8]) {
        self.visible.set(offset, bytes);
        self.durable.set(offset, bytes);
    }

    /// The bytes of `range`, as a read returns them.
    pub(super) fn read(&self, range: Range<u64>) -> Vec<u8> {
        self.visible.get(range)
    }
}
