//! Third pass, continued: objects that want the same thing. Nodes, pool directories, sockets, device numbers, names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Findings, Spot};
use super::raw::{RawConfig, RawNode, RawVolume, checked_name};
use super::shape::{At, Field};
use crate::model::spec::{ExportSpec, PoolBacking, PoolSpec, VolumeSpec};
use crate::model::{NodeName, PoolName, VolumeName};

/// Where sockets are unless the daemon was told otherwise.
const RUNTIME_DIR: &str = "/run/volund";
/// The daemon's own socket there.
const ADMIN_SOCKET: &str = "admin.sock";

/// No two nodes may have one address.
pub(super) fn addresses(nodes: &BTreeMap<NodeName, RawNode>, findings: &mut Findings) {
    let mut taken: BTreeMap<&str, (&NodeName, &Spot)> = BTreeMap::new();
    for (name, node) in nodes {
        let Some(address) = node.address.good() else {
            continue;
        };
        if let Some((first, at)) = taken.insert(&address.value, (name, &address.at)) {
            let message = format!("nodes `{first}` and `{name}` have the same address");
            findings.push(
                Diagnostic::error("E0213", address.at.clone(), message)
                    .also(at.clone(), "the other one"),
            );
        }
    }
}

/// No pool's directory may be, contain, or be in another one's on the same node.
pub(super) fn pool_paths(
    raw: &RawConfig,
    pools: &BTreeMap<PoolName, Option<PoolSpec>>,
    findings: &mut Findings,
) {
    let mut by_path: BTreeMap<(&NodeName, &Path), &PoolName> = BTreeMap::new();
    let spot = |name: &PoolName| {
        raw.pools
            .get(name)
            .and_then(|pool| pool.path.good())
            .map(|path| path.at.clone())
    };
    for (name, spec) in pools {
        let Some(PoolSpec {
            node,
            backing: PoolBacking::Directory(path),
            ..
        }) = spec
        else {
            continue;
        };
        if let Some(first) = by_path.insert((node, path), name)
            && let (Some(at), Some(other)) = (spot(name), spot(first))
        {
            let message = format!("pools `{first}` and `{name}` have the same path");
            findings.push(
                Diagnostic::error("E0210", at, message)
                    .also(other, "the other one")
                    .help("a directory can be one pool only"),
            );
        }
    }
    for ((node, path), inner) in &by_path {
        let Some((outer, parent)) = path
            .ancestors()
            .skip(1)
            .find_map(|parent| Some((*by_path.get(&(*node, parent))?, parent)))
        else {
            continue;
        };
        if let (Some(at), Some(other)) = (spot(inner), spot(outer)) {
            let message = format!(
                "pool `{inner}` is inside pool `{outer}`, whose path is `{}`",
                parent.display()
            );
            findings.push(
                Diagnostic::error("E0210", at, message)
                    .also(other, "the outer one")
                    .help("put them beside each other"),
            );
        }
    }
}

/// No two exports of a node may have one socket or one device number.
pub(super) fn exports(
    raw: &RawConfig,
    volumes: &BTreeMap<VolumeName, Option<VolumeSpec>>,
    findings: &mut Findings,
) {
    let mut sockets: BTreeMap<(&NodeName, PathBuf), &VolumeName> = BTreeMap::new();
    let mut ids: BTreeMap<(&NodeName, u32), &VolumeName> = BTreeMap::new();
    let spot = |name: &VolumeName| raw.volumes.get(name).map(export_spot);
    for (name, spec) in volumes {
        let Some(spec) = spec else {
            continue;
        };
        let clash = match &spec.export {
            ExportSpec::VhostUser { socket, .. } => {
                let path = effective_socket(name, socket.as_ref());
                if path == Path::new(RUNTIME_DIR).join(ADMIN_SOCKET) {
                    findings.push(admin_socket_taken(name, spot(name)));
                    continue;
                }
                let what = format!("socket `{}`", path.display());
                sockets
                    .insert((&spec.node, path), name)
                    .map(|first| (first, what, "E0208"))
            }
            ExportSpec::Ublk { id: Some(id), .. } => ids
                .insert((&spec.node, *id), name)
                .map(|first| (first, format!("ublk id {id}"), "E0209")),
            ExportSpec::Ublk { id: None, .. } | ExportSpec::None => None,
        };
        if let Some((first, what, code)) = clash
            && let (Some(at), Some(other)) = (spot(name), spot(first))
        {
            let message = format!("volumes `{first}` and `{name}` both want {what}");
            findings.push(
                Diagnostic::error(code, at, message)
                    .also(other, "the other one")
                    .help("give one of them another, or leave it out to have one chosen"),
            );
        }
    }
}

