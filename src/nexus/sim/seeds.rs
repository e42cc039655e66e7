//! Many seeds, and planted bugs that they must find.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::run::run_seed;
use crate::nexus::Mutant;

/// A number from the environment, for `cargo xtask sim`.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect("the setting is a number"),
        Err(_) => default,
    }
}

/// What `cargo xtask sim --seeds N --from S` runs; without it, 200 seeds.
#[test]
fn seeds_keep_the_guarantees() {
    let from = setting("VOLUND_SIM_FROM", 0);
    let until = from + setting("VOLUND_SIM_SEEDS", 200);
    let next = AtomicU64::new(from);
    let failed = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= until {
                return;
            }
            let result = std::panic::catch_unwind(|| run_seed(seed, None));
            let violation = match result {
                Ok(Ok(())) => continue,
                Ok(Err(violation)) => violation,
                Err(_) => format!("seed {seed}: an assertion failed"),
            };
            println!("{violation}\nreplay: cargo xtask sim --from {seed} --seeds 1");
            failed.lock().unwrap().push(seed);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "violations in seeds {failed:?}");
}

/// The planted bug must show in one of these seeds.
fn check_found(mutant: Mutant, seeds: Range<u64>) {
    for seed in seeds.clone() {
        let result = std::panic::catch_unwind(|| run_seed(seed, Some(mutant)));
        let found = match result {
            Ok(Ok(())) => continue,
            Ok(Err(violation)) => violation.lines().next().unwrap_or_default().to_owned(),
            Err(_) => format!("seed {seed}: an assertion failed"),
        };
        println!("{mutant:?} found: {found}");
        return;
    }
    panic!("{mutant:?} was not found by seeds {seeds:?}");
}

/// One test per bug, so that they run in parallel.
macro_rules! planted_bugs {
    ($($name:ident: $mutant:ident by $seeds:expr;)*) => {
        $(#[test]
        fn $name() {
            check_found(Mutant::$mutant, $seeds);
        })*

        #[test]
        fn every_planted_bug_has_its_test() {
            let tested = [$(Mutant::$mutant),*];
            assert!(Mutant::ALL.iter().all(|mutant| tested.contains(mutant)));
        }
    };
}

planted_bugs! {
    finds_missing_write_lock: NoWriteLock by 0..20;
    finds_missing_read_lock: NoReadLock by 0..100;
    finds_missing_resolve: NoResolve by 0..200;
    finds_resolve_that_forgets: ResolveWithoutWriting by 0..100;
    finds_ack_before_commit: AckBeforeCommit by 0..50;
    finds_ack_against_the_table_in_memory: AckAgainstRam by 0..50;
    finds_ignored_witness: WitnessIgnored by 0..200;
    finds_flush_that_does_nothing: FlushNoop by 0..5;
    finds_flush_that_is_retried: FlushRetried by 0..100;
    finds_unclean_stop_taken_for_clean: UncleanIgnored by 0..200;
    finds_clean_flag_left_standing: CleanKept by 0..100;
    finds_stale_member_admitted: StaleAdmitted by 0..200;
    finds_payload_that_is_not_copied: NoPrivateCopy by 0..20;
    finds_failed_write_forgotten: FailedWriteForgotten by 400..800;
}
