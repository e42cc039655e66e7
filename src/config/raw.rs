//! What the files say, object by object, with the place of each value: typed, but not yet compared with one another.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use super::diagnostic::Spot;
use super::shape::{At, Field, Shape};
use crate::model::id::Name;
use crate::model::{NodeName, PoolName, VolumeName};
use crate::units::Bytes;

/// All files together.
#[derive(Debug)]
pub(crate) struct RawConfig {
    pub(crate) version: Field<u64>,
    pub(crate) cluster_id: Field<Uuid>,
    pub(crate) nodes: BTreeMap<NodeName, RawNode>,
    pub(crate) pools: BTreeMap<PoolName, RawPool>,
    pub(crate) volumes: BTreeMap<VolumeName, RawVolume>,
    pub(crate) defaults: RawPolicy,
    pub(crate) default_rebuild_max: Field<u64>,
    pub(crate) max_removals: Field<u64>,
    pub(crate) retry: RawRetry,
    pub(crate) fault_injection: Field<bool>,
}

/// `[node.*]`
#[derive(Debug)]
pub(crate) struct RawNode {
    pub(crate) at: Spot,
    pub(crate) address: Field<String>,
    pub(crate) rebuild_max: Field<u64>,
}

/// `[retry]`
#[derive(Debug)]
pub(crate) struct RawRetry {
    pub(crate) max_attempts: Field<u64>,
    pub(crate) initial_wait: Field<Duration>,
    pub(crate) multiplier: Field<u64>,
    pub(crate) max_wait: Field<Duration>,
}

/// `[pool.*]`
#[derive(Debug)]
pub(crate) struct RawPool {
    pub(crate) at: Spot,
    pub(crate) path: Field<PathBuf>,
    pub(crate) memory: Field<Bytes>,
    pub(crate) node: Field<String>,
    pub(crate) reserve: Field<Bytes>,
}

/// `[volume.*]`
#[derive(Debug)]
pub(crate) struct RawVolume {
    pub(crate) at: Spot,
    pub(crate) size: Field<Bytes>,
    pub(crate) pool: Field<String>,
    pub(crate) replicas: Field<Vec<At<String>>>,
    pub(crate) node: Field<String>,
    pub(crate) export: Field<RawExport>,
    pub(crate) read_only: Field<bool>,
    pub(crate) pin_guest_memory: Field<bool>,
    pub(crate) uuid: Field<Uuid>,
    pub(crate) renamed_from: Field<String>,
    pub(crate) force_start: Field<RawForceStart>,
    pub(crate) policy: RawPolicy,
}

/// `force_start`
#[derive(Debug)]
pub(crate) struct RawForceStart {
    pub(crate) from: Field<Uuid>,
    pub(crate) at_gen: Field<u64>,
}

/// What both a volume and `[defaults.volume]` may say.
#[derive(Debug)]
pub(crate) struct RawPolicy {
    pub(crate) thin: Field<bool>,
    pub(crate) block_size: Field<u64>,
    pub(crate) on_remove: Field<String>,
    pub(crate) quarantine_for: Field<Duration>,
    pub(crate) on_create_fail: Field<String>,
    pub(crate) io_timeout: Field<Duration>,
    pub(crate) degraded_wait: Field<Duration>,
    pub(crate) commit_timeout: Field<Duration>,
    pub(crate) read_hedge: Field<Duration>,
    pub(crate) intent_max: Field<u64>,
    pub(crate) rebuild_bandwidth: Field<u64>,
    pub(crate) scrub_every: Field<Duration>,
    pub(crate) scrub_repair_from: Field<String>,
}

/// `export`; the word `none` has become a table without keys whose place is the word.
#[derive(Debug)]
pub(crate) struct RawExport {
    pub(crate) is_word: bool,
    pub(crate) vhost_user: Field<RawVhostUser>,
    pub(crate) ublk: Field<RawUblk>,
}

/// `export.vhost-user`
#[derive(Debug)]
pub(crate) struct RawVhostUser {
    pub(crate) socket: Field<PathBuf>,
    pub(crate) queues: Field<u64>,
    pub(crate) depth: Field<u64>,
}

/// `export.ublk`
#[derive(Debug)]
pub(crate) struct RawUblk {
    pub(crate) id: Field<u64>,
    pub(crate) depth: Field<u64>,
}

impl<T> Field<T> {
    /// The same field with its value changed.
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Self::Absent => Field::Absent,
            Self::Bad => Field::Bad,
            Self::Good(At { value, at }) => Field::Good(At {
                value: change(value),
                at,
            }),
        }
    }
}

impl RawConfig {
    /// Takes the checked tables apart.
    ///
    /// # Panics
    /// When the key table has a key that nothing here reads.
    pub(crate) fn new(mut whole: Shape) -> Self {
        let mut section = |name| inner(&mut whole, name);
        let (mut cluster, mut defaults, mut safety) =
            (section("cluster"), section("defaults"), section("safety"));
        let (mut retry, mut danger_zone) = (section("retry"), section("danger_zone"));
        let (mut policy, mut node) = (inner(&mut defaults, "volume"), inner(&mut defaults, "node"));
        let raw = Self {
            version: whole.take("version"),
            cluster_id: cluster.take("id"),
            nodes: tables(&mut whole, "node", RawNode::new),
            pools: tables(&mut whole, "pool", RawPool::new),
            volumes: tables(&mut whole, "volume", RawVolume::new),
            defaults: RawPolicy::new(&mut policy),
            default_rebuild_max: node.take("rebuild_max"),
            max_removals: safety.take("max_removals"),
            retry: RawRetry::new(&mut retry),
            fault_injection: danger_zone.take("fault_injection"),
        };
        let rest = [
            whole,
            cluster,
            defaults,
            safety,
            retry,
            danger_zone,
            policy,
            node,
        ];
        for shape in rest {
            assert_all_read(&shape);
        }
        raw
    }
}

