//! One small page for a browser: what `volund status` shows. No scripts, nothing from elsewhere.

use std::fmt::Write;

use crate::model::status::{Condition, NodeStatus, RebuildStatus, Truth};
use crate::reconcile::Snapshot;
use crate::units::Bytes;

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
<title>volund</title><style>body{font:14px monospace;margin:2em}td,th{text-align:left;padding:.2em 1em .2em 0;\
vertical-align:top}.no{color:#b00}</style>";

/// The page.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let status = &snapshot.status;
    let mut page = String::from(HEAD);
    // Writing to a String can't fail; so below.
    let _ = write!(
        page,
        "<h1>volund on {}</h1><p>configuration {} ({}), version {}</p>",
        escape(&status.node),
        escape(status.config_hash.get(..12).unwrap_or(&status.config_hash)),
        escape(status.config_applied_at.as_deref().unwrap_or("none yet")),
        escape(&status.version)
    );
    if let Some(error) = &status.config_error {
        let _ = write!(
            page,
            "<p class=no>The files on disk were refused:</p><pre>{}</pre>",
            escape(error)
        );
    }
    volumes(&mut page, status);
    replicas(&mut page, status);
    pools(&mut page, status);
    quarantine(&mut page, status);
    page.push_str("<p><a href=/metrics>metrics</a> <a href=/v1/status>JSON</a></p></html>\n");
    page
}

fn volumes(page: &mut String, status: &NodeStatus) {
    page.push_str(
        "<h2>Volumes</h2><table><tr><th>volume<th>state<th>size<th>used<th>export<th>client<th>why",
    );
    for volume in &status.volumes {
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            escape(volume.name.as_str()),
            escape(&volume.state),
            Bytes(volume.size_bytes),
            Bytes(volume.allocated_bytes),
            escape(&volume.export),
            if volume.client_connected {
                "connected"
            } else {
                ""
            },
            reasons(&volume.conditions)
        );
    }
    page.push_str("</table>");
}

fn replicas(page: &mut String, status: &NodeStatus) {
    page.push_str(
        "<h2>Replicas</h2><table><tr><th>volume<th>pool<th>state<th>rebuild<th>used<th>why",
    );
    for volume in &status.volumes {
        for replica in &volume.replicas {
            let _ = write!(
                page,
                "<tr><td>{}<td>{}<td>{:?}{}<td>{}<td>{}<td>{}",
                escape(volume.name.as_str()),
                escape(replica.pool.as_str()),
                replica.state,
                if replica.hung { ", hung" } else { "" },
                replica.rebuild.as_ref().map_or_else(String::new, progress),
                Bytes(replica.allocated_bytes),
                escape(replica.reason.as_deref().unwrap_or_default())
            );
        }
    }
    page.push_str("</table>");
}

fn pools(page: &mut String, status: &NodeStatus) {
    page.push_str("<h2>Pools</h2><table><tr><th>pool<th>state<th>where<th>used<th>size<th>why");
    for pool in &status.pools {
        let _ = write!(
            page,
            "<tr><td>{}<td>{:?}<td>{}<td>{}<td>{}<td>{}",
            escape(pool.name.as_str()),
            pool.state,
            escape(&pool.backing),
            Bytes(pool.allocated_bytes),
            Bytes(pool.capacity_bytes),
            reasons(&pool.conditions)
        );
    }
    page.push_str("</table>");
}

fn quarantine(page: &mut String, status: &NodeStatus) {
    if !status.quarantine.is_empty() {
        page.push_str("<h2>Quarantine</h2><table><tr><th>id<th>size");
        for entry in &status.quarantine {
            let _ = write!(
                page,
                "<tr><td>{}<td>{}",
                escape(&entry.id),
                Bytes(entry.allocated_bytes)
            );
        }
        page.push_str("</table>");
    }
}

/// How far a rebuild is.
fn progress(rebuild: &RebuildStatus) -> String {
    let mut text = format!(
        "<progress max=100 value={percent}></progress> {percent}%, {} left, {}/s",
        Bytes(rebuild.remaining_bytes),
        Bytes(rebuild.bytes_per_second),
        percent = rebuild.percent()
    );
    if let Some(eta) = rebuild.eta_seconds {
        // Writing to a String can't fail.
        let _ = write!(text, ", ETA {eta}s");
    }
    text
}

/// What is wrong.
fn reasons(conditions: &[Condition]) -> String {
    let wrong = conditions.iter().filter(|condition| {
        let good = match condition.kind.as_str() {
            "Ready" => Truth::True,
            // The rebuild itself is in the table of replicas.
            "Rebuilding" => return false,
            _ => Truth::False,
        };
        condition.status != good
    });
    let texts = wrong.map(|condition| {
        format!(
            "<span class=no>{}</span> {}",
            escape(&condition.reason),
            escape(&condition.message)
        )
    });
    texts.collect::<Vec<_>>().join("<br>")
}

/// Text as HTML text.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(c),
        }
    }
    escaped
}
