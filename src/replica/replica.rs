//! Data path, hop 4 of 5: logical range to file range, label and bitmap areas.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use super::bitmap::{Bitmap, BitmapKind, Identity};
use super::errors::{Asked, ErrorCounter, ErrorCounts};
use super::label::{Access, Label, LabelError};
use super::layout::{DATA_OFFSET, LABEL_OFFSETS};
use super::pending::{Pending, ZERO_PIECE};
use crate::io::slots::{self, Newest, Slot, SlotPair};
use crate::io::{Alignment, BlockDevice, BufferPool, IoBuffer, IoError, ZeroOptions};

/// One open copy of a volume. Belongs to one reactor; the disk below must be locked (spec A1) and used by nobody else.
pub struct Replica<D> {
    pub(super) disk: D,
    pub(super) buffers: BufferPool,
    label: RefCell<Rc<Label>>,
    pub(super) slots: SlotPair,
    pub(super) intent: Bitmap,
    pub(super) missed: Bitmap,
    access: Access,
    data_offset: u64,
    data_len: Cell<u64>,
    region_shift: Cell<u32>,
    pub(super) errors: ErrorCounter,
    /// What the disk was asked and has not answered.
    pub(super) pending: Pending,
}

/// Why a replica can't be opened. Nothing was written to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Neither slot holds a label (spec A2): a creation that did not finish, or not a replica at all.
    #[error("no valid label: in slot A {a}, in slot B {b}")]
    Blank {
        /// What is wrong with the first slot.
        a: LabelError,
        /// What is wrong with the second slot.
        b: LabelError,
    },
    /// The newest label is intact, but this release can't or must not use it (spec A3, L5).
    #[error("{0}")]
    Refused(LabelError),
    /// Both slots hold intact labels with one sequence number that differ. No crash does that.
    #[error("both label slots claim to be number {seq} but differ: the file was tampered with")]
    Ambiguous {
        /// The sequence number.
        seq: u64,
    },
    /// The file is shorter than its label says (spec section 5).
    #[error(
        "the file has {found} bytes but its label needs {expected}: it was truncated; restore it or let it be rebuilt"
    )]
    Truncated {
        /// `data_offset + data_len`, bytes.
        expected: u64,
        /// The file's size, bytes.
        found: u64,
    },
    /// The file's direct I/O wants coarser blocks than the volume has.
    #[error(
        "the filesystem wants direct I/O in units of {needed} bytes but the volume has blocks of {lb_size}"
    )]
    Alignment {
        /// The volume's logical block size, bytes.
        lb_size: u32,
        /// What the file wants, bytes.
        needed: u32,
    },
    /// The label or bitmap area can't be read.
    #[error("the label area can't be read: {0}")]
    Io(#[from] IoError),
}

impl<D: BlockDevice> Replica<D> {
    /// Opens a replica: reads labels and bitmaps, checks the file's size and alignment (spec A2, A3). Writes nothing.
    /// Whether this is the right replica is for the caller to check.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong.
    pub async fn open(disk: D, buffers: &BufferPool) -> Result<Self, OpenError> {
        let found = disk.size();
        if found < DATA_OFFSET {
            let expected = DATA_OFFSET;
            return Err(OpenError::Truncated { expected, found });
        }
        let slots = SlotPair::read(&disk, buffers, LABEL_OFFSETS).await?;
        let (current, label) = newest_label(&slots)?;
        let expected = label.file_len();
        if found < expected {
            return Err(OpenError::Truncated { expected, found });
        }
        let needed = disk.alignment().offset;
        if label.lb_size < needed {
            let lb_size = label.lb_size;
            return Err(OpenError::Alignment { lb_size, needed });
        }
        let regions = label.regions();
        let bitmap = async |kind: BitmapKind| {
            let buffer = buffers.get(Bitmap::pages_len(regions));
            disk.read(kind.offset(), &buffer).await?;
            let identity = identity(&label, kind);
            Ok::<_, IoError>(Bitmap::from_disk(identity, regions, &buffer.to_vec()))
        };
        let intent = bitmap(BitmapKind::Intent).await?;
        let missed = bitmap(BitmapKind::Missed).await?;
        Ok(Self {
            buffers: buffers.clone(),
            slots: SlotPair::new(LABEL_OFFSETS, current, label.slot_seq),
            intent,
            missed,
            access: label.access(),
            data_offset: label.data_offset,
            data_len: Cell::new(label.data_len),
            region_shift: Cell::new(label.region_shift),
            label: RefCell::new(Rc::new(label)),
            errors: ErrorCounter::default(),
            pending: Pending::default(),
            disk,
        })
    }

