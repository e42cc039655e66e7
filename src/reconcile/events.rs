//! The last things that happened, as `/v1/events` shows them; the log has the same text.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

pub use crate::model::journal::EventRecord;
use crate::model::journal::{clipped, first_after};

/// How many are kept.
pub const EVENTS_MAX: usize = 1000;

/// The newest events. Clones share them.
#[derive(Clone, Debug)]
pub struct Events {
    kept: Arc<Mutex<Kept>>,
    /// The newest event's number.
    newest: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Arc::default(),
            newest: watch::Sender::new(0),
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    newest: u64,
    records: VecDeque<EventRecord>,
    /// Numbers that came or went and are not written yet.
    unsaved: BTreeSet<u64>,
}

impl Events {
    /// Adds one and drops the oldest when there are too many. The caller logs it.
    pub fn push(&self, time: String, object: String, reason: &str, message: &str) {
        let newest = self.change(|kept| {
            kept.newest += 1;
            let number = kept.newest;
            if kept.records.len() == EVENTS_MAX {
                let dropped = kept.records.pop_front();
                kept.unsaved.extend(dropped.map(|record| record.number));
            }
            kept.records.push_back(EventRecord {
                number,
                time,
                object: clipped(&object),
                reason: reason.to_owned(),
                message: clipped(message),
            });
            kept.unsaved.insert(number);
            number
        });
        self.newest.send_replace(newest);
    }

    /// Those after number `after`, oldest first; all of them when there never was such a number.
    #[must_use]
    pub fn since(&self, after: u64) -> Vec<EventRecord> {
        self.change(|kept| {
            let after = if after > kept.newest { 0 } else { after };
            let newer = kept.records.iter().filter(|record| record.number > after);
            newer.cloned().collect()
        })
    }

    /// Changes with each event.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Takes up what was kept over a restart, before anything is added.
    pub(super) fn resume(&self, saved: Vec<EventRecord>) {
        self.change(|kept| {
            let newest = saved.last().map_or(0, |record| record.number);
            kept.newest = first_after(newest) - 1;
            kept.records = saved.into();
            while kept.records.len() > EVENTS_MAX {
                let dropped = kept.records.pop_front();
                kept.unsaved.extend(dropped.map(|record| record.number));
            }
        });
    }

    /// What is to be written; it counts as written from now on.
    pub(super) fn take_unsaved(&self) -> Vec<(u64, Option<EventRecord>)> {
        self.change(|kept| {
            let numbers = std::mem::take(&mut kept.unsaved);
            let find = |number| {
                let found = kept
                    .records
                    .binary_search_by_key(&number, |record| record.number);
                found.ok().map(|at| kept.records[at].clone())
            };
            numbers
                .into_iter()
                .map(|number| (number, find(number)))
                .collect()
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        change(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(events: &Events, number: usize) {
        events.push(String::new(), format!("volume.v{number}"), "Test", "test");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let events = Events::default();
        for number in 0..=EVENTS_MAX {
            push(&events, number);
        }
        let kept = events.since(0);
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[0].number, 2);
        assert_eq!(events.since(1000).len(), 1);
        let unsaved = events.take_unsaved();
        assert_eq!(unsaved[0], (1, None), "dropped");
        assert_eq!(unsaved.len(), EVENTS_MAX + 1);
        assert_eq!(events.take_unsaved(), []);
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_are_not_given_out_twice() {
        let before = Events::default();
        (0..3).for_each(|number| push(&before, number));
        let events = Events::default();
        // The third was not written in time.
        events.resume(before.since(0)[..2].to_vec());
        push(&events, 3);
        let numbers = |after| {
            let events = events.since(after).into_iter();
            events.map(|event| event.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(0), [1, 2, 2001]);
        assert_eq!(numbers(3), [2001], "who has seen the third misses nothing");
        assert_eq!(numbers(5000), [1, 2, 2001], "of another life");
        assert_eq!(events.take_unsaved().len(), 1);
    }
}
