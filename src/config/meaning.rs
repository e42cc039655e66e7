//! Third pass: what the objects say about one another. Turns [`RawConfig`] into the model's [`DesiredState`].
//!
//! Everything is checked even after errors; the state is built only when there were none.

use std::collections::BTreeMap;

use super::clash;
use super::diagnostic::{Diagnostic, Findings, Spot, closest, shown};
use super::keys::{self, Object};
use super::policy;
use super::raw::{RawConfig, RawPool, checked_name};
use super::shape::{At, Field};
use crate::model::spec::{DangerZone, DesiredState, NodeSpec, PoolBacking, PoolSpec, Safety};
use crate::model::{NodeName, PoolName};
use crate::units::Bytes;

/// Turns the files' tables into the desired state; None after errors, which are then among the findings.
/// Without `this_node`, the files are checked for their own sake, as if on the first node that they declare.
pub(crate) fn resolve(
    raw: &RawConfig,
    this_node: Option<&NodeName>,
    findings: &mut Findings,
) -> Option<DesiredState> {
    let mut resolver = Resolver {
        raw,
        home: home(raw, this_node),
        findings,
    };
    resolver.version();
    resolver.nodes(this_node);
    let pools = resolver.pools();
    let volumes = resolver.volumes(&pools);
    clash::pool_paths(raw, &pools, resolver.findings);
    clash::exports(raw, &volumes, resolver.findings);
    clash::renames(raw, resolver.findings);
    clash::uuids(raw, resolver.findings);
    let policy = policy::node(raw, &resolver.home, resolver.findings);
    let Resolver { home, findings, .. } = resolver;
    if findings.has_errors() {
        return None;
    }
    Some(DesiredState {
        this_node: home,
        nodes: raw
            .nodes
            .iter()
            .map(|(name, node)| {
                let address = node.address.good().map(|address| address.value.clone());
                (name.clone(), NodeSpec { address })
            })
            .collect(),
        pools: flatten(pools),
        volumes: flatten(volumes),
        safety: Safety {
            max_removals: raw.max_removals.good().map_or(keys::REMOVALS_MAX, |max| {
                u32::try_from(max.value).unwrap_or(u32::MAX)
            }),
        },
        policy,
        danger_zone: DangerZone {
            fault_injection: raw.fault_injection.good().is_some_and(|field| field.value),
        },
    })
}

fn flatten<K: Ord, V>(map: BTreeMap<K, Option<V>>) -> BTreeMap<K, V> {
    map.into_iter()
        .filter_map(|(name, spec)| Some((name, spec?)))
        .collect()
}

/// The node that objects without `node` are on when there is at most one.
fn home(raw: &RawConfig, this_node: Option<&NodeName>) -> NodeName {
    this_node
        .or_else(|| raw.nodes.keys().next())
        .cloned()
        .unwrap_or_else(|| checked_name("localhost"))
}

/// What the third pass has at hand.
pub(super) struct Resolver<'r> {
    pub(super) raw: &'r RawConfig,
    home: NodeName,
    pub(super) findings: &'r mut Findings,
}

