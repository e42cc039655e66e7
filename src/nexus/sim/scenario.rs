//! What happens in one seed's run, as data: made from the seed, played by [`super::run`], cut down by
//! [`super::shrink`].
//!
//! What is not in here, the order of ready tasks, the delays and the coin tosses of the disks, follows from
//! [`Scenario::seed`] while it is played.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use crate::io::sim::Sim;
use crate::nexus::Policy;

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    /// Where everything that is not said here comes from.
    pub(super) seed: u64,
    /// Members of the table at creation: the first disks.
    pub(super) members: usize,
    /// Further disks, blank at first.
    pub(super) spares: usize,
    /// A disk that loses everything when the node stops.
    pub(super) volatile: Option<usize>,
    /// Bytes of a logical block.
    pub(super) block: u32,
    /// Bytes of the volume at creation.
    pub(super) size: u64,
    pub(super) policy: Policy,
    /// The blocks that clients write. All others are zeroes for ever.
    pub(super) islands: Vec<Range<u64>>,
    pub(super) cycles: Vec<Cycle>,
}

/// From one start of the daemon to the next.
#[derive(Clone, Debug)]
pub(super) struct Cycle {
    /// What each client does, one request after the other.
    pub(super) clients: Vec<Vec<Request>>,
    pub(super) troubles: Vec<Trouble>,
    /// What the engine does meanwhile: lists that are worked off side by side.
    pub(super) tasks: Vec<Vec<Task>>,
    /// Whether the end waits until every client has its answers; else only for `grace`.
    pub(super) patient: bool,
    pub(super) grace: Duration,
    pub(super) end: End,
    /// How the daemon comes back. When these are used up, everything is here and nothing is wrong.
    pub(super) starts: Vec<Start>,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    /// How long after the answer to the one before.
    pub(super) pause: Duration,
    pub(super) kind: Kind,
    /// Nothing for a flush.
    pub(super) blocks: Range<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    /// With `spoil`, the client changes its memory once the write is submitted (spec W2).
    Write {
        fua: bool,
        spoil: bool,
    },
    Zero {
        fua: bool,
        unmap: bool,
    },
    Flush,
}

/// Something that the engine does.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) pause: Duration,
    pub(super) job: Job,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Brings back and rebuilds what is out of sync, until the end of the cycle.
    Keep,
    /// The same, once.
    BringBack,
    /// A disk becomes a member.
    Add(usize),
    /// A disk is a member no more.
    Remove(usize),
    /// To so many bytes.
    Grow(u64),
    Scrub {
        repair_from: Option<usize>,
    },
}

/// Something goes wrong for a while.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    /// How long after the clients began.
    pub(super) at: Duration,
    pub(super) span: Duration,
    /// Whether all is well after `span`; else only what hangs goes on.
    pub(super) heals: bool,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// One disk.
    Disk(usize, Ailment),
    /// Every disk fails now and then: one write in so many.
    Everywhere(u64),
    /// Every pool is full.
    Full,
    /// The witness can't be reached, and when it can, loses answers.
    Witness,
}

/// What is wrong with a disk. Numbers are "one in n".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ailment {
    ReadErrors(u64),
    WriteErrors(u64),
    FlushErrors(u64),
    Transient(u64),
    Full,
    Lost,
    Hung,
    Truncated,
    /// It loses its cache, and the open session with it (spec E6).
    Unplugged,
}

/// How a cycle ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Stop,
    Kill,
    PowerCut,
}

/// One start of the daemon.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// Which disks are here.
    pub(super) present: Vec<bool>,
    /// One that fails half of all writes meanwhile.
    pub(super) fails: Option<usize>,
    /// When the daemon is killed again.
    pub(super) killed: Option<Duration>,
    /// Whether that is a power cut.
    pub(super) power_cut: bool,
    /// Whether the witness's record is lost before (spec A5).
    pub(super) forgets: bool,
}

impl Scenario {
    pub(super) fn disks(&self) -> usize {
        self.members + self.spares
    }

    /// The scenario of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let dice = Dice(Sim::new(seed ^ 0xabcd));
        let members = 1 + dice.index(4);
        let block: u32 = if dice.one_in(4) { 512 } else { 4096 };
        let spares = if dice.one_in(2) { 0 } else { 1 + dice.index(2) };
        let (size, islands) = dice.volume(u64::from(block));
        let volatile = (members > 1 && dice.one_in(8)).then(|| dice.index(members + spares));
        let mut scenario = Self {
            seed,
            members,
            spares,
            volatile,
            block,
            size,
            policy: dice.policy(),
            islands,
            cycles: Vec::new(),
        };
        for _ in 0..dice.between(6, 8) {
            let cycle = dice.cycle(&scenario);
            scenario.cycles.push(cycle);
        }
        scenario
    }
}

const MIB: u64 = 1 << 20;

/// Random choices.
struct Dice(Sim);

