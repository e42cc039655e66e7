//! The loop over a world in memory: what it does, in which order, and what it says about it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use tokio::sync::Semaphore;

use super::*;
use crate::model::VolumeId;
use crate::model::observed::{
    AppliedVolume, ObservedExport, ObservedPool, ObservedQuarantine, ObservedVolume, RemovalPolicy,
};
use crate::model::spec::VolumeSpec;
use crate::model::status::{Truth, VolumeStatus};
use crate::reconcile::apply::{Failure, Job};
use crate::reconcile::plan::fixture::{Case, spec, volume_name};
use crate::reconcile::step::{PoolAction, VolumeAction};
use crate::units::Bytes;

mod exactly;
mod journal;
mod many;

/// An engine that has everything in memory.
#[derive(Clone)]
struct World {
    observed: Arc<Mutex<Observed>>,
    done: Arc<Mutex<Vec<String>>>,
    /// The same, as it was asked for.
    tasks: Arc<Mutex<Vec<Task>>>,
    /// Calls that contain this text fail.
    failing: Arc<Mutex<Option<String>>>,
    /// Calls about this volume wait for a permit.
    hung: VolumeName,
    gate: Arc<Semaphore>,
    changes: watch::Sender<u64>,
}

impl World {
    fn new() -> Self {
        Self {
            observed: Arc::default(),
            done: Arc::default(),
            tasks: Arc::default(),
            failing: Arc::default(),
            hung: volume_name("hung"),
            gate: Arc::new(Semaphore::new(0)),
            changes: watch::Sender::new(0),
        }
    }

    fn work(&self) -> Work {
        let (observing, executing) = (self.clone(), self.clone());
        Work {
            observe: Arc::new(move || -> Job<Observed> {
                let observed = lock(&observing.observed).clone();
                Box::pin(async move { observed })
            }),
            execute: Arc::new(move |task| -> Job<Result<(), Failure>> {
                let world = executing.clone();
                Box::pin(async move { world.execute(task).await })
            }),
            changes: self.changes.subscribe(),
        }
    }

    async fn execute(&self, task: Task) -> Result<(), Failure> {
        if matches!(&task, Task::Volume(name, _) if *name == self.hung) {
            let permit = self.gate.acquire().await;
            permit.expect("the gate is never closed").forget();
        }
        let text = format!("{task:?}");
        let failing = lock(&self.failing).clone();
        if failing.is_some_and(|failing| text.contains(&failing)) {
            return Err(Failure::new("NoSpace", "pool \"a\" is full"));
        }
        lock(&self.tasks).push(task.clone());
        self.apply(task);
        Ok(())
    }

    fn apply(&self, task: Task) {
        let mut observed = lock(&self.observed);
        let word = match task {
            Task::Pool(name, PoolAction::Open(spec)) => {
                let pool = ObservedPool {
                    spec,
                    id: None,
                    problem: None,
                    capacity: Bytes(0),
                    allocated: Bytes(0),
                    committed: Bytes(0),
                    available: Bytes(0),
                };
                observed.pools.insert(name.clone(), pool);
                format!("open {name}")
            }
            Task::Pool(name, PoolAction::Close) => {
                observed.pools.remove(&name);
                format!("close {name}")
            }
            Task::Volume(name, action) => apply_to_volume(&mut observed, &name, action),
            Task::Restore { entry, name } => restore(&mut observed, &entry, &name),
            Task::Inject(name, pool, _) => format!("inject {name} {pool}"),
            Task::Purge(entry) => {
                observed.quarantine.retain(|known| known.id != entry);
                format!("purge {entry}")
            }
            Task::PurgeOrphan(id) => {
                observed
                    .volumes
                    .retain(|_, volume| volume.ids.iter().all(|known| known.uuid() != id));
                format!("purge orphan {id}")
            }
            // Every configuration brings one.
            Task::Node(_) => return,
        };
        lock(&self.done).push(word);
    }

