//! One seed: a volume is created, used, hurt, crashed and assembled again several times, then healed and inspected.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::client::Clients;
use super::rig::{Rig, SimEnv};
use crate::io::sim::{Sim, SimFault, SimNode};
use crate::io::{Clock, Spawn};
use crate::nexus::{AssemblyError, Mutant, Nexus};

/// Crashes per seed.
const CYCLES: u32 = 5;
/// Longest that any request may take while the trouble of a cycle lasts at most 40 s and commits time out after 30 s.
const PATIENCE: Duration = Duration::from_secs(240);

/// How a cycle ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Kill,
    PowerCut,
}

/// One seed's run.
pub(super) struct Run {
    pub(super) clients: Rc<Clients>,
    /// Generation and slot sequence that each disk's durable label had last (I3, I4).
    pub(super) labels: RefCell<Vec<(u64, u64)>>,
    stopped_cleanly: bool,
}

/// Runs one seed with perhaps a planted bug.
///
/// # Errors
/// What was found to be wrong, and the last events.
pub(in crate::nexus) fn run_seed(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let shape = Sim::new(seed ^ 0xabcd);
    let members = usize::try_from(1 + shape.below(4)).unwrap();
    let block = if shape.one_in(4) { 512 } else { 4096 };
    let blocks = [20, 33, 48][usize::try_from(shape.below(3)).unwrap()];
    let blocks = if block == 512 { blocks * 8 } else { blocks };
    let mut rig = Rig::new(seed, members, blocks * u64::from(block), block);
    rig.mutant = mutant;
    if members > 1 && shape.one_in(8) {
        rig.volatile[usize::try_from(shape.below(members as u64)).unwrap()] = true;
    }
    let sim = rig.sim.clone();
    let clients = Rc::new(Clients::new(rig));
    let run = Run {
        clients: Rc::clone(&clients),
        labels: RefCell::new(vec![(0, 0); members]),
        stopped_cleanly: false,
    };
    sim.block_on(run.all());
    match clients.history.violation() {
        None => Ok(()),
        Some(violation) => {
            let trace = clients.history.trace();
            let tail = trace[trace.len().saturating_sub(60)..].join("\n  ");
            Err(format!("seed {seed}: {violation}\n  {tail}"))
        }
    }
}

impl Run {
    async fn all(mut self) {
        let mut node = self.sim().node();
        let created = self.rig().create(&node).await;
        let mut nexus = created.expect("nothing is wrong with the disks yet");
        self.clients.fill(&nexus).await;
        for cycle in 0..CYCLES {
            self.clients.history.note(|| {
                let status = nexus.status();
                format!(
                    "cycle {cycle}: generation {} of {:?}",
                    status.generation,
                    self.rig().committed()
                )
            });
            let end = self.cycle(&node, &nexus).await;
            if self.is_over() {
                return;
            }
            self.end(end, &node, nexus).await;
            self.inspect_labels();
            node = self.sim().node();
            let Some(next) = self.start(&mut node).await else {
                return;
            };
            nexus = next;
        }
        self.finish(nexus).await;
    }

    pub(super) fn rig(&self) -> &Rig {
        &self.clients.rig
    }

    pub(super) fn sim(&self) -> &Sim {
        &self.clients.rig.sim
    }

    fn is_over(&self) -> bool {
        self.clients.history.violation().is_some()
    }

    /// Clients run while trouble comes and goes.
    async fn cycle(&self, node: &SimNode, nexus: &Nexus<SimEnv>) -> End {
        let sim = self.sim().clone();
        let clock = sim.node();
        let trouble = self.choose_trouble();
        let end = match sim.below(10) {
            0..=2 => End::Stop,
            3..=6 => End::Kill,
            _ => End::PowerCut,
        };
        self.clients
            .history
            .note(|| format!("trouble {trouble:?}, then {end:?}"));
        self.clients.errors.borrow_mut().clear();
        self.clients.pending.set(0);
        let waiting: Vec<_> = (0..1 + sim.below(4))
            .map(|_| {
                let (done, wait) = oneshot::channel();
                let life =
                    Rc::clone(&self.clients).run(nexus.clone(), node.clone(), 10 + sim.below(25));
                node.spawn(async move {
                    life.await;
                    let _ = done.send(());
                });
                wait
            })
            .collect();
        clock.sleep(Duration::from_micros(sim.below(8000))).await;
        self.make_trouble(trouble, &clock).await;
        if end == End::Stop || sim.one_in(3) {
            let deadline = clock.sleep(PATIENCE);
            let all = async {
                for wait in waiting {
                    let _ = wait.await;
                }
            };
            if !crate::nexus::fan_out::either(deadline, all).await {
                let pending = self.clients.pending.get();
                self.clients
                    .history
                    .fail(|| format!("I12, G11: {pending} requests are never answered"));
            }
        } else {
            clock.sleep(Duration::from_micros(sim.below(20_000))).await;
        }
        self.check_errors(trouble, nexus);
        end
    }

