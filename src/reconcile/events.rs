//! The last things that happened, as `/v1/events` shows them; the log has the same text.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// How many are kept.
pub const EVENTS_MAX: usize = 1000;

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// Counts up from 1; a gap means that older ones were dropped.
    pub number: u64,
    /// When, RFC 3339.
    pub time: String,
    /// To what: `volume.db`, `pool.main`, `config`.
    pub object: String,
    /// Why, one CamelCase word.
    pub reason: String,
    /// What, in a sentence.
    pub message: String,
}

/// The newest events. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Events {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    newest: u64,
    records: VecDeque<EventRecord>,
}

impl Events {
    /// Adds one and drops the oldest when there are too many. The caller logs it.
    pub fn push(&self, time: String, object: String, reason: &str, message: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.newest += 1;
        let record = EventRecord {
            number: kept.newest,
            time,
            object,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        if kept.records.len() == EVENTS_MAX {
            kept.records.pop_front();
        }
        kept.records.push_back(record);
    }

    /// Those after number `after`, oldest first.
    #[must_use]
    pub fn since(&self, after: u64) -> Vec<EventRecord> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = kept.records.iter().filter(|record| record.number > after);
        newer.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_are_kept() {
        let events = Events::default();
        for number in 0..=EVENTS_MAX {
            events.push(String::new(), format!("volume.v{number}"), "Test", "test");
        }
        let kept = events.since(0);
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[0].number, 2);
        assert_eq!(events.since(1000).len(), 1);
    }
}