    fn done(&self) -> String {
        lock(&self.done).join(", ")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn volume(spec: &VolumeSpec) -> ObservedVolume {
    ObservedVolume {
        ids: BTreeSet::from([VolumeId::from_uuid(uuid::Uuid::from_u128(1))]),
        applied: AppliedVolume {
            size: spec.size,
            block_size: spec.block_size,
            thin: Some(spec.thin),
            replicas: spec.replicas.iter().cloned().collect(),
            members: spec.replicas.len(),
            removal: RemovalPolicy {
                on_remove: spec.on_remove,
                quarantine_for: spec.quarantine_for,
            },
            policy: spec.policy.clone(),
        },
        known: true,
        serving: true,
        problem: None,
        export: None,
        given_up: None,
        nexus_generation: 1,
        replicas: Vec::new(),
        injected: std::collections::BTreeMap::new(),
        unresolved: Bytes(0),
        resolved: Bytes(0),
        scrub: None,
    }
}

fn apply_to_volume(observed: &mut Observed, name: &VolumeName, action: VolumeAction) -> String {
    match action {
        VolumeAction::Ensure { spec, creates } => {
            observed.volumes.insert(name.clone(), volume(&spec));
            format!("{} {name}", if creates { "create" } else { "assemble" })
        }
        VolumeAction::EnsureExport { export, read_only } => {
            let there = observed.volumes.get_mut(name).expect("it was made");
            there.export = Some(ObservedExport {
                spec: export,
                read_only,
                in_use: false,
                address: "vhost-user".to_owned(),
                problem: None,
            });
            format!("export {name}")
        }
        VolumeAction::RemoveExport => {
            observed.volumes.get_mut(name).expect("it is there").export = None;
            format!("unexport {name}")
        }
        VolumeAction::Quarantine => {
            let gone = observed.volumes.remove(name).expect("it is there");
            observed.quarantine.push(ObservedQuarantine {
                id: format!("{name}@1"),
                volume: name.clone(),
                uuid: VolumeId::from_uuid(uuid::Uuid::from_u128(1)),
                removed_at_unix_seconds: 1,
                applied: gone.applied,
                allocated: Bytes(0),
            });
            format!("quarantine {name}")
        }
        VolumeAction::Restore { entry } => restore(observed, &entry, name),
        VolumeAction::Configure(policy) => {
            let there = observed.volumes.get_mut(name).expect("it is there");
            there.applied.policy = policy;
            format!("configure {name}")
        }
        VolumeAction::AddReplica { pool } => {
            let there = observed.volumes.get_mut(name).expect("it is there");
            there.applied.replicas.insert(pool.clone());
            there.applied.members += 1;
            format!("add {pool} to {name}")
        }
        VolumeAction::Rename { from } => {
            let mut renamed = observed.volumes.remove(&from).expect("it is there");
            (renamed.serving, renamed.export) = (false, None);
            observed.volumes.insert(name.clone(), renamed);
            format!("rename {from} to {name}")
        }
        VolumeAction::SetPolicy(policy) => {
            let there = observed.volumes.get_mut(name).expect("it is there");
            there.applied.removal = policy;
            format!("set policy of {name}")
        }
        VolumeAction::Grow { size } => {
            let there = observed.volumes.get_mut(name).expect("it is there");
            there.applied.size = size;
            format!("grow {name}")
        }
        VolumeAction::RemoveReplica { pool } => {
            let there = observed.volumes.get_mut(name).expect("it is there");
            there.applied.replicas.remove(&pool);
            there.applied.members -= 1;
            there.replicas.retain(|replica| replica.pool != pool);
            format!("remove {pool} from {name}")
        }
    }
}

fn restore(observed: &mut Observed, entry: &str, name: &VolumeName) -> String {
    let index = observed
        .quarantine
        .iter()
        .position(|known| known.id == entry);
    let known = observed.quarantine.remove(index.expect("it is there"));
    let mut stopped = volume(&spec(&["a"]));
    stopped.applied = known.applied;
    stopped.serving = false;
    observed.volumes.insert(name.clone(), stopped);
    format!("restore {entry} as {name}")
}

fn times() -> Times {
    Times {
        monotonic: || tokio::time::Instant::now().into_std(),
        wall: || UNIX_EPOCH,
    }
}

fn begin(world: &World) -> Handle {
    start(&"n1".parse().unwrap(), world.work(), times())
}

fn config(case: Case, generation: u64) -> Config {
    Config {
        commit: None,
        desired: case.desired,
        generation,
        hash: format!("hash{generation}"),
        applied_at: "1970-01-01T00:00:00Z".to_owned(),
    }
}

/// Waits for a snapshot; the runner's deadline is the only one.
async fn until(handle: &Handle, what: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut snapshots = handle.snapshots();
    let found = snapshots.wait_for(|snapshot| what(snapshot)).await;
    found.expect("the reconciler runs").clone()
}

fn of<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a VolumeStatus> {
    let mut volumes = snapshot.status.volumes.iter();
    volumes.find(|volume| volume.name.as_str() == name)
}

fn is(snapshot: &Snapshot, name: &str, state: &str) -> bool {
    of(snapshot, name).is_some_and(|volume| volume.state == state)
}

#[tokio::test]
async fn a_configuration_becomes_reality_and_says_so() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 5));
    let snapshot = until(&handle, |snapshot| {
        is(snapshot, "db", "Attached") && snapshot.settled
    })
    .await;
    assert_eq!(world.done(), "open a, open b, create db, export db");
    let ready = &of(&snapshot, "db").unwrap().conditions[0];
    assert_eq!((ready.kind.as_str(), ready.status), ("Ready", Truth::True));
    assert_eq!(ready.observed_generation, 5);
    assert!(!snapshot.plan.has_changes(), "{:?}", snapshot.plan);
    let states: Vec<String> = handle
        .events()
        .since(0)
        .into_iter()
        .filter(|event| event.message.contains("->"))
        .map(|event| event.message)
        .collect();
    assert_eq!(
        states,
        [
            "pending -> creating",
            "creating -> available",
            "available -> attaching",
            "attaching -> attached"
        ]
    );
}

