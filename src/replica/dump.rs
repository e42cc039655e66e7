//! What a replica's file says of itself, for people and programs. Only reads, and never trusts: the file may be anything.

mod text;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};

use serde::Serialize;

use super::bitmap::BitmapKind;
use super::layout::{LABEL_OFFSETS, PAGE_BITS_LEN, PAGE_SIZE, REGIONS_PER_PAGE};
use super::page::{Page, get};
use super::replica::newest_label;
use super::{Label, OpenError};
use crate::io::slots::{self, SLOT_SIZE, Slot};

/// How many ranges of set regions a dump lists.
const RANGES_MAX: usize = 16;

/// Both label slots of a file, read as they are.
///
/// # Errors
/// What the file says; a file that is too short has slots of zeroes.
pub fn read_slots(file: &File) -> io::Result<[Slot; 2]> {
    let mut slots = [[0; SLOT_SIZE]; 2];
    for (slot, offset) in slots.iter_mut().zip(LABEL_OFFSETS) {
        read_some(file, slot, offset)?;
    }
    Ok(slots)
}

/// The newest label in a file.
///
/// # Errors
/// Why there is none that can be used.
pub fn label_of(slots: &[Slot; 2]) -> Result<Label, OpenError> {
    newest_label(slots).map(|(_, label)| label)
}

/// What is wrong with each slot that is not an intact label: `A: the label's checksum does not match`.
#[must_use]
pub fn bad_slots(slots: &[Slot; 2]) -> Vec<String> {
    let decoded = slots.iter().zip(["A", "B"]);
    let bad = decoded.filter_map(|(slot, name)| Some((name, Label::decode(slot).err()?)));
    bad.map(|(name, error)| format!("{name}: {error}"))
        .collect()
}

/// A replica's file, as [`read`] finds it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dump {
    /// Size of the file or device, bytes.
    pub size_bytes: u64,
    /// Bytes that it takes up; 0 for a device.
    pub allocated_bytes: u64,
    /// The two label slots.
    pub slots: Vec<SlotDump>,
    /// The newest label, if it can be used.
    pub label: Option<LabelDump>,
    /// Why no label can be used, or what is wrong with the file besides.
    pub problem: Option<String>,
    /// The two bitmaps; empty without a label.
    pub bitmaps: Vec<BitmapDump>,
}

/// One slot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotDump {
    /// `A` or `B`.
    pub name: &'static str,
    /// Where it is in the file, bytes.
    pub offset: u64,
    /// Its sequence number: the higher one counts. None when it is not intact.
    pub seq: Option<u64>,
    /// Why it is no label; none when it is one.
    pub problem: Option<String>,
}

/// The newest label.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelDump {
    /// The volume's name.
    pub volume: String,
    /// Its id.
    pub volume_uuid: String,
    /// This replica.
    pub replica_uuid: String,
    /// The pool that it belongs in.
    pub pool_uuid: String,
    /// Size of the data, bytes.
    pub data_bytes: u64,
    /// Where the data begins, bytes.
    pub data_offset: u64,
    /// Logical block size, bytes.
    pub block_bytes: u32,
    /// Bytes that one bit of a bitmap stands for.
    pub region_bytes: u64,
    /// Whether the file keeps its reservation.
    pub thick: bool,
    /// Number of the membership table.
    pub generation: u64,
    /// Its identity.
    pub generation_uuid: String,
    /// Term of ownership.
    pub epoch: u64,
    /// The node that owned it.
    pub owner_uuid: String,
    /// The node that wrote this label.
    pub writer_uuid: String,
    /// Since this generation the missed bitmap records everything.
    pub missed_base_generation: u64,
    /// The generation that a rebuild started from; 0 for none.
    pub rebuild_from_generation: u64,
    /// `clean`, `rebuilding`, `snapshot pending`.
    pub flags: Vec<&'static str>,
    /// When it was written by the writer's clock, nanoseconds since 1970.
    pub written_at_nanoseconds: u64,
    /// The membership table.
    pub members: Vec<MemberDump>,
    /// Tables before this one, newest first.
    pub ancestors: Vec<String>,
}

/// A line of the membership table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberDump {
    /// Its slot.
    pub slot: usize,
    /// The replica.
    pub replica_uuid: String,
    /// `InSync`, `Rebuilding`, `Stale`, `Blank`, `Removed`.
    pub state: String,
    /// The generation in which it left the write set; 0 while it is in it.
    pub since_generation: u64,
    /// Whether it is in memory.
    pub volatile: bool,
    /// Whether it is this very replica.
    pub is_this: bool,
}