impl Dice {
    fn below(&self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn between(&self, min: u64, max: u64) -> u64 {
        min + self.below(max - min + 1)
    }

    fn one_in(&self, n: u64) -> bool {
        self.0.one_in(n)
    }

    fn index(&self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("an index fits a usize")
    }

    fn micros(&self, below: u64) -> Duration {
        Duration::from_micros(self.below(below))
    }

    /// A volume's size and islands. Half the volumes are one island; the others have several regions, with islands
    /// at their borders.
    fn volume(&self, block: u64) -> (u64, Vec<Range<u64>>) {
        if self.one_in(2) {
            let blocks = [20, 33, 48][self.index(3)] * 4096 / block;
            // The volume may grow: the last blocks are not there at first.
            let size = (blocks - self.below(2) * 8 * 4096 / block) * block;
            return (size, std::iter::once(0..blocks).collect());
        }
        let regions = self.between(2, 6);
        let odd = [0, 4096, MIB / 2][self.index(3)];
        let size = regions * MIB + odd;
        let mut islands: Vec<Range<u64>> = Vec::new();
        let mut border = 0;
        while border <= regions && islands.len() < 4 {
            let at = border * MIB;
            let around = match self.below(3) {
                0 => at.saturating_sub(5 * 4096)..at + 4 * 4096,
                1 => at..at + 10 * 4096,
                _ => at + 20 * 4096..at + 27 * 4096,
            };
            let around = around.start.min(size)..around.end.min(size);
            if !around.is_empty() {
                islands.push(around.start / block..around.end / block);
            }
            border += self.between(1, 2);
        }
        if islands
            .last()
            .is_some_and(|island| island.end * block < size)
        {
            // Behind the end: there once the volume has grown.
            let first = size / block;
            islands.push(first..first + 8 * 4096 / block);
        }
        (size, islands)
    }

    /// Now and then tight bounds and short patience.
    fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        if self.one_in(2) {
            policy.intent_max = self.between(1, 3);
        }
        if self.one_in(3) {
            policy.rebuild_bandwidth = MIB << self.below(5);
        }
        if self.one_in(3) {
            policy.timeouts.io = Duration::from_secs(1);
            policy.timeouts.read_hedge = Duration::from_millis(self.between(1, 20));
        }
        policy
    }

    fn cycle(&self, scenario: &Scenario) -> Cycle {
        let spots = self.spots(scenario);
        let client = |_| {
            let count = self.between(10, 35);
            let request = |_| self.request(scenario, &spots);
            (0..count).map(request).collect()
        };
        let clients = (0..self.between(1, 4)).map(client).collect();
        let end = match self.below(10) {
            0 | 1 => End::Stop,
            2..=5 => End::Kill,
            _ => End::PowerCut,
        };
        let grace = match self.below(8) {
            0 => 15_000_000,
            1 | 2 => 300_000,
            _ => 20_000,
        };
        Cycle {
            clients,
            troubles: self.troubles(scenario),
            tasks: self.tasks(scenario),
            patient: end == End::Stop || self.one_in(3),
            grace: self.micros(grace),
            end,
            starts: self.starts(scenario),
        }
    }

    /// Where the requests of one cycle meet.
    fn spots(&self, scenario: &Scenario) -> Vec<u64> {
        let spot = |_| {
            let island = &scenario.islands[self.index(scenario.islands.len())];
            let len = island.end - island.start;
            island.start + self.below(3) * (len / 3)
        };
        (0..3).map(spot).collect()
    }

    fn request(&self, scenario: &Scenario, spots: &[u64]) -> Request {
        let kind = match self.below(20) {
            0..=7 => Kind::Read,
            choice @ 8..=16 => Kind::Write {
                fua: choice > 14,
                spoil: self.one_in(4),
            },
            17 => Kind::Zero {
                fua: self.one_in(3),
                unmap: !self.one_in(3),
            },
            _ => Kind::Flush,
        };
        let blocks = match kind {
            Kind::Flush => 0..0,
            Kind::Zero { .. } if self.one_in(4) => self.wide(scenario),
            Kind::Read if self.one_in(20) => self.wide(scenario),
            _ => self.near(scenario, spots),
        };
        Request {
            pause: self.micros(600),
            kind,
            blocks,
        }
    }

    /// Mostly a few blocks, close to each other so that requests meet; sometimes a chunk.
    fn near(&self, scenario: &Scenario, spots: &[u64]) -> Range<u64> {
        let spot = spots[self.index(spots.len())];
        let mut islands = scenario.islands.iter();
        let island = islands
            .find(|island| island.contains(&spot))
            .expect("a spot is on an island");
        if self.one_in(12) {
            let first = (spot / 16 * 16).max(island.start);
            return first..(first + 16).min(island.end);
        }
        let first = (spot + self.below(6)).min(island.end - 1);
        first..(first + 1 + self.below(4)).min(island.end)
    }