#[tokio::test]
async fn a_failure_is_a_condition_and_is_tried_again() {
    let world = World::new();
    *lock(&world.failing) = Some("Ensure {".to_owned());
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
    let snapshot = until(&handle, |snapshot| is(snapshot, "db", "CreatingFailed")).await;
    let ready = &of(&snapshot, "db").unwrap().conditions[0];
    assert_eq!(
        (ready.status, ready.reason.as_str()),
        (Truth::False, "NoSpace")
    );
    assert!(snapshot.stats.passes_failed > 0);

    *lock(&world.failing) = None;
    handle.kick();
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
}

/// After `max_attempts` nothing is tried any more, whatever else happens, until somebody asks.
#[tokio::test]
async fn what_failed_too_often_rests_until_reconcile_is_asked_for() {
    let world = World::new();
    *lock(&world.failing) = Some("Ensure {".to_owned());
    let handle = begin(&world);
    let mut case = Case::new().wants("db", spec(&["a"]));
    let (retry, millisecond) = (&mut case.desired.policy.retry, Duration::from_millis(1));
    (retry.max_attempts, retry.initial_wait, retry.max_wait) = (3, millisecond, millisecond);
    handle.apply(config(case, 1));
    let snapshot = until(&handle, |snapshot| is(snapshot, "db", "Error")).await;
    let ready = &of(&snapshot, "db").unwrap().conditions[0];
    assert!(
        ready.message.contains("given up after 3 attempts"),
        "{ready:?}"
    );

    *lock(&world.failing) = None;
    for _ in 0..20 {
        world.changes.send_modify(|count| *count += 1);
        tokio::time::sleep(2 * millisecond).await;
    }
    assert!(is(&handle.snapshot(), "db", "Error"));
    assert_eq!(world.done(), "open a, open b");
    handle.kick();
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
}

