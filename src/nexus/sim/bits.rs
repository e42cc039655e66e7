//! Whether bits are durable when they have to be: before data is written (spec W4, I5), and before a write is
//! acknowledged that a member lacks (W7). Looked at while the daemon runs, on what a power cut can't take away: nobody
//! waits for the rare crash that would make a missing bit a lost write.

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use super::client::Clients;
use super::marks::{durable_regions, is_partial, keeps_bitmaps, label};
use crate::io::sim::SimHardware;
use crate::replica::layout::{DATA_OFFSET, INTENT_OFFSET, MISSED_OFFSET};
use crate::replica::{Label, MemberState};

impl Clients {
    /// Has every write to a data area checked from now on.
    pub(super) fn watch_bits(self: &Rc<Self>) {
        for (index, disk) in self.rig.disks.iter().enumerate() {
            // The disks are the clients' own.
            let clients = Rc::downgrade(self);
            disk.watch_data_writes(move |bytes| {
                if let Some(clients) = clients.upgrade() {
                    clients.check_marked(index, bytes);
                }
            });
        }
    }

    /// I5, when `bytes` of a disk are about to be written: every data write finds its regions' intent bits durable on the
    /// member that it goes to (W4). What a rebuild writes is on its target's own list instead, which is durable, too (B3).
    fn check_marked(&self, index: usize, bytes: Range<u64>) {
        let disk = &self.rig.disks[index];
        let Some(own) = label(disk).filter(keeps_bitmaps) else {
            return;
        };
        let bytes = bytes.start - DATA_OFFSET..bytes.end - DATA_OFFSET;
        if bytes.start >= own.data_len {
            // What a growth zeroes is nobody's data yet.
            return;
        }
        let touched = touched(&own, &bytes);
        let mut unmarked = lacking(disk, INTENT_OFFSET, &own, &touched);
        let state = own.members.get(own.own_slot).map(|member| member.state);
        if state != Some(MemberState::InSync) {
            let listed = lacking(disk, MISSED_OFFSET, &own, &touched);
            unmarked.retain(|region| listed.contains(region));
        }
        if let Some(region) = unmarked.first() {
            self.history.fail(|| {
                format!(
                    "I5, W4: bytes {bytes:?} are written to member {index} before a durable bit says so of region \
                     {region}"
                )
            });
        }
    }

    /// W7, when a write of `bytes` was acknowledged: if a member that left the committed table lacks it, all that are
    /// in sync have it on durable record. A member that had the write and lost its cache since is F4's business.
    pub(super) fn check_noted(&self, tag: u64, bytes: &Range<u64>) {
        let rig = &self.rig;
        let committed = rig.committed();
        let mut tables = committed.iter().filter_map(|disk| label(&rig.disks[*disk]));
        let table = tables.find(|label| rig.is_committed(label.generation_id));
        let Some(table) = table.filter(keeps_bitmaps) else {
            return;
        };
        let len = bytes.end - bytes.start;
        let newest = rig.visible(committed[0], bytes.start, len);
        let lacks = |disk: &usize| {
            let own = label(&rig.disks[*disk]);
            own.is_some_and(|own| {
                is_stale(&table, &own) && is_partial(&table, &own) && !rig.lost_cache(*disk, tag)
            }) && rig.visible(*disk, bytes.start, len) != newest
        };
        let Some(behind) = (0..rig.disks.len()).find(lacks) else {
            return;
        };
        let touched = touched(&table, bytes);
        for member in &committed {
            let silent = lacking(&rig.disks[*member], MISSED_OFFSET, &table, &touched);
            if let Some(region) = silent.first() {
                self.history.fail(|| {
                    format!(
                        "W7: a write of region {region} is acknowledged that member {behind} lacks, and member {member} \
                         has no durable record of it"
                    )
                });
            }
        }
    }
}

fn is_stale(table: &Label, own: &Label) -> bool {
    let mut members = table.members.iter();
    members.any(|m| m.replica == own.replica && m.state == MemberState::Stale)
}

/// The regions of some bytes of the volume.
fn touched(label: &Label, bytes: &Range<u64>) -> Range<u64> {
    let shift = label.region_shift;
    bytes.start >> shift..bytes.end.div_ceil(1 << shift)
}

/// Those regions whose bit is not durably set.
fn lacking(disk: &SimHardware, offset: u64, label: &Label, touched: &Range<u64>) -> BTreeSet<u64> {
    let set = durable_regions(disk, offset, label.regions());
    touched
        .clone()
        .filter(|region| !set.contains(region))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BlockDevice;
    use crate::io::sim::SimFault;
    use crate::nexus::sim::Rig;
    use crate::units::MIB;

    /// What the checkers say of a volume of two members and eight regions.
    fn told(test: impl AsyncFnOnce(Rc<Clients>) + 'static) -> String {
        let rig = Rig::new(1, 2, 8 * MIB, 4096);
        let sim = rig.sim.clone();
        let island = 0..1;
        sim.block_on(async move {
            let clients = Rc::new(Clients::new(rig, std::slice::from_ref(&island)));
            clients.watch_bits();
            test(Rc::clone(&clients)).await;
            clients.history.violation().unwrap_or_default()
        })
    }

    #[test]
    fn data_that_is_written_without_a_bit_is_told() {
        let said = told(async |clients| {
            let rig = &clients.rig;
            let node = rig.sim.node();
            let nexus = rig.create(&node).await.unwrap();
            let data = crate::io::BufferPool::default().zeroed(4096);
            nexus.write(MIB, &data, false).await.unwrap();
            assert_eq!(clients.history.violation(), None, "W4: the nexus sets them");
            rig.disks[1]
                .open()
                .write(DATA_OFFSET + 3 * MIB, &data, false)
                .await
                .unwrap();
        });
        assert!(said.contains("I5, W4: "), "{said}");
        assert!(
            said.contains("member 1") && said.contains("region 3"),
            "{said}"
        );
    }

    #[test]
    fn a_write_that_a_member_lacks_and_nobody_has_noted_is_told() {
        let said = told(async |clients| {
            let rig = &clients.rig;
            let node = rig.sim.node();
            let nexus = rig.create(&node).await.unwrap();
            rig.disks[1].set_fault(SimFault {
                lost: true,
                ..SimFault::default()
            });
            let data = crate::io::BufferPool::default().zeroed(4096);
            data.fill(7);
            nexus.write(2 * MIB, &data, false).await.unwrap();
            assert_eq!(rig.committed(), [0]);
            clients.check_noted(rig.sim.tick(), &(2 * MIB..2 * MIB + 4096));
            assert_eq!(clients.history.violation(), None, "W7: the nexus notes it");
            rig.disks[0].corrupt(DATA_OFFSET + 5 * MIB, &[7; 4096]);
            clients.check_noted(rig.sim.tick(), &(5 * MIB..5 * MIB + 4096));
        });
        assert!(said.contains("W7: a write of region 5"), "{said}");
    }
}
