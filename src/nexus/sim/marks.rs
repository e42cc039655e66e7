//! Whether the bitmaps tell where members differ: what resolving and partial rebuilds rely on. Looked at on the disks
//! themselves, while no daemon runs.

use std::collections::BTreeSet;
use std::ops::Range;

use super::run::Run;
use crate::io::sim::SimHardware;
use crate::replica::layout::{
    DATA_OFFSET, INTENT_OFFSET, LABEL_OFFSETS, MISSED_OFFSET, PAGE_SIZE, REGIONS_PER_PAGE,
};
use crate::replica::replica::newest_label;
use crate::replica::{Label, Member, MemberState};

/// Where a page's bits begin.
const BITS_AT: usize = 32;

/// A member as its disk has it.
pub(super) struct Image {
    pub(super) disk: usize,
    /// In the committed active set.
    pub(super) in_sync: bool,
    /// Out of sync, but a partial rebuild would do: the bitmaps must say what it lacks.
    pub(super) is_partial: bool,
    pub(super) intent: BTreeSet<u64>,
    pub(super) missed: BTreeSet<u64>,
}

/// What the bitmaps fail to tell, if anything. `differing` are the regions in which two disks differ.
pub(super) fn unmarked(
    images: &[Image],
    differing: impl Fn(usize, usize) -> BTreeSet<u64>,
) -> Option<String> {
    let active: Vec<&Image> = images.iter().filter(|image| image.in_sync).collect();
    let intent: BTreeSet<u64> = active.iter().flat_map(|a| a.intent.clone()).collect();
    for (index, one) in active.iter().enumerate() {
        for other in &active[index + 1..] {
            let differ = differing(one.disk, other.disk);
            if let Some(region) = differ.difference(&intent).next() {
                let (a, b) = (one.disk, other.disk);
                return Some(format!(
                    "I9: in-sync members {a} and {b} differ in region {region}, which no intent bit marks"
                ));
            }
        }
        for behind in images.iter().filter(|image| image.is_partial) {
            let marks = [&one.missed, &one.intent, &behind.missed, &behind.intent];
            let marked = |region: &u64| marks.iter().any(|marks| marks.contains(region));
            let differ = differing(one.disk, behind.disk);
            if let Some(region) = differ.iter().find(|region| !marked(region)) {
                let (a, b) = (one.disk, behind.disk);
                return Some(format!(
                    "I5, W4, F4: member {b} lacks writes of region {region}, but nothing on member {a} or itself \
                     says so"
                ));
            }
        }
    }
    None
}

/// The label of a disk, as a read returns it.
pub(super) fn label(disk: &SimHardware) -> Option<Label> {
    let slots = LABEL_OFFSETS.map(|at| {
        let bytes = disk.visible(at..at + 4096);
        <[u8; 4096]>::try_from(bytes.as_slice()).expect("a slot has 4096 bytes")
    });
    newest_label(&slots).ok().map(|(_, label)| label)
}

/// The regions whose bits are set, as a read returns them. A damaged page counts as all ones.
pub(super) fn set_regions(disk: &SimHardware, offset: u64, regions: u64) -> BTreeSet<u64> {
    regions_of(&disk.visible(page_at(offset)), regions)
}

/// The same, of what a power cut can't take away.
pub(in crate::nexus) fn durable_regions(
    disk: &SimHardware,
    offset: u64,
    regions: u64,
) -> BTreeSet<u64> {
    regions_of(&disk.durable(page_at(offset)), regions)
}

const fn page_at(offset: u64) -> Range<u64> {
    offset..offset + PAGE_SIZE as u64
}

fn regions_of(page: &[u8], regions: u64) -> BTreeSet<u64> {
    assert!(regions <= REGIONS_PER_PAGE, "simulated volumes need a page");
    let (body, sum) = page.split_at(PAGE_SIZE - 4);
    let is_intact = crc32c::crc32c(body).to_le_bytes() == *sum;
    let bit = |region: &u64| {
        let region = usize::try_from(*region).expect("simulated volumes are small");
        body[BITS_AT + region / 8] & (1 << (region % 8)) != 0
    };
    (0..regions).filter(|r| !is_intact || bit(r)).collect()
}

/// The regions of the first `size` bytes of the data areas in which two disks differ.
pub(super) fn differing(a: &SimHardware, b: &SimHardware, size: u64, shift: u32) -> BTreeSet<u64> {
    let pages: BTreeSet<u64> = [a, b]
        .iter()
        .flat_map(|disk| disk.nonzero())
        .map(|page| page.start)
        .filter(|at| (DATA_OFFSET..DATA_OFFSET + size).contains(at))
        .collect();
    let range = |at: u64| -> Range<u64> { at..(at + 4096).min(DATA_OFFSET + size) };
    pages
        .into_iter()
        .filter(|at| a.visible(range(*at)) != b.visible(range(*at)))
        .map(|at| (at - DATA_OFFSET) >> shift)
        .collect()
}

