//! The beginning and the end of a replica: making one of a blank file or of an old copy, and wiping its label.

use super::bitmap::BitmapKind;
use super::label::{Access, Label};
use super::layout::{
    DATA_OFFSET_UNIT, INTENT_OFFSET, LABEL_OFFSETS, MISSED_OFFSET, PAGE_SIZE, PAGES,
};
use super::replica::{OpenError, Replica, identity, newest_label};
use crate::io::planted::{CREATION_UNSYNCED, is_planted, kill_point};
use crate::io::slots::{SLOT_SIZE, Slot, SlotPair};
use crate::io::{BlockDevice, BufferPool, IoBuffer, IoError, MemoryDevice};

impl<D: BlockDevice> Replica<D> {
    /// Makes a replica of a blank file: writes the whole first MiB (bitmaps all zeroes) and flushes it, then the label
    /// (spec L6). Durable on return. A crash before that leaves a file without a label.
    ///
    /// No bit is set because nothing was written yet and nobody lacks anything: the data of a new file reads as zeroes,
    /// here as on every other member. Whoever formats a file whose data differs from that of others has to call the
    /// member `Blank` in the table, so that all of it is copied (spec B3).
    ///
    /// # Errors
    /// `EEXIST` when there is an intact label already; `EINVAL` when the label makes no sense or does not fit the disk;
    /// else what the disk says.
    pub async fn format(disk: D, buffers: &BufferPool, label: Label) -> Result<Self, IoError> {
        check_fits(&disk, &label)?;
        let slots = SlotPair::read(&disk, buffers, LABEL_OFFSETS).await?;
        let is_free = |slot: &Slot| Label::decode(slot).is_err_and(|error| !error.is_intact());
        if !slots.iter().all(is_free) {
            return Err(IoError::Os(libc::EEXIST));
        }
        write_all(disk, buffers, label).await
    }

    /// Makes a new member of an old copy of this volume, or of a blank file: its label is wiped, then as
    /// [`Replica::format`]. The old data stays until it is copied over: unlike a new file, it is not known to be zero
    /// (spec B4).
    ///
    /// # Errors
    /// As [`Replica::format`]; `EEXIST` only for an intact label of another volume, or one that this release can't
    /// read.
    pub async fn reformat(disk: D, buffers: &BufferPool, label: Label) -> Result<Self, IoError> {
        check_fits(&disk, &label)?;
        let slots = SlotPair::read(&disk, buffers, LABEL_OFFSETS).await?;
        match newest_label(&slots) {
            Ok((current, found)) if found.volume == label.volume => {
                let slots = SlotPair::new(LABEL_OFFSETS, current, found.slot_seq);
                slots.wipe(&disk, buffers).await?;
            }
            Err(OpenError::Blank { .. }) => {}
            _ => return Err(IoError::Os(libc::EEXIST)),
        }
        write_all(disk, buffers, label).await
    }

    /// Makes the file no replica any more: zeroes in both label slots, the older one first, so that a crash in between
    /// leaves the newest label or none. Durable on return. For members that left the volume for good: no label can be
    /// written afterwards.
    ///
    /// # Errors
    /// What the disk says: the label is then the same as before, or gone. `EROFS` when the replica may only be read.
    pub async fn wipe_label(&self) -> Result<(), IoError> {
        self.writable()?;
        self.slots.wipe(&self.disk, &self.buffers).await
    }
}

fn check_fits<D: BlockDevice>(disk: &D, label: &Label) -> Result<(), IoError> {
    let fits = label.file_len() <= disk.size() && label.lb_size >= disk.alignment().offset;
    if label.check().is_err() || label.access() != Access::ReadWrite || !fits {
        return Err(IoError::EINVAL);
    }
    Ok(())
}

/// Everything but the label, then the label.
async fn write_all<D: BlockDevice>(
    disk: D,
    buffers: &BufferPool,
    label: Label,
) -> Result<Replica<D>, IoError> {
    disk.write(0, &first_mib(&label, buffers), false).await?;
    let slots = SlotPair::new(LABEL_OFFSETS, 1, 0);
    if is_planted(CREATION_UNSYNCED) {
        // By way of memory, since a label's write is durable by itself.
        let memory = MemoryDevice::new(DATA_OFFSET_UNIT);
        let label = |slot: &mut Slot| label.fill(slot);
        slots.replace(&memory, buffers, label).await?;
        let copy = buffers.zeroed(SLOT_SIZE);
        memory.read(LABEL_OFFSETS[0], &copy).await?;
        disk.write(LABEL_OFFSETS[0], &copy, false).await?;
    } else {
        kill_point();
        disk.flush().await?;
        let label = |slot: &mut Slot| label.fill(slot);
        slots.replace(&disk, buffers, label).await?;
        kill_point();
    }
    let opened = Replica::open(disk, buffers).await;
    opened.map_err(|error| match error {
        OpenError::Io(error) => error,
        _ => IoError::EIO,
    })
}

/// The first MiB of a new replica: no label, both bitmaps all zeroes.
fn first_mib(label: &Label, buffers: &BufferPool) -> IoBuffer {
    let len = usize::try_from(DATA_OFFSET_UNIT).expect("1 MiB fits a usize");
    let buffer = buffers.zeroed(len);
    for (kind, offset) in [
        (BitmapKind::Intent, INTENT_OFFSET),
        (BitmapKind::Missed, MISSED_OFFSET),
    ] {
        let offset = usize::try_from(offset).expect("the bitmaps are in the first MiB");
        for index in 0..PAGES {
            let page = identity(label, kind).empty_page(index);
            buffer.write_at(offset + index * PAGE_SIZE, &page.encode());
        }
    }
    buffer
}

#[cfg(test)]
mod tests;