/// One bitmap.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BitmapDump {
    /// `intent`: may differ between copies; `missed`: another copy lacks it, or this one while it is rebuilt.
    pub kind: &'static str,
    /// Regions of the data.
    pub regions: u64,
    /// Regions that are marked.
    pub marked: u64,
    /// The first of them, as `first-last`.
    pub ranges: Vec<String>,
    /// Whether there are more ranges.
    pub more: bool,
    /// Pages that are not intact: all of their regions count as marked.
    pub bad_pages: Vec<String>,
}

/// Reads what there is to know of a replica's file or device.
///
/// # Errors
/// When it can't be read at all.
pub fn read(file: &File) -> io::Result<Dump> {
    let metadata = file.metadata()?;
    let mut end = file;
    let size_bytes = end.seek(SeekFrom::End(0))?;
    let slots = read_slots(file)?;
    let newest = label_of(&slots);
    let mut dump = Dump {
        size_bytes,
        allocated_bytes: metadata.blocks().saturating_mul(512),
        slots: slots
            .iter()
            .zip(LABEL_OFFSETS)
            .zip(["A", "B"])
            .map(slot)
            .collect(),
        label: newest.as_ref().ok().map(label),
        problem: newest.as_ref().err().map(ToString::to_string),
        bitmaps: Vec::new(),
    };
    if let Ok(label) = &newest {
        if size_bytes < label.file_len() {
            let (expected, found) = (label.file_len(), size_bytes);
            dump.problem = Some(OpenError::Truncated { expected, found }.to_string());
        }
        for kind in [BitmapKind::Intent, BitmapKind::Missed] {
            dump.bitmaps.push(bitmap(file, label, kind)?);
        }
    }
    Ok(dump)
}

fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(&mut buffer[done..], at) {
            Ok(0) => return Ok(()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn slot(((slot, offset), name): ((&Slot, u64), &'static str)) -> SlotDump {
    SlotDump {
        name,
        offset,
        seq: slots::is_sealed(slot).then(|| slots::seq(slot)),
        problem: Label::decode(slot).err().map(|error| error.to_string()),
    }
}

fn label(label: &Label) -> LabelDump {
    let flags = [
        (label.flags.clean, "clean"),
        (label.flags.rebuilding, "rebuilding"),
        (label.flags.snap_pending, "snapshot pending"),
    ];
    let members = label
        .members
        .iter()
        .enumerate()
        .map(|(slot, member)| MemberDump {
            slot,
            replica_uuid: member.replica.to_string(),
            state: format!("{:?}", member.state),
            since_generation: member.since_gen,
            volatile: member.volatile,
            is_this: slot == label.own_slot,
        });
    LabelDump {
        volume: label.name.to_string(),
        volume_uuid: label.volume.to_string(),
        replica_uuid: label.replica.to_string(),
        pool_uuid: label.pool.to_string(),
        data_bytes: label.data_len,
        data_offset: label.data_offset,
        block_bytes: label.lb_size,
        region_bytes: 1 << label.region_shift,
        thick: label.is_thick(),
        generation: label.generation,
        generation_uuid: label.generation_id.to_string(),
        epoch: label.epoch,
        owner_uuid: label.owner.to_string(),
        writer_uuid: label.writer.to_string(),
        missed_base_generation: label.missed_base_gen,
        rebuild_from_generation: label.rebuild_from_gen,
        flags: flags
            .into_iter()
            .filter_map(|(is_set, name)| is_set.then_some(name))
            .collect(),
        written_at_nanoseconds: label.wall_ns,
        members: members.collect(),
        ancestors: label.ancestors.iter().map(|id| id.to_string()).collect(),
    }
}

fn bitmap(file: &File, label: &Label, kind: BitmapKind) -> io::Result<BitmapDump> {
    let regions = label.data_len.div_ceil(1 << label.region_shift);
    let mut dump = BitmapDump {
        kind: match kind {
            BitmapKind::Intent => "intent",
            BitmapKind::Missed => "missed",
        },
        regions,
        marked: 0,
        ranges: Vec::new(),
        more: false,
        bad_pages: Vec::new(),
    };
    let mut open: Option<(u64, u64)> = None;
    let mut bytes = vec![0; PAGE_SIZE];
    let pages = regions.div_ceil(REGIONS_PER_PAGE);
    for index in 0..pages {
        bytes.fill(0);
        let at = index.saturating_mul(u64::try_from(PAGE_SIZE).unwrap_or(0));
        read_some(file, &mut bytes, kind.offset().saturating_add(at))?;
        let page = owned(&bytes, label, kind, index);
        if let Err(problem) = &page {
            dump.bad_pages.push(format!("page {index}: {problem}"));
        }
        let first = index.saturating_mul(REGIONS_PER_PAGE);
        for bit in 0..PAGE_BITS_LEN * 8 {
            let region = first.saturating_add(u64::try_from(bit).unwrap_or(u64::MAX));
            if region >= regions {
                break;
            }
            if page.as_ref().is_ok_and(|page| !get(&page.bits, bit)) {
                continue;
            }
            dump.marked += 1;
            match &mut open {
                Some((_, last)) if last.checked_add(1) == Some(region) => *last = region,
                other => {
                    dump.close(other.replace((region, region)));
                }
            }
        }
    }
    dump.close(open);
    Ok(dump)
}

/// The page, if it is an intact one of this bitmap.
fn owned(bytes: &[u8], label: &Label, kind: BitmapKind, index: u64) -> Result<Page, String> {
    let page = Page::decode(bytes).map_err(|error| error.to_string())?;
    let is_its = u64::from(page.index) == index
        && page.kind == kind
        && page.volume == label.volume
        && u32::from(page.region_shift) == label.region_shift;
    if is_its {
        Ok(page)
    } else {
        Err("it is a page of another bitmap".to_owned())
    }
}

impl BitmapDump {
    fn close(&mut self, range: Option<(u64, u64)>) {
        let Some((first, last)) = range else { return };
        if self.ranges.len() == RANGES_MAX {
            self.more = true;
            return;
        }
        self.ranges.push(if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::testing::label as any_label;

    /// A file with this label in slot A and nothing else.
    fn file_with(label: &Label) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(label.file_len()).unwrap();
        let mut slot = [0; SLOT_SIZE];
        label.fill(&mut slot);
        slots::seal(&mut slot, 3);
        file.write_all_at(&slot, LABEL_OFFSETS[0]).unwrap();
        file
    }

    #[test]
    fn a_label_is_shown_and_what_is_not_intact_counts_as_marked() {
        let label = any_label();
        let file = file_with(&label);
        let dump = read(&file).unwrap();
        assert_eq!((dump.slots[0].seq, dump.slots[1].seq), (Some(3), None));
        assert_eq!(
            dump.label.as_ref().unwrap().volume_uuid,
            label.volume.to_string()
        );
        let intent = &dump.bitmaps[0];
        assert_eq!(
            intent.marked, intent.regions,
            "its pages are zeroes, which is no page"
        );
        assert!(!intent.bad_pages.is_empty());
        let text = dump.text();
        assert!(
            text.contains(&format!("replica    {}", label.replica)),
            "{text}"
        );
        assert!(text.contains("regions marked"), "{text}");
    }

    #[test]
    fn intact_pages_are_counted_and_listed() {
        let label = any_label();
        let file = file_with(&label);
        for kind in [BitmapKind::Intent, BitmapKind::Missed] {
            let mut bits = Box::new([0; PAGE_BITS_LEN]);
            bits[0] = u8::from(kind == BitmapKind::Intent);
            let page = Page {
                index: 0,
                kind,
                region_shift: u8::try_from(label.region_shift).unwrap(),
                seq: 1,
                volume: label.volume,
                bits,
            };
            file.write_all_at(&page.encode(), kind.offset()).unwrap();
        }
        let dump = read(&file).unwrap();
        assert_eq!((dump.bitmaps[0].marked, dump.bitmaps[1].marked), (1, 0));
        assert_eq!(dump.bitmaps[0].ranges, ["0"]);
    }

    #[test]
    fn anything_can_be_dumped() {
        let file = tempfile::tempfile().unwrap();
        let dump = read(&file).unwrap();
        assert!(dump.label.is_none() && dump.problem.is_some());
        file.write_all_at(&[0xa5; 5000], 0).unwrap();
        assert!(read(&file).unwrap().text().contains("problem"));
    }
}
