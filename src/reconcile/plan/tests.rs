//! The planner's table: desired, observed, expected.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fixture::{
    Case, in_use, pool_name, pool_spec, quarantined, running, spec, volume_name, words,
};
use super::*;
use crate::model::VolumeId;
use crate::model::observed::{ObservedVolume, Problem, RemovalPolicy};
use crate::model::spec::{BlockSize, PoolBacking, VolumeSpec};
use crate::reconcile::step::Goal;
use crate::units::{Bytes, GIB};

#[test]
fn a_new_volume_is_created_and_exported() {
    Case::new()
        .wants("db", spec(&["a"]))
        .check("db", "create export");
}

#[test]
fn a_volume_that_is_as_wanted_needs_nothing() {
    let plan = Case::new()
        .wants("db", spec(&["b", "a"]))
        .has("db", running(&["a", "b"]))
        .check("db", "");
    assert!(plan.pools.values().all(|pool| pool.action.is_none()));
}

#[test]
fn existing_replicas_are_opened_and_never_made_anew() {
    let stopped = |volume: &mut ObservedVolume| {
        volume.serving = false;
        volume.export = None;
    };
    let mut volume = running(&["a"]);
    stopped(&mut volume);
    Case::new()
        .wants("db", spec(&["a"]))
        .has("db", volume)
        .check("db", "open export");
}

#[test]
fn nothing_is_created_before_every_listed_pool_was_looked_into() {
    let plan = Case::new()
        .wants("db", spec(&["a", "b"]))
        .with(|case| drop(case.observed.pools.remove(&pool_name("b"))))
        .check("db", "create export");
    let waits = &plan.volumes[&volume_name("db")].unknown_until;
    assert_eq!(waits, &BTreeSet::from([pool_name("b")]));
    let open = &plan.pools[&pool_name("b")].action;
    assert!(matches!(open, Some(PoolAction::Open(_))), "{open:?}");
}

#[test]
fn nothing_is_created_while_a_listed_pool_is_offline() {
    let missing = Problem {
        reason: "PoolMissing".to_owned(),
        message: "no marker".to_owned(),
    };
    Case::new()
        .wants("db", spec(&["a", "b"]))
        .with(|case| {
            case.observed
                .pools
                .get_mut(&pool_name("b"))
                .unwrap()
                .problem = Some(missing)
        })
        .check("db", "Blocked/PoolOffline");
}

#[test]
fn a_vanished_table_quarantines_an_unused_volume() {
    let plan = Case::new()
        .has("db", running(&["a"]))
        .check("db", "unexport quarantine");
    assert_eq!(plan.volumes[&volume_name("db")].goal, Goal::Absent);
    assert!(plan.purges.is_empty());
}

#[test]
fn a_vanished_table_does_nothing_to_a_volume_in_use() {
    Case::new()
        .has("db", in_use(running(&["a"])))
        .check("db", "RemovalBlocked/InUse");
}

#[test]
fn a_volume_with_a_copy_on_an_offline_pool_is_not_quarantined_by_halves() {
    Case::new()
        .has("db", running(&["a", "c"]))
        .check("db", "RemovalBlocked/PoolOffline");
}

#[test]
fn more_removals_than_allowed_remove_nothing_until_approved() {
    let mut case = Case::new()
        .has("one", running(&["a"]))
        .has("two", running(&["a"]));
    let plan = case.plan();
    assert_eq!(words(&plan, "one"), "RemovalBlocked/ApprovalNeeded");
    assert_eq!(words(&plan, "two"), "RemovalBlocked/ApprovalNeeded");
    assert_eq!(plan.held.len(), 2);

    case.removals.approved = plan.held;
    let plan = case.plan();
    assert_eq!(words(&plan, "one"), "unexport quarantine");
    assert_eq!(words(&plan, "two"), "unexport quarantine");
}

