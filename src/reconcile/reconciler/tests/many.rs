//! What a change costs depends on what it changes, not on how much there is; and what is over costs nothing.

use super::*;

const VOLUMES: usize = 1000;

fn many(change: impl FnOnce(&mut DesiredState)) -> Case {
    let name = |number: usize| volume_name(&format!("v{number:04}"));
    let volumes = (0..VOLUMES).map(|number| (name(number), spec(&["a"])));
    let mut case = Case::new();
    case.desired.volumes = volumes.collect();
    change(&mut case.desired);
    case
}

/// The engine is asked to do nothing to the other 999, and it does not look at the world a thousand times.
#[tokio::test]
async fn an_edit_of_one_volume_touches_no_other() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(many(|_| {}), 1));
    let is_done = |snapshot: &Snapshot, generation| {
        let status = &snapshot.status;
        let done = snapshot.settled && !snapshot.plan.has_changes();
        status.generation == generation && done && status.volumes.len() == VOLUMES
    };
    let started = until(&handle, |snapshot| is_done(snapshot, 1)).await;
    let passes = started.stats.passes_ok;
    assert!(passes < 50, "{passes} passes to start {VOLUMES} volumes");
    let before = lock(&world.done).len();
    assert_eq!(before, 2 + 2 * VOLUMES, "two pools, then create and export");

    let edit = |desired: &mut DesiredState| {
        let volume = desired.volumes.get_mut(&volume_name("v0500"));
        volume.expect("it is there").policy.intent_max = 64;
    };
    handle.apply(config(many(edit), 2));
    let edited = until(&handle, |snapshot| is_done(snapshot, 2)).await;
    let asked = lock(&world.done)[before..].to_vec();
    assert_eq!(asked, ["configure v0500"]);
    let passes = edited.stats.passes_ok - passes;
    assert!(passes <= 4, "{passes} passes for one edit");
}

fn passes(snapshot: &Snapshot) -> u64 {
    snapshot.stats.passes_ok + snapshot.stats.passes_failed
}

/// How many passes there are within a second in which nothing happens, once the wait after a failure is over.
async fn passes_at_rest(handle: &Handle) -> u64 {
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let before = passes(&handle.snapshot());
    tokio::time::sleep(Duration::from_secs(1)).await;
    passes(&handle.snapshot()) - before
}

#[tokio::test]
async fn what_failed_and_then_waits_for_something_else_is_not_looked_at_all_the_time() {
    let world = World::new();
    *lock(&world.failing) = Some("Ensure {".to_owned());
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
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
    let passes = passes_at_rest(&handle).await;
    assert!(passes <= 10, "{passes} passes");
}

#[tokio::test]
async fn the_failure_of_a_purge_that_nobody_wants_any_more_is_forgotten() {
    let world = World::new();
    *lock(&world.failing) = Some("Purge".to_owned());
    let mut applied = volume(&spec(&["a"])).applied;
    applied.removal.on_remove = crate::model::spec::OnRemove::Delete;
    applied.removal.quarantine_for = Duration::ZERO;
    lock(&world.observed).quarantine.push(ObservedQuarantine {
        id: "db@0".to_owned(),
        volume: volume_name("db"),
        uuid: VolumeId::generate(),
        removed_at_unix_seconds: 0,
        applied,
        allocated: Bytes(0),
    });
    let handle = begin(&world);
    handle.apply(config(Case::new(), 1));
    until(&handle, |snapshot| snapshot.stats.passes_failed > 0).await;
    // Somebody else has purged it.
    lock(&world.observed).quarantine.clear();
    world.changes.send_modify(|count| *count += 1);
    until(&handle, |snapshot| {
        snapshot.stats.passes_ok > 0 && !snapshot.plan.has_changes()
    })
    .await;
    let failed = handle.snapshot().stats.passes_failed;
    let passes = passes_at_rest(&handle).await;
    assert!(passes <= 10, "{passes} passes");
    assert_eq!(handle.snapshot().stats.passes_failed, failed);
}

/// A pool may come back without being opened anew: its disk answers again.
#[tokio::test]
async fn a_pool_that_is_found_well_again_is_no_failure_and_wakes_those_that_were_given_up() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
    *lock(&world.failing) = Some("Open".to_owned());
    let set = |problem: Option<crate::model::observed::Problem>| {
        let mut observed = lock(&world.observed);
        let pools = observed.pools.values_mut();
        pools.for_each(|pool| pool.problem.clone_from(&problem));
        drop(observed);
        world.changes.send_modify(|count| *count += 1);
    };
    set(Some(crate::model::observed::Problem {
        reason: "PoolError".to_owned(),
        message: "its disk does not answer".to_owned(),
    }));
    let failed = handle.snapshot().stats.passes_failed;
    until(&handle, |snapshot| snapshot.stats.passes_failed > failed).await;
    set(None);
    let ok = handle.snapshot().stats.passes_ok;
    until(&handle, |snapshot| snapshot.stats.passes_ok > ok).await;
}
