//! Copies come and go in a safe order, whatever is asked for and whatever is there.

use std::collections::BTreeMap;

use super::super::fixture::{self, Case, applied, pool_name, running, spec, volume_name, words};
use super::super::*;
use crate::model::observed::{ObservedVolume, Problem};
use crate::model::status::{ReplicaState, ReplicaStatus};
use crate::reconcile::step::{Impact, VolumePlan};
use crate::units::{Bytes, GIB};

const POOLS: [&str; 3] = ["a", "b", "c"];

fn replica(pool: &str, state: ReplicaState) -> ReplicaStatus {
    ReplicaStatus {
        state,
        ..fixture::in_sync(pool)
    }
}

/// A running volume with these copies.
fn volume(copies: &[(&str, ReplicaState)]) -> ObservedVolume {
    let pools: Vec<&str> = copies.iter().map(|(pool, _)| *pool).collect();
    let mut volume = running(&pools);
    volume.replicas = copies
        .iter()
        .map(|(pool, state)| replica(pool, *state))
        .collect();
    volume
}

/// One node with the pools a, b and c.
fn case() -> Case {
    Case::new().with(|case| {
        let spec = fixture::pool_spec("c");
        case.desired.pools.insert(pool_name("c"), spec.clone());
        let mut observed = case.observed.pools[&pool_name("a")].clone();
        observed.spec = spec;
        case.observed.pools.insert(pool_name("c"), observed);
    })
}

fn offline(case: &mut Case, pool: &str) {
    let pool = case.observed.pools.get_mut(&pool_name(pool));
    pool.expect("it is there").problem = Some(Problem {
        reason: "PathMissing".to_owned(),
        message: "gone".to_owned(),
    });
}

use ReplicaState::{Absent, Blank, InSync, Rebuilding, Stale};

#[test]
fn a_pool_that_is_listed_gets_a_replica() {
    let plan = case()
        .wants("db", spec(&["a", "b", "c"]))
        .has("db", volume(&[("a", InSync)]))
        .check("db", "add b add c");
    let steps = &plan.volumes[&volume_name("db")].steps;
    assert!(steps.iter().all(|step| step.impact == Impact::None));
}

#[test]
fn a_replica_is_added_once_its_pool_is_online() {
    case()
        .wants("db", spec(&["a", "b"]))
        .has("db", volume(&[("a", InSync)]))
        .with(|case| offline(case, "b"))
        .check("db", "ChangePending/ReplicaAdditionWaiting");
}

#[test]
fn a_replica_that_is_dropped_goes_when_the_others_are_in_sync() {
    let plan = case()
        .wants("db", spec(&["a"]))
        .has("db", volume(&[("a", InSync), ("b", InSync)]))
        .check("db", "remove b");
    let steps = &plan.volumes[&volume_name("db")].steps;
    assert_eq!(steps[0].impact, Impact::DegradesRedundancy);
    for state in [Stale, Blank, Rebuilding, Absent] {
        case()
            .wants("db", spec(&["a"]))
            .has("db", volume(&[("a", state), ("b", InSync)]))
            .check("db", "ChangePending/ReplicaRemovalWaiting");
    }
}

#[test]
fn a_replica_on_an_offline_pool_may_go_when_the_others_are_in_sync() {
    case()
        .wants("db", spec(&["a"]))
        .has("db", volume(&[("a", InSync), ("b", Absent)]))
        .with(|case| offline(case, "b"))
        .check("db", "remove b");
}

#[test]
fn replacing_is_adding_then_removing() {
    let plan = case()
        .wants("db", spec(&["a", "c"]))
        .has("db", volume(&[("a", InSync), ("b", Absent)]))
        .check("db", "add c ChangePending/ReplicaRemovalWaiting");
    let message = &plan.volumes[&volume_name("db")].blocked[0].message;
    assert!(
        message.contains("keeps its replica in \"b\"")
            && message.contains("\"c\" is not there yet"),
        "{message}"
    );
    case()
        .wants("db", spec(&["a", "c"]))
        .has(
            "db",
            volume(&[("a", InSync), ("b", Absent), ("c", Rebuilding)]),
        )
        .check("db", "ChangePending/ReplicaRemovalWaiting");
    case()
        .wants("db", spec(&["a", "c"]))
        .has("db", volume(&[("a", InSync), ("b", Absent), ("c", InSync)]))
        .check("db", "remove b");
}