    /// Up to some regions at once, islands or not.
    fn wide(&self, scenario: &Scenario) -> Range<u64> {
        let blocks = scenario.size / u64::from(scenario.block);
        let chunk = (64 << 10) / u64::from(scenario.block);
        let first = self.below(blocks / chunk + 1) * chunk;
        let first = first.min(blocks - 1);
        first..(first + self.between(1, 20) * chunk).min(blocks)
    }

    fn tasks(&self, scenario: &Scenario) -> Vec<Vec<Task>> {
        let mut lists = Vec::new();
        let task = |job| Task {
            pause: self.micros(10_000),
            job,
        };
        if self.one_in(2) {
            lists.push(vec![task(Job::Keep)]);
        }
        if self.one_in(2) {
            let job = |_| match self.below(10) {
                0..=2 => Job::Add(self.index(scenario.disks())),
                3 | 4 => Job::Remove(self.index(scenario.disks())),
                5..=7 => Job::BringBack,
                8 => Job::Grow(scenario.size + self.below(8) * (MIB / 2)),
                _ => Job::Scrub { repair_from: None },
            };
            lists.push((0..self.between(1, 4)).map(job).map(task).collect());
        }
        lists
    }

    fn troubles(&self, scenario: &Scenario) -> Vec<Trouble> {
        let disk = self.index(scenario.disks());
        let what = match self.below(20) {
            0..=8 => return Vec::new(),
            9..=15 => What::Disk(disk, self.ailment()),
            16 | 17 => What::Everywhere(if self.one_in(2) { 2 } else { 40 }),
            18 => What::Witness,
            _ => What::Full,
        };
        let trouble = |what| Trouble {
            at: self.micros(8000),
            span: self.micros(if self.one_in(4) { 40_000_000 } else { 10_000 }),
            heals: self.one_in(2),
            what,
        };
        let mut troubles = vec![trouble(what)];
        if what == What::Witness || self.one_in(8) {
            let another = self.index(scenario.disks());
            troubles.push(trouble(What::Disk(another, self.ailment())));
        }
        troubles
    }

    fn ailment(&self) -> Ailment {
        match self.below(9) {
            0 => Ailment::ReadErrors(self.between(1, 6)),
            1 => Ailment::WriteErrors(self.between(1, 8)),
            2 => Ailment::FlushErrors(self.between(1, 3)),
            3 => Ailment::Transient(self.between(2, 5)),
            4 => Ailment::Full,
            5 => Ailment::Lost,
            6 => Ailment::Hung,
            7 => Ailment::Truncated,
            _ => Ailment::Unplugged,
        }
    }

    fn starts(&self, scenario: &Scenario) -> Vec<Start> {
        let mut starts = Vec::new();
        while !self.one_in(2) && starts.len() < 5 {
            let all_here = !self.one_in(2);
            let here = |_| all_here || self.one_in(2);
            starts.push(Start {
                present: (0..scenario.disks()).map(here).collect(),
                fails: self.one_in(4).then(|| self.index(scenario.disks())),
                killed: self.one_in(4).then(|| self.micros(8000)),
                power_cut: self.one_in(2),
                forgets: self.one_in(10),
            });
        }
        starts
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, members, .. } = self;
        writeln!(
            f,
            "seed {seed}: {members} members, {} spares, {} bytes in blocks of {}, volatile {:?}, islands {:?}",
            self.spares, self.size, self.block, self.volatile, self.islands
        )?;
        writeln!(f, "{:?}", self.policy)?;
        for (number, cycle) in self.cycles.iter().enumerate() {
            let Cycle { patient, grace, .. } = cycle;
            let end = cycle.end;
            writeln!(
                f,
                "cycle {number}: patient {patient}, grace {grace:?}, then {end:?}"
            )?;
            for trouble in &cycle.troubles {
                writeln!(f, "  {trouble:?}")?;
            }
            for list in &cycle.tasks {
                writeln!(f, "  {list:?}")?;
            }
            for (number, requests) in cycle.clients.iter().enumerate() {
                writeln!(f, "  client {number}")?;
                for Request {
                    pause,
                    kind,
                    blocks,
                } in requests
                {
                    writeln!(f, "    after {pause:?}: {kind:?} {blocks:?}")?;
                }
            }
            for start in &cycle.starts {
                writeln!(f, "  {start:?}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_scenario_and_its_requests_fit_the_volume() {
        for seed in 0..500 {
            let scenario = Scenario::new(seed);
            let again = Scenario::new(seed);
            assert_eq!(format!("{scenario:?}"), format!("{again:?}"));
            let in_order = |pair: &[Range<u64>]| pair[0].end <= pair[1].start;
            assert!(scenario.islands.windows(2).all(in_order), "{scenario:?}");
            let last = scenario.islands.last().unwrap().end;
            let cycles = scenario.cycles.iter();
            for request in cycles.flat_map(|c| c.clients.iter().flatten()) {
                assert!(request.blocks.end <= last.max(scenario.size), "{request:?}");
                assert_eq!(request.blocks.is_empty(), request.kind == Kind::Flush);
            }
        }
    }
}