/// Whether the volume has bitmaps: the fast path of a table with one member keeps none (spec R8).
pub(super) fn keeps_bitmaps(table: &Label) -> bool {
    let is_in = |member: &&Member| member.state != MemberState::Removed;
    table.members.iter().filter(is_in).count() > 1
}

/// Whether the table and the member's own label make a partial rebuild of it possible (spec B3).
pub(super) fn is_partial(table: &Label, own: &Label) -> bool {
    let listed = table.members.iter().find(|m| m.replica == own.replica);
    let was = own.members.get(own.own_slot).map(|member| member.state);
    listed.is_some_and(|member| {
        matches!(member.state, MemberState::Stale | MemberState::Rebuilding)
            && matches!(was, Some(MemberState::InSync | MemberState::Rebuilding))
            && !member.insync_id.is_nil()
            && own.descends_from(member.insync_id)
            && member.since_gen > table.missed_base_gen
            && own.region_shift == table.region_shift
            && own.data_len == table.data_len
    })
}

impl Run {
    /// I9, and what partial rebuilds rely on, between two lives of the daemon.
    pub(super) fn check_marks(&self) {
        let rig = self.rig();
        let committed = rig.committed();
        let labels: Vec<Option<Label>> = rig.disks.iter().map(label).collect();
        let mut tables = committed.iter().filter_map(|disk| labels[*disk].as_ref());
        let Some(table) = tables.find(|label| rig.is_committed(label.generation_id)) else {
            return;
        };
        if !keeps_bitmaps(table) {
            return;
        }
        let (size, shift) = (table.data_len, table.region_shift);
        let regions = size.div_ceil(1 << shift);
        let image = |(disk, label): (usize, &Option<Label>)| {
            let own = label.as_ref()?;
            let hardware = &rig.disks[disk];
            let in_sync = committed.contains(&disk);
            Some(Image {
                disk,
                in_sync,
                is_partial: !in_sync && is_partial(table, own),
                intent: set_regions(hardware, INTENT_OFFSET, regions),
                missed: set_regions(hardware, MISSED_OFFSET, regions),
            })
        };
        let images: Vec<Image> = labels.iter().enumerate().filter_map(image).collect();
        let differ = |a: usize, b: usize| differing(&rig.disks[a], &rig.disks[b], size, shift);
        if let Some(what) = unmarked(&images, differ) {
            self.clients.history.fail(|| what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::{Sim, SimLayout};

    fn image(disk: usize, in_sync: bool, intent: &[u64], missed: &[u64]) -> Image {
        Image {
            disk,
            in_sync,
            is_partial: !in_sync,
            intent: intent.iter().copied().collect(),
            missed: missed.iter().copied().collect(),
        }
    }

    /// Region 3 differs between all disks.
    fn check(images: &[Image], expected: Option<&str>) {
        let found = unmarked(images, |_, _| BTreeSet::from([3]));
        let rule = found.as_deref().and_then(|text| text.split(':').next());
        assert_eq!(rule, expected, "{found:?}");
    }

    #[test]
    fn members_in_sync_differ_only_where_one_of_them_says_so() {
        check(&[image(0, true, &[], &[]), image(1, true, &[3], &[])], None);
        let silent = [image(0, true, &[2], &[3]), image(1, true, &[4], &[])];
        check(&silent, Some("I9"));
        check(&[image(0, true, &[], &[])], None);
    }

    #[test]
    fn every_member_in_sync_knows_what_one_that_is_behind_lacks() {
        let rule = Some("I5, W4, F4");
        let behind = || image(1, false, &[], &[]);
        check(&[image(0, true, &[], &[3]), behind()], None);
        check(&[image(0, true, &[3], &[]), behind()], None);
        check(
            &[image(0, true, &[], &[]), image(1, false, &[], &[3])],
            None,
        );
        check(&[image(0, true, &[], &[2]), behind()], rule);
        let full = Image {
            is_partial: false,
            ..behind()
        };
        check(&[image(0, true, &[], &[]), full], None);
    }

    #[test]
    fn differences_are_found_in_the_data_area_only() {
        let sim = Sim::new(1);
        let layout = SimLayout {
            size: DATA_OFFSET + (4 << 20),
            data_offset: DATA_OFFSET,
            block: 4096,
        };
        let (a, b) = (
            SimHardware::new(&sim, layout),
            SimHardware::new(&sim, layout),
        );
        a.corrupt(4096, &[1; 4096]);
        b.corrupt(DATA_OFFSET + (3 << 20), &[1; 512]);
        a.corrupt(DATA_OFFSET + (1 << 20), &[7; 512]);
        b.corrupt(DATA_OFFSET + (1 << 20), &[7; 512]);
        assert_eq!(differing(&a, &b, 4 << 20, 20), BTreeSet::from([3]));
        assert_eq!(differing(&a, &b, 3 << 20, 20), BTreeSet::new());
        assert_eq!(
            set_regions(&a, INTENT_OFFSET, 4).len(),
            4,
            "no page: all ones"
        );
    }
}
