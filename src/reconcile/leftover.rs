//! Data on disk that no volume uses, as `/v1/status` shows it: the quarantine and orphans.

use super::step::Plan;
use crate::model::observed::{Observed, ObservedVolume};
use crate::model::spec::OnRemove;
use crate::model::status::{Orphan, QuarantineEntry};
use crate::model::time::rfc3339;
use crate::model::{VolumeId, VolumeName};

/// The quarantine as `/v1/status` shows it.
pub(super) fn quarantine(observed: &Observed) -> Vec<QuarantineEntry> {
    let entries = observed.quarantine.iter().map(|entry| {
        let policy = entry.applied.removal;
        let due = entry
            .removed_at_unix_seconds
            .saturating_add(policy.quarantine_for.as_secs());
        QuarantineEntry {
            id: entry.id.clone(),
            volume: entry.volume.clone(),
            uuid: entry.uuid,
            removed_at: rfc3339(entry.removed_at_unix_seconds),
            purge_at: match policy.on_remove {
                OnRemove::Retain => None,
                OnRemove::Delete => Some(rfc3339(due)),
            },
            pools: entry.applied.replicas.iter().cloned().collect(),
            allocated_bytes: entry.allocated.get(),
            applied: Some(entry.applied.clone()),
        }
    });
    let mut entries: Vec<_> = entries.collect();
    entries
        .sort_by(|a, b| (&a.volume, &a.removed_at, &a.id).cmp(&(&b.volume, &b.removed_at, &b.id)));
    entries
}

/// What nobody declares, as `/v1/status` shows it: whole volumes first, then single files.
pub(super) fn orphans(plan: &Plan, observed: &Observed) -> Vec<Orphan> {
    let volumes = plan.orphans.iter().flat_map(|name| {
        let volume = observed.volumes.get(name);
        volume.into_iter().flat_map(move |volume| {
            volume
                .ids
                .iter()
                .map(move |id| undeclared(name, *id, volume))
        })
    });
    let strays = observed.strays.iter().map(|stray| Orphan {
        id: stray.replica.map(|replica| replica.uuid()),
        reason: stray.why.reason.clone(),
        message: stray.why.message.clone(),
        volume: None,
        size_bytes: 0,
        pools: vec![stray.pool.clone()],
        allocated_bytes: stray.allocated.get(),
        applied: None,
    });
    volumes.chain(strays).collect()
}

fn undeclared(name: &VolumeName, id: VolumeId, volume: &ObservedVolume) -> Orphan {
    let replicas = volume.replicas.iter();
    Orphan {
        id: Some(id.uuid()),
        reason: "Undeclared".to_owned(),
        message: format!(
            "no table declares volume \"{name}\", and none that this node knows of ever did: it is kept. Add \
             [volume.{name}], or any volume with uuid = \"{id}\", to adopt it; `volund orphans purge {id}` deletes it"
        ),
        volume: Some(name.clone()),
        size_bytes: volume.applied.size.get(),
        pools: replicas
            .clone()
            .map(|replica| replica.pool.clone())
            .collect(),
        allocated_bytes: replicas.map(|replica| replica.allocated_bytes).sum(),
        applied: Some(volume.applied.clone()),
    }
}
