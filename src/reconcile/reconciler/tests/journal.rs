//! What the loop writes down: operations with their causes, drift with its reason, the last good revision.

use super::*;
use crate::model::journal::{Drift, Operation, OperationState};

/// `volume.db Create completed start x1`.
fn shown(handle: &Handle) -> Vec<String> {
    let shown = handle.operations().list().into_iter().map(|operation| {
        let Operation {
            object,
            action,
            state,
            cause,
            attempts,
            ..
        } = operation;
        let (state, cause) = (state.label(), cause.label());
        format!("{object} {action} {state} {cause} x{attempts}")
    });
    shown.collect()
}

fn drift<'a>(snapshot: &'a Snapshot, object: &str) -> Option<&'a Drift> {
    let mut drift = snapshot.status.drift.iter();
    drift.find(|drift| drift.object == object)
}

fn is_good(snapshot: &Snapshot, hash: &str) -> bool {
    let last_good = snapshot.status.revisions.last_good.as_ref();
    last_good.is_some_and(|revision| revision.hash == hash)
}

#[tokio::test]
async fn each_step_is_an_operation_and_a_change_by_others_is_drift() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
    let snapshot = until(&handle, |snapshot| is_good(snapshot, "hash1")).await;
    assert_eq!(snapshot.status.drift, []);
    let first = [
        "pool.a Open completed start x1",
        "pool.b Open completed start x1",
        "volume.db Create completed start x1",
        "volume.db Export completed start x1",
    ];
    assert_eq!(shown(&handle), first);

    let mut both = Case::new().wants("db", spec(&["a"]));
    both = both.wants("web", spec(&["a"]));
    handle.apply(config(both, 2));
    until(&handle, |snapshot| is_good(snapshot, "hash2")).await;
    let create = &handle.operations().list()[4];
    assert_eq!(create.object, "volume.web");
    assert_eq!(create.cause, crate::model::journal::Cause::Configuration);
    assert_eq!(create.revision.as_ref().unwrap().hash, "hash2");

    let exports = || {
        let db = volume_name("db");
        let observed = lock(&world.observed);
        observed.volumes[&db].export.is_some()
    };
    lock(&world.observed)
        .volumes
        .get_mut(&volume_name("db"))
        .expect("it is there")
        .export = None;
    handle.kick();
    while !exports() {
        tokio::task::yield_now().await;
    }
    until(&handle, |_| {
        let shown = shown(&handle);
        shown.last().unwrap() == "volume.db Export completed drift x1"
    })
    .await;
}

#[tokio::test]
async fn what_can_not_be_done_is_drift_with_the_reason_and_one_operation() {
    let world = World::new();
    *lock(&world.failing) = Some("Ensure {".to_owned());
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
    let failed = |snapshot: &Snapshot| {
        drift(snapshot, "volume.db").is_some_and(|drift| drift.reason == "NoSpace")
    };
    let snapshot = until(&handle, failed).await;
    let found = drift(&snapshot, "volume.db").unwrap();
    assert!(found.message.ends_with("pool \"a\" is full"), "{found:?}");
    assert!(!found.since.is_empty());
    assert_eq!(snapshot.status.revisions.last_good, None);
    handle.kick();
    let operation = |action: &str| {
        let mut operations = handle.operations().list().into_iter();
        operations
            .find(|operation| operation.action == action)
            .unwrap()
    };
    until(&handle, |_| operation("Create").attempts > 1).await;
    assert_eq!(operation("Create").errors, ["pool \"a\" is full"]);
    let skipped = operation("Export");
    assert_eq!(skipped.attempts, 0, "its turn never came");

    *lock(&world.failing) = None;
    handle.kick();
    let snapshot = until(&handle, |snapshot| is_good(snapshot, "hash1")).await;
    assert_eq!(drift(&snapshot, "volume.db"), None);
    assert_eq!(operation("Create").state, OperationState::Completed);
    assert_eq!(operation("Export").state, OperationState::Completed);
    assert_eq!(handle.operations().list().len(), 4, "{:?}", shown(&handle));
}

#[tokio::test]
async fn a_refused_configuration_is_pending_and_drift_until_it_is_taken_back() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
    until(&handle, |snapshot| is_good(snapshot, "hash1")).await;
    let refused = config(Case::new(), 2).revision();
    let report = "error[E0204]: no\n  --> a.toml:3".to_owned();
    handle.set_config_error(Some(report), Some(refused.clone()));
    let snapshot = until(&handle, |snapshot| drift(snapshot, "config").is_some()).await;
    let found = drift(&snapshot, "config").unwrap();
    assert!(found.message.ends_with("error[E0204]: no"), "{found:?}");
    assert_eq!(snapshot.status.revisions.pending, Some(refused));
    assert!(is_good(&snapshot, "hash1"), "what is in force is in place");
    handle.set_config_error(None, None);
    let snapshot = until(&handle, |snapshot| drift(snapshot, "config").is_none()).await;
    assert_eq!(snapshot.status.revisions.pending, None);
}

/// Since when the files are refused is known over a restart.
#[tokio::test]
async fn files_that_were_refused_before_a_restart_are_drift_since_then() {
    let handle = begin(&World::new());
    let since = std::collections::BTreeMap::from([("config".to_owned(), "t0".to_owned())]);
    handle.resume(crate::model::journal::Saved {
        drift_since: since,
        ..Default::default()
    });
    let refused = config(Case::new(), 2).revision();
    let good = config(Case::new().wants("db", spec(&["a"])), 1);
    handle.apply_last_good(good, "error[E0204]: no".to_owned(), refused.clone());
    let snapshot = until(&handle, |snapshot| is_good(snapshot, "hash1")).await;
    assert_eq!(drift(&snapshot, "config").expect("refused").since, "t0");
    assert_eq!(snapshot.status.revisions.pending, Some(refused));
}

/// What the engine does not know any more is not there, also while the loop has not looked yet.
#[tokio::test]
async fn a_purge_of_what_has_just_gone_finds_nothing() {
    let world = World::new();
    let handle = begin(&world);
    let mut wanted = Case::new().wants("db", spec(&["a"]));
    handle.apply(config(wanted, 1));
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
    wanted = Case::new();
    handle.apply(config(wanted, 2));
    until(&handle, |snapshot| snapshot.status.quarantine.len() == 1).await;
    *lock(&world.missing) = true;
    let purged = handle.purge("db@1".to_owned()).await;
    assert!(matches!(purged, Err(Refusal::NotFound(_))), "{purged:?}");
}