#[test]
fn removals_of_one_change_are_counted_together_even_when_done_one_by_one() {
    let mut case = Case::new()
        .has("one", running(&["a"]))
        .has("two", in_use(running(&["a"])))
        .with(|case| case.desired.safety.max_removals = 1);
    let held = case.plan().held;
    assert_eq!(held.len(), 2);
    // The first one going by other means does not make room for the second.
    case.observed.volumes.remove(&volume_name("one"));
    case.observed
        .volumes
        .insert(volume_name("two"), running(&["a"]));
    assert_eq!(words(&case.plan(), "two"), "RemovalBlocked/ApprovalNeeded");
}

#[test]
fn removals_of_different_changes_are_counted_apart() {
    let mut case = Case::new()
        .has("one", in_use(running(&["a"])))
        .with(|case| {
            case.removals.gone_since.insert(volume_name("one"), 0);
        })
        .has("two", running(&["a"]));
    assert_eq!(words(&case.plan(), "two"), "unexport quarantine");
}

#[test]
fn a_table_that_comes_back_gets_its_newest_data_back() {
    Case::new()
        .wants("db", spec(&["a"]))
        .has_quarantined(quarantined("db", 20, &["a"]))
        .has_quarantined(quarantined("db", 10, &["a"]))
        .check("db", "restore db@20 open export");
}

#[test]
fn quarantined_data_that_does_not_fit_blocks_a_blank_volume() {
    let mut wanted = spec(&["a"]);
    wanted.block_size = BlockSize::B512;
    let plan = Case::new()
        .wants("db", wanted)
        .has_quarantined(quarantined("db", 20, &["a"]))
        .check("db", "Blocked/QuarantinedDataExists");
    let message = &plan.volumes[&volume_name("db")].blocked[0].message;
    assert!(
        message.contains("volund quarantine restore db@20 --as OTHER"),
        "{message}"
    );
}

#[test]
fn a_rename_moves_the_data_and_removes_nothing() {
    let mut wanted = spec(&["a"]);
    wanted.renamed_from = Some(volume_name("db"));
    let plan = Case::new()
        .wants("db2", wanted)
        .has("db", running(&["a"]))
        .check("db2", "rename db open export");
    assert!(!plan.volumes.contains_key(&volume_name("db")));
}

#[test]
fn a_rename_waits_for_the_client() {
    let mut wanted = spec(&["a"]);
    wanted.renamed_from = Some(volume_name("db"));
    Case::new()
        .wants("db2", wanted)
        .has("db", in_use(running(&["a"])))
        .check("db2", "ChangePending/InUse");
}

#[test]
fn a_rename_finds_its_data_in_quarantine_too() {
    let mut wanted = spec(&["a"]);
    wanted.renamed_from = Some(volume_name("db"));
    Case::new()
        .wants("db2", wanted)
        .has_quarantined(quarantined("db", 20, &["a"]))
        .check("db2", "restore db@20 open export");
}

#[test]
fn a_finished_rename_needs_nothing() {
    let mut wanted = spec(&["a"]);
    wanted.renamed_from = Some(volume_name("db"));
    Case::new()
        .wants("db2", wanted)
        .has("db2", running(&["a"]))
        .check("db2", "");
}

#[test]
fn two_volumes_under_one_name_are_not_touched() {
    let mut volume = running(&["a"]);
    volume.serving = false;
    volume
        .ids
        .insert(VolumeId::from_uuid(uuid::Uuid::from_u128(8)));
    Case::new()
        .wants("db", spec(&["a"]))
        .has("db", volume.clone())
        .check("db", "Blocked/AmbiguousVolume");
    Case::new()
        .has("db", volume)
        .check("db", "Blocked/AmbiguousVolume");
}

