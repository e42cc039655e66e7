//! What is not as the files want it, since when, and why: the plan that is left, with what is in its way.

use std::collections::BTreeMap;

use super::records::{Record, Records};
use super::report::{Change, PlanReport};
use crate::model::journal::Drift;

/// Since when each object is not as wanted.
#[derive(Debug, Default)]
pub(super) struct Drifts {
    since: BTreeMap<String, String>,
}

impl Drifts {
    /// As they were known before a restart.
    pub(super) fn new(since: BTreeMap<String, String>) -> Self {
        Self { since }
    }

    /// Puts the times in: that at which an object was first found to differ, for as long as it does.
    pub(super) fn note(&mut self, mut found: Vec<Drift>, time: &str) -> Vec<Drift> {
        let mut old = std::mem::take(&mut self.since);
        for drift in &mut found {
            let known = self.since.get(&drift.object).cloned();
            let since = known.or_else(|| old.remove(&drift.object));
            drift.since = since.unwrap_or_else(|| time.to_owned());
            self.since.insert(drift.object.clone(), drift.since.clone());
        }
        found
    }
}

/// What differs, without times.
pub(super) fn differences(
    report: &PlanReport,
    records: &Records,
    config_error: Option<&str>,
) -> Vec<Drift> {
    let refused = config_error.map(|error| {
        let line = error.lines().next().unwrap_or_default();
        drift(
            "config",
            "Rejected",
            format!("the files on disk are not in force: {line}"),
        )
    });
    // What is in quarantine is not in the files; its end is no difference to them.
    let changes = report.changes.iter();
    let changes = changes.filter(|change| !change.object.starts_with("quarantine."));
    refused
        .into_iter()
        .chain(changes.map(|change| difference(change, records)))
        .collect()
}

fn difference(change: &Change, records: &Records) -> Drift {
    if let Some(reason) = &change.reason {
        return drift(&change.object, reason, change.summary.clone());
    }
    let record = record(&change.object, records);
    match record.and_then(|record| record.failure.as_ref()) {
        Some(failure) => {
            let message = format!("{}: {}", change.summary, failure.message);
            drift(&change.object, &failure.reason, message)
        }
        None => {
            let busy = record.is_some_and(|record| record.busy);
            let reason = if busy { "Applying" } else { "Pending" };
            drift(&change.object, reason, change.summary.clone())
        }
    }
}

fn record<'a>(object: &str, records: &'a Records) -> Option<&'a Record> {
    let (kind, name) = object.split_once('.')?;
    match kind {
        "pool" => records.pools.get(&name.parse().ok()?),
        "volume" => Some(&records.volumes.get(&name.parse().ok()?)?.record),
        _ => None,
    }
}

fn drift(object: &str, reason: &str, message: String) -> Drift {
    Drift {
        object: object.to_owned(),
        since: String::new(),
        reason: reason.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_differs_since_it_was_first_found_to_until_it_does_not() {
        let mut drifts = Drifts::new(BTreeMap::from([("pool.a".to_owned(), "t0".to_owned())]));
        let mut note = |objects: &[(&str, &str)], time: &str| {
            let found = objects.iter();
            let found = found.map(|(object, reason)| drift(object, reason, String::new()));
            let noted = drifts.note(found.collect(), time).into_iter();
            noted.map(|drift| drift.since).collect::<Vec<_>>()
        };
        let (db, pool) = (("volume.db", "Applying"), ("pool.a", "PoolMissing"));
        assert_eq!(note(&[pool, db], "t1"), ["t0", "t1"]);
        let failed = ("volume.db", "NoSpace");
        assert_eq!(note(&[failed, ("volume.db", "InUse")], "t2"), ["t1", "t1"]);
        assert_eq!(note(&[], "t3"), [""; 0]);
        assert_eq!(note(&[db, pool], "t4"), ["t4", "t4"]);
    }
}
