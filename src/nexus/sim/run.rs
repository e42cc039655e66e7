//! Plays a scenario: a volume is created, used, hurt, crashed and assembled again several times, then healed and
//! inspected.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::caught::caught;
use super::client::Clients;
use super::engine;
use super::rig::{Rig, SimEnv};
use super::scenario::{Cycle, End, Scenario, Start};
use crate::io::sim::{Sim, SimFault, SimHardware, SimNode};
use crate::io::{Clock, Spawn};
use crate::nexus::{AssemblyError, Mutant, Nexus};

/// Longest that the trouble of a cycle lasts, and some more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest that any request may take while no copy is well: it may wait for a commit twice, its own and that of what it
/// found unresolved, each for 30 s (spec F6).
const PATIENCE_PER_REQUEST: Duration = Duration::from_secs(70);
/// How often a start is tried when nothing is wrong any more. What the troubles before left in memory is gone by then.
const CALM_STARTS: usize = 12;

/// How to play.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::nexus) struct Play {
    /// A planted bug.
    pub(in crate::nexus) mutant: Option<Mutant>,
    /// Whether to note what happens.
    pub(in crate::nexus) trace: bool,
}

/// How many times the daemon ended, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::nexus) struct Tally {
    pub(in crate::nexus) stops: u64,
    /// The daemon was killed, the disks kept what they had.
    pub(in crate::nexus) kills: u64,
    /// The daemon was killed and every disk lost what it had not made durable, or some of it.
    pub(in crate::nexus) power_cuts: u64,
}

impl Tally {
    pub(in crate::nexus) const fn crashes(self) -> u64 {
        self.kills + self.power_cuts
    }

    pub(in crate::nexus) const fn plus(self, other: Self) -> Self {
        Self {
            stops: self.stops + other.stops,
            kills: self.kills + other.kills,
            power_cuts: self.power_cuts + other.power_cuts,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stops,
            kills,
            power_cuts,
        } = self;
        write!(
            f,
            "{kills} kills and {power_cuts} power cuts; {stops} stops"
        )
    }
}

/// What came of it.
#[derive(Debug)]
pub(in crate::nexus) struct Report {
    pub(in crate::nexus) tally: Tally,
    pub(in crate::nexus) violation: Option<String>,
    pub(in crate::nexus) trace: Vec<String>,
}

/// One scenario being played.
pub(super) struct Run {
    pub(super) clients: Rc<Clients>,
    pub(super) scenario: Rc<Scenario>,
    /// Generation and slot sequence that each disk's durable label had last (I3, I4).
    pub(super) labels: RefCell<Vec<(u64, u64)>>,
    /// The tick of that look.
    pub(super) inspected: Cell<u64>,
    tally: Rc<Cell<Tally>>,
    /// When the cycle began: tick and time.
    pub(super) begun: Cell<(u64, Duration)>,
}

/// Plays a scenario to its end, or to the first violation.
pub(super) fn play(scenario: &Scenario, how: Play) -> Report {
    let mut rig = Rig::new(
        scenario.seed,
        scenario.disks(),
        scenario.size,
        scenario.block,
    );
    rig.mutant = how.mutant;
    if how.mutant == Some(Mutant::NoIncarnation) {
        rig.disks.iter().for_each(SimHardware::forgive_unplugging);
    }
    rig.spec.policy = scenario.policy;
    if let Some(volatile) = scenario.volatile {
        rig.volatile[volatile] = true;
    }
    let sim = rig.sim.clone();
    if how.trace {
        sim.keep_trace();
    }
    let run = Run::new(rig, scenario);
    run.clients.watch_bits();
    let (clients, tally) = (Rc::clone(&run.clients), Rc::clone(&run.tally));
    let ended = caught(|| sim.block_on(run.all()));
    Report {
        tally: tally.get(),
        violation: clients.history.violation().or(ended.err()),
        trace: sim.trace(),
    }
}

impl Run {
    pub(super) fn new(rig: Rig, scenario: &Scenario) -> Self {
        Self {
            clients: Rc::new(Clients::new(rig, &scenario.islands)),
            scenario: Rc::new(scenario.clone()),
            labels: RefCell::new(vec![(0, 0); scenario.disks()]),
            inspected: Cell::new(0),
            tally: Rc::default(),
            begun: Cell::default(),
        }
    }

