//! What is checked on the disks themselves, between crashes and at the end.

use std::time::Duration;

use super::engine::{HEALING, bring_back};
use super::rig::{Rig, SimEnv};
use super::run::Run;
use crate::io::{BlockDevice, Clock};
use crate::nexus::fan_out::either;
use crate::nexus::{Health, Nexus, Policy};
use crate::replica::Label;
use crate::replica::layout::{DATA_OFFSET, LABEL_OFFSETS};
use crate::replica::replica::newest_label;

impl Run {
    /// I8: once a member left the committed table, no data write is submitted to it.
    pub(super) fn check_written(&self) {
        let rig = self.rig();
        for (index, disk) in rig.disks.iter().enumerate() {
            let id = Rig::replica_id(index);
            let begun = rig.rebuilds.begun(id);
            let written = disk.last_data_write();
            let is_allowed = |left: u64| begun.is_some_and(|begun| begun > left && written > begun);
            let left = rig.witness.left_at(id);
            if left.is_some_and(|left| written > left && !is_allowed(left)) {
                self.clients
                    .history
                    .fail(|| format!("I8: data was written to member {index} after it left"));
            }
        }
        if rig.committed().is_empty() {
            self.clients
                .history
                .fail(|| "I7: the committed table has no active member".to_owned());
        }
    }

    /// I3 and I4, on what would survive a power cut, of the committed members.
    pub(super) fn inspect_labels(&self) {
        let rig = self.rig();
        let committed = rig.committed();
        let mut seen = self.labels.borrow_mut();
        for (index, disk) in rig.disks.iter().enumerate() {
            if rig.volatile[index] || !committed.contains(&index) {
                // It may become another replica.
                seen[index] = (0, 0);
                continue;
            }
            let slots = LABEL_OFFSETS.map(|at| {
                let bytes = disk.durable(at..at + 4096);
                <[u8; 4096]>::try_from(bytes.as_slice()).unwrap()
            });
            let newest: Result<(usize, Label), _> = newest_label(&slots);
            match newest {
                Ok((_, label)) => {
                    let now = (label.generation, label.slot_seq);
                    let before = seen[index];
                    if now.0 < before.0 || now.1 < before.1 {
                        self.clients.history.fail(|| {
                            format!(
                                "I3, I4: label of member {index} went from {before:?} to {now:?}"
                            )
                        });
                    }
                    seen[index] = now;
                }
                Err(error) => self
                    .clients
                    .history
                    .fail(|| format!("L1: member {index} has no label: {error}")),
            }
        }
    }

    /// Everything healthy: all is resolved, read, stopped cleanly, and the members are equal.
    pub(super) async fn finish(self, nexus: Nexus<SimEnv>) {
        let (history, rig) = (&self.clients.history, self.rig());
        let clock = self.sim().node();
        nexus.configure(Policy::default());
        let healed = async {
            while nexus.status().health != Health::Online || nexus.status().unresolved_bytes > 0 {
                bring_back(rig, &nexus).await;
                clock.sleep(Duration::from_millis(50)).await;
            }
        };
        if !either(clock.sleep(HEALING), healed).await {
            let status = nexus.status();
            return history.fail(|| format!("G9: nothing is wrong any more, but: {status:?}"));
        }
        self.clients.errors.borrow_mut().clear();
        let (size, block) = (nexus.size(), u64::from(rig.spec.block_size));
        for first in (0..size / block).step_by(128) {
            let blocks = first..(first + 128).min(size / block);
            self.clients.read(&nexus, blocks).await;
        }
        if let Some(error) = self.clients.errors.borrow().first() {
            history.fail(|| format!("G9: nothing is wrong any more, but a read got {error}"));
        }
        if !nexus.stop().await {
            history.fail(|| "A10: the last stop is not clean".to_owned());
        }
        drop(nexus);
        self.check_written();
        let members = rig.committed();
        let data = |member: &usize| rig.visible(*member, 0, size);
        if members
            .iter()
            .any(|member| data(member) != data(&members[0]))
        {
            history.fail(|| format!("I10: members {members:?} differ at rest"));
        }
        for disk in &rig.disks {
            let padding = disk.visible(DATA_OFFSET + size..disk.size().max(DATA_OFFSET + size));
            if padding.iter().any(|byte| *byte != 0) {
                history.fail(|| "G12: something was written behind the data area".to_owned());
            }
        }
    }
}
