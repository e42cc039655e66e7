//! Many seeds, one seed told in full, and planted bugs that seeds must find. `cargo xtask sim` starts these tests and
//! tells them by the environment what to do.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::directed;
use super::run::{Play, Report, Tally, play};
use super::scenario::Scenario;
use super::shrink::shrink;
use crate::nexus::Mutant;

/// Seeds of the fast tests.
const SEEDS: u64 = 60;

/// What a seed plays: a random scenario, unless the bug to be found has one of its own.
fn scenario(seed: u64, wanted: Option<Mutant>) -> Scenario {
    let directed = wanted.and_then(|mutant| directed::scenario(mutant, seed));
    directed.unwrap_or_else(|| Scenario::new(seed))
}

fn attempt(scenario: &Scenario, mutant: Option<Mutant>) -> Report {
    let trace = false;
    play(scenario, Play { mutant, trace })
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("the setting is a number"))
}

/// A planted bug from the environment, by its name.
fn chosen_mutant() -> Option<Mutant> {
    let name = std::env::var("VOLUND_SIM_MUTANT").ok()?;
    let mut all = Mutant::all();
    let found = all.find(|mutant| format!("{mutant:?}") == name);
    assert!(found.is_some(), "there is no mutant {name}");
    found
}

/// Tries seeds on every core until one of them fails, or all are done. The failed ones, lowest first.
fn search(seeds: Range<u64>, mutant: Option<Mutant>) -> (Vec<(u64, String)>, Tally) {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let found = Mutex::new((Vec::new(), Tally::default()));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let report = attempt(&scenario(seed, mutant), mutant);
            let mut found = found.lock().unwrap();
            found.1 = found.1.plus(report.tally);
            if let Some(violation) = report.violation {
                found.0.push((seed, violation));
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let (mut failed, tally) = found.into_inner().unwrap();
    failed.sort();
    (failed, tally)
}

/// What `cargo xtask sim --seeds N --from S` runs.
#[test]
fn seeds_keep_the_guarantees() {
    let from = setting("VOLUND_SIM_FROM").unwrap_or(0);
    let until = from.saturating_add(setting("VOLUND_SIM_SEEDS").unwrap_or(SEEDS));
    let (failed, tally) = search(from..until, chosen_mutant());
    for (seed, violation) in &failed {
        println!("seed {seed}: {violation}");
        println!(
            "replay: cargo xtask sim --replay {seed}    shrink: cargo xtask sim --shrink {seed}"
        );
    }
    let seeds: Vec<u64> = failed.into_iter().map(|(seed, _)| seed).collect();
    assert!(seeds.is_empty(), "violations in seeds {seeds:?}");
    println!("crash cycles: {}, {tally}", tally.crashes());
}

fn tell(scenario: &Scenario) -> bool {
    let how = Play {
        mutant: chosen_mutant(),
        trace: true,
    };
    let report = play(scenario, how);
    println!("{scenario}");
    report.trace.iter().for_each(|line| println!("{line}"));
    match &report.violation {
        Some(violation) => println!("VIOLATION {violation}"),
        None => println!("no violation; {}", report.tally),
    }
    report.violation.is_none()
}

/// What `cargo xtask sim --replay SEED` runs.
#[test]
#[ignore = "started by xtask with a seed"]
fn replay() {
    let seed = setting("VOLUND_SIM_FROM").expect("xtask says which seed");
    assert!(tell(&scenario(seed, chosen_mutant())), "seed {seed} fails");
}

/// What `cargo xtask sim --shrink SEED` runs.
#[test]
#[ignore = "started by xtask with a seed"]
fn smallest() {
    let seed = setting("VOLUND_SIM_FROM").expect("xtask says which seed");
    let how = Play {
        mutant: chosen_mutant(),
        trace: false,
    };
    let breaks = |scenario: &Scenario| play(scenario, how).violation;
    match shrink(scenario(seed, chosen_mutant()), breaks) {
        Some((smallest, _)) => {
            tell(&smallest);
            panic!("seed {seed} fails");
        }
        None => println!("seed {seed} breaks nothing"),
    }
}

/// What `cargo xtask sim --mutants` runs: every planted bug must show, in a seed or in its directed scenario.
#[test]
#[ignore = "started by xtask: it takes minutes"]
#[allow(
    clippy::disallowed_methods,
    reason = "how long the search takes is measured in real time"
)]
fn planted_bugs() {
    let limit = setting("VOLUND_SIM_SEEDS").unwrap_or(20_000);
    let chosen = chosen_mutant();
    let (mut found, mut asked) = (0, 0);
    for mutant in Mutant::all().filter(|m| chosen.is_none_or(|chosen| chosen == *m)) {
        let started = std::time::Instant::now();
        let failed = search_for(mutant, 0..limit);
        let seconds = started.elapsed().as_secs_f64();
        let is_specified = Mutant::SPECIFIED.contains(&mutant);
        let place = if is_specified {
            "section 13"
        } else {
            "further"
        };
        let how = match failed {
            Some((seed, violation)) => {
                let rule: String = violation.chars().take(90).collect();
                found += u32::from(is_specified);
                let kind = match directed::scenario(mutant, seed) {
                    Some(_) => "directed",
                    None => "random",
                };
                format!("{kind:>8} seed {seed:>6} {seconds:>6.1} s  {rule}")
            }
            None => format!("NOT FOUND by seeds 0..{limit} in {seconds:.1} s"),
        };
        asked += u32::from(is_specified);
        println!("{place:>10} {:<24} {how}", format!("{mutant:?}"));
    }
    println!("{found} of {asked} planted bugs of section 13 found");
    assert_eq!(found, asked, "not all planted bugs were found");
}