#[tokio::test]
async fn a_hung_volume_holds_up_no_other() {
    let world = World::new();
    let handle = begin(&world);
    let case = Case::new()
        .wants("hung", spec(&["a"]))
        .wants("db", spec(&["b"]));
    handle.apply(config(case, 1));
    let snapshot = until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
    assert!(is(&snapshot, "hung", "Creating"));
    assert!(!snapshot.settled);
    world.gate.add_permits(2);
    until(&handle, |snapshot| {
        is(snapshot, "hung", "Attached") && snapshot.settled
    })
    .await;
}

#[tokio::test]
async fn a_table_that_goes_and_comes_back_keeps_its_data() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
    lock(&world.done).clear();
    handle.apply(config(Case::new(), 2));
    until(&handle, |snapshot| snapshot.status.quarantine.len() == 1).await;
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 3));
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
    assert_eq!(
        world.done(),
        "unexport db, quarantine db, restore db@1 as db, assemble db, export db"
    );
}

#[tokio::test]
async fn removals_past_the_limit_wait_for_approval_by_the_plans_id() {
    let world = World::new();
    let handle = begin(&world);
    let both = Case::new()
        .wants("one", spec(&["a"]))
        .wants("two", spec(&["a"]));
    handle.apply(config(both, 1));
    until(&handle, |s| {
        is(s, "one", "Attached") && is(s, "two", "Attached")
    })
    .await;

    let foreseen = handle.plan(Some(Case::new().desired)).await.unwrap();
    assert!(foreseen.needs_approval);
    handle.apply(config(Case::new(), 2));
    let snapshot = until(&handle, |snapshot| snapshot.plan.needs_approval).await;
    assert_eq!(
        snapshot.plan.id, foreseen.id,
        "the id is known before the change"
    );
    assert!(matches!(
        handle.approve("no".to_owned()).await,
        Err(Refusal::NotFound(_))
    ));
    let names = handle.approve(foreseen.id).await.unwrap();
    assert_eq!(names.len(), 2);
    until(&handle, |snapshot| snapshot.status.quarantine.len() == 2).await;
}

#[tokio::test]
async fn a_stop_waits_for_what_is_under_way_and_starts_nothing_new() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("hung", spec(&["a"])), 1));
    until(&handle, |snapshot| is(snapshot, "hung", "Creating")).await;
    let stopper = handle.clone();
    let stopping = tokio::spawn(async move { stopper.stop().await });
    tokio::task::yield_now().await;
    assert!(!stopping.is_finished());
    world.gate.add_permits(1);
    stopping.await.unwrap();
    assert_eq!(
        world.done(),
        "open a, open b, create hung",
        "the export is not made any more"
    );
    assert_eq!(handle.plan(None).await, Err(Refusal::Stopping));
}

#[tokio::test]
async fn a_change_that_fails_holds_up_neither_the_others_nor_the_volume() {
    let world = World::new();
    let handle = begin(&world);
    handle.apply(config(Case::new().wants("db", spec(&["a"])), 1));
    until(&handle, |snapshot| is(snapshot, "db", "Attached")).await;
    let failed = |snapshot: &Snapshot| {
        let volume = of(snapshot, "db").expect("it is there");
        let mut conditions = volume.conditions.iter();
        conditions.any(|condition| condition.kind == "ChangeFailed")
    };
    *lock(&world.failing) = Some("AddReplica".to_owned());
    let mut wanted = spec(&["a", "b"]);
    wanted.policy.intent_max = 64;
    handle.apply(config(Case::new().wants("db", wanted), 2));
    let snapshot = until(&handle, failed).await;
    assert!(world.done().contains("configure db"), "{}", world.done());
    let ready = &of(&snapshot, "db").expect("it is there").conditions[0];
    assert_eq!((ready.kind.as_str(), ready.status), ("Ready", Truth::True));

    *lock(&world.failing) = None;
    handle.kick();
    until(&handle, |snapshot| !failed(snapshot)).await;
    assert!(world.done().contains("add b to db"), "{}", world.done());
}
