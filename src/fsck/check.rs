//! The state folder, and pools as such.

use super::Facts;
use super::report::{Repair, Report, Severity};
use crate::model::{PoolName, VolumeId};
use crate::pool::Place;
use crate::state::{Contents, WitnessFound};

/// The database and the witness files.
pub(super) fn state(facts: &Facts, report: &mut Report) {
    match &facts.database {
        Err(what) => report.add(
            Severity::Error,
            ("state", "DatabaseDamaged"),
            what.clone(),
            Repair::Person(
                "mount the disks of all pools, move the database away and start the daemon: labels have all it needs, but \
                 removal policies go back to \"retain\""
                    .to_owned(),
            ),
        ),
        Ok(database) => journal(facts, database, report),
    }
    match &facts.witnesses {
        Err(what) => report.add(
            Severity::Error,
            ("state", "WitnessUnreadable"),
            what.clone(),
            Repair::Person("mend the filesystem of the state folder".to_owned()),
        ),
        Ok(witnesses) => {
            for witness in witnesses {
                check_witness(facts, witness, report);
            }
        }
    }
}

/// What was begun and not ended.
fn journal(facts: &Facts, database: &Contents, report: &mut Report) {
    for (id, creation) in &database.creations {
        if facts.is_live(*id) {
            continue;
        }
        let object = format!("volume.{}", creation.name);
        let (message, repair) = match &creation.left {
            Some(why) => (
                format!("its creation as {id} failed and is left for inspection: {why}"),
                Repair::Person(
                    "set `on_create_fail = \"delete\"` to have it cleared away and tried again"
                        .to_owned(),
                ),
            ),
            None => (
                format!("its creation as {id} was cut short; nobody was ever told that it exists"),
                Repair::Daemon(
                    "it is cleared away at the next start, once its pools are open".to_owned(),
                ),
            ),
        };
        report.add(
            Severity::Warning,
            (object, "CreationUnfinished"),
            message,
            repair,
        );
    }
    for (replica, change) in &database.member_changes {
        let what = if change.adds { "addition" } else { "removal" };
        report.add(
            Severity::Note,
            (format!("pool.{}", change.pool), "MemberChangeUnfinished"),
            format!(
                "the {what} of replica {replica} of volume {} is not finished",
                change.volume
            ),
            Repair::Daemon("it is finished or taken back when the volume runs".to_owned()),
        );
    }
}

fn check_witness(facts: &Facts, witness: &WitnessFound, report: &mut Report) {
    let path = witness.path.display();
    let Some(volume) = witness.volume else {
        report.add(
            Severity::Warning,
            ("state", "Stranger"),
            format!("{path} is not named like a witness"),
            Repair::Person("move it away".to_owned()),
        );
        return;
    };
    match &witness.record {
        Err(what) => report.add(
            Severity::Error,
            (format!("witness.{volume}"), "WitnessDamaged"),
            format!("{path}: {what}"),
            Repair::Person(
                "restore it, or move it away: its volume then starts once every one of its replicas is there".to_owned(),
            ),
        ),
        Ok(None) if is_needed(facts, volume) => {}
        Ok(None) => report.add(
            Severity::Warning,
            (format!("witness.{volume}"), "WitnessEmpty"),
            format!("nothing was ever committed to {path}, and nobody is creating that volume"),
            Repair::Removal(witness.path.clone()),
        ),
        Ok(Some(record)) if record.volume != volume => report.add(
            Severity::Error,
            (format!("witness.{volume}"), "WitnessMisnamed"),
            format!("{path} has the record of volume {}", record.volume),
            Repair::Person("it was copied or renamed: move it away".to_owned()),
        ),
        Ok(Some(_)) => {}
    }
}

/// Whether an empty witness may be waiting for its first record.
fn is_needed(facts: &Facts, volume: VolumeId) -> bool {
    let Ok(database) = &facts.database else {
        return true;
    };
    let has_file = facts.scanned().any(|(_, pool)| {
        let mut labels = pool.replicas.iter().filter_map(|file| file.label.as_ref());
        labels.any(|label| label.volume == volume)
    });
    has_file
        || facts.is_live(volume)
        || facts.site.live.is_some()
        || !facts.saw_everything()
        || database.creations.contains_key(&volume)
}

