//! That the loop rests while there is nothing that it could do.

use super::*;
use crate::model::observed::Problem;
use crate::reconcile::plan::fixture::pool_name;

/// Passes that are made in a second.
async fn passes(handle: &Handle) -> u64 {
    let count = || {
        let stats = &handle.snapshot().stats;
        stats.passes_ok + stats.passes_failed
    };
    let before = count();
    tokio::time::sleep(Duration::from_secs(1)).await;
    count() - before
}

/// Those that retries of a pool cause, each later than the one before; a loop that never rests makes a hundred.
const PASSES_MAX: u64 = 40;

/// A configuration under which what failed is tried again soon.
fn impatient(mut case: Case, generation: u64) -> Config {
    case.desired.policy.retry.initial_wait = Duration::from_millis(1);
    config(case, generation)
}

#[tokio::test]
async fn a_failure_that_can_not_be_tried_again_now_is_no_reason_to_look_around_all_the_time() {
    let world = World::new();
    *lock(&world.failing) = Some("Ensure {".to_owned());
    let handle = begin(&world);
    handle.apply(impatient(Case::new().wants("db", spec(&["a"])), 1));
    until(&handle, |snapshot| is(snapshot, "db", "CreatingFailed")).await;
    *lock(&world.failing) = Some("Open".to_owned());
    let problem = Problem {
        reason: "PathMissing".to_owned(),
        message: "it is gone".to_owned(),
    };
    let break_pool = |observed: &mut Observed| {
        let pool = observed.pools.get_mut(&pool_name("a"));
        pool.expect("it is open").problem = Some(problem);
    };
    break_pool(&mut lock(&world.observed));
    world.changes.send_modify(|count| *count += 1);
    let passes = passes(&handle).await;
    assert!(passes <= PASSES_MAX, "{passes} passes");
}

#[tokio::test]
async fn a_purge_that_failed_is_forgotten_with_its_entry() {
    let world = World::new();
    *lock(&world.failing) = Some("Purge".to_owned());
    let handle = begin(&world);
    let mut doomed = spec(&["a"]);
    doomed.on_remove = crate::model::spec::OnRemove::Delete;
    doomed.quarantine_for = Duration::ZERO;
    lock(&world.observed).at_unix_seconds = 10;
    handle.apply(impatient(Case::new().wants("db", doomed), 1));
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
    handle.apply(impatient(Case::new(), 2));
    let failed = |snapshot: &Snapshot| snapshot.stats.passes_failed > 0;
    until(&handle, failed).await;
    lock(&world.observed).quarantine.clear();
    world.changes.send_modify(|count| *count += 1);
    let passes = passes(&handle).await;
    assert!(passes <= PASSES_MAX, "{passes} passes");
    let snapshot = handle.snapshot();
    let last_good = snapshot.status.revisions.last_good.as_ref();
    assert_eq!(last_good.and_then(|good| good.generation), Some(2));
}

#[tokio::test]
async fn what_failed_and_then_waits_for_somebody_is_not_looked_at_all_the_time() {
    let world = World::new();
    *lock(&world.failing) = Some("Ensure {".to_owned());
    let handle = begin(&world);
    handle.apply(impatient(Case::new().wants("db", spec(&["a"])), 1));
    until(&handle, |snapshot| is(snapshot, "db", "CreatingFailed")).await;
    // Data comes to light of which nobody knows whether it is meant: nothing is done, whatever the time is.
    let mut two = volume(&spec(&["a"]));
    two.ids.insert(VolumeId::generate());
    two.serving = false;
    lock(&world.observed).volumes.insert(volume_name("db"), two);
    world.changes.send_modify(|count| *count += 1);
    let is_blocked = |snapshot: &Snapshot| {
        let conditions = of(snapshot, "db").map(|volume| &volume.conditions);
        conditions.is_some_and(|all| all.iter().any(|known| known.reason == "AmbiguousVolume"))
    };
    until(&handle, is_blocked).await;
    let passes = passes(&handle).await;
    assert!(passes <= PASSES_MAX, "{passes} passes");
}

/// A pool may come back without being opened anew: its disk answers again.
#[tokio::test]
async fn a_pool_that_is_found_well_again_is_no_failure_and_wakes_those_that_were_given_up() {
    let world = World::new();
    *lock(&world.failing) = Some("Ensure {".to_owned());
    let handle = begin(&world);
    let mut case = Case::new().wants("db", spec(&["a"]));
    case.desired.policy.retry.max_attempts = 1;
    handle.apply(config(case, 1));
    until(&handle, |snapshot| is(snapshot, "db", "Error")).await;
    *lock(&world.failing) = Some("Open".to_owned());
    let set = |problem: Option<Problem>| {
        let mut observed = lock(&world.observed);
        let pool = observed.pools.get_mut(&pool_name("a"));
        pool.expect("it is open").problem = problem;
        drop(observed);
        world.changes.send_modify(|count| *count += 1);
    };
    let failed = handle.snapshot().stats.passes_failed;
    set(Some(Problem {
        reason: "PoolError".to_owned(),
        message: "its disk does not answer".to_owned(),
    }));
    until(&handle, |snapshot| snapshot.stats.passes_failed > failed).await;
    let ok = handle.snapshot().stats.passes_ok;
    set(None);
    until(&handle, |snapshot| {
        is(snapshot, "db", "Attached") && snapshot.stats.passes_ok > ok
    })
    .await;
}