#[test]
fn what_cannot_change_is_refused_with_a_code_and_the_rest_goes_on() {
    let check = |change: &dyn Fn(&mut VolumeSpec), expected: &str, code: &str| {
        let mut wanted = spec(&["a"]);
        wanted.on_remove = OnRemove::Delete;
        change(&mut wanted);
        let plan = Case::new()
            .wants("db", wanted)
            .has("db", running(&["a"]))
            .check("db", expected);
        let refusal = &plan.volumes[&volume_name("db")].blocked[0];
        assert_eq!(refusal.code.as_deref(), Some(code));
        assert!(refusal.message.contains(code), "{}", refusal.message);
    };
    check(
        &|spec| spec.size = Bytes(GIB / 2),
        "policy ChangeRefused/ShrinkRefused",
        "E0302",
    );
    check(
        &|spec| spec.block_size = BlockSize::B512,
        "policy ChangeRefused/Immutable",
        "E0301",
    );
    check(
        &|spec| spec.thin = false,
        "policy ChangeRefused/Immutable",
        "E0301",
    );
}

#[test]
fn a_refused_change_does_not_keep_the_volume_down_after_a_restart() {
    let mut volume = running(&["a"]);
    volume.serving = false;
    volume.export = None;
    let mut wanted = spec(&["a"]);
    wanted.size = Bytes(GIB / 2);
    let plan = Case::new()
        .wants("db", wanted)
        .has("db", volume)
        .check("db", "open export ChangeRefused/ShrinkRefused");
    let VolumeAction::Ensure { spec, .. } = &plan.volumes[&volume_name("db")].steps[0].action
    else {
        panic!("the first step opens the volume");
    };
    assert_eq!(spec.size, Bytes(GIB), "the size stays what it was");
}

#[test]
fn an_export_changes_only_while_unused() {
    let mut wanted = spec(&["a"]);
    wanted.read_only = true;
    Case::new()
        .wants("db", wanted.clone())
        .has("db", running(&["a"]))
        .check("db", "export");
    Case::new()
        .wants("db", wanted.clone())
        .has("db", in_use(running(&["a"])))
        .check("db", "ChangePending/InUse");
    wanted.export = ExportSpec::None;
    Case::new()
        .wants("db", wanted)
        .has("db", running(&["a"]))
        .check("db", "unexport");
}

#[test]
fn a_socket_that_changes_hands_is_freed_first() {
    let fixed = ExportSpec::VhostUser {
        socket: Some("/run/x.sock".into()),
        queues: 1,
        depth: 128,
        pin_guest_memory: false,
    };
    let mut old = running(&["a"]);
    old.export.as_mut().unwrap().spec = fixed.clone();
    let mut wanted = spec(&["a"]);
    wanted.export = fixed;
    let plan = Case::new()
        .wants("new", wanted)
        .has("old", old)
        .check("new", "create export");
    let after = &plan.volumes[&volume_name("new")].after;
    assert_eq!(after, &BTreeSet::from([volume_name("old")]));
}

#[test]
fn a_pool_cannot_be_moved() {
    let mut case = Case::new().with(|case| {
        case.desired.pools.get_mut(&pool_name("a")).unwrap().backing =
            PoolBacking::Directory("/elsewhere".into());
    });
    let plan = case.plan();
    let pool = &plan.pools[&pool_name("a")];
    assert_eq!(pool.action, None);
    assert_eq!(pool.blocked[0].code.as_deref(), Some("E0301"));
}

#[test]
fn a_pool_whose_path_was_a_mistake_is_mended() {
    let mistaken = |case: &mut Case| {
        let observed = case.observed.pools.get_mut(&pool_name("a")).unwrap();
        observed.spec.backing = PoolBacking::Directory("/mistaken".into());
        observed.id = None;
        observed.problem = Some(Problem {
            reason: "InUse".to_owned(),
            message: "it is open as another pool".to_owned(),
        });
    };
    let mut case = Case::new().with(mistaken);
    let wanted = case.desired.pools[&pool_name("a")].clone();
    let pool = case.plan().pools[&pool_name("a")].clone();
    assert_eq!(pool.action, Some(PoolAction::Open(wanted)));

    // It was there: a volume runs on what it had.
    let mut case = Case::new()
        .wants("db", spec(&["a"]))
        .has("db", running(&["a"]))
        .with(mistaken);
    let pool = case.plan().pools[&pool_name("a")].clone();
    assert_eq!(pool.action, None);
    assert_eq!(pool.blocked[0].code.as_deref(), Some("E0301"));
}

