//! A node's folders, damaged in one way each.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;
use crate::model::{PoolId, ReplicaId};
use crate::nexus::WitnessRecord;
use crate::replica::Label;
use crate::replica::layout::LABEL_OFFSETS;
use crate::replica::testing::{label as any_label, sealed};
use crate::state::{Creation, VolumeRecord};

struct Node {
    folder: tempfile::TempDir,
    pool: PoolId,
    database: Contents,
    declared: BTreeSet<VolumeName>,
}

impl Node {
    /// An empty pool `a` and an empty state folder.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pool = PoolId::generate();
        for name in [
            "a/replicas",
            "a/quarantine",
            "a/garbage",
            "state/witness",
            "run",
            "links",
            "dev",
        ] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let marker = format!("version = 1\npool = \"{pool}\"\n");
        std::fs::write(folder.path().join("a/volund-pool"), marker).unwrap();
        Self {
            folder,
            pool,
            database: Contents::default(),
            declared: BTreeSet::from(["db".parse().unwrap()]),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A replica that is its volume's only member, in `folder` of the pool.
    fn add(&self, place: &str, change: impl FnOnce(&mut Label)) -> Label {
        let mut label = any_label();
        label.pool = self.pool;
        label.members.remove(0);
        label.members[0].volatile = false;
        label.own_slot = 0;
        change(&mut label);
        let file = std::fs::File::create(self.path(place)).unwrap();
        file.set_len(label.file_len()).unwrap();
        let slot = sealed(&label);
        for offset in LABEL_OFFSETS {
            std::os::unix::fs::FileExt::write_all_at(&file, &slot, offset).unwrap();
        }
        label
    }

    fn active(&self, label: &Label) -> String {
        format!("a/replicas/{}", label.replica)
    }

    fn examine(&self) -> Report {
        let site = Site {
            pools: vec![("a".parse().unwrap(), self.path("a"))],
            declared: Some(self.declared.clone()),
            state_dir: self.path("state"),
            runtime_dir: self.path("run"),
            links: self.path("links"),
            devices: self.path("dev"),
            live: None,
        };
        examine(site, Ok(self.database.clone()))
    }

    /// What is found, but for bitmaps: the files of these tests have none.
    fn reasons(&self) -> Vec<String> {
        let found = self.examine().findings.into_iter();
        let found = found.filter(|finding| finding.reason != "BitmapPageDamaged");
        found.map(|finding| finding.reason).collect()
    }
}

fn replica() -> String {
    format!("a/replicas/{}", any_label().replica)
}

#[test]
fn a_node_that_is_well_has_no_findings() {
    let node = Node::new();
    let label = node.add(&replica(), |_| {});
    assert_eq!(node.active(&label), replica());
    assert_eq!(node.reasons(), [""; 0]);
    assert!(
        node.examine()
            .text()
            .contains("1 pools, 1 replicas, 0 witnesses")
    );
}

#[test]
fn files_that_are_not_what_they_seem_are_found() {
    let node = Node::new();
    node.add(&replica(), |label| label.pool = PoolId::generate());
    assert_eq!(node.reasons(), ["ReplicaUnusable"]);
    std::fs::write(node.path(&replica()), "short").unwrap();
    assert_eq!(node.reasons(), ["ReplicaUnusable"]);
    std::fs::remove_file(node.path(&replica())).unwrap();
    std::fs::write(node.path("a/replicas/notes"), "mine").unwrap();
    assert_eq!(node.reasons(), ["Stranger"]);
    std::fs::remove_file(node.path("a/volund-pool")).unwrap();
    assert_eq!(node.reasons(), ["PoolNew"], "the database never saw it");
}

#[test]
fn a_torn_slot_is_the_daemons_to_mend() {
    let node = Node::new();
    node.add(&replica(), |_| {});
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(node.path(&replica()))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 100], LABEL_OFFSETS[1]).unwrap();
    assert_eq!(node.reasons(), ["LabelSlotDamaged"]);
    assert!(!node.examine().has_errors());
}

