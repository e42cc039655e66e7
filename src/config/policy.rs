//! Third pass, continued: what holds for a volume or a node where it says nothing, and where what it says can't be.

use std::time::Duration;

use super::diagnostic::{Diagnostic, Findings};
use super::keys;
use super::raw::{RawConfig, RawForceStart, RawPolicy, checked_name};
use super::shape::{At, Field};
use crate::model::policy::{ForceStart, NodePolicy, RetryPolicy, VolumePolicy};
use crate::model::spec::{BlockSize, OnCreateFail, OnRemove};
use crate::model::{NodeName, PoolName, ReplicaId, VolumeName};

/// What is decided when a volume is made or removed: its own words, else the defaults', else the built-in ones.
pub(super) struct Kept {
    pub(super) thin: bool,
    pub(super) block_size: BlockSize,
    pub(super) on_remove: OnRemove,
    pub(super) quarantine_for: Duration,
    pub(super) on_create_fail: OnCreateFail,
}

impl Kept {
    pub(super) fn new(own: &RawPolicy, defaults: &RawPolicy) -> Self {
        Self {
            thin: either(&own.thin, &defaults.thin).unwrap_or(true),
            block_size: match either(&own.block_size, &defaults.block_size) {
                Some(512) => BlockSize::B512,
                _ => BlockSize::B4096,
            },
            on_remove: match either(&own.on_remove, &defaults.on_remove).as_deref() {
                Some("delete") => OnRemove::Delete,
                _ => OnRemove::Retain,
            },
            quarantine_for: either(&own.quarantine_for, &defaults.quarantine_for)
                .unwrap_or(Duration::from_secs(keys::QUARANTINE_SECONDS)),
            on_create_fail: match either(&own.on_create_fail, &defaults.on_create_fail).as_deref() {
                Some("leave") => OnCreateFail::Leave,
                _ => OnCreateFail::Delete,
            },
        }
    }
}

/// How a volume is looked after while it runs.
pub(super) fn volume(own: &RawPolicy, defaults: &RawPolicy) -> VolumePolicy {
    let built_in = VolumePolicy::default();
    let span = |own: &Field<Duration>, default: &Field<Duration>, built_in: Duration| {
        either(own, default).unwrap_or(built_in)
    };
    VolumePolicy {
        io_timeout: span(&own.io_timeout, &defaults.io_timeout, built_in.io_timeout),
        commit_timeout: span(
            &own.commit_timeout,
            &defaults.commit_timeout,
            built_in.commit_timeout,
        ),
        read_hedge: span(&own.read_hedge, &defaults.read_hedge, built_in.read_hedge),
        degraded_wait: span(
            &own.degraded_wait,
            &defaults.degraded_wait,
            built_in.degraded_wait,
        ),
        intent_max: either(&own.intent_max, &defaults.intent_max).unwrap_or(built_in.intent_max),
        rebuild_bandwidth: either(&own.rebuild_bandwidth, &defaults.rebuild_bandwidth)
            .unwrap_or(built_in.rebuild_bandwidth),
        // Zero stands for "never".
        scrub_every: either(&own.scrub_every, &defaults.scrub_every)
            .filter(|every| !every.is_zero()),
        scrub_repair_from: own
            .scrub_repair_from
            .good()
            .map(|pool| checked_name(&pool.value)),
    }
}

/// A scrub can only repair from a replica that there is.
pub(super) fn repair_from(
    name: &VolumeName,
    own: &RawPolicy,
    replicas: &[At<PoolName>],
    findings: &mut Findings,
) {
    let Some(At { value, at }) = own.scrub_repair_from.good() else {
        return;
    };
    let is_its = |replica: &At<PoolName>| replica.value.as_str() == value;
    // Without any replica the cause is reported already.
    if replicas.is_empty() || replicas.iter().any(is_its) {
        return;
    }
    let pools: Vec<_> = replicas
        .iter()
        .map(|replica| replica.value.as_str())
        .collect();
    let message =
        format!("volume `{name}` has no replica in pool `{value}` that a scrub could repair from");
    findings.push_absence(
        Diagnostic::error("E0217", at.clone(), message)
            .label("not one of its pools")
            .help(format!("its pools: {}", pools.join(", "))),
    );
}

/// An operator's decision, which must be complete.
pub(super) fn force_start(
    name: &VolumeName,
    field: &Field<RawForceStart>,
    findings: &mut Findings,
) -> Option<ForceStart> {
    let At { value: raw, at } = field.good()?;
    for (key, is_absent) in [
        ("from", raw.from.is_absent()),
        ("at_gen", raw.at_gen.is_absent()),
    ] {
        if is_absent {
            let message = format!("`force_start` of volume `{name}` does not say `{key}`");
            findings.push_absence(Diagnostic::error("E0104", at.clone(), message).help(
                "it takes both, exactly as `volund why` prints them: another copy may have newer data",
            ));
        }
    }
    Some(ForceStart {
        from: ReplicaId::from_uuid(raw.from.good()?.value),
        at_gen: raw.at_gen.good()?.value,
    })
}

/// How the node `home` goes about its work.
pub(super) fn node(raw: &RawConfig, home: &NodeName, findings: &mut Findings) -> NodePolicy {
    let built_in = NodePolicy::default();
    let own = raw.nodes.get(home).map(|node| &node.rebuild_max);
    let rebuild_max = own
        .and_then(Field::good)
        .or(raw.default_rebuild_max.good())
        .map_or(built_in.rebuild_max, |field| narrow(field.value));
    let retry = RetryPolicy {
        max_attempts: number(&raw.retry.max_attempts, built_in.retry.max_attempts),
        initial_wait: value(&raw.retry.initial_wait, built_in.retry.initial_wait),
        multiplier_percent: number(&raw.retry.multiplier, built_in.retry.multiplier_percent),
        max_wait: value(&raw.retry.max_wait, built_in.retry.max_wait),
    };
    let written = raw.retry.initial_wait.good().or(raw.retry.max_wait.good());
    if let Some(field) = written
        && retry.initial_wait > retry.max_wait
    {
        findings.push(
            Diagnostic::error(
                "E0218",
                field.at.clone(),
                "`retry.initial_wait` is longer than `retry.max_wait`",
            )
            .help("without a word from the files they are 1s and 60s"),
        );
    }
    NodePolicy { rebuild_max, retry }
}

fn either<T: Clone>(own: &Field<T>, default: &Field<T>) -> Option<T> {
    own.good()
        .or(default.good())
        .map(|field| field.value.clone())
}

fn value<T: Copy>(field: &Field<T>, built_in: T) -> T {
    field.good().map_or(built_in, |field| field.value)
}

fn number(field: &Field<u64>, built_in: u32) -> u32 {
    field.good().map_or(built_in, |field| narrow(field.value))
}

/// A number whose range the shape pass has checked.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).expect("the key table's range fits the model's type")
}
