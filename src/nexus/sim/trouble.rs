//! What goes wrong while clients run, and which of it they may notice.

use std::time::Duration;

use tokio::sync::oneshot;

use super::rig::{Rig, SimEnv};
use super::run::Run;
use super::scenario::{Ailment, Cycle, Job, Trouble, What};
use crate::io::sim::{SimFault, SimNode};
use crate::io::{Clock, Spawn};
use crate::nexus::Nexus;
use crate::replica::layout::DATA_OFFSET;

/// How long the commit without a hung member may take.
const COMMITTING: Duration = Duration::from_secs(2);

impl Run {
    /// Lets every trouble come, and go when its time is over.
    pub(super) async fn make_troubles(&self, troubles: &[Trouble], clock: &SimNode) {
        let mut waiting = Vec::new();
        for trouble in troubles.iter().cloned() {
            let (done, wait) = oneshot::channel();
            let (rig, sleeper) = (self.rig().clone(), clock.clone());
            clock.spawn(async move {
                sleeper.sleep(trouble.at).await;
                rig.sim.note(|| format!("{:?} begins", trouble.what));
                begin(&rig, trouble.what);
                sleeper.sleep(trouble.span).await;
                rig.sim.note(|| format!("{:?} ends", trouble.what));
                end(&rig, &trouble);
                let _ = done.send(());
            });
            waiting.push(wait);
        }
        for wait in waiting {
            let _ = wait.await;
        }
    }

    pub(super) fn heal(&self) {
        for disk in &self.rig().disks {
            disk.set_fault(SimFault::default());
        }
    }

    /// While one copy was healthy all the time, and so was the witness, no client may see an error.
    /// `before` was in sync when the clients began.
    pub(super) fn check_errors(&self, cycle: &Cycle, before: &[usize], nexus: &Nexus<SimEnv>) {
        let rig = self.rig();
        let spares = |trouble: &Trouble, member: usize| match trouble.what {
            What::Disk(hurt, _) => hurt != member,
            What::Everywhere(_) | What::Full | What::Witness => false,
        };
        let stays = |member: usize| {
            let mut tasks = cycle.tasks.iter().flatten();
            !tasks.any(|task| task.job == Job::Remove(member))
        };
        let mut healthy = rig.committed().into_iter().filter(|member| {
            !rig.volatile[*member]
                && before.contains(member)
                && stays(*member)
                && cycle
                    .troubles
                    .iter()
                    .all(|trouble| spares(trouble, *member))
        });
        let is_healthy = healthy.next().is_some();
        let calm = !cycle.tasks.iter().flatten().any(|task| {
            // They hold requests while they wait for disks of their own.
            matches!(task.job, Job::Add(_) | Job::Remove(_) | Job::Grow(_))
        });
        if is_healthy && calm && cycle.troubles.iter().all(hangs) {
            self.check_stalls(cycle);
        }
        let errors = self.clients.errors.borrow();
        if is_healthy && let Some(error) = errors.first() {
            self.clients.history.fail(|| {
                let status = nexus.status();
                format!(
                    "G1, G11: a client got \"{error}\" although a healthy copy is left: {status:?}"
                )
            });
        }
    }

    /// G11 bounds what *one* hung member costs. Of several, one may show only when the commit without another asks it for
    /// the first time (F5), so each that hung while a request was under way may have cost it that much.
    fn check_stalls(&self, cycle: &Cycle) {
        let (_, begun) = self.begun.get();
        let bound = self.scenario.policy.timeouts.io + COMMITTING;
        for life in self.clients.slow.borrow().iter() {
            let overlaps = |trouble: &&Trouble| {
                let at = begun + trouble.at;
                hangs(trouble) && at < life.end && life.start <= at + trouble.span
            };
            let hung = cycle.troubles.iter().filter(overlaps).count();
            let hung = u32::try_from(hung).expect("a cycle has a few troubles");
            let took = life.end - life.start;
            if took > bound * hung.max(1) {
                self.clients.history.fail(|| {
                    format!(
                        "G11: a request took {took:?} with {hung} disks hanging, although a healthy copy is left"
                    )
                });
            }
        }
    }
}

const fn hangs(trouble: &Trouble) -> bool {
    matches!(trouble.what, What::Disk(_, Ailment::Hung))
}

fn begin(rig: &Rig, what: What) {
    match what {
        What::Disk(disk, ailment) => hurt(rig, disk, ailment),
        What::Everywhere(write_errors) => rig.disks.iter().for_each(|disk| {
            disk.set_fault(SimFault {
                read_errors: 30,
                write_errors,
                flush_errors: 20,
                transient_errors: 10,
                ..SimFault::default()
            });
        }),
        What::Full => rig.disks.iter().for_each(|disk| {
            disk.set_fault(SimFault {
                full: true,
                ..SimFault::default()
            });
        }),
        What::Witness => {
            rig.witness.set_down(true);
            rig.witness.set_lost_answers(3);
        }
    }
}

fn hurt(rig: &Rig, disk: usize, ailment: Ailment) {
    let mut fault = SimFault::default();
    match ailment {
        Ailment::ReadErrors(one_in) => fault.read_errors = one_in,
        Ailment::WriteErrors(one_in) => fault.write_errors = one_in,
        Ailment::FlushErrors(one_in) => fault.flush_errors = one_in,
        Ailment::Transient(one_in) => fault.transient_errors = one_in,
        Ailment::Full => fault.full = true,
        Ailment::Lost => fault.lost = true,
        Ailment::Hung => fault.hung = true,
        Ailment::Truncated => fault.end = Some(DATA_OFFSET + 4096),
        Ailment::Unplugged => rig.disks[disk].unplug(),
    }
    rig.disks[disk].set_fault(fault);
}

fn end(rig: &Rig, trouble: &Trouble) {
    let disks = match trouble.what {
        What::Disk(disk, _) => &rig.disks[disk..=disk],
        What::Everywhere(_) | What::Full => &rig.disks[..],
        What::Witness => {
            rig.witness.set_down(false);
            rig.witness.set_lost_answers(0);
            return;
        }
    };
    for disk in disks {
        let fault = if trouble.heals {
            SimFault::default()
        } else {
            // Nothing hangs for ever: the clients want their answers.
            let hung = false;
            let fault = disk.fault();
            SimFault { hung, ..fault }
        };
        disk.set_fault(fault);
    }
}