impl Resolver<'_> {
    fn version(&mut self) {
        if self.raw.version.is_absent() {
            self.findings.push_absence(
                Diagnostic::error("E0104", Spot::start_of(0), "`version` is missing").help(
                    format!("start the first file with `version = {}`", keys::VERSION),
                ),
            );
        }
    }

    fn nodes(&mut self, this_node: Option<&NodeName>) {
        let nodes = &self.raw.nodes;
        if let (Some(this_node), Some(first)) = (this_node, nodes.values().next())
            && !nodes.contains_key(this_node)
        {
            let known: Vec<_> = nodes.keys().map(NodeName::as_str).collect();
            self.findings.push_absence(
                Diagnostic::error(
                    "E0206",
                    first.at.clone(),
                    format!("this node, `{this_node}`, is not declared, though others are"),
                )
                .help(format!(
                    "declare [node.{this_node}], or start volund with --node and one of: {}",
                    known.join(", ")
                )),
            );
        }
        if nodes.len() < 2 {
            return;
        }
        if self.raw.cluster_id.is_absent()
            && let Some(second) = nodes
                .values()
                .map(|node| &node.at)
                .max_by_key(|at| at.order())
        {
            self.findings.push_absence(
                Diagnostic::error("E0212", second.clone(), "with more than one node, `[cluster]` needs an `id`")
                    .help("add `[cluster]` with `id = \"...\"`; `uuidgen` makes one, and it never changes"),
            );
        }
        for (name, node) in nodes {
            if node.address.is_absent() {
                self.findings.push_absence(
                    Diagnostic::error(
                        "E0212",
                        node.at.clone(),
                        format!("node `{name}` needs an `address`"),
                    )
                    .help(
                        "with more than one node each must be reachable: `address = \"host:port\"`",
                    ),
                );
            }
        }
        clash::addresses(nodes, self.findings);
    }

    /// The node that `field` names, else the only one. None after a finding, or when it is not clear.
    pub(super) fn node(
        &mut self,
        field: &Field<String>,
        object: Object,
        name: &str,
    ) -> Option<NodeName> {
        let nodes = &self.raw.nodes;
        match field {
            Field::Bad => None,
            Field::Absent => match nodes.len() {
                0 => Some(self.home.clone()),
                1 => nodes.keys().next().cloned(),
                _ => None,
            },
            Field::Good(At { value, at }) => {
                let node: NodeName = checked_name(value);
                if nodes.contains_key(&node) {
                    return Some(node);
                }
                let known = nodes.keys().map(NodeName::as_str);
                let message = format!(
                    "{} `{name}` names node `{value}`, which is not declared",
                    object.word()
                );
                let finding = Diagnostic::error("E0205", at.clone(), message)
                    .label("no such node")
                    .help(suggestion(value, known, Object::Node));
                self.findings.push_absence(finding);
                None
            }
        }
    }

    fn pools(&mut self) -> BTreeMap<PoolName, Option<PoolSpec>> {
        self.raw
            .pools
            .iter()
            .map(|(name, pool)| (name.clone(), self.pool(name, pool)))
            .collect()
    }

    fn pool(&mut self, name: &PoolName, pool: &RawPool) -> Option<PoolSpec> {
        let node = self.node(&pool.node, Object::Pool, name.as_str());
        if node.is_none() && pool.node.is_absent() {
            self.findings.push_absence(
                Diagnostic::error(
                    "E0207",
                    pool.at.clone(),
                    format!("pool `{name}` must say which `node` has it"),
                )
                .help("with more than one node there is no default"),
            );
        }
        let backing = self.backing(name, pool)?;
        let default = match backing {
            PoolBacking::Directory(_) => keys::RESERVE,
            PoolBacking::Memory(_) => Bytes(0),
        };
        let reserve = pool.reserve.good().map_or(default, |reserve| reserve.value);
        if let (PoolBacking::Memory(memory), Some(field)) = (&backing, pool.reserve.good())
            && reserve >= *memory
        {
            let message = format!(
                "pool `{name}` has {memory} and keeps {reserve} of it free: nothing is left"
            );
            self.findings.push(
                Diagnostic::error("E0216", field.at.clone(), message)
                    .help("a memory pool needs no reserve: drop it"),
            );
        }
        Some(PoolSpec {
            node: node?,
            backing,
            reserve,
        })
    }

    fn backing(&mut self, name: &PoolName, pool: &RawPool) -> Option<PoolBacking> {
        match (&pool.path, &pool.memory) {
            (Field::Absent, Field::Absent) => {
                self.findings.push_absence(
                    Diagnostic::error("E0201", pool.at.clone(), format!("pool `{name}` has neither `path` nor `memory`"))
                        .help("say what it is made of: `path = \"/var/lib/volund/main\"` or `memory = \"1GiB\"`"),
                );
                None
            }
            (Field::Good(path), Field::Good(memory)) => {
                self.findings.push(
                    Diagnostic::error(
                        "E0201",
                        memory.at.clone(),
                        format!("pool `{name}` has both `path` and `memory`"),
                    )
                    .also(path.at.clone(), "the other one")
                    .help("keep one of them, or make two pools"),
                );
                None
            }
            (Field::Good(path), _) => Some(PoolBacking::Directory(path.value.clone())),
            (_, Field::Good(memory)) => Some(PoolBacking::Memory(memory.value)),
            _ => None,
        }
    }
}

pub(super) fn suggestion<'a>(
    wrong: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    object: Object,
) -> String {
    if let Some(close) = closest(wrong, known.clone()) {
        return format!("did you mean `{close}`?");
    }
    let known: Vec<_> = known.collect();
    let word = object.word();
    if known.is_empty() {
        return format!("no {word} is declared: add [{word}.{}]", shown(wrong));
    }
    format!("{word}s here: {}", known.join(", "))
}
