//! Third pass, continued: volumes, where their replicas go and how they are exported.

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::{Diagnostic, Spot, closest};
use super::keys::{self, Object};
use super::meaning::{Resolver, suggestion};
use super::policy::{self, Kept};
use super::raw::{RawVolume, checked_name};
use super::shape::{At, Field};
use crate::model::spec::{ExportSpec, PoolBacking, PoolSpec, VolumeSpec};
use crate::model::{NodeName, PoolName, VolumeId, VolumeName};
use crate::units::{Bytes, MIB};

/// Bytes that a replica has before its data (spec section 9).
const REPLICA_HEADER: Bytes = Bytes(MIB);

impl Resolver<'_> {
    pub(super) fn volumes(
        &mut self,
        pools: &BTreeMap<PoolName, Option<PoolSpec>>,
    ) -> BTreeMap<VolumeName, Option<VolumeSpec>> {
        self.raw
            .volumes
            .iter()
            .map(|(name, volume)| (name.clone(), self.volume(name, volume, pools)))
            .collect()
    }

    fn volume(
        &mut self,
        name: &VolumeName,
        volume: &RawVolume,
        pools: &BTreeMap<PoolName, Option<PoolSpec>>,
    ) -> Option<VolumeSpec> {
        if volume.size.is_absent() {
            self.findings.push_absence(
                Diagnostic::error(
                    "E0104",
                    volume.at.clone(),
                    format!("volume `{name}` has no `size`"),
                )
                .help("add one, as in `size = \"20GiB\"`"),
            );
        }
        let replicas = self.replicas(name, volume);
        let node = self.volume_node(name, volume, &replicas, pools);
        let export = self.export(name, volume);
        let size = volume.size.good();
        if let Some(size) = size {
            self.fits_in_memory(name, size, &replicas, pools);
        }
        let complete = !replicas.is_empty()
            && !matches!(volume.replicas, Field::Bad)
            && !matches!(volume.pool, Field::Bad);
        let spec = Kept::new(&volume.policy, &self.raw.defaults);
        let policy = policy::volume(&volume.policy, &self.raw.defaults);
        policy::repair_from(name, &volume.policy, &replicas, self.findings);
        let force_start = policy::force_start(name, &volume.force_start, self.findings);
        Some(VolumeSpec {
            node: node?,
            size: size?.value,
            replicas: complete
                .then(|| replicas.into_iter().map(|replica| replica.value).collect())?,
            thin: spec.thin,
            block_size: spec.block_size,
            read_only: volume.read_only.good().is_some_and(|field| field.value),
            export: export?,
            on_remove: spec.on_remove,
            quarantine_for: spec.quarantine_for,
            on_create_fail: spec.on_create_fail,
            uuid: volume
                .uuid
                .good()
                .map(|uuid| VolumeId::from_uuid(uuid.value)),
            renamed_from: volume
                .renamed_from
                .good()
                .map(|old| checked_name(&old.value)),
            policy,
            force_start,
        })
    }

    /// The pools of a volume's replicas that exist.
    fn replicas(&mut self, name: &VolumeName, volume: &RawVolume) -> Vec<At<PoolName>> {
        let single;
        let listed: &[At<String>] = match (&volume.pool, &volume.replicas) {
            (Field::Absent, Field::Absent) => {
                self.findings.push_absence(
                    Diagnostic::error(
                        "E0201",
                        volume.at.clone(),
                        format!("volume `{name}` has neither `pool` nor `replicas`"),
                    )
                    .help("say where its data goes: `pool = \"NAME\"`, or `replicas = [\"NAME\", \"NAME\"]`"),
                );
                return Vec::new();
            }
            (Field::Good(pool), Field::Good(replicas)) => {
                self.findings.push(
                    Diagnostic::error(
                        "E0201",
                        pool.at.clone(),
                        format!("volume `{name}` has both `pool` and `replicas`"),
                    )
                    .also(replicas.at.clone(), "the other one")
                    .help("`pool` is short for `replicas` with one entry: keep one of them"),
                );
                &replicas.value
            }
            (Field::Good(pool), _) => {
                single = [pool.clone()];
                &single
            }
            (_, Field::Good(replicas)) => &replicas.value,
            _ => return Vec::new(),
        };
        self.existing_pools(name, listed)
    }

    fn existing_pools(&mut self, name: &VolumeName, listed: &[At<String>]) -> Vec<At<PoolName>> {
        let mut seen: BTreeMap<&str, &Spot> = BTreeMap::new();
        let mut found = Vec::new();
        for At { value, at } in listed {
            if let Some(first) = seen.insert(value, at) {
                self.findings.push(
                    Diagnostic::error(
                        "E0202",
                        at.clone(),
                        format!("volume `{name}` has two replicas in pool `{value}`"),
                    )
                    .label("named again here")
                    .also(first.clone(), "first named here")
                    .help("two copies in one pool are lost together: name another pool"),
                );
                continue;
            }
            let pool: PoolName = checked_name(value);
            if self.raw.pools.contains_key(&pool) {
                found.push(At {
                    value: pool,
                    at: at.clone(),
                });
                continue;
            }
            let known = self.raw.pools.keys().map(PoolName::as_str);
            let mut finding = Diagnostic::error(
                "E0204",
                at.clone(),
                format!("volume `{name}` names pool `{value}`, which does not exist"),
            )
            .label("no such pool")
            .help(suggestion(value, known.clone(), Object::Pool));
            if let Some(pool) =
                closest(value, known).and_then(|close| self.raw.pools.get(&checked_name(close)))
            {
                finding = finding.also(pool.at.clone(), "a similar name");
            }
            self.findings.push_absence(finding);
        }
        found
    }

    /// The node that exports a volume: the one it names, else the only one, else the one that has all of its pools.
    fn volume_node(
        &mut self,
        name: &VolumeName,
        volume: &RawVolume,
        replicas: &[At<PoolName>],
        pools: &BTreeMap<PoolName, Option<PoolSpec>>,
    ) -> Option<NodeName> {
        let node = self.node(&volume.node, Object::Volume, name.as_str());
        if node.is_some() || !volume.node.is_absent() {
            return node;
        }
        let specs: Option<Vec<_>> = replicas
            .iter()
            .map(|replica| pools.get(&replica.value)?.as_ref())
            .collect();
        // Pools with errors of their own, or none: nothing can be concluded, and the cause is reported already.
        let nodes: BTreeSet<_> = specs?.into_iter().map(|pool| &pool.node).collect();
        let mut nodes = nodes.into_iter();
        match (nodes.next(), nodes.next()) {
            (Some(only), None) => Some(only.clone()),
            (Some(first), Some(_)) => {
                self.findings.push(
                    Diagnostic::error(
                        "E0207",
                        volume.at.clone(),
                        format!("volume `{name}` must say which `node` mirrors and exports it"),
                    )
                    .help(format!("its pools are on several nodes: add `node = \"{first}\"` or another of them")),
                );
                None
            }
            (None, _) => None,
        }
    }

    fn fits_in_memory(
        &mut self,
        name: &VolumeName,
        size: &At<Bytes>,
        replicas: &[At<PoolName>],
        pools: &BTreeMap<PoolName, Option<PoolSpec>>,
    ) {
        for replica in replicas {
            let Some(Some(spec)) = pools.get(&replica.value) else {
                continue;
            };
            let PoolBacking::Memory(memory) = spec.backing else {
                continue;
            };
            let room = memory
                .saturating_sub(spec.reserve)
                .saturating_sub(REPLICA_HEADER);
            if size.value > room {
                let message = format!(
                    "volume `{name}` of {} does not fit into pool `{}`, a memory pool of {memory}",
                    size.value, replica.value
                );
                self.findings.push(
                    Diagnostic::error("E0216", size.at.clone(), message)
                        .help(format!("at most {room} fit: 1MiB of each replica and the pool's `reserve` are taken off")),
                );
            }
        }
    }

    fn export(&mut self, name: &VolumeName, volume: &RawVolume) -> Option<ExportSpec> {
        let At { value: export, at } = match &volume.export {
            Field::Absent => return Some(ExportSpec::None),
            Field::Bad => return None,
            Field::Good(export) => export,
        };
        match (&export.vhost_user, &export.ublk) {
            (Field::Absent, Field::Absent) if export.is_word => Some(ExportSpec::None),
            (Field::Absent, Field::Absent) => {
                self.findings.push_absence(
                    Diagnostic::error("E0201", at.clone(), format!("the export of volume `{name}` says no kind"))
                        .help("write `export = { vhost-user = {} }`, `export = { ublk = {} }` or `export = \"none\"`"),
                );
                None
            }
            (Field::Good(vhost_user), Field::Good(ublk)) => {
                self.findings.push(
                    Diagnostic::error(
                        "E0201",
                        ublk.at.clone(),
                        format!("volume `{name}` is exported both as `vhost-user` and as `ublk`"),
                    )
                    .also(vhost_user.at.clone(), "the other one")
                    .help("two clients would overwrite each other's data: keep one of them"),
                );
                None
            }
            (Field::Good(vhost_user), _) => Some(ExportSpec::VhostUser {
                socket: vhost_user
                    .value
                    .socket
                    .good()
                    .map(|socket| socket.value.clone()),
                queues: narrow(&vhost_user.value.queues, keys::VHOST_QUEUES),
                depth: narrow(&vhost_user.value.depth, keys::VHOST_DEPTH),
                pin_guest_memory: volume.pin_guest_memory.good().is_some_and(|pin| pin.value),
            }),
            (_, Field::Good(ublk)) => Some(ExportSpec::Ublk {
                id: ublk
                    .value
                    .id
                    .good()
                    .and_then(|id| u32::try_from(id.value).ok()),
                depth: narrow(&ublk.value.depth, keys::UBLK_DEPTH),
            }),
            _ => None,
        }
    }
}

/// A number whose range the shape pass has checked.
fn narrow(field: &Field<u64>, default: u16) -> u16 {
    field.good().map_or(default, |number| {
        u16::try_from(number.value).expect("the key table's range fits the model's type")
    })
}
