//! What goes wrong while clients run, and which of it they may notice.

use std::time::Duration;

use super::rig::SimEnv;
use super::run::Run;
use crate::io::Clock;
use crate::io::sim::{SimFault, SimNode};
use crate::nexus::Nexus;
use crate::replica::layout::DATA_OFFSET;

/// What goes wrong in one cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing: no request may fail.
    None,
    /// One disk, with another copy left: no request may fail.
    One(usize),
    /// Every disk now and then.
    All,
    /// One disk, and the witness can't be reached for a while.
    Witness(usize),
    /// Every pool is full.
    Full,
}

impl Run {
    pub(super) fn choose_trouble(&self) -> Trouble {
        let sim = self.sim();
        let disk = usize::try_from(sim.below(self.rig().disks.len() as u64)).unwrap();
        match sim.below(20) {
            0..=8 => Trouble::None,
            9..=15 => Trouble::One(disk),
            16 | 17 => Trouble::All,
            18 => Trouble::Witness(disk),
            _ => Trouble::Full,
        }
    }

    pub(super) async fn make_trouble(&self, trouble: Trouble, clock: &SimNode) {
        let sim = self.sim();
        let disks = &self.rig().disks;
        let long = sim.one_in(4);
        let span = Duration::from_micros(sim.below(if long { 40_000_000 } else { 10_000 }));
        match trouble {
            Trouble::None => return,
            Trouble::One(disk) => self.hurt(disk),
            Trouble::All => {
                let write_errors = if sim.one_in(2) { 2 } else { 40 };
                for disk in disks {
                    disk.set_fault(SimFault {
                        read_errors: 30,
                        write_errors,
                        flush_errors: 20,
                        transient_errors: 10,
                        ..SimFault::default()
                    });
                }
            }
            Trouble::Witness(disk) => {
                self.rig().witness.set_down(true);
                self.rig().witness.set_lost_answers(3);
                self.hurt(disk);
            }
            Trouble::Full => {
                for disk in disks {
                    disk.set_fault(SimFault {
                        full: true,
                        ..SimFault::default()
                    });
                }
            }
        }
        clock.sleep(span).await;
        self.rig().witness.set_down(false);
        self.rig().witness.set_lost_answers(0);
        if sim.one_in(2) {
            self.heal();
        } else {
            disks.iter().for_each(|disk| {
                let hung = false;
                disk.set_fault(SimFault {
                    hung,
                    ..disk.fault()
                });
            });
        }
    }

    fn hurt(&self, disk: usize) {
        let sim = self.sim();
        let disk = &self.rig().disks[disk];
        let mut fault = SimFault::default();
        match sim.below(9) {
            0 => fault.read_errors = 1 + sim.below(6),
            1 => fault.write_errors = 1 + sim.below(8),
            2 => fault.flush_errors = 1 + sim.below(3),
            3 => fault.transient_errors = 2 + sim.below(4),
            4 => fault.full = true,
            5 => fault.lost = true,
            6 => fault.hung = true,
            7 => fault.end = Some(DATA_OFFSET + 4096),
            _ => disk.unplug(),
        }
        self.clients.history.note(|| format!("hurt: {fault:?}"));
        disk.set_fault(fault);
    }

    pub(super) fn heal(&self) {
        for disk in &self.rig().disks {
            disk.set_fault(SimFault::default());
        }
    }

    /// While one copy was healthy all the time, and so was the witness, no client may see an error.
    pub(super) fn check_errors(&self, trouble: Trouble, nexus: &Nexus<SimEnv>) {
        let rig = self.rig();
        let committed = rig.committed();
        let harmless = match trouble {
            Trouble::None => true,
            Trouble::One(disk) => {
                let helps = |member: &&usize| **member != disk && !rig.volatile[**member];
                committed.iter().any(|member| helps(&member))
            }
            Trouble::All | Trouble::Witness(_) | Trouble::Full => false,
        };
        let errors = self.clients.errors.borrow();
        if harmless && let Some(error) = errors.first() {
            self.clients.history.fail(|| {
                let status = nexus.status();
                format!("a client got \"{error}\" although a healthy copy is left: {status:?}")
            });
        }
    }
}
