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
/// Code of other replicas.
pub const CODE_REPLICAS: &str = "E0305";
/// Code of a larger size.
pub const CODE_GROW: &str = "E0306";

/// What of `wanted` an existing volume can't become; empty when it is compatible.
///
/// `local` are the pools of this node that `wanted` names.
#[must_use]
pub fn refusals(
    name: &VolumeName,
    wanted: &VolumeSpec,
    local: &BTreeSet<PoolName>,
    applied: &AppliedVolume,
) -> Vec<Blocked> {
    let mut refusals = Vec::new();
    if wanted.size != applied.size {
        refusals.push(size_refusal(name, wanted, applied));
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
    if !applied.replicas.is_subset(local) || applied.members != local.len() {
        refusals.push(refused(
            "ReplicasImmutable",
            CODE_REPLICAS,
            format!(
                "replicas {} -> {} refused: the replicas of volume \"{name}\" can't be changed in this version \
                 ({CODE_REPLICAS}); put the old list back",
                list(&applied.replicas),
                list(local)
            ),
        ));
    }
    refusals
}

fn size_refusal(name: &VolumeName, wanted: &VolumeSpec, applied: &AppliedVolume) -> Blocked {
    let (old, new) = (applied.size, wanted.size);
    if new < old {
        return refused(
            "ShrinkRefused",
            CODE_SHRINK,
            format!(
                "size {old} -> {new} refused: volume \"{name}\" would lose its end ({CODE_SHRINK}); make a new \
                 volume and copy"
            ),
        );
    }
    refused(
        "GrowUnsupported",
        CODE_GROW,
        format!(
            "size {old} -> {new} refused: volume \"{name}\" can't grow in this version ({CODE_GROW}); put the old \
             size back"
        ),
    )
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

/// What the volume is run with: what was asked for, with the refused keys as they were.
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
    let compatible = applied.replicas.is_subset(local) && applied.members == local.len();
    if compatible {
        spec.replicas.retain(|pool| local.contains(pool));
    } else {
        spec.replicas = applied.replicas.iter().cloned().collect();
    }
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
