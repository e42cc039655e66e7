//! What an engine would do meanwhile: bring members back, rebuild them, add and remove some, grow, scrub.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::client::Clients;
use super::rig::{Rig, SimEnv};
use super::scenario::{Job, Task};
use crate::io::sim::SimNode;
use crate::io::{BlockDevice, Clock};
use crate::model::ReplicaId;
use crate::nexus::Nexus;
use crate::nexus::scrub::ScrubRequest;

/// First pause of the keeper after everything was tried.
const KEEPER_PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest such pause.
const KEEPER_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a healthy volume may take until everything is in sync.
pub(super) const HEALING: Duration = Duration::from_secs(600);

/// Works a list of tasks off.
pub(super) async fn work(
    clients: Rc<Clients>,
    nexus: Nexus<SimEnv>,
    clock: SimNode,
    tasks: Vec<Task>,
) {
    for task in tasks {
        clock.sleep(task.pause).await;
        perform(&clients, &nexus, &clock, task.job).await;
    }
}

async fn perform(clients: &Clients, nexus: &Nexus<SimEnv>, clock: &SimNode, job: Job) {
    let rig = &clients.rig;
    let said = match job {
        Job::Keep => return keep(rig, nexus, clock).await,
        Job::BringBack => {
            bring_back(rig, nexus).await;
            String::new()
        }
        Job::Add(disk) => add(rig, nexus, disk).await,
        Job::Remove(disk) => format!("{:?}", nexus.remove_member(Rig::replica_id(disk)).await),
        Job::Grow(size) => format!("{:?}", nexus.grow(size).await),
        Job::Scrub { repair_from } => {
            let request = ScrubRequest {
                repair_from: repair_from.map(Rig::replica_id),
                bandwidth: 0,
            };
            match nexus.scrub(request).await {
                Ok(report) if report.totals.mismatches > 0 => {
                    clients
                        .history
                        .fail(|| format!("I9: a scrub found differences: {report:?}"));
                    return;
                }
                other => format!("{other:?}"),
            }
        }
    };
    rig.sim.note(|| format!("{job:?}: {said}"));
}

/// Brings members back for ever, less and less often.
async fn keep(rig: &Rig, nexus: &Nexus<SimEnv>, clock: &SimNode) {
    let mut pause = KEEPER_PAUSE_MIN;
    loop {
        bring_back(rig, nexus).await;
        clock.sleep(pause).await;
        pause = (pause * 3 / 2).min(KEEPER_PAUSE_MAX);
    }
}

/// Opens and locks anew what is out of sync and not here, then rebuilds what is.
pub(super) async fn bring_back(rig: &Rig, nexus: &Nexus<SimEnv>) {
    let status = nexus.status();
    let members = status.children.into_iter().filter(|child| child.is_member);
    for child in members.filter(|child| child.wants_attach || child.wants_rebuild) {
        let Some((disk, id)) = child.replica.and_then(|id| Some((rig.disk_of(id)?, id))) else {
            continue;
        };
        // An attached member grows with the volume even before its rebuild.
        rig.rebuilds.begin(rig, id);
        if child.wants_attach {
            // The lock of the last session (spec A1).
            rig.disks[disk].quiesce().await;
            let attached = nexus.attach(rig.candidate(disk)).await;
            rig.sim.note(|| format!("attach {disk}: {attached:?}"));
            if attached.is_err() {
                continue;
            }
            // It may have been in the middle of being added: then the table that calls it blank came only now.
            rig.rebuilds.begin(rig, id);
        }
        let rebuilt = nexus.rebuild(id).await;
        rig.sim.note(|| format!("rebuild {disk}: {rebuilt:?}"));
    }
}

async fn add(rig: &Rig, nexus: &Nexus<SimEnv>, disk: usize) -> String {
    rig.disks[disk].quiesce().await;
    let added = nexus.add_member(rig.candidate(disk)).await;
    format!("{added:?}")
}

/// Since when each member has been allowed to be written to although it is not in sync (spec I8).
#[derive(Debug, Default)]
pub(in crate::nexus) struct Rebuilds {
    since: std::cell::RefCell<BTreeMap<ReplicaId, u64>>,
}

impl Rebuilds {
    fn begin(&self, rig: &Rig, replica: ReplicaId) {
        let left = rig.witness.left_at(replica).unwrap_or(0);
        let now = rig.sim.tick();
        let mut since = self.since.borrow_mut();
        if since.get(&replica).is_none_or(|begun| *begun < left) {
            since.insert(replica, now);
        }
    }

    /// When its rebuild was last begun.
    pub(super) fn begun(&self, replica: ReplicaId) -> Option<u64> {
        self.since.borrow().get(&replica).copied()
    }
}
