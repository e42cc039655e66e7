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