    /// How often its disk has answered with an error since it was opened.
    pub fn errors(&self) -> ErrorCounts {
        self.errors.counts()
    }

    /// To be called at regular intervals while the disk is at work. Whether it has not answered something that it was
    /// asked more than [`super::PATIENCE`] whole intervals ago.
    pub fn tick(&self) -> bool {
        self.pending.tick()
    }

    /// The label as it is on disk.
    pub fn label(&self) -> Rc<Label> {
        Rc::clone(&self.label.borrow())
    }

    /// Replaces the label, durably (spec L1, L7): the older slot gets the next `slot_seq`; the one in `new` is ignored.
    /// A label with more data ([`Replica::grow`] made room for it) takes effect here: the new range may be used, and
    /// when a bit of the bitmaps stands for more than before, all bits are set.
    ///
    /// # Errors
    /// What the disk says; then the label on disk is the old or the new one. `EROFS` when the replica may only be
    /// read, `EINVAL` when the label makes no sense or its data does not fit the file.
    ///
    /// # Panics
    /// When the new label would make this another replica or a smaller one, or take its generation or epoch back (spec
    /// I3, E1).
    pub async fn write_label(&self, new: &Label) -> Result<(), IoError> {
        self.put_label(new, false).await
    }

    /// Gives a copy that nobody uses another size, durably; [`Replica::grow`] has made room for a larger one. A smaller one
    /// is for a growth that the volume's table does not know of, because it was never committed, or because the volume was
    /// started from a copy without it (spec A5): the file stays as large as it is, and [`Replica::grow`] zeroes what is
    /// behind the data before it is used again.
    ///
    /// # Errors
    /// As [`Replica::write_label`].
    pub async fn take_size(&self, data_len: u64, region_shift: u32) -> Result<(), IoError> {
        let label = Label {
            data_len,
            region_shift,
            ..(*self.label()).clone()
        };
        self.put_label(&label, true).await
    }

    async fn put_label(&self, new: &Label, may_shrink: bool) -> Result<(), IoError> {
        self.writable()?;
        if !self.accepts(new) {
            return Err(IoError::EINVAL);
        }
        let before = self.label();
        if new.region_shift != before.region_shift {
            // A page from a time when the label had the shift that it is about to have must not count again.
            self.rewrite_bad_pages().await?;
            self.flush().await?;
        }
        let mut new = new.clone();
        let same = (new.replica, new.volume, new.pool, new.own_slot)
            == (before.replica, before.volume, before.pool, before.own_slot);
        assert!(same, "a replica keeps its identity");
        let fill = |slot: &mut Slot| {
            let now = self.label();
            assert!(new.generation >= now.generation, "I3: generation goes back");
            assert!(new.epoch >= now.epoch, "E1: epoch goes back");
            assert!(new.data_offset == now.data_offset, "data stays in place");
            let shrinks = new.data_len < now.data_len || new.region_shift < now.region_shift;
            assert!(may_shrink || !shrinks, "volumes never shrink");
            new.fill(slot);
        };
        let _asked = self.pending.begin();
        let seq = self.slots.replace(&self.disk, &self.buffers, fill).await;
        let seq = self.errors.note(Asked::Label, seq)?;
        new.slot_seq = seq;
        // Labels are written one at a time, but this task may have been woken after a later one.
        if seq > self.label().slot_seq {
            let new = Rc::new(new);
            self.label.replace(Rc::clone(&new));
            self.resize(&new).await?;
        }
        Ok(())
    }