/// No two volumes may be the same data.
pub(super) fn uuids(raw: &RawConfig, findings: &mut Findings) {
    let mut taken = BTreeMap::new();
    for (name, volume) in &raw.volumes {
        let Some(At { value, at }) = volume.uuid.good() else {
            continue;
        };
        if let Some((first, other)) = taken.insert(value, (name, at)) {
            let message = format!("volumes `{first}` and `{name}` have the same uuid");
            findings.push(
                Diagnostic::error("E0219", at.clone(), message)
                    .also(Spot::clone(other), "the other one")
                    .help("two volumes can't be one: keep the key with the volume that the data is to be"),
            );
        }
    }
}

fn effective_socket(name: &VolumeName, socket: Option<&PathBuf>) -> PathBuf {
    socket
        .cloned()
        .unwrap_or_else(|| Path::new(RUNTIME_DIR).join(format!("{name}.sock")))
}

fn admin_socket_taken(name: &VolumeName, at: Option<Spot>) -> Diagnostic {
    let at = at.unwrap_or_else(|| Spot::start_of(0));
    Diagnostic::error(
        "E0208",
        at,
        format!("volume `{name}` wants the socket `{ADMIN_SOCKET}`, which is the daemon's own"),
    )
    .help("give it another `socket`, or another name")
}

/// The most telling place of an export: its socket or id, else the volume.
fn export_spot(volume: &RawVolume) -> Spot {
    let Some(At { value: export, at }) = volume.export.good() else {
        return volume.at.clone();
    };
    let socket = export
        .vhost_user
        .good()
        .and_then(|vhost_user| vhost_user.value.socket.good());
    let id = export.ublk.good().and_then(|ublk| ublk.value.id.good());
    match (socket, id) {
        (Some(socket), _) => socket.at.clone(),
        (_, Some(id)) => id.at.clone(),
        _ => at.clone(),
    }
}

/// A rename must have one old name that is free and one new name.
pub(super) fn renames(raw: &RawConfig, findings: &mut Findings) {
    let mut taken: BTreeMap<&str, (&VolumeName, &Spot)> = BTreeMap::new();
    for (name, volume) in &raw.volumes {
        let Field::Good(At { value: old, at }) = &volume.renamed_from else {
            continue;
        };
        if let Some((first, other)) = taken.insert(old, (name, at)) {
            let message =
                format!("volumes `{first}` and `{name}` both want to be renamed from `{old}`");
            findings.push(
                Diagnostic::error("E0211", at.clone(), message)
                    .also(other.clone(), "the other one")
                    .help(
                        "data has one name: keep the key with the volume that takes the data over",
                    ),
            );
        }
        if old == name.as_str() {
            findings.push(
                Diagnostic::error(
                    "E0211",
                    at.clone(),
                    format!("volume `{name}` is renamed from itself"),
                )
                .help("drop `renamed_from`"),
            );
            continue;
        }
        let Some(existing) = raw
            .volumes
            .get(&checked_name::<crate::model::id::kind::Volume>(old))
        else {
            continue;
        };
        let back = existing.renamed_from.good().is_some();
        let help = if back {
            "do chains and swaps one rename at a time, over a name that is free"
        } else {
            "remove the old table: a rename takes its data over"
        };
        findings.push(
            Diagnostic::error(
                "E0211",
                at.clone(),
                format!("volume `{name}` is renamed from `{old}`, which is still declared"),
            )
            .also(existing.at.clone(), "still declared here")
            .help(help),
        );
    }
}
