//! The journal's part of the database: what happened, what was done, and since when things are not as wanted.
//!
//! It is read once, at the start, and not mirrored: whoever keeps the journal has it in memory.

use std::collections::BTreeMap;

use super::{Asked, Store, Trouble, written};
use crate::model::journal::{EventRecord, Operation, Revision, Saved, Unsaved};
use crate::state::StateError;

/// What was found at the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    events: BTreeMap<u64, EventRecord>,
    operations: BTreeMap<u64, Operation>,
    last_good: Option<Revision>,
    drift_since: BTreeMap<String, String>,
}

const EVENT: &str = "event";
const OPERATION: &str = "operation";
const LAST_GOOD: &str = "last-good";
const DRIFT: &str = "drift";

impl Journal {
    /// Takes a record if it is of the journal. What can't be read, of a later release say, is left out: the journal
    /// must never keep the daemon from starting.
    pub(super) fn take(&mut self, kind: &str, key: &str, value: &str) -> Result<(), Trouble> {
        match kind {
            EVENT => {
                if let Ok(event) = serde_json::from_str(value) {
                    self.events.insert(key.parse()?, event);
                }
            }
            OPERATION => {
                if let Ok(operation) = serde_json::from_str(value) {
                    self.operations.insert(key.parse()?, operation);
                }
            }
            LAST_GOOD => self.last_good = serde_json::from_str(value).ok(),
            DRIFT => self.drift_since = serde_json::from_str(value).unwrap_or_default(),
            // Of a later release; kept as it is.
            _ => {}
        }
        Ok(())
    }
}

impl Store {
    /// What the journal was when the database was opened. Once: the second time it is empty.
    #[must_use]
    pub fn take_journal(&self) -> Saved {
        let journal = self.read(|contents| std::mem::take(&mut contents.journal));
        Saved {
            events: journal.events.into_values().collect(),
            operations: journal.operations.into_values().collect(),
            last_good: journal.last_good,
            drift_since: journal.drift_since,
        }
    }

    /// Writes what is new in the journal.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn save_journal(&self, unsaved: &Unsaved) -> Result<(), StateError> {
        let mut last: Option<Asked> = None;
        for (number, event) in &unsaved.events {
            last = Some(self.ask(EVENT, number.to_string(), event.as_ref())?);
        }
        for (id, operation) in &unsaved.operations {
            last = Some(self.ask(OPERATION, id.to_string(), operation.as_ref())?);
        }
        // They are written in this order.
        match last {
            Some(asked) => written(asked).await,
            None => Ok(()),
        }
    }

    /// Records the revision of which everything was in place, and since when objects are not as wanted.
    ///
    /// # Errors
    /// When they can't be written.
    pub async fn save_progress(
        &self,
        last_good: Option<&Revision>,
        drift_since: &BTreeMap<String, String>,
    ) -> Result<(), StateError> {
        drop(self.ask(LAST_GOOD, String::new(), last_good)?);
        written(self.ask(DRIFT, String::new(), Some(drift_since))?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> EventRecord {
        EventRecord {
            number,
            time: "t".to_owned(),
            object: "volume.db".to_owned(),
            reason: "Test".to_owned(),
            message: String::new(),
        }
    }

    /// Reads what was written, as at a start.
    fn journal(records: &[(&str, &str, String)]) -> Saved {
        let mut journal = Journal::default();
        for (kind, key, value) in records {
            journal.take(kind, key, value).unwrap();
        }
        Saved {
            events: journal.events.into_values().collect(),
            operations: journal.operations.into_values().collect(),
            last_good: journal.last_good,
            drift_since: journal.drift_since,
        }
    }

    #[test]
    fn numbers_are_in_order_and_what_can_not_be_read_is_left_out() {
        let text = |number| serde_json::to_string(&event(number)).unwrap();
        let saved = journal(&[
            (EVENT, "10", text(10)),
            (EVENT, "9", text(9)),
            (EVENT, "11", "{\"number\":11}".to_owned()),
            (OPERATION, "1", "nonsense".to_owned()),
            (DRIFT, "", "7".to_owned()),
            ("of a later release", "", String::new()),
        ]);
        assert_eq!(saved.events, [event(9), event(10)]);
        assert_eq!(saved.operations, []);
        assert!(saved.drift_since.is_empty());
    }

    #[tokio::test]
    async fn what_is_saved_is_there_at_the_next_start_and_what_was_dropped_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let store = Store::open(&path).unwrap();
        assert_eq!(store.take_journal(), Saved::default());
        let unsaved = |events| Unsaved {
            events,
            ..Unsaved::default()
        };
        let both = [1, 2].map(|number| (number, Some(event(number))));
        store.save_journal(&unsaved(both.to_vec())).await.unwrap();
        store.save_journal(&unsaved(vec![(1, None)])).await.unwrap();
        let good = Revision {
            hash: "abc".to_owned(),
            ..Revision::default()
        };
        let since = BTreeMap::from([("volume.db".to_owned(), "t".to_owned())]);
        store.save_progress(Some(&good), &since).await.unwrap();
        let copy = folder.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        let again = Store::open(&copy).unwrap().take_journal();
        assert_eq!(again.events, [event(2)]);
        assert_eq!(again.last_good, Some(good));
        assert_eq!(again.drift_since, since);
    }
}
