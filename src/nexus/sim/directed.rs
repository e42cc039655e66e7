//! Scenarios for planted bugs that need a moment which random requests hardly ever hit.

use std::time::Duration;

use super::scenario::{Ailment, Cycle, End, Job, Kind, Request, Scenario, Task, Trouble, What};
use crate::nexus::{Mutant, Policy};

const MIB: u64 = 1 << 20;
const BLOCK: u32 = 4096;
const MEMBERS: usize = 3;
/// Regions of the volume; each is written by a client of its own.
const REGIONS: u64 = 12;
/// Blocks of a region.
const REGION: u64 = MIB / BLOCK as u64;

/// The scenario that shows this bug, if random ones do not. `seed` decides what a scenario leaves open.
pub(super) fn scenario(mutant: Mutant, seed: u64) -> Option<Scenario> {
    (mutant == Mutant::OwnRegionsForgotten).then(|| first_writes_around_a_fault(seed))
}

/// W7: members get lost one after the other, each from a volume without any intent bit, while every region gets its first
/// write: one before the fault, one between what F4 takes along and the commit, one after it. Elsewhere regions have
/// been written before the fault, and F4 speaks for later writes to them, too.
fn first_writes_around_a_fault(seed: u64) -> Scenario {
    let cycle = |lost: usize| {
        let client = |region: u64| {
            vec![Request {
                pause: Duration::from_micros(300 * region),
                kind: Kind::Write {
                    fua: false,
                    spoil: false,
                },
                blocks: region * REGION..region * REGION + 1,
            }]
        };
        let trouble = Trouble {
            at: Duration::ZERO,
            span: Duration::from_millis(200),
            heals: true,
            what: What::Disk(lost, Ailment::Lost),
        };
        Cycle {
            clients: (0..REGIONS).map(client).collect(),
            troubles: vec![trouble],
            tasks: Vec::new(),
            patient: true,
            ..rest()
        }
    };
    let cycles = (0..MEMBERS).flat_map(|lost| [rest(), cycle(lost)]);
    Scenario {
        seed,
        members: MEMBERS,
        spares: 0,
        volatile: None,
        block: BLOCK,
        size: REGIONS * MIB,
        policy: Policy::default(),
        islands: (0..REGIONS)
            .map(|region| region * REGION..region * REGION + 2)
            .collect(),
        cycles: cycles.collect(),
    }
}

/// A cycle in which all members come back, and which ends with a clean stop: no bit is set then.
fn rest() -> Cycle {
    let task = Task {
        pause: Duration::ZERO,
        job: Job::Keep,
    };
    Cycle {
        clients: Vec::new(),
        troubles: Vec::new(),
        tasks: vec![vec![task]],
        patient: false,
        grace: Duration::from_secs(20),
        end: End::Stop,
        starts: Vec::new(),
    }
}