    /// Whether a label makes sense and its data fits the file, if that is new.
    pub fn accepts(&self, new: &Label) -> bool {
        let now = self.label();
        let grows = (new.data_len, new.region_shift) != (now.data_len, now.region_shift);
        new.check().is_ok() && (!grows || new.file_len() <= self.disk.size())
    }

    /// The label with this size counts. A crash in between is harmless: pages with another region size than the label's
    /// count as all ones, and pages that had no regions before hold no bits that matter.
    async fn resize(&self, label: &Label) -> Result<(), IoError> {
        let (len, shift) = (label.data_len, label.region_shift);
        let (len_before, shift_before) = (self.data_len.get(), self.region_shift.get());
        if (len, shift) == (len_before, shift_before) {
            return Ok(());
        }
        let regions_before = len_before.div_ceil(1 << shift_before);
        for bitmap in [&self.intent, &self.missed] {
            if shift == shift_before && label.regions() < regions_before {
                bitmap.clear(label.regions()..regions_before);
            }
            bitmap.resize(shift, label.regions());
        }
        self.data_len.set(len);
        self.region_shift.set(shift);
        self.rewrite_bad_pages().await
    }

    /// Makes room for `data_len` bytes of data, durably; what is new reads as zeroes. The size takes effect with the
    /// next label that names it; until then, and after a crash, the room is only there. May be called again.
    ///
    /// # Errors
    /// What the disk says; `EROFS` when the replica may only be read; `EINVAL` when there is data already behind
    /// `data_len`.
    pub async fn grow(&self, data_len: u64) -> Result<(), IoError> {
        self.writable()?;
        let before = self.label().file_len();
        let end = self.data_offset.checked_add(data_len);
        let end = end.filter(|end| *end >= before).ok_or(IoError::EINVAL)?;
        let found = self.disk.size();
        // Nobody wrote there, but who knows what is behind the data of a device, or of a file that was copied here.
        let used = before..end.min(found);
        if !used.is_empty() {
            let options = ZeroOptions {
                unmap: !self.label().is_thick(),
                fua: false,
            };
            let mut at = used.start;
            while at < used.end {
                let len = ZERO_PIECE.min(used.end - at);
                let _asked = self.pending.begin();
                self.disk.write_zeroes(at, len, options).await?;
                at += len;
            }
        }
        if end > found {
            let _asked = self.pending.begin();
            self.disk.grow(end).await?;
        }
        let _asked = self.pending.begin();
        self.disk.flush().await
    }

    /// What may be done with the replica (spec L5).
    pub fn access(&self) -> Access {
        self.access
    }

    /// Size of the data area, bytes.
    pub fn data_len(&self) -> u64 {
        self.data_len.get()
    }

    /// What offsets, lengths and memory must be multiples of.
    pub fn alignment(&self) -> Alignment {
        self.disk.alignment()
    }

    /// Fills `buffer` from `offset` of the data area.
    ///
    /// # Errors
    /// What the disk says; [`IoError::Short`] when the file became shorter.
    ///
    /// # Panics
    /// When the range leaves the data area (spec G12).
    pub async fn read(&self, offset: u64, buffer: &IoBuffer) -> Result<(), IoError> {
        let at = self.locate(offset, buffer.len() as u64);
        let _asked = self.pending.begin();
        self.errors
            .note(Asked::Read, self.disk.read(at, buffer).await)
    }

    /// Writes `buffer` at `offset` of the data area; durable on return with `fua`.
    ///
    /// # Errors
    /// What the disk says; `EROFS` when the replica may only be read.
    ///
    /// # Panics
    /// When the range leaves the data area (spec G12).
    pub async fn write(&self, offset: u64, buffer: &IoBuffer, fua: bool) -> Result<(), IoError> {
        self.writable()?;
        let at = self.locate(offset, buffer.len() as u64);
        let _asked = self.pending.begin();
        let written = self.disk.write(at, buffer, fua).await;
        self.errors.note(Asked::Write, written)
    }

