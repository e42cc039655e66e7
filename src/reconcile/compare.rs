//! Whether a volume may become what the files ask for, key by key (the reference table of the configuration says
//! which keys are immutable).

use std::collections::BTreeSet;

use super::step::{Blocked, BlockedKind};
use crate::model::observed::AppliedVolume;
use crate::model::spec::{BlockSize, VolumeSpec};
use crate::model::{PoolName, VolumeName};

/// Code of a change to a key that can't change.
pub const CODE_IMMUTABLE: &str = "E0301";
/// Code of a smaller size.
pub const CODE_SHRINK: &str = "E0302";
/// Code of a change to what a client uses.
pub const CODE_IN_USE: &str = "E0303";
/// Code of more removals than allowed.
pub const CODE_REMOVALS: &str = "E0304";

/// What of `wanted` an existing volume can't become; empty when it is compatible. Its members and a larger size are
/// not of that: they change while it runs.
#[must_use]
pub fn refusals(name: &VolumeName, wanted: &VolumeSpec, applied: &AppliedVolume) -> Vec<Blocked> {
    let mut refusals = Vec::new();
    if wanted.size < applied.size {
        refusals.push(refused(
            "ShrinkRefused",
            CODE_SHRINK,
            format!(
                "size {} -> {} refused: volume \"{name}\" would lose its end ({CODE_SHRINK}); make a new volume and \
                 copy",
                applied.size, wanted.size
            ),
        ));
    }
    if wanted.block_size != applied.block_size {
        let (old, new) = (bytes(applied.block_size), bytes(wanted.block_size));
        refusals.push(immutable(name, "block_size", &old, &new));
    }
    if let Some(thin) = applied.thin
        && thin != wanted.thin
    {
        let (old, new) = (thin.to_string(), wanted.thin.to_string());
        refusals.push(immutable(name, "thin", &old, &new));
    }
    refusals
}

fn immutable(name: &VolumeName, key: &str, old: &str, new: &str) -> Blocked {
    refused(
        "Immutable",
        CODE_IMMUTABLE,
        format!(
            "{key} {old} -> {new} refused: immutable ({CODE_IMMUTABLE}); volume \"{name}\" keeps {old}"
        ),
    )
}

pub(super) fn refused(reason: &str, code: &str, message: String) -> Blocked {
    Blocked {
        kind: BlockedKind::ChangeRefused,
        reason: reason.to_owned(),
        message,
        code: Some(code.to_owned()),
    }
}

/// What the volume is opened with: what was asked for, with the refused keys as they were, and with the members and
/// the size that it has. Those change once it runs.
#[must_use]
pub fn effective(
    wanted: &VolumeSpec,
    local: &BTreeSet<PoolName>,
    applied: &AppliedVolume,
) -> VolumeSpec {
    let mut spec = wanted.clone();
    spec.size = applied.size;
    spec.block_size = applied.block_size;
    spec.thin = applied.thin.unwrap_or(wanted.thin);
    // Nobody knows where some members are when `state/` was lost while a pool is away: one of the listed pools may
    // have them.
    let is_known = applied.members <= applied.replicas.len();
    spec.replicas
        .retain(|pool| applied.replicas.contains(pool) || (!is_known && local.contains(pool)));
    let others = applied.replicas.iter();
    let others: Vec<_> = others
        .filter(|pool| !spec.replicas.contains(pool))
        .cloned()
        .collect();
    spec.replicas.extend(others);
    spec
}

fn bytes(size: BlockSize) -> String {
    size.bytes().to_string()
}

/// `fast-n1, fast-n2`.
pub(super) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(", ")
}
