//! One page for a browser, a phone's included: what `volund status` shows, and what happened last. No scripts, nothing from
//! elsewhere. `maud` escapes every text.

use std::time::SystemTime;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::model::status::{
    Condition, NodeStatus, PoolState, PoolStatus, QuarantineEntry, RebuildStatus, ReplicaState,
    ReplicaStatus, Truth, VolumeStatus, wrong,
};
use crate::model::time::{ago, span};
use crate::reconcile::EventRecord;
use crate::units::Bytes;

/// What a browser may load for the page: nothing but its own style.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = include_str!("page.css");
/// How many events it shows.
const EVENTS_SHOWN: usize = 20;

/// The page. `events` are oldest first.
pub(super) fn render(status: &NodeStatus, events: &[EventRecord], now: SystemTime) -> Markup {
    let page = Page { now };
    let mut volumes: Vec<&VolumeStatus> = status.volumes.iter().collect();
    volumes.sort_by_key(|volume| match severity(&volume.conditions) {
        Some("bad") => 0,
        Some(_) => 1,
        None => 2,
    });
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content="10";
                title { "volund on " (status.node) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (page.head(status))
                h2 { "Volumes" }
                @for volume in &volumes { (page.volume(volume)) }
                @if volumes.is_empty() { p.faint { "There are none." } }
                h2 { "Pools" }
                @for pool in &status.pools { (page.pool(pool)) }
                @if status.pools.is_empty() { p.faint { "There are none." } }
                (quarantine(&status.quarantine))
                h2 { "Recent events" }
                (page.events(events))
                footer {
                    "volund " (status.version) " · " a href="/metrics" { "metrics" } " · "
                    a href="/v1/status" { "JSON" }
                }
            }
        }
    }
}

/// What all parts of it need.
struct Page {
    now: SystemTime,
}

impl Page {
    fn head(&self, status: &NodeStatus) -> Markup {
        let volumes = status.volumes.iter();
        let volumes =
            volumes.map(|v| (format!("volume-{}", v.name), v.name.as_str(), &v.conditions));
        let pools = status.pools.iter();
        let pools = pools.map(|p| (format!("pool-{}", p.name), p.name.as_str(), &p.conditions));
        let wrong: Vec<_> = volumes
            .chain(pools)
            .filter(|(_, _, c)| is_wrong(c))
            .collect();
        let hash = status.config_hash.get(..12).unwrap_or(&status.config_hash);
        let applied = status.revisions.applied.as_ref();
        let commit = applied.and_then(|revision| revision.commit.as_deref());
        html! {
            h1 { "volund " small { "on " (status.node) } }
            p id="summary" {
                @if wrong.is_empty() && status.config_error.is_none() {
                    span.tag.good { "All is well" }
                } @else {
                    span.tag.bad { "Look at" }
                    @if status.config_error.is_some() { " " a href="#configuration" { "configuration" } }
                    @for (id, name, _) in &wrong { " " a href={ "#" (id) } { (name) } }
                }
            }
            p id="configuration" {
                "Configuration "
                @match &status.config_applied_at {
                    Some(at) => {
                        code { (hash) } ", revision " (status.generation)
                        @if let Some(commit) = commit { ", commit " code { (commit.get(..12).unwrap_or(commit)) } }
                        ", in force " (self.since(at))
                    }
                    None => { "not in force yet" }
                }
            }
            (self.drift(status))
            @if let Some(error) = &status.config_error {
                article.bad {
                    p { span.tag.bad { "Refused" } " The files on disk have errors, so the revision above stays in force." }
                    pre { (error) }
                    p.next { "they are read again as soon as they change." }
                }
            }
        }
    }

    /// What is not as the files want it, but for what is being done just now.
    fn drift(&self, status: &NodeStatus) -> Markup {
        let lasting: Vec<_> = status.drift.iter().filter(|d| !d.is_under_way()).collect();
        html! {
            @if !lasting.is_empty() {
                article.warn id="drift" {
                    p { span.tag.warn { "Drift" } " Not as the files want it:" }
                    ul {
                        @for drift in lasting {
                            li { b { (drift.object) } " " (drift.reason) ", " (self.since(&drift.since)) ": " (drift.message) }
                        }
                    }
                }
            }
        }
    }

    fn volume(&self, volume: &VolumeStatus) -> Markup {
        let word = volume.word();
        let class = match word.as_str() {
            "Online" => "good",
            "Degraded" => "warn",
            _ => "bad",
        };
        html! {
            article class=[severity(&volume.conditions)] id={ "volume-" (volume.name) } {
                div.row {
                    h3 { (volume.name) }
                    span class={ "tag " (class) } { (word) }
                    span { (Bytes(volume.size_bytes)) ", " (Bytes(volume.allocated_bytes)) " used" }
                    @if volume.export != "none" { code { (volume.export) } }
                    span.faint { @if volume.client_connected { "client connected" } @else { "no client" } }
                }
                (self.conditions(&volume.conditions))
                ul.replicas { @for replica in &volume.replicas { (self.replica(replica)) } }
                (background(volume))
            }
        }
    }