    /// Makes a range of the data area read as zeroes.
    ///
    /// # Errors
    /// What the disk says; `EROFS` when the replica may only be read.
    ///
    /// # Panics
    /// When the range leaves the data area (spec G12).
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        options: ZeroOptions,
    ) -> Result<(), IoError> {
        self.writable()?;
        let at = self.locate(offset, len);
        let _asked = self.pending.begin();
        let zeroed = self.disk.write_zeroes(at, len, options).await;
        self.errors.note(Asked::Discard, zeroed)
    }

    /// Makes every write that completed before this durable.
    ///
    /// # Errors
    /// What the disk says. A later success says nothing about the writes before a failure (spec W10).
    pub async fn flush(&self) -> Result<(), IoError> {
        let _asked = self.pending.begin();
        self.errors.note(Asked::Flush, self.disk.flush().await)
    }

    /// Base-2 logarithm of a region's size.
    pub fn region_shift(&self) -> u32 {
        self.region_shift.get()
    }

    /// The regions that a range of the data area touches.
    ///
    /// # Panics
    /// When the range leaves the data area (spec G12).
    pub fn regions(&self, offset: u64, len: u64) -> Range<u64> {
        self.locate(offset, len);
        let shift = self.region_shift.get();
        offset >> shift..(offset + len).div_ceil(1 << shift)
    }

    /// Plants a bug: bitmap pages are written, but not durably.
    #[cfg(any(test, feature = "mutants"))]
    pub(crate) fn forget_durability(&self) {
        self.intent.lax.set(true);
        self.missed.lax.set(true);
    }

    /// What lies below.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    pub(super) fn bitmap(&self, kind: BitmapKind) -> &Bitmap {
        match kind {
            BitmapKind::Intent => &self.intent,
            BitmapKind::Missed => &self.missed,
        }
    }

    pub(super) fn writable(&self) -> Result<(), IoError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(IoError::EROFS),
        }
    }

    /// Where a range of the data area is in the file.
    fn locate(&self, offset: u64, len: u64) -> u64 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.data_len.get()),
            "G12: {offset}+{len} leaves the data area of {} bytes",
            self.data_len.get()
        );
        self.data_offset + offset
    }
}

impl<D> fmt::Debug for Replica<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("replica", &self.label.borrow().replica)
            .finish_non_exhaustive()
    }
}

/// The newest label of two slots (spec A2), and its slot. An intact label that can't be used hides older ones.
///
/// # Errors
/// Every [`OpenError`] but those about the file.
pub fn newest_label(slots: &[Slot; 2]) -> Result<(usize, Label), OpenError> {
    let decoded = slots.each_ref().map(|slot| Label::decode(slot));
    // Something else with a fitting CRC is no label: a slot takes part only with its magic.
    let is_label = |slot: usize| match &decoded[slot] {
        Ok(_) => true,
        Err(error) => error.is_intact(),
    };
    let current = match (is_label(0), is_label(1)) {
        (true, true) => slots::newest(slots),
        (true, false) => Newest::Slot(0),
        (false, true) => Newest::Slot(1),
        (false, false) => Newest::Neither,
    };
    let [a, b] = decoded;
    match (current, a, b) {
        (Newest::Slot(0), Ok(label), _) => Ok((0, label)),
        (Newest::Slot(1), _, Ok(label)) => Ok((1, label)),
        (Newest::Slot(0), Err(error), _) | (Newest::Slot(_), _, Err(error)) => {
            Err(OpenError::Refused(error))
        }
        (Newest::Neither, Err(a), Err(b)) => Err(OpenError::Blank { a, b }),
        _ => Err(OpenError::Ambiguous {
            seq: slots::seq(&slots[0]),
        }),
    }
}

pub(super) fn identity(label: &Label, kind: BitmapKind) -> Identity {
    Identity {
        volume: label.volume,
        kind,
        region_shift: label.region_shift,
    }
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of runs may have just one"
)]
mod tests;