#[test]
fn a_volume_has_at_most_sixteen_members() {
    let mut full = volume(&[("a", InSync), ("b", InSync)]);
    full.applied.members = 16;
    let plan = case()
        .wants("db", spec(&["a", "b", "c"]))
        .has("db", full)
        .plan();
    let found = words(&plan, "db");
    assert!(
        found.starts_with("ChangePending/ReplicaAdditionWaiting"),
        "{found}"
    );
}

#[test]
fn members_that_nobody_knows_are_told_and_left_alone() {
    let mut volume = volume(&[("a", InSync)]);
    volume.applied.members = 2;
    case()
        .wants("db", spec(&["a"]))
        .has("db", volume)
        .check("db", "ChangePending/ReplicaUnknown");
}

#[test]
fn a_larger_size_and_another_policy_change_a_running_volume() {
    let mut wanted = spec(&["a"]);
    wanted.size = Bytes(2 * GIB);
    wanted.policy.intent_max = 64;
    case()
        .wants("db", wanted.clone())
        .has("db", volume(&[("a", InSync)]))
        .check("db", "configure grow 2GiB");
    // One that does not run is opened as it is, and changes then, in the same plan.
    let mut stopped = volume(&[("a", InSync), ("b", InSync)]);
    stopped.serving = false;
    stopped.export = None;
    let plan = case().wants("db", wanted).has("db", stopped).check(
        "db",
        "open grow 2GiB export ChangePending/ReplicaRemovalWaiting",
    );
    let VolumeAction::Ensure { spec, .. } = &plan.volumes[&volume_name("db")].steps[0].action
    else {
        panic!("the first step opens the volume");
    };
    assert_eq!((spec.size, spec.policy.intent_max), (Bytes(GIB), 64));
    assert_eq!(spec.replicas, [pool_name("a"), pool_name("b")]);
}

#[test]
fn data_that_comes_back_from_quarantine_is_opened_with_the_copies_that_it_has() {
    let plan = case()
        .wants("db", spec(&["b"]))
        .has_quarantined(super::quarantined("db", 20, &["a"]))
        .check(
            "db",
            "restore db@20 open add b export ChangePending/ReplicaRemovalWaiting",
        );
    let VolumeAction::Ensure { spec, creates } = &plan.volumes[&volume_name("db")].steps[1].action
    else {
        panic!("the second step opens the volume");
    };
    assert_eq!(
        (spec.replicas.as_slice(), creates),
        (&[pool_name("a")][..], &false)
    );
}

/// Every way in which three pools may hold a copy or not.
fn every_volume() -> Vec<ObservedVolume> {
    let states = [
        None,
        Some(InSync),
        Some(Stale),
        Some(Rebuilding),
        Some(Blank),
        Some(Absent),
    ];
    let mut volumes = Vec::new();
    for number in 0..states.len().pow(3) {
        let state = |place: u32| states[number / states.len().pow(place) % states.len()];
        let copies = POOLS
            .iter()
            .zip(0..)
            .filter_map(|(pool, place)| Some((*pool, state(place)?)));
        let copies: Vec<_> = copies.collect();
        // Rule I7: there is always one that holds everything.
        if copies.iter().any(|(_, state)| *state == InSync) {
            volumes.push(volume(&copies));
        }
    }
    volumes
}

/// Every set of at least one pool.
fn every_choice() -> Vec<Vec<&'static str>> {
    let sets = 1..1 << POOLS.len();
    sets.map(|set| {
        let chosen = POOLS
            .iter()
            .enumerate()
            .filter(|(bit, _)| set >> bit & 1 == 1);
        chosen.map(|(_, pool)| *pool).collect()
    })
    .collect()
}

fn in_sync(volume: &ObservedVolume) -> BTreeSet<PoolName> {
    let replicas = volume
        .replicas
        .iter()
        .filter(|replica| replica.state == InSync);
    replicas.map(|replica| replica.pool.clone()).collect()
}

