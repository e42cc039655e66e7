//! Data that nobody declares, and data that a table asks for by its id.

use super::*;

fn unknown(pools: &[&str]) -> ObservedVolume {
    ObservedVolume {
        known: false,
        serving: false,
        export: None,
        ..running(pools)
    }
}

fn id(number: u128) -> VolumeId {
    VolumeId::from_uuid(uuid::Uuid::from_u128(number))
}

fn asking(number: u128) -> VolumeSpec {
    VolumeSpec {
        uuid: Some(id(number)),
        ..spec(&["a"])
    }
}

#[test]
fn a_volume_that_this_node_never_had_is_left_where_it_is() {
    let mut case = Case::new()
        .has("one", unknown(&["a"]))
        .has("two", unknown(&["a"]))
        .has("gone", running(&["a"]));
    let plan = case.plan();
    assert_eq!(plan.orphans, ["one", "two"].map(volume_name).into());
    assert!(!plan.volumes.contains_key(&volume_name("one")));
    // Nor are they counted as removals.
    assert_eq!(words(&plan, "gone"), "unexport quarantine");
}

#[test]
fn an_orphan_is_adopted_by_a_table_of_its_name() {
    let plan = Case::new()
        .wants("db", spec(&["a"]))
        .has("db", unknown(&["a"]))
        .check("db", "open export");
    assert!(plan.orphans.is_empty());
}

#[test]
fn an_orphan_is_adopted_by_its_id_under_any_name() {
    let plan = Case::new()
        .wants("web", asking(7))
        .has("db", unknown(&["a"]))
        .check("web", "rename db open export");
    assert!(plan.orphans.is_empty());
}

#[test]
fn quarantined_data_is_found_by_its_id() {
    Case::new()
        .wants("web", asking(9))
        .has_quarantined(quarantined("web", 8, &["a"]))
        .has_quarantined(quarantined("db", 9, &["a"]))
        .check("web", "restore db@9 open export");
}

#[test]
fn nothing_is_created_under_an_id() {
    Case::new()
        .wants("db", asking(7))
        .check("db", "Blocked/DataMissing");
}

#[test]
fn other_data_is_never_taken_for_the_one_that_was_asked_for() {
    Case::new()
        .wants("db", asking(8))
        .has("db", unknown(&["a"]))
        .check("db", "Blocked/NameTaken");
    Case::new()
        .wants("db", asking(8))
        .has("db", running(&["a"]))
        .check("db", "ChangeRefused/Immutable");
}

#[test]
fn a_volume_of_another_table_is_not_renamed_away_from_it() {
    let mut case = Case::new()
        .wants("web", asking(7))
        .wants("db", spec(&["a"]))
        .has("db", running(&["a"]));
    let plan = case.plan();
    assert_eq!(words(&plan, "db"), "");
    assert_eq!(words(&plan, "web"), "Blocked/DataMissing");
}

fn expired(name: &str, at: u64) -> ObservedQuarantine {
    let mut entry = quarantined(name, at, &["a"]);
    entry.applied.removal = RemovalPolicy {
        on_remove: OnRemove::Delete,
        quarantine_for: Duration::ZERO,
    };
    entry
}

/// Its table is back but one of its pools is not, or the table does not fit: it is not deleted while that lasts.
#[test]
fn what_a_table_asks_for_is_not_purged_although_it_can_not_be_brought_back_now() {
    let check = |wanted: VolumeSpec, offline: bool, expected: usize| {
        let mut case = Case::new()
            .wants("web", wanted)
            .has_quarantined(expired("db", 9));
        case.observed.at_unix_seconds = 1000;
        if offline {
            let pool = case.observed.pools.get_mut(&pool_name("b")).unwrap();
            pool.problem = Some(crate::model::observed::Problem {
                reason: "PoolMissing".to_owned(),
                message: "it is not mounted".to_owned(),
            });
        }
        let plan = case.plan();
        assert_eq!(plan.purges.len(), expected, "{plan:?}");
    };
    let both = spec(&["a", "b"]);
    let renamed = VolumeSpec {
        renamed_from: Some(volume_name("db")),
        ..both.clone()
    };
    let by_id = VolumeSpec {
        uuid: Some(id(9)),
        ..both.clone()
    };
    check(both.clone(), true, 1);
    check(renamed.clone(), true, 0);
    check(by_id, true, 0);
    let misfit = VolumeSpec {
        thin: false,
        ..renamed
    };
    check(misfit.clone(), false, 0);
    // It is for a volume of another node that the data is asked for.
    let elsewhere = VolumeSpec {
        node: "n2".parse().unwrap(),
        ..misfit
    };
    check(elsewhere, false, 1);
}

#[test]
fn what_was_removed_before_the_volume_that_is_there_is_purged() {
    let mut case = Case::new()
        .wants("db", spec(&["a"]))
        .has("db", running(&["a"]))
        .has_quarantined(expired("db", 9));
    case.observed.at_unix_seconds = 1000;
    assert_eq!(case.plan().purges.len(), 1);
}