    fn replica(&self, replica: &ReplicaStatus) -> Markup {
        let class = match replica.state {
            ReplicaState::InSync if !replica.hung => "good",
            ReplicaState::Rebuilding | ReplicaState::Waiting => "warn",
            _ => "bad",
        };
        html! {
            li data-pool=(replica.pool) data-state=(format!("{:?}", replica.state)) {
                div.row {
                    span { "copy in " b { (replica.pool) } }
                    span class={ "tag " (class) } {
                        (format!("{:?}", replica.state)) @if replica.hung { ", hung" }
                    }
                    span.faint { (Bytes(replica.allocated_bytes)) " used" }
                    @if let Some(since) = &replica.since { span.faint { "out of sync " (self.since(since)) } }
                }
                @if let Some(rebuild) = &replica.rebuild { (progress(rebuild)) }
            }
        }
    }

    fn pool(&self, pool: &PoolStatus) -> Markup {
        let (class, word) = match pool.state {
            PoolState::Online => ("good", "Online"),
            PoolState::Offline => ("bad", "Offline"),
        };
        let used = pool.allocated_bytes;
        html! {
            article class=[severity(&pool.conditions)] id={ "pool-" (pool.name) } {
                div.row {
                    h3 { (pool.name) }
                    span class={ "tag " (class) } { (word) }
                    code { (pool.backing) }
                    @if pool.capacity_bytes > 0 {
                        span.faint {
                            (Bytes(used)) " of " (Bytes(pool.capacity_bytes)) " used by volund, "
                            (Bytes(pool.available_bytes)) " available"
                        }
                    }
                }
                (self.conditions(&pool.conditions))
            }
        }
    }

    /// What is wrong: since when, why, and what happens next.
    fn conditions(&self, conditions: &[Condition]) -> Markup {
        html! {
            @for condition in wrong(conditions) {
                div.condition {
                    p {
                        span class={ "tag " (class_of(condition)) } { (name(condition)) } " " (self.since(&condition.last_transition_time))
                    }
                    p { (condition.message) }
                    @if let Some(next) = &condition.next { p.next { (next) } }
                }
            }
        }
    }

    fn events(&self, events: &[EventRecord]) -> Markup {
        let newest = events.iter().rev().take(EVENTS_SHOWN);
        html! {
            article {
                @if events.is_empty() { p.faint { "None since the daemon started." } }
                ul {
                    @for event in newest {
                        li {
                            div.row { (self.since(&event.time)) b { (event.object) } span { (event.reason) } }
                            div { (event.message) }
                        }
                    }
                }
            }
        }
    }

    /// `5m ago, 09:14:03Z`; of what is older than a day the date.
    fn since(&self, time: &str) -> Markup {
        let ago = ago(time, self.now);
        let (date, clock) = time.split_once('T').unwrap_or((time, time));
        html! {
            time datetime=(time) title=(time) {
                @match ago {
                    Some(ago) if ago.ends_with('d') => { (ago) " ago, " (date) }
                    Some(ago) => { (ago) " ago, " (clock) }
                    None => { (time) }
                }
            }
        }
    }
}

/// `Degraded: ReplicaStale`.
fn name(condition: &Condition) -> String {
    let not = if condition.status == Truth::True {
        ""
    } else {
        "not "
    };
    format!("{not}{}: {}", condition.kind, condition.reason)
}

/// How bad a condition is that is wrong.
fn class_of(condition: &Condition) -> &'static str {
    if condition.kind == "Ready" {
        "bad"
    } else {
        "warn"
    }
}

/// The same of the worst; none when nothing is wrong.
fn severity(conditions: &[Condition]) -> Option<&'static str> {
    wrong(conditions).first().map(|worst| class_of(worst))
}

fn is_wrong(conditions: &[Condition]) -> bool {
    conditions.iter().any(Condition::is_wrong)
}

/// How far a rebuild is.
fn progress(rebuild: &RebuildStatus) -> Markup {
    html! {
        progress max="100" value=(rebuild.percent()) {}
        div.row {
            b { (rebuild.percent()) " %" }
            span { (Bytes(rebuild.remaining_bytes)) " of " (Bytes(rebuild.total_bytes)) " left" }
            span { (Bytes(rebuild.bytes_per_second)) "/s" }
            span { @if let Some(eta) = rebuild.eta_seconds { "done in about " (span(eta)) } @else { "no estimate yet" } }
        }
        p.faint { (rebuild.reason) }
    }
}

/// What is done to a volume's copies beside rebuilds.
fn background(volume: &VolumeStatus) -> Markup {
    let scrub = volume.scrub.as_ref();
    html! {
        @if let Some(resolving) = &volume.resolving {
            p.faint { "resolving: " (Bytes(resolving.unresolved_bytes)) " left to be made equal after a crash" }
        }
        @if let Some(run) = scrub.and_then(|scrub| scrub.running.as_ref()) {
            p.faint { "scrub: " (Bytes(run.done_bytes)) " of " (Bytes(run.total_bytes)) " compared" }
        }
    }
}

fn quarantine(entries: &[QuarantineEntry]) -> Markup {
    html! {
        @if !entries.is_empty() {
            h2 { "Quarantine" }
            article {
                p.faint { "Data of removed volumes. " code { "volund quarantine" } " brings it back or deletes it." }
                ul {
                    @for entry in entries {
                        li {
                            div.row {
                                code { (entry.id) }
                                span { (Bytes(entry.allocated_bytes)) }
                                span.faint {
                                    @match &entry.purge_at {
                                        Some(at) => { "purged at " (at) }
                                        None => { "kept until purged by hand" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