#[test]
fn a_pool_is_let_go_only_when_no_volume_runs_on_it() {
    let mut case = Case::new().with(|case| drop(case.desired.pools.remove(&pool_name("b"))));
    assert_eq!(
        case.plan().pools[&pool_name("b")].action,
        Some(PoolAction::Close)
    );

    let mut case = case.has("db", running(&["b"]));
    let plan = case.plan();
    assert_eq!(plan.pools[&pool_name("b")].action, None);
    assert_eq!(plan.pools[&pool_name("b")].blocked[0].reason, "InUse");
}

#[test]
fn a_replica_on_another_node_waits_and_is_no_error() {
    let mut case = Case::new().wants("db", spec(&["a", "c"])).with(|case| {
        let mut remote = pool_spec("c");
        remote.node = "n2".parse().unwrap();
        case.desired.pools.insert(pool_name("c"), remote);
    });
    let plan = case.plan();
    assert_eq!(words(&plan, "db"), "create export");
    let volume = &plan.volumes[&volume_name("db")];
    assert_eq!(volume.notes[0].kind, BlockedKind::Waiting);
    assert!(!plan.pools.contains_key(&pool_name("c")));
    let VolumeAction::Ensure { spec, .. } = &volume.steps[0].action else {
        panic!("the first step makes the volume");
    };
    assert_eq!(spec.replicas, [pool_name("a")]);
}

#[test]
fn only_the_last_applied_policy_purges_and_only_when_the_quarantine_is_over() {
    let due = |on_remove, at| {
        let mut entry = quarantined("old", 100, &["a"]);
        entry.applied.removal = RemovalPolicy {
            on_remove,
            quarantine_for: Duration::from_secs(50),
        };
        let mut case = Case::new()
            .has_quarantined(entry)
            .with(|case| case.observed.at_unix_seconds = at);
        case.plan().purges.len()
    };
    assert_eq!(due(OnRemove::Retain, 1_000_000), 0);
    assert_eq!(due(OnRemove::Delete, 149), 0);
    assert_eq!(due(OnRemove::Delete, 150), 1);
}

#[test]
fn half_of_a_removal_whose_other_half_is_in_use_is_not_purged() {
    let mut entry = quarantined("old", 100, &["a"]);
    entry.applied.removal = RemovalPolicy {
        on_remove: OnRemove::Delete,
        quarantine_for: Duration::ZERO,
    };
    let mut volume = running(&["b"]);
    volume.ids = BTreeSet::from([entry.uuid]);
    let mut case = Case::new()
        .wants("old", spec(&["b"]))
        .has("old", volume)
        .has_quarantined(entry)
        .with(|case| case.observed.at_unix_seconds = 1_000_000);
    assert!(case.plan().purges.is_empty());
}

#[test]
fn nothing_is_created_before_every_pool_of_this_node_was_looked_into() {
    let plan = Case::new()
        .wants("db", spec(&["a"]))
        .with(|case| drop(case.observed.pools.remove(&pool_name("b"))))
        .check("db", "create export");
    let waits = &plan.volumes[&volume_name("db")].unknown_until;
    assert_eq!(waits, &BTreeSet::from([pool_name("b")]));
}

#[test]
fn of_many_volumes_only_the_one_that_was_edited_has_steps() {
    let mut case = Case::new();
    for number in 0..1000 {
        let name = format!("v{number:04}");
        case = case.wants(&name, spec(&["a"])).has(&name, running(&["a"]));
    }
    let edited = case.desired.volumes.get_mut(&volume_name("v0500"));
    edited.unwrap().size = Bytes(2 * GIB);
    let plan = case.check("v0500", "grow 2GiB");
    let busy = plan.volumes.values().filter(|v| !v.steps.is_empty());
    assert_eq!(busy.count(), 1);
    assert!(plan.pools.values().all(|pool| pool.action.is_none()));
}

mod members;
mod orphans;
