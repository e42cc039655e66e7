//! Steps of a plan in words.

use std::time::Duration;

use super::compare::list;
use super::step::{VolumeAction, VolumePlan};
use crate::model::observed::{Observed, ObservedVolume};
use crate::model::policy::VolumePolicy;
use crate::model::spec::{ExportSpec, OnRemove, VolumeSpec};
use crate::units::Bytes;

/// Each step that is done to a volume, in words.
pub(super) fn steps(name: &str, volume: &VolumePlan, observed: &Observed) -> Vec<String> {
    let there = name.parse().ok();
    let there = there.and_then(|name| observed.volumes.get(&name));
    let there = there.or_else(|| renamed(volume, observed));
    let old_size = there.map(|volume| volume.applied.size);
    let old_size = old_size.or_else(|| restored_size(volume, observed));
    let grows = volume.steps.iter().find_map(|step| match &step.action {
        VolumeAction::Grow { size } => Some(*size),
        _ => None,
    });
    let size = grows.or(old_size);
    let parts = volume.steps.iter().map(|step| match &step.action {
        VolumeAction::AddReplica { pool } => {
            format!(
                "replica added on {pool}, up to {} to copy",
                size.unwrap_or_default()
            )
        }
        VolumeAction::Grow { size } => {
            format!("size {} -> {size} (online)", old_size.unwrap_or_default())
        }
        action => words(action, there),
    });
    parts.collect()
}

/// The volume that another name is given to.
fn renamed<'a>(volume: &VolumePlan, observed: &'a Observed) -> Option<&'a ObservedVolume> {
    let mut steps = volume.steps.iter();
    steps.find_map(|step| match &step.action {
        VolumeAction::Rename { from } => observed.volumes.get(from),
        _ => None,
    })
}

/// The size of the data that is taken back.
fn restored_size(volume: &VolumePlan, observed: &Observed) -> Option<Bytes> {
    let mut entries = observed.quarantine.iter();
    let entry = entries.find(|known| {
        let mut steps = volume.steps.iter();
        steps.any(
            |step| matches!(&step.action, VolumeAction::Restore { entry } if *entry == known.id),
        )
    });
    entry.map(|entry| entry.applied.size)
}

fn words(action: &VolumeAction, there: Option<&ObservedVolume>) -> String {
    match action {
        VolumeAction::Rename { from } => format!("renamed from {from}"),
        VolumeAction::Restore { entry } => format!("data of {entry} restored"),
        VolumeAction::Ensure {
            spec,
            creates: true,
        } => created(spec),
        VolumeAction::Ensure { .. } => "opened".to_owned(),
        VolumeAction::SetPolicy(policy) => match policy.on_remove {
            OnRemove::Retain => "on_remove retain".to_owned(),
            OnRemove::Delete => "on_remove delete".to_owned(),
        },
        VolumeAction::EnsureExport { export, read_only } => {
            let word = if *read_only { " read-only" } else { "" };
            format!("{}{word}", export_word(export))
        }
        VolumeAction::RemoveExport => "export removed".to_owned(),
        VolumeAction::Quarantine => removed(there),
        VolumeAction::Configure(policy) => there.map_or_else(String::new, |volume| {
            policy_changes(&volume.applied.policy, policy)
        }),
        VolumeAction::Grow { size } => format!("size -> {size} (online)"),
        VolumeAction::AddReplica { pool } => format!("replica added on {pool}"),
        VolumeAction::RemoveReplica { pool } => {
            let replicas = there
                .map(|volume| volume.replicas.as_slice())
                .unwrap_or_default();
            let gone = replicas.iter().find(|replica| replica.pool == *pool);
            let freed = gone.map_or(0, |replica| replica.allocated_bytes);
            format!("replica on {pool} removed, {} freed", Bytes(freed))
        }
    }
}

fn removed(there: Option<&ObservedVolume>) -> String {
    let policy = there.map(|volume| volume.applied.removal.on_remove);
    let replicas = there
        .map(|volume| volume.replicas.as_slice())
        .unwrap_or_default();
    let allocated = replicas.iter().map(|replica| replica.allocated_bytes).sum();
    let word = match policy.unwrap_or_default() {
        OnRemove::Retain => "retain",
        OnRemove::Delete => "delete",
    };
    format!("data kept in quarantine ({word}), {}", Bytes(allocated))
}

fn created(spec: &VolumeSpec) -> String {
    let kind = if spec.thin { "thin" } else { "thick" };
    format!("{} {kind} on {}", spec.size, list(&spec.replicas))
}

fn export_word(export: &ExportSpec) -> &'static str {
    match export {
        ExportSpec::None => "no export",
        ExportSpec::VhostUser { .. } => "vhost-user",
        ExportSpec::Ublk { .. } => "ublk",
    }
}

/// `io_timeout 10s -> 5s, scrub.every never -> 7d`.
fn policy_changes(old: &VolumePolicy, new: &VolumePolicy) -> String {
    let rows = |policy: &VolumePolicy| {
        let span = |span: Duration| format!("{span:?}");
        let bandwidth = match policy.rebuild_bandwidth {
            0 => "unlimited".to_owned(),
            bytes => format!("{}/s", Bytes(bytes)),
        };
        let every = policy.scrub_every.map_or_else(|| "never".to_owned(), span);
        let pool = policy.scrub_repair_from.as_ref();
        [
            ("io_timeout", span(policy.io_timeout)),
            ("degraded_wait", span(policy.degraded_wait)),
            ("commit_timeout", span(policy.commit_timeout)),
            ("read_hedge", span(policy.read_hedge)),
            ("intent_max", policy.intent_max.to_string()),
            ("rebuild_bandwidth", bandwidth),
            ("scrub.every", every),
            (
                "scrub.repair_from",
                pool.map_or_else(|| "none".to_owned(), ToString::to_string),
            ),
        ]
    };
    let changes = rows(old).into_iter().zip(rows(new));
    let changes = changes.filter(|(old, new)| old != new);
    let changes = changes.map(|((key, old), (_, new))| format!("{key} {old} -> {new}"));
    changes.collect::<Vec<_>>().join(", ")
}
