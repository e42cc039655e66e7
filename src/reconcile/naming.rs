//! What the journal calls the things that are done: object, action and a few words.

use uuid::Uuid;

use super::apply::Task;
use super::compare::list;
use super::report::backing;
use super::step::{PoolAction, VolumeAction};
use crate::model::spec::{ExportSpec, OnRemove};

/// Something that is done to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// `volume.db`.
    pub object: String,
    /// One CamelCase word.
    pub action: &'static str,
    /// What, in words: two things that are done to one object have different ones.
    pub summary: String,
}

impl Named {
    /// From its parts.
    #[must_use]
    pub fn new(
        object: impl Into<String>,
        action: &'static str,
        summary: impl Into<String>,
    ) -> Self {
        Self {
            object: object.into(),
            action,
            summary: summary.into(),
        }
    }

    /// Quarantined data that is deleted for ever.
    #[must_use]
    pub fn purge(entry: &str) -> Self {
        Self::new(
            format!("quarantine.{entry}"),
            "Purge",
            "delete the data for ever",
        )
    }

    /// Undeclared data that is deleted for ever.
    #[must_use]
    pub fn purge_orphan(id: Uuid) -> Self {
        Self::new(format!("orphan.{id}"), "Purge", "delete the data for ever")
    }

    /// Quarantined data that is brought back.
    #[must_use]
    pub fn restore(entry: &str, name: &str) -> Self {
        Self::new(
            format!("quarantine.{entry}"),
            "Restore",
            format!("bring the data back as {name}"),
        )
    }
}

/// What the journal calls a call of the engine; none for what concerns no object.
pub(super) fn name(task: &Task) -> Option<Named> {
    Some(match task {
        Task::Pool(name, action) => {
            let (action, summary) = match action {
                PoolAction::Open(spec) => ("Open", format!("open {}", backing(&spec.backing))),
                PoolAction::Close => ("Close", "close; its data stays".to_owned()),
            };
            Named::new(format!("pool.{name}"), action, summary)
        }
        Task::Volume(name, action) => {
            let (action, summary) = volume(action);
            Named::new(format!("volume.{name}"), action, summary)
        }
        Task::Restore { entry, name } => Named::restore(entry, name.as_str()),
        Task::Purge(entry) => Named::purge(entry),
        Task::PurgeOrphan(id) => Named::purge_orphan(*id),
        Task::Node(_) | Task::Inject(..) => return None,
    })
}

fn volume(action: &VolumeAction) -> (&'static str, String) {
    match action {
        VolumeAction::Rename { from } => ("Rename", format!("rename from {from}")),
        VolumeAction::Restore { entry } => ("Restore", format!("bring the data of {entry} back")),
        VolumeAction::Ensure {
            spec,
            creates: true,
        } => {
            let summary = format!("create {} on {}", spec.size, list(&spec.replicas));
            ("Create", summary)
        }
        VolumeAction::Ensure { .. } => ("Assemble", "assemble from its replicas".to_owned()),
        VolumeAction::SetPolicy(policy) => {
            let word = match policy.on_remove {
                OnRemove::Retain => "retain",
                OnRemove::Delete => "delete",
            };
            ("SetRemovalPolicy", format!("note on_remove = {word}"))
        }
        VolumeAction::EnsureExport { export, read_only } => {
            let word = match export {
                ExportSpec::None => "nothing",
                ExportSpec::VhostUser { .. } => "vhost-user",
                ExportSpec::Ublk { .. } => "ublk",
            };
            let read_only = if *read_only { ", read-only" } else { "" };
            ("Export", format!("export by {word}{read_only}"))
        }
        VolumeAction::RemoveExport => ("Unexport", "remove the export".to_owned()),
        VolumeAction::Quarantine => ("Quarantine", "stop and move to the quarantine".to_owned()),
        VolumeAction::Configure(_) => ("Configure", "take over new settings".to_owned()),
        VolumeAction::Grow { size } => ("Grow", format!("grow to {size}")),
        VolumeAction::AddReplica { pool } => ("AddReplica", format!("add a replica in {pool}")),
        VolumeAction::RemoveReplica { pool } => {
            ("RemoveReplica", format!("remove the replica in {pool}"))
        }
    }
}