/// A table inside `shape`, empty when it is not there.
fn inner(shape: &mut Shape, name: &'static str) -> Shape {
    match shape.take::<Shape>(name) {
        Field::Good(At { value, .. }) => value,
        Field::Absent | Field::Bad => Shape::empty(shape.at.clone()),
    }
}

fn assert_all_read(shape: &Shape) {
    assert!(shape.is_empty(), "every key of the key table has a reader");
}

fn tables<K: Ord, T>(
    whole: &mut Shape,
    name: &'static str,
    read: fn(Shape) -> T,
) -> BTreeMap<Name<K>, T> {
    let Field::Good(At { value: tables, .. }) = whole.take::<BTreeMap<String, Shape>>(name) else {
        return BTreeMap::new();
    };
    tables
        .into_iter()
        .map(|(name, shape)| (checked_name(&name), read(shape)))
        .collect()
}

/// Turns a name that the shape pass has let through into the model's type.
pub(crate) fn checked_name<K>(name: &str) -> Name<K> {
    name.parse()
        .expect("the shape pass lets only valid names through")
}

impl RawNode {
    fn new(mut shape: Shape) -> Self {
        let raw = Self {
            at: shape.at.clone(),
            address: shape.take("address"),
            rebuild_max: shape.take("rebuild_max"),
        };
        assert_all_read(&shape);
        raw
    }
}

impl RawRetry {
    fn new(shape: &mut Shape) -> Self {
        Self {
            max_attempts: shape.take("max_attempts"),
            initial_wait: shape.take("initial_wait"),
            multiplier: shape.take("multiplier"),
            max_wait: shape.take("max_wait"),
        }
    }
}

impl RawPool {
    fn new(mut shape: Shape) -> Self {
        let raw = Self {
            at: shape.at.clone(),
            path: shape.take("path"),
            memory: shape.take("memory"),
            node: shape.take("node"),
            reserve: shape.take("reserve"),
        };
        assert_all_read(&shape);
        raw
    }
}

impl RawVolume {
    fn new(mut shape: Shape) -> Self {
        let raw = Self {
            at: shape.at.clone(),
            size: shape.take("size"),
            pool: shape.take("pool"),
            replicas: shape.take("replicas"),
            node: shape.take("node"),
            export: shape.take("export").map(RawExport::new),
            read_only: shape.take("read_only"),
            pin_guest_memory: shape.take("pin_guest_memory"),
            uuid: shape.take("uuid"),
            renamed_from: shape.take("renamed_from"),
            force_start: shape.take("force_start").map(RawForceStart::new),
            policy: RawPolicy::new(&mut shape),
        };
        assert_all_read(&shape);
        raw
    }
}

impl RawPolicy {
    fn new(shape: &mut Shape) -> Self {
        let mut scrub = inner(shape, "scrub");
        let raw = Self {
            thin: shape.take("thin"),
            block_size: shape.take("block_size"),
            on_remove: shape.take("on_remove"),
            quarantine_for: shape.take("quarantine_for"),
            on_create_fail: shape.take("on_create_fail"),
            io_timeout: shape.take("io_timeout"),
            degraded_wait: shape.take("degraded_wait"),
            commit_timeout: shape.take("commit_timeout"),
            read_hedge: shape.take("read_hedge"),
            intent_max: shape.take("intent_max"),
            rebuild_bandwidth: shape.take("rebuild_bandwidth"),
            scrub_every: scrub.take("every"),
            scrub_repair_from: scrub.take("repair_from"),
        };
        assert_all_read(&scrub);
        raw
    }
}

impl RawForceStart {
    fn new(mut shape: Shape) -> Self {
        let raw = Self {
            from: shape.take("from"),
            at_gen: shape.take("at_gen"),
        };
        assert_all_read(&shape);
        raw
    }
}

impl RawExport {
    fn new(mut shape: Shape) -> Self {
        let raw = Self {
            is_word: shape.is_word,
            vhost_user: shape.take("vhost-user").map(RawVhostUser::new),
            ublk: shape.take("ublk").map(RawUblk::new),
        };
        assert_all_read(&shape);
        raw
    }
}

impl RawVhostUser {
    fn new(mut shape: Shape) -> Self {
        let raw = Self {
            socket: shape.take("socket"),
            queues: shape.take("queues"),
            depth: shape.take("depth"),
        };
        assert_all_read(&shape);
        raw
    }
}

impl RawUblk {
    fn new(mut shape: Shape) -> Self {
        let raw = Self {
            id: shape.take("id"),
            depth: shape.take("depth"),
        };
        assert_all_read(&shape);
        raw
    }
}