/// The first seed that fails because of the planted bug: without it, the same scenario passes.
fn search_for(mutant: Mutant, mut seeds: Range<u64>) -> Option<(u64, String)> {
    while !seeds.is_empty() {
        let (failed, _) = search(seeds.clone(), Some(mutant));
        let (seed, violation) = failed.into_iter().next()?;
        match attempt(&scenario(seed, Some(mutant)), None).violation {
            None => return Some((seed, violation)),
            Some(real) => println!("seed {seed} fails without a planted bug: {real}"),
        }
        seeds.start = seed + 1;
    }
    None
}

/// The planted bug must show in one of these seeds.
fn check_found(mutant: Mutant, seeds: Range<u64>) {
    let found = search_for(mutant, seeds.clone());
    let (seed, violation) =
        found.unwrap_or_else(|| panic!("{mutant:?} was not found by seeds {seeds:?}"));
    println!("{mutant:?} found: seed {seed}: {violation}");
}

/// One test per bug that few seeds find, so that they run in parallel. `cargo xtask sim --mutants` has all bugs.
macro_rules! planted_bugs {
    ($($name:ident: $mutant:ident by $seeds:expr;)*) => {
        $(#[test]
        fn $name() {
            check_found(Mutant::$mutant, $seeds);
        })*
    };
}

planted_bugs! {
    finds_missing_write_lock: NoWriteLock by 0..50;
    finds_missing_read_lock: NoReadLock by 0..100;
    finds_missing_intent: NoIntent by 0..50;
    finds_ack_before_commit: AckBeforeCommit by 0..100;
    finds_ignored_witness: WitnessIgnored by 0..100;
    finds_flush_that_does_nothing: FlushNoop by 0..20;
    finds_stale_member_admitted: StaleAdmitted by 0..100;
    finds_payload_that_is_not_copied: NoPrivateCopy by 0..50;
    finds_intent_that_is_not_durable: IntentNotDurable by 0..50;
    finds_resolving_without_intent: ResolveWithoutIntent by 0..100;
    finds_fault_that_leaves_intent_out: IntentNotMerged by 0..100;
    finds_write_whose_own_regions_are_not_noted: OwnRegionsForgotten by 0..20;
}