/// Markers, and files that are no replicas.
pub(super) fn pools(facts: &Facts, report: &mut Report) {
    for (name, pool) in &facts.pools {
        let object = format!("pool.{name}");
        let known = facts
            .database
            .as_ref()
            .ok()
            .and_then(|database| database.pools.get(name));
        let pool = match pool {
            Ok(pool) => pool,
            Err(_) if known.is_none() => {
                let path = facts.path_of(name).map(|path| path.display().to_string());
                report.add(
                    Severity::Note,
                    (object, "PoolNew"),
                    format!("nothing is at {} yet", path.unwrap_or_default()),
                    Repair::Daemon("it is made when the daemon first opens it".to_owned()),
                );
                continue;
            }
            Err(what) => {
                report.add(
                    Severity::Error,
                    (object, "PoolMissing"),
                    what.clone(),
                    Repair::Person(
                        "mount its filesystem, or mend it; it is never made anew".to_owned(),
                    ),
                );
                continue;
            }
        };
        if let Some(known) = known.filter(|known| **known != pool.id) {
            report.add(
                Severity::Error,
                (object.clone(), "PoolMissing"),
                format!("it is pool {}, but this node knows it as {known}", pool.id),
                Repair::Person("mount the right filesystem there".to_owned()),
            );
        }
        for path in &pool.strangers {
            report.add(
                Severity::Warning,
                (object.clone(), "Stranger"),
                format!("{} is not named like a replica", path.display()),
                Repair::Person("move it away; volund never touches it".to_owned()),
            );
        }
        for path in &pool.garbage {
            report.add(
                Severity::Note,
                (object.clone(), "Garbage"),
                format!(
                    "{} was put aside: a creation that failed, but not empty",
                    path.display()
                ),
                Repair::Person("look at it, then delete it".to_owned()),
            );
        }
        files(facts, name, report);
    }
}

/// Files of one pool, each for itself.
fn files(facts: &Facts, name: &PoolName, report: &mut Report) {
    let Some(Ok(pool)) = facts.pools.get(name) else {
        return;
    };
    let is_journalled = |replica| {
        let database = facts.database.as_ref();
        database.is_ok_and(|database| {
            let mut creations = database.creations.values();
            let created =
                creations.any(|creation| creation.replicas.iter().any(|(_, id)| *id == replica));
            created || database.member_changes.contains_key(&replica)
        })
    };
    for file in &pool.replicas {
        let object = format!("pool.{name}");
        let path = file.path.display();
        let is_live = file
            .label
            .as_ref()
            .is_some_and(|label| facts.is_live(label.volume));
        if let Some(fault) = &file.fault {
            if !is_journalled(file.place.replica()) {
                report.add(
                    Severity::Error,
                    (object, "ReplicaUnusable"),
                    format!("{path}: {fault}"),
                    Repair::Person(
                        "it is left alone; take its pool off the volume's list and put it back to have it rebuilt"
                            .to_owned(),
                    ),
                );
            }
            continue;
        }
        if let (Place::Quarantined(quarantined), Some(label)) = (&file.place, &file.label)
            && quarantined.volume_id != label.volume
        {
            report.add(
                Severity::Error,
                (object.clone(), "QuarantineMisnamed"),
                format!(
                    "{path} is named after volume {} but its label is of {}",
                    quarantined.volume_id, label.volume
                ),
                Repair::Person("give it the right name: it was renamed by hand".to_owned()),
            );
        }
        // Of a volume that runs, a slot or a page may just be being written.
        if is_live {
            continue;
        }
        for slot in &file.bad_slots {
            report.add(
                Severity::Warning,
                (object.clone(), "LabelSlotDamaged"),
                format!("{path}: slot {slot}; the other slot is good"),
                Repair::Daemon("the next label is written there".to_owned()),
            );
        }
        for page in &file.bad_pages {
            report.add(
                Severity::Warning,
                (object.clone(), "BitmapPageDamaged"),
                format!("{path}: {page}; all of its regions count as marked"),
                Repair::Daemon(
                    "they are compared or copied, and the page is written anew".to_owned(),
                ),
            );
        }
    }
}
