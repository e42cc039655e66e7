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
