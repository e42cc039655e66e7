//! Labels, witnesses and the database held against each other, volume by volume.

use std::collections::{BTreeMap, BTreeSet};

use super::Facts;
use super::report::{Repair, Report, Severity};
use crate::model::{PoolName, ReplicaId, VolumeId, VolumeName};
use crate::nexus::WitnessRecord;
use crate::pool::Place;
use crate::replica::{Label, MemberState};

/// A usable file of a volume.
struct Copy<'a> {
    pool: &'a PoolName,
    place: &'a Place,
    label: &'a Label,
}

pub(super) fn check(facts: &Facts, report: &mut Report) {
    let mut volumes: BTreeMap<VolumeId, Vec<Copy<'_>>> = BTreeMap::new();
    for (pool, scanned) in facts.scanned() {
        for file in scanned.replicas.iter().filter(|file| file.fault.is_none()) {
            if let Some(label) = &file.label {
                let place = &file.place;
                volumes
                    .entry(label.volume)
                    .or_default()
                    .push(Copy { pool, place, label });
            }
        }
    }
    for (id, copies) in &volumes {
        volume(facts, *id, copies, report);
    }
    names(&volumes, report);
    doubles(&volumes, report);
    lost(facts, &volumes, report);
}

fn volume(facts: &Facts, id: VolumeId, copies: &[Copy<'_>], report: &mut Report) {
    let Some(newest) = copies
        .iter()
        .max_by_key(|copy| (copy.label.generation, copy.label.epoch))
    else {
        return;
    };
    let newest = newest.label;
    let object = || format!("volume.{}", newest.name);
    let witness = witness(facts, id);
    if let Some(record) = witness.filter(|record| record.generation > newest.generation) {
        report.add(
            Severity::Error,
            (object(), "NewestCopyMissing"),
            format!(
                "the witness has generation {}, but the newest label of {id} is of {}: the copies with what was written \
                 last are not here",
                record.generation, newest.generation
            ),
            Repair::Person("bring the pool with the newest copy back; `volund why` says what starts without it".to_owned()),
        );
    }
    let all_names: BTreeSet<VolumeName> =
        copies.iter().map(|copy| copy.label.name.clone()).collect();
    if all_names.len() > 1 {
        report.add(
            Severity::Warning,
            (object(), "RenameUnfinished"),
            format!(
                "the labels of {id} carry different names: {}",
                list(&all_names)
            ),
            Repair::Daemon("the rename is finished when the volume starts".to_owned()),
        );
    }
    let quarantined = copies
        .iter()
        .filter(|copy| matches!(copy.place, Place::Quarantined(_)));
    let quarantined = quarantined.count();
    if quarantined > 0 && quarantined < copies.len() {
        report.add(
            Severity::Warning,
            (object(), "RemovalUnfinished"),
            format!(
                "of the {} replicas of {id}, {quarantined} are in quarantine",
                copies.len()
            ),
            Repair::Daemon(
                "the removal is finished, or taken back if a table wants the volume".to_owned(),
            ),
        );
    }
    if !facts.is_live(id) && quarantined == 0 {
        members(facts, newest, copies, report);
    }
    let declared = facts.site.declared.as_ref();
    let is_undeclared = declared.is_some_and(|declared| declared.is_disjoint(&all_names));
    if quarantined == 0 && is_undeclared && !facts.is_live(id) {
        report.add(
            Severity::Note,
            (object(), "Undeclared"),
            format!("no table declares it; it is kept as {id}"),
            Repair::Person("see `volund orphans list`".to_owned()),
        );
    }
}

/// Members of the newest table without a usable file, and files that are no member of it.
fn members(facts: &Facts, newest: &Label, copies: &[Copy<'_>], report: &mut Report) {
    let object = format!("volume.{}", newest.name);
    let here = |replica: ReplicaId| copies.iter().any(|copy| copy.label.replica == replica);
    let members = newest.members.iter();
    let members = members.filter(|m| m.state != MemberState::Removed && !m.volatile);
    let absent: Vec<ReplicaId> = members
        .clone()
        .map(|member| member.replica)
        .filter(|replica| !here(*replica))
        .collect();
    let in_sync =
        members.filter(|member| member.state == MemberState::InSync && here(member.replica));
    if in_sync.count() == 0 {
        report.add(
            Severity::Error,
            (object.clone(), "NoCopyInSync"),
            format!(
                "no replica of {} that was in sync is here: {} are missing",
                newest.volume,
                list(&absent)
            ),
            Repair::Person(
                "bring their pools back; `volund why` says what starts without them".to_owned(),
            ),
        );
    } else if !absent.is_empty() && facts.saw_everything() {
        report.add(
            Severity::Warning,
            (object.clone(), "ReplicaMissing"),
            format!("these replicas are in no pool: {}", list(&absent)),
            Repair::Person(
                "take their pools off the volume's list and put them back: they are built anew from the others".to_owned(),
            ),
        );
    }
    for copy in copies {
        let is_member = newest.members.iter().any(|member| {
            member.replica == copy.label.replica && member.state != MemberState::Removed
        });
        if !is_member {
            report.add(
                Severity::Note,
                (object.clone(), "FormerMember"),
                format!(
                    "replica {} in pool \"{}\" is no member any more",
                    copy.label.replica, copy.pool
                ),
                Repair::Person(format!(
                    "`volund orphans purge {}` deletes it",
                    copy.label.replica
                )),
            );
        }
    }
}

/// Two volumes under one name are not opened.
fn names(volumes: &BTreeMap<VolumeId, Vec<Copy<'_>>>, report: &mut Report) {
    let mut by_name: BTreeMap<&VolumeName, BTreeSet<VolumeId>> = BTreeMap::new();
    for (id, copies) in volumes {
        for copy in copies
            .iter()
            .filter(|copy| matches!(copy.place, Place::Active(_)))
        {
            by_name.entry(&copy.label.name).or_default().insert(*id);
        }
    }
    for (name, ids) in by_name.into_iter().filter(|(_, ids)| ids.len() > 1) {
        report.add(
            Severity::Error,
            (format!("volume.{name}"), "AmbiguousVolume"),
            format!(
                "replicas of different volumes carry its name: {}",
                list(ids)
            ),
            Repair::Person(
                "move the files of the wrong one out of the pool's folder \"replicas\"".to_owned(),
            ),
        );
    }
}

/// One replica in two places.
fn doubles(volumes: &BTreeMap<VolumeId, Vec<Copy<'_>>>, report: &mut Report) {
    let mut places: BTreeMap<ReplicaId, Vec<&Copy<'_>>> = BTreeMap::new();
    for copy in volumes.values().flatten() {
        places.entry(copy.label.replica).or_default().push(copy);
    }
    for (replica, copies) in places.into_iter().filter(|(_, copies)| copies.len() > 1) {
        let pools = copies.iter().map(|copy| copy.pool);
        report.add(
            Severity::Error,
            (format!("volume.{}", copies[0].label.name), "ReplicaTwice"),
            format!(
                "replica {replica} is there more than once: in {}",
                list(pools)
            ),
            Repair::Person("find out which file is the copy, and move that away".to_owned()),
        );
    }
}

/// Volumes that this node had and of which nothing is left.
fn lost(facts: &Facts, volumes: &BTreeMap<VolumeId, Vec<Copy<'_>>>, report: &mut Report) {
    if !facts.saw_everything() {
        return;
    }
    let unusable: BTreeSet<VolumeId> = facts
        .scanned()
        .flat_map(|(_, pool)| &pool.replicas)
        .filter_map(|file| file.label.as_ref())
        .map(|label| label.volume)
        .collect();
    for record in records(facts) {
        let id = record.volume;
        if volumes.contains_key(&id) || unusable.contains(&id) || facts.is_live(id) {
            continue;
        }
        let database = facts.database.as_ref().ok();
        let known = database.and_then(|database| database.volumes.get(&id));
        if known.is_some_and(|known| known.purging) {
            report.add(
                Severity::Warning,
                (format!("volume.{}", record.name), "PurgeUnfinished"),
                format!("{id} was purged, but not everything about it was forgotten"),
                Repair::Daemon("it is forgotten at the next start".to_owned()),
            );
            continue;
        }
        report.add(
            Severity::Error,
            (format!("volume.{}", record.name), "DataMissing"),
            format!(
                "this node had it as {id}, generation {}, but no pool has a replica of it; nothing is created in its place",
                record.generation
            ),
            Repair::Person(
                "declare and mount the pools that have it; if its data is gone for good, move the witness away".to_owned(),
            ),
        );
    }
}

fn records(facts: &Facts) -> impl Iterator<Item = &WitnessRecord> {
    let witnesses = facts.witnesses.as_ref().map_or(&[][..], Vec::as_slice);
    witnesses
        .iter()
        .filter_map(|witness| witness.record.as_ref().ok()?.as_ref())
}

fn witness(facts: &Facts, id: VolumeId) -> Option<&WitnessRecord> {
    records(facts).find(|record| record.volume == id)
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(", ")
}
