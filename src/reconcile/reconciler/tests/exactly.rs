//! Property: what a plan lists is what is done, step by step, and a saved status gives the same plan as the daemon.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::spec::{ExportSpec, OnRemove};
use crate::model::status::{NodeStatus, ReplicaState, ReplicaStatus};
use crate::reconcile::plan_against;
use crate::reconcile::step::Impact;
use crate::units::GIB;

const NAMES: &[&str] = &["db", "web", "logs", "mail"];

fn some_volume() -> impl Strategy<Value = VolumeSpec> {
    let pools = prop_oneof![Just(vec!["a"]), Just(vec!["b"]), Just(vec!["a", "b"])];
    let renamed = proptest::option::weighted(0.3, proptest::sample::select(NAMES));
    (pools, 1..4_u64, any::<[bool; 4]>(), renamed).prop_map(|(pools, size, choices, renamed)| {
        let mut volume = spec(&pools);
        volume.size = Bytes(size * GIB);
        volume.renamed_from = renamed.map(volume_name);
        let [exported, read_only, deleted, patient] = choices;
        if !exported {
            volume.export = ExportSpec::None;
        }
        volume.read_only = read_only;
        if deleted {
            volume.on_remove = OnRemove::Delete;
        }
        if patient {
            volume.policy.io_timeout = Duration::from_secs(20);
        }
        volume
    })
}

fn some_files() -> impl Strategy<Value = DesiredState> {
    let volumes = proptest::collection::btree_map(
        proptest::sample::select(NAMES).prop_map(volume_name),
        some_volume(),
        0..4,
    );
    (volumes, proptest::sample::select(vec![0, 1, 9])).prop_map(|(volumes, max_removals)| {
        let mut desired = Case::new().desired;
        desired.volumes = volumes;
        desired.safety.max_removals = max_removals;
        desired
    })
}

/// Every replica that a volume has is there and in sync.
fn all_in_sync(world: &World) {
    for (index, volume) in lock(&world.observed).volumes.values_mut().enumerate() {
        let pools = volume.applied.replicas.iter();
        let id = |pool: &crate::model::PoolName| {
            let number = (index as u128) << 8 | u128::from(pool.as_str().as_bytes()[0]);
            Some(crate::model::ReplicaId::from_uuid(uuid::Uuid::from_u128(
                number,
            )))
        };
        let replicas =
            pools.map(|pool| ReplicaStatus::new(pool.clone(), id(pool), ReplicaState::InSync));
        volume.replicas = replicas.collect();
        let ids = [VolumeId::from_uuid(uuid::Uuid::from_u128(
            1 + index as u128,
        ))];
        volume.ids = ids.into();
    }
    world.changes.send_modify(|count| *count += 1);
}

async fn put_in_force(handle: &Handle, desired: DesiredState, generation: u64) {
    let case = Case {
        desired,
        ..Case::new()
    };
    handle.apply(config(case, generation));
    until(handle, |snapshot| {
        let is_it = snapshot.status.generation == generation;
        is_it && snapshot.settled && !snapshot.plan.has_changes()
    })
    .await;
}

/// Steps by volume, in order; purges under the entry's name.
type Steps = BTreeMap<String, Vec<(String, Impact)>>;

fn listed(plan: &Plan) -> Steps {
    let mut steps = Steps::new();
    for (name, volume) in &plan.volumes {
        for step in &volume.steps {
            let own = steps.entry(name.to_string()).or_default();
            own.push((format!("{:?}", step.action), step.impact));
        }
    }
    steps
}

fn done(tasks: &[Task], plan: &Plan) -> Steps {
    let mut steps = Steps::new();
    for task in tasks {
        if let Task::Volume(name, action) = task {
            let planned = plan
                .volumes
                .get(name)
                .into_iter()
                .flat_map(|volume| &volume.steps);
            let impact = planned
                .filter(|step| step.action == *action)
                .map(|step| step.impact)
                .next();
            let own = steps.entry(name.to_string()).or_default();
            own.push((
                format!("{action:?}"),
                impact.unwrap_or(Impact::DestroysData),
            ));
        }
    }
    steps
}

async fn exercise(before: DesiredState, after: DesiredState) -> Result<(), TestCaseError> {
    let world = World::new();
    let handle = begin(&world);
    put_in_force(&handle, before.clone(), 1).await;
    all_in_sync(&world);
    let snapshot = until(&handle, |snapshot| {
        let mut volumes = snapshot.status.volumes.iter();
        volumes.all(|volume| volume.replicas.iter().all(|replica| replica.uuid.is_some()))
            && !snapshot.plan.has_changes()
    })
    .await;

    let report = handle.plan(Some(after.clone())).await.unwrap();
    let saved = serde_json::to_string(&*snapshot.status).unwrap();
    let saved: NodeStatus = serde_json::from_str(&saved).unwrap();
    let elsewhere = plan_against(&after, &saved, 0).unwrap();
    prop_assert_eq!(&elsewhere, &report, "a saved status gives another plan");

    let observed = lock(&world.observed).clone();
    let mut removals = Removals::default();
    removals.note(&before, &observed, 1);
    removals.note(&after, &observed, 2);
    let planned = plan(&after, &observed, &removals);
    let shown = report
        .changes
        .iter()
        .filter(|change| change.object.starts_with("volume."));
    let shown: Vec<Impact> = shown
        .flat_map(|change| &change.steps)
        .map(|step| step.impact)
        .collect();
    let listed = listed(&planned);
    let impacts: Vec<Impact> = listed
        .values()
        .flatten()
        .map(|(_, impact)| *impact)
        .collect();
    prop_assert_eq!(
        shown,
        impacts,
        "the report has the plan's steps, each with what it costs"
    );

    lock(&world.tasks).clear();
    put_in_force(&handle, after, 2).await;
    let tasks = lock(&world.tasks).clone();
    prop_assert_eq!(done(&tasks, &planned), listed, "{}", report.text());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_what_is_done((before, after) in (some_files(), some_files())) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let exercised = tokio::time::timeout(Duration::from_secs(60), exercise(before, after));
            exercised.await.map_err(|_| TestCaseError::fail("it never comes to rest"))?
        })?;
    }
}