    async fn end(&mut self, end: End, node: &SimNode, nexus: Nexus<SimEnv>) {
        self.stopped_cleanly = false;
        if end == End::Stop {
            self.stopped_cleanly = nexus.stop().await;
            self.clients
                .history
                .note(|| format!("stopped, clean: {}", self.stopped_cleanly));
        }
        drop(nexus);
        node.kill();
        if end == End::PowerCut {
            self.rig().disks.iter().for_each(|disk| disk.power_loss());
        }
        self.heal();
        for disk in &self.rig().disks {
            disk.quiesce().await;
        }
        self.clients.history.killed();
        // A member that lost its cache and is still in the committed table counts as a power cut (spec G4, F2).
        let cut_off = |member: &usize| self.rig().disks[*member].is_unplugged();
        if end == End::PowerCut || self.rig().committed().iter().any(cut_off) {
            self.clients.history.power_lost();
        }
        for (disk, _) in self
            .rig()
            .disks
            .iter()
            .zip(&self.rig().volatile)
            .filter(|(_, volatile)| **volatile)
        {
            disk.erase();
        }
        self.clients.history.note(|| format!("{end:?}"));
        self.check_written();
    }

    /// Assembles from what happens to be here, then from more, until it works.
    async fn start(&self, node: &mut SimNode) -> Option<Nexus<SimEnv>> {
        let sim = self.sim().clone();
        let all = self.rig().all();
        let mut present = all.clone();
        if sim.one_in(3) {
            present.iter_mut().for_each(|here| *here = sim.one_in(2));
        }
        for attempt in 0..20 {
            if attempt > 6 {
                present.clone_from(&all);
            }
            if attempt < 5 && sim.one_in(6) {
                let disk = usize::try_from(sim.below(all.len() as u64)).unwrap();
                self.rig().disks[disk].set_fault(SimFault {
                    write_errors: 2,
                    ..SimFault::default()
                });
            }
            let troubled = self
                .rig()
                .disks
                .iter()
                .any(|disk| disk.fault().write_errors > 0);
            let killed = attempt < 5 && sim.one_in(8);
            let result = self.try_start(node, &present, killed).await;
            self.clients.history.note(|| {
                format!(
                    "assembled from {present:?}: {:?}",
                    result.as_ref().map(|r| r.as_ref().map(Nexus::status))
                )
            });
            self.heal();
            match result {
                Some(Ok(nexus)) => return Some(nexus),
                None => {}
                Some(Err(AssemblyError::Blocked(blocked))) if present == all => {
                    self.clients
                        .history
                        .fail(|| format!("everything is here, but: {blocked}"));
                    return None;
                }
                Some(Err(AssemblyError::Blocked(_))) => {
                    let more = usize::try_from(sim.below(all.len() as u64)).unwrap();
                    present[more] = true;
                }
                Some(Err(_)) if troubled => {}
                Some(Err(error)) => {
                    self.clients
                        .history
                        .fail(|| format!("nothing is wrong, but: {error}"));
                    return None;
                }
            }
            *node = sim.node();
        }
        self.clients
            .history
            .fail(|| "the volume never starts again".to_owned());
        None
    }

    /// None when the process was killed meanwhile.
    async fn try_start(
        &self,
        node: &SimNode,
        present: &[bool],
        killed: bool,
    ) -> Option<Result<Nexus<SimEnv>, AssemblyError>> {
        let sim = self.sim();
        let (answer, answered) = oneshot::channel();
        let (rig, inner, here) = (self.rig().clone(), node.clone(), present.to_vec());
        node.spawn(async move {
            let _ = answer.send(rig.assemble(&inner, &here).await);
        });
        if killed {
            let clock = sim.node();
            clock.sleep(Duration::from_micros(sim.below(8000))).await;
            node.kill();
            if sim.one_in(2) {
                self.rig().disks.iter().for_each(|disk| disk.power_loss());
                self.clients.history.killed();
                self.clients.history.power_lost();
            }
            drop(answered);
            return None;
        }
        let result = answered.await.ok();
        if !matches!(result, Some(Ok(_))) {
            node.kill();
        }
        result
    }
}