/// Does what the plan says, as the engine would, and checks that it may be done.
fn carry_out(
    plan: &VolumePlan,
    volume: &mut ObservedVolume,
    wanted: &BTreeSet<PoolName>,
    away: &[&str],
) {
    for step in &plan.steps {
        match &step.action {
            VolumeAction::AddReplica { pool } => {
                assert!(wanted.contains(pool) && !away.contains(&pool.as_str()));
                assert!(
                    volume.applied.replicas.insert(pool.clone()),
                    "it has none there"
                );
                volume.applied.members += 1;
                volume.replicas.push(replica(pool.as_str(), Blank));
            }
            VolumeAction::RemoveReplica { pool } => {
                assert!(!wanted.contains(pool), "what is wanted stays");
                assert!(wanted.is_subset(&in_sync(volume)), "the others are in sync");
                assert!(volume.applied.replicas.remove(pool), "it has one there");
                volume.applied.members -= 1;
                volume.replicas.retain(|replica| replica.pool != *pool);
                assert!(
                    !in_sync(volume).is_empty(),
                    "the last in-sync copy stays (spec G7)"
                );
            }
            other => panic!("nothing else changes: {other:?}"),
        }
    }
}

#[test]
fn from_everywhere_every_set_of_copies_is_reached_and_one_in_sync_is_always_there() {
    let mut cases = 0;
    for start in every_volume() {
        for choice in every_choice() {
            for away in [&[][..], &["a"], &["b"], &["c"], &["b", "c"]] {
                cases += 1;
                reach(start.clone(), &choice, away);
            }
        }
    }
    assert_eq!(cases, (216 - 125) * 7 * 5);
}

/// Plans and carries out until nothing changes any more. Pools that are `away` stay so, and their copies with them.
fn reach(mut volume: ObservedVolume, choice: &[&str], away: &[&str]) {
    let wanted: BTreeSet<PoolName> = choice.iter().map(|pool| pool_name(pool)).collect();
    let is_away = |pool: &PoolName| away.contains(&pool.as_str());
    let story = format!("{:?} to {choice:?} without {away:?}", volume.replicas);
    for replica in &mut volume.replicas {
        if is_away(&replica.pool) && replica.state != InSync {
            replica.state = Absent;
        }
    }
    for round in 0.. {
        let mut case = case().wants("db", spec(choice)).has("db", volume.clone());
        away.iter().for_each(|pool| offline(&mut case, pool));
        let plan = case.plan();
        let plan = &plan.volumes[&volume_name("db")];
        carry_out(plan, &mut volume, &wanted, away);
        // What can be rebuilt is.
        let mut news = !plan.steps.is_empty();
        for replica in &mut volume.replicas {
            if !is_away(&replica.pool) && replica.state != InSync {
                replica.state = InSync;
                news = true;
            }
        }
        if !news {
            break;
        }
        assert!(round < 5, "{story}: it never ends");
    }
    let reachable = wanted
        .iter()
        .all(|pool| !is_away(pool) || in_sync(&volume).contains(pool));
    if reachable {
        assert_eq!(in_sync(&volume), wanted, "{story}");
        assert_eq!(volume.applied.replicas, wanted, "{story}");
    } else {
        // A copy is missing that should be there: nothing was taken away.
        let had = BTreeMap::from_iter(volume.replicas.iter().map(|r| (r.pool.clone(), r.state)));
        assert!(!had.is_empty() && !in_sync(&volume).is_empty(), "{story}");
    }
}

#[test]
fn from_one_copy_to_three_and_back_to_another_one() {
    let mut volume = volume(&[("a", InSync)]);
    for choice in [&["a", "b"][..], &["a", "b", "c"], &["c"], &["a"]] {
        let wanted: BTreeSet<PoolName> = choice.iter().map(|pool| pool_name(pool)).collect();
        for _ in 0..4 {
            let plan = case()
                .wants("db", spec(choice))
                .has("db", volume.clone())
                .plan();
            carry_out(&plan.volumes[&volume_name("db")], &mut volume, &wanted, &[]);
            volume
                .replicas
                .iter_mut()
                .for_each(|replica| replica.state = InSync);
        }
        assert_eq!(volume.applied.replicas, applied(choice).replicas);
    }
}
