//! What a pool was last seen to hold, with what it takes to find one volume's files among those of thousands.

use std::collections::BTreeMap;

use crate::model::{ReplicaId, VolumeId, VolumeName};
use crate::pool::{FileStat, FoundReplica, Place};

/// The files of one pool. Who asks about one volume pays for that volume's files only.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    files: Vec<FoundReplica>,
    by_replica: BTreeMap<ReplicaId, Vec<usize>>,
    by_volume: BTreeMap<VolumeId, Vec<usize>>,
    by_name: BTreeMap<VolumeName, Vec<usize>>,
}

impl Found {
    pub(super) fn new(files: Vec<FoundReplica>) -> Self {
        let mut found = Self::default();
        files.into_iter().for_each(|file| found.add(file));
        found
    }

    /// Adds a file, or what is known of it now if it is there already.
    pub(super) fn put(&mut self, file: FoundReplica) {
        if self.of_replica(file.place.replica()).next().is_none() {
            return self.add(file);
        }
        let files = std::mem::take(&mut self.files).into_iter();
        let others = files.filter(|known| known.place != file.place);
        *self = Self::new(others.collect());
        self.add(file);
    }

    fn add(&mut self, file: FoundReplica) {
        let index = self.files.len();
        let label = file.label.as_ref();
        let mut volumes: Vec<VolumeId> = label.map(|l| l.volume).into_iter().collect();
        let mut names: Vec<&VolumeName> = label.map(|l| &l.name).into_iter().collect();
        if let Place::Quarantined(name) = &file.place {
            volumes.push(name.volume_id);
            names.push(&name.volume);
        }
        volumes.dedup();
        names.dedup();
        for volume in volumes {
            self.by_volume.entry(volume).or_default().push(index);
        }
        for name in names {
            self.by_name.entry(name.clone()).or_default().push(index);
        }
        let replica = file.place.replica();
        self.by_replica.entry(replica).or_default().push(index);
        self.files.push(file);
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &FoundReplica> {
        self.files.iter()
    }

    /// Those whose label, or whose name in quarantine, says that they are of this volume.
    pub(super) fn of_volume(&self, id: VolumeId) -> impl Iterator<Item = &FoundReplica> {
        self.at(self.by_volume.get(&id))
    }

    /// Those whose label, or whose name in quarantine, carries this name.
    pub(super) fn named(&self, name: &VolumeName) -> impl Iterator<Item = &FoundReplica> {
        self.at(self.by_name.get(name))
    }

    /// Those whose name says that they are this replica.
    pub(super) fn of_replica(&self, replica: ReplicaId) -> impl Iterator<Item = &FoundReplica> {
        self.at(self.by_replica.get(&replica))
    }

    /// Notes how large the files of a replica are now.
    pub(super) fn set_stat(&mut self, replica: ReplicaId, stat: FileStat) {
        for index in self.by_replica.get(&replica).into_iter().flatten() {
            self.files[*index].stat = stat;
        }
    }

    fn at<'a>(&'a self, indexes: Option<&'a Vec<usize>>) -> impl Iterator<Item = &'a FoundReplica> {
        let indexes = indexes.into_iter().flatten();
        indexes.map(|index| &self.files[*index])
    }
}
