//! What is checked on the disks themselves, between crashes and at the end.

use std::time::Duration;

use super::engine::{HEALING, bring_back};
use super::marks::set_regions;
use super::rig::{Rig, SimEnv};
use super::run::Run;
use crate::io::{BlockDevice, Clock};
use crate::nexus::fan_out::either;
use crate::nexus::{Health, Nexus, Policy};
use crate::replica::Label;
use crate::replica::layout::{DATA_OFFSET, INTENT_OFFSET, LABEL_OFFSETS, MISSED_OFFSET};
use crate::replica::replica::newest_label;

/// How long intent bits may stay set while nobody writes (spec W9 asks for 5 s of rest).
const DRAINING: Duration = Duration::from_secs(60);

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
                    // A member that was taken out and added again since the last look has a new label area.
                    let begun = rig.rebuilds.begun(Rig::replica_id(index));
                    let may_be_new = begun.is_some_and(|begun| begun > self.inspected.get());
                    if now.0 < before.0 || (now.1 < before.1 && !may_be_new) {
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
        self.inspected.set(rig.sim.tick());
    }

    async fn drains(&self, nexus: &Nexus<SimEnv>) -> bool {
        let clock = self.sim().node();
        let drained = async {
            while nexus.status().intent_regions > 0 {
                clock.sleep(Duration::from_secs(1)).await;
            }
        };
        either(clock.sleep(DRAINING), drained).await
    }

    /// Everything healthy: all is resolved, read, stopped cleanly, and the members are equal.
    pub(super) async fn finish(self, nexus: Nexus<SimEnv>) {
        let (history, rig) = (&self.clients.history, self.rig());
        let clock = self.sim().node();
        nexus.configure(Policy::default());
        // The clients of the end are new, as those of each cycle: what failed while the volume started is not theirs (F2).
        nexus.reattached();
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
        // The fast path keeps no bitmaps (spec R8).
        let is_single = rig.committed().len() == 1;
        if !is_single && !self.drains(&nexus).await {
            history.fail(|| "G9, I10: intent does not drain while nobody writes".to_owned());
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
        let marked = |disk: usize, area: u64| set_regions(&rig.disks[disk], area, size >> 20);
        if !is_single
            && let Some(disk) = members
                .iter()
                .find(|disk| !marked(**disk, INTENT_OFFSET).is_empty())
        {
            history.fail(|| format!("G9, I10: member {disk} has intent bits at rest"));
        }
        if !is_single
            && let Some(disk) = members
                .iter()
                .find(|disk| !marked(**disk, MISSED_OFFSET).is_empty())
        {
            history.fail(|| format!("G9, I10: member {disk} has missed bits, but all are in sync"));
        }
        for disk in &rig.disks {
            let padding = disk.visible(DATA_OFFSET + size..disk.size().max(DATA_OFFSET + size));
            if padding.iter().any(|byte| *byte != 0) {
                history.fail(|| "G12: something was written behind the data area".to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{Ailment, Scenario, Trouble, What};
    use super::*;
    use crate::io::{BufferPool, IoError};
    use crate::nexus::Witness;

    /// What a check says about a volume with two members after `spoil`.
    fn told(
        spoil: impl AsyncFnOnce(&Run, &Nexus<SimEnv>) + 'static,
        check: impl FnOnce(&Run, &Nexus<SimEnv>) + 'static,
    ) -> String {
        let mut scenario = Scenario::new(1);
        (scenario.members, scenario.spares, scenario.volatile) = (2, 0, None);
        let rig = Rig::new(1, 2, scenario.size, scenario.block);
        let sim = rig.sim.clone();
        sim.block_on(async move {
            let run = Run::new(rig, &scenario);
            let nexus = run.rig().create(&run.sim().node()).await.unwrap();
            run.inspect_labels();
            spoil(&run, &nexus).await;
            check(&run, &nexus);
            run.clients.history.violation().unwrap_or_default()
        })
    }

    #[test]
    fn a_volume_with_nothing_wrong_passes() {
        let all = |run: &Run, _: &Nexus<SimEnv>| {
            run.check_written();
            run.inspect_labels();
            run.check_marks();
        };
        assert_eq!(told(async |_, _| {}, all), "");
    }

    #[test]
    fn a_label_that_goes_back_is_told() {
        let back = async |run: &Run, _: &Nexus<SimEnv>| {
            run.labels.borrow_mut()[1] = (7, 7);
        };
        let said = told(back, |run, _| run.inspect_labels());
        assert!(said.contains("I3, I4: "), "{said}");
    }

    #[test]
    fn a_table_without_members_and_a_write_to_one_that_left_are_told() {
        let record = |run: &Run, left: usize| {
            let mut record = run.rig().witness.record().unwrap();
            let before = record.position();
            record.generation += 1;
            record.members[..left]
                .iter_mut()
                .for_each(|m| m.in_sync = false);
            (before, record)
        };
        let empty = async move |run: &Run, _: &Nexus<SimEnv>| {
            let (_, record) = record(run, 2);
            run.rig().witness.replace(Some(record));
        };
        let said = told(empty, |run, _| run.check_written());
        assert!(said.contains("I7: "), "{said}");
        let written = async move |run: &Run, _: &Nexus<SimEnv>| {
            let (before, record) = record(run, 1);
            let committed = run.rig().witness.commit(Some(before), &record).await;
            committed.unwrap();
            let data = BufferPool::default().zeroed(4096);
            let disk = run.rig().disks[0].open();
            disk.write(DATA_OFFSET, &data, false).await.unwrap();
        };
        let said = told(written, |run, _| run.check_written());
        assert!(said.contains("I8: "), "{said}");
    }

    #[test]
    fn errors_and_long_waits_are_told_while_a_healthy_copy_is_left() {
        let check = |troubles: Vec<What>, took: u64, error: bool, expected: &str| {
            let spoil = async move |run: &Run, _: &Nexus<SimEnv>| {
                let life = Duration::ZERO..Duration::from_secs(took);
                run.clients.slow.borrow_mut().push(life);
                if error {
                    run.clients.errors.borrow_mut().push(IoError::EIO);
                }
            };
            let what = format!("{troubles:?}");
            let said = told(spoil, move |run, nexus| {
                let mut cycle = run.scenario.cycles[0].clone();
                cycle.tasks.clear();
                let trouble = |what| Trouble {
                    at: Duration::ZERO,
                    span: Duration::ZERO,
                    heals: true,
                    what,
                };
                cycle.troubles = troubles.into_iter().map(trouble).collect();
                run.begun.take();
                run.check_errors(&cycle, &[0, 1], nexus);
            });
            assert!(said.contains(expected), "{what}: {said}");
            assert_eq!(said.is_empty(), expected.is_empty(), "{said}");
        };
        let hung = What::Disk(0, Ailment::Hung);
        check(vec![hung], 13, false, "G11: ");
        check(vec![hung], 1, false, "");
        // G11 bounds what one hung member costs.
        check(vec![hung, hung], 13, false, "");
        check(vec![hung, hung], 25, false, "G11: ");
        check(vec![What::Disk(0, Ailment::Lost)], 1, true, "G1, G11: ");
        check(vec![What::Full], 60, true, "");
    }
}