#[test]
fn members_names_and_places_are_compared() {
    let node = Node::new();
    let other = ReplicaId::generate();
    let label = node.add(&replica(), |label| {
        let mut absent = label.members[0];
        absent.replica = other;
        label.members.push(absent);
    });
    assert_eq!(node.reasons(), ["ReplicaMissing"]);
    node.add(&format!("a/replicas/{other}"), |copy| {
        *copy = label.clone();
        copy.replica = other;
        copy.own_slot = 1;
        copy.name = "old".parse().unwrap();
    });
    assert_eq!(node.reasons(), ["RenameUnfinished"]);
    let quarantined = crate::pool::QuarantineName::new(
        "db".parse().unwrap(),
        label.volume,
        other,
        jiff::Timestamp::UNIX_EPOCH,
    );
    let from = node.path(&format!("a/replicas/{other}"));
    std::fs::rename(from, node.path(&format!("a/quarantine/{quarantined}"))).unwrap();
    assert!(node.reasons().contains(&"RemovalUnfinished".to_owned()));
}

#[test]
fn two_volumes_of_one_name_are_an_error() {
    let node = Node::new();
    node.add(&replica(), |_| {});
    let other = ReplicaId::generate();
    node.add(&format!("a/replicas/{other}"), |label| {
        label.volume = VolumeId::generate();
        label.replica = other;
        label.members[0].replica = other;
    });
    assert_eq!(node.reasons(), ["AmbiguousVolume"]);
    assert!(node.examine().has_errors());
}

#[test]
fn what_nobody_declares_and_what_was_begun_is_noted() {
    let mut node = Node::new();
    node.add(&replica(), |_| {});
    node.declared.clear();
    assert_eq!(node.reasons(), ["Undeclared"]);
    let creation = Creation {
        name: "web".parse().unwrap(),
        replicas: Vec::new(),
        left: None,
    };
    node.database
        .creations
        .insert(VolumeId::generate(), creation);
    assert_eq!(node.reasons(), ["CreationUnfinished", "Undeclared"]);
}

#[test]
fn a_repair_removes_what_holds_nothing_and_nothing_else() {
    let mut node = Node::new();
    node.add(&replica(), |_| {});
    drop(UnixListener::bind(node.path("run/db.sock")).unwrap());
    let _living = UnixListener::bind(node.path("run/web.sock")).unwrap();
    std::fs::write(node.path("run/file.sock"), "not a socket").unwrap();
    symlink("/nowhere/ublkb7", node.path("links/db")).unwrap();
    symlink("/nowhere/else", node.path("links/mine")).unwrap();
    let empty = VolumeId::generate();
    std::fs::write(node.path(&format!("state/witness/{empty}")), [0; 8192]).unwrap();
    let damaged = VolumeId::generate();
    std::fs::write(node.path(&format!("state/witness/{damaged}")), [7; 8192]).unwrap();
    let record = VolumeRecord {
        ublk: Some(3),
        ..VolumeRecord::default()
    };
    node.database.volumes.insert(empty, record);

    let mut report = node.examine();
    repair(&mut report);
    let repaired = report.findings.iter().filter(|finding| finding.repaired);
    let repaired: Vec<&str> = repaired.map(|finding| finding.reason.as_str()).collect();
    assert_eq!(repaired, ["WitnessEmpty", "SocketDead", "LinkDead"]);
    for kept in ["run/web.sock", "run/file.sock", "links/mine", &replica()] {
        assert!(std::fs::symlink_metadata(node.path(kept)).is_ok(), "{kept}");
    }
    assert!(node.path(&format!("state/witness/{damaged}")).exists());
    let left = node.reasons();
    assert_eq!(
        left,
        ["WitnessDamaged", "DeviceForgotten"],
        "{}",
        node.examine().text()
    );
}

#[test]
fn a_volume_of_which_nothing_is_left_is_an_error() {
    let node = Node::new();
    let label = any_label();
    let record = WitnessRecord {
        volume: label.volume,
        name: label.name.clone(),
        epoch: label.epoch,
        generation: label.generation,
        generation_id: label.generation_id,
        members: Vec::new(),
    };
    let witness = crate::state::witness::encoded_for_tests(&record);
    std::fs::write(
        node.path(&format!("state/witness/{}", label.volume)),
        witness,
    )
    .unwrap();
    assert_eq!(node.reasons(), ["DataMissing"]);
    // With an older copy there, the newest is what is missing.
    node.add(&replica(), |label| label.generation = 1);
    assert_eq!(node.reasons(), ["NewestCopyMissing"]);
}