    async fn all(self) {
        let scenario = Rc::clone(&self.scenario);
        let mut node = self.sim().node();
        let created = self.rig().create_on(&node, scenario.members).await;
        let mut nexus = created.expect("nothing is wrong with the disks yet");
        self.clients.fill(&nexus, &scenario.islands).await;
        for (number, cycle) in scenario.cycles.iter().enumerate() {
            self.clients.history.note(|| {
                let (generation, active) = (nexus.status().generation, self.rig().committed());
                format!("cycle {number}: generation {generation}, in sync {active:?}")
            });
            self.cycle(cycle, &node, &nexus).await;
            if self.is_over() {
                return;
            }
            self.end(cycle.end, &node, nexus).await;
            self.inspect_labels();
            node = self.sim().node();
            let Some(next) = self.start(cycle, &mut node).await else {
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

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        count(&mut tally);
        self.tally.set(tally);
    }

    /// Clients run while trouble comes and goes.
    async fn cycle(&self, cycle: &Cycle, node: &SimNode, nexus: &Nexus<SimEnv>) {
        let sim = self.sim().clone();
        let clock = sim.node();
        self.clients.errors.borrow_mut().clear();
        self.clients.pending.set(0);
        self.clients.slow.take();
        self.begun.set((sim.tick(), clock.now()));
        // Each cycle's clients are new, as those of a frontend that attaches: what failed before them is not theirs (F2).
        nexus.reattached();
        let mut waiting = Vec::new();
        for requests in &cycle.clients {
            let (done, wait) = oneshot::channel();
            let clients = Rc::clone(&self.clients);
            let life = clients.run(nexus.clone(), node.clone(), requests.clone());
            node.spawn(async move {
                life.await;
                let _ = done.send(());
            });
            waiting.push(wait);
        }
        for tasks in &cycle.tasks {
            let clients = Rc::clone(&self.clients);
            let work = engine::work(clients, nexus.clone(), node.clone(), tasks.clone());
            node.spawn(work);
        }
        let before = self.rig().committed();
        self.make_troubles(&cycle.troubles, &clock).await;
        if cycle.patient {
            let requests = cycle.clients.iter().map(Vec::len).max().unwrap_or(0);
            let requests = u32::try_from(requests).unwrap_or(u32::MAX);
            let deadline = clock.sleep(PATIENCE + PATIENCE_PER_REQUEST * requests);
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
            clock.sleep(cycle.grace).await;
        }
        self.check_errors(cycle, &before, nexus);
    }

    async fn end(&self, end: End, node: &SimNode, nexus: Nexus<SimEnv>) {
        if end == End::Stop {
            let clean = nexus.stop().await;
            self.clients
                .history
                .note(|| format!("stopped, clean: {clean}"));
        }
        drop(nexus);
        node.kill();
        if end == End::PowerCut {
            self.rig().disks.iter().for_each(|disk| disk.power_loss());
        }
        self.count(|tally| match end {
            End::Stop => tally.stops += 1,
            End::Kill => tally.kills += 1,
            End::PowerCut => tally.power_cuts += 1,
        });
        self.heal();
        for disk in &self.rig().disks {
            disk.quiesce().await;
        }
        self.clients.history.killed();
        // A member that lost its cache and is still in the committed table counts as a power cut (spec G4, F2).
        let (begun, _) = self.begun.get();
        let cut_off = |member: &usize| self.rig().lost_cache(*member, begun);
        if end == End::PowerCut || self.rig().committed().iter().any(cut_off) {
            self.clients.history.power_lost();
        }
        let volatile = self.rig().volatile.iter();
        for (disk, _) in self.rig().disks.iter().zip(volatile).filter(|pair| *pair.1) {
            disk.erase();
        }
        self.clients.history.note(|| format!("{end:?}"));
        self.check_written();
        self.check_marks();
    }

    /// Assembles from what is said to be here, then from everything, until it works.
    async fn start(&self, cycle: &Cycle, node: &mut SimNode) -> Option<Nexus<SimEnv>> {
        let calm = Start {
            present: self.rig().all(),
            fails: None,
            killed: None,
            power_cut: false,
            forgets: false,
        };
        let calm = std::iter::repeat_n(&calm, CALM_STARTS);
        for start in cycle.starts.iter().chain(calm) {
            if let Some(disk) = start.fails {
                self.rig().disks[disk].set_fault(SimFault {
                    write_errors: 2,
                    ..SimFault::default()
                });
            }
            if start.forgets {
                self.rig().witness.replace(None);
            }
            let result = self.try_start(node, start).await;
            if self.rig().witness.record().is_none() {
                // Somebody finds a backup, unless the labels have been proof enough (spec A5).
                self.rig().witness.replace(self.rig().witness.newest());
            }
            self.clients.history.note(|| {
                let result = result.as_ref().map(|r| r.as_ref().map(Nexus::status));
                format!("assembled from {:?}: {result:?}", start.present)
            });
            self.heal();
            let is_whole =
                start.fails.is_none() && !start.forgets && start.present.iter().all(|here| *here);
            match result {
                Some(Ok(nexus)) => return Some(nexus),
                Some(Err(AssemblyError::Blocked(_))) if !is_whole => {}
                Some(Err(_)) if start.fails.is_some() => {}
                Some(Err(error)) => {
                    self.clients
                        .history
                        .fail(|| format!("G9: nothing is wrong, but: {error}"));
                    return None;
                }
                None => {}
            }
            *node = self.sim().node();
        }
        self.clients
            .history
            .fail(|| "G9: the volume never starts again".to_owned());
        None
    }

    /// None when the process was killed meanwhile.
    async fn try_start(
        &self,
        node: &SimNode,
        start: &Start,
    ) -> Option<Result<Nexus<SimEnv>, AssemblyError>> {
        let sim = self.sim();
        let (answer, answered) = oneshot::channel();
        let (rig, inner, here) = (self.rig().clone(), node.clone(), start.present.clone());
        node.spawn(async move {
            let _ = answer.send(rig.assemble(&inner, &here).await);
        });
        if let Some(after) = start.killed {
            sim.node().sleep(after).await;
            node.kill();
            if start.power_cut {
                self.rig().disks.iter().for_each(|disk| disk.power_loss());
                self.clients.history.killed();
                self.clients.history.power_lost();
            }
            self.count(|tally| match start.power_cut {
                false => tally.kills += 1,
                true => tally.power_cuts += 1,
            });
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
