//! The bits of a replica's regions: looked up and changed in memory, brought to the disk (spec W4, W9, L4).

use std::ops::Range;

use super::bitmap::BitmapKind;
use super::errors::Asked;
use super::replica::Replica;
use crate::io::{BlockDevice, IoError};

impl<D: BlockDevice> Replica<D> {
    /// Whether a region's bit is set in memory.
    ///
    /// # Panics
    /// When there is no such region.
    pub fn is_set(&self, kind: BitmapKind, region: u64) -> bool {
        self.bitmap(kind).is_set(region)
    }

    /// Whether the bits of these regions are all set on disk, durably: then [`Replica::set_durable`] has nothing to do.
    ///
    /// # Panics
    /// When there are no such regions.
    pub fn is_durable(&self, kind: BitmapKind, regions: Range<u64>) -> bool {
        self.bitmap(kind).is_durable(regions)
    }

    /// The runs of regions whose bits are set in memory, in order.
    pub fn set_regions(&self, kind: BitmapKind) -> Vec<Range<u64>> {
        self.bitmap(kind).runs()
    }

    /// How many bits are set in memory.
    pub fn set_count(&self, kind: BitmapKind) -> u64 {
        self.bitmap(kind).count()
    }

    /// Sets the bits of `regions` and returns once they are durable (spec W4, L4). Free when they are already.
    ///
    /// # Errors
    /// What the disk says; `EROFS` when the replica may only be read; [`IoError::Stopped`] when an earlier call was
    /// dropped half way (spec L7).
    ///
    /// # Panics
    /// When there are no such regions.
    pub async fn set_durable(&self, kind: BitmapKind, regions: Range<u64>) -> Result<(), IoError> {
        self.writable()?;
        let bitmap = self.bitmap(kind);
        let _asked = self.pending.begin();
        let set = bitmap.set_durable(&self.disk, &self.buffers, regions).await;
        self.errors.note(Asked::Label, set)
    }

    /// `missed := missed OR intent`, durable on return (spec F4).
    ///
    /// # Errors
    /// As [`Replica::set_durable`].
    pub async fn merge_intent_into_missed(&self) -> Result<(), IoError> {
        self.writable()?;
        let _asked = self.pending.begin();
        let merged = self.missed.merge(&self.disk, &self.buffers, &self.intent);
        self.errors.note(Asked::Label, merged.await)
    }

    /// Clears the bits of `regions` (spec W9, B5). They may come back after a power cut unless a flush follows.
    ///
    /// # Errors
    /// As [`Replica::set_durable`].
    ///
    /// # Panics
    /// When there are no such regions.
    pub async fn clear(&self, kind: BitmapKind, regions: Range<u64>) -> Result<(), IoError> {
        self.unset(kind, regions);
        self.write_back(kind, false).await
    }

    /// Sets bits in memory only: the next write of their page takes them along.
    ///
    /// # Panics
    /// When there are no such regions.
    pub fn set(&self, kind: BitmapKind, regions: Range<u64>) {
        self.bitmap(kind).set(regions);
    }

    /// Clears bits in memory only, for [`Replica::write_back`] to bring to the disk. From now on they are not durable.
    ///
    /// # Panics
    /// When there are no such regions.
    pub fn unset(&self, kind: BitmapKind, regions: Range<u64>) {
        self.bitmap(kind).clear(regions);
    }

    /// Writes the pages of a bitmap that are not on disk as they are in memory; with `fua` that is durable on return,
    /// as long as nobody else is writing the same pages.
    ///
    /// # Errors
    /// As [`Replica::set_durable`].
    pub async fn write_back(&self, kind: BitmapKind, fua: bool) -> Result<(), IoError> {
        self.writable()?;
        let bitmap = self.bitmap(kind);
        let _asked = self.pending.begin();
        let written = bitmap.rewrite(&self.disk, &self.buffers, fua).await;
        self.errors.note(Asked::Label, written)
    }

    /// Rewrites the bitmap pages that were not intact when the replica was opened; they count as all ones. To be called
    /// once the replica is admitted, since a refused one is never written to (spec A3).
    ///
    /// # Errors
    /// As [`Replica::set_durable`].
    pub async fn rewrite_bad_pages(&self) -> Result<(), IoError> {
        self.write_back(BitmapKind::Intent, false).await?;
        self.write_back(BitmapKind::Missed, false).await
    }
}
