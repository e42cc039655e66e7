//! The journal by itself: its table, what it says about causes, retries and ends, and that it stays small.

use std::time::UNIX_EPOCH;

use super::*;
use crate::model::VolumeName;
use crate::model::spec::ExportSpec;
use crate::reconcile::plan::fixture::volume_name;
use crate::reconcile::step::VolumeAction;

fn journal() -> Operations {
    Operations::new(Times {
        monotonic: || tokio::time::Instant::now().into_std(),
        wall: || UNIX_EPOCH,
    })
}

fn revision(hash: &str) -> Revision {
    Revision {
        generation: Some(1),
        hash: hash.to_owned(),
        commit: None,
    }
}

fn quarantine(name: &VolumeName) -> Task {
    Task::Volume(name.clone(), VolumeAction::Quarantine)
}

fn unexport(name: &VolumeName) -> Task {
    Task::Volume(name.clone(), VolumeAction::RemoveExport)
}

/// `1 completed drift`, one per operation.
fn shown(journal: &Operations) -> Vec<String> {
    let shown = journal.list().into_iter().map(|operation| {
        let Operation {
            attempts,
            state,
            cause,
            reason,
            ..
        } = operation;
        let reason = reason.map_or_else(String::new, |reason| format!(" {reason}"));
        format!("{attempts} {} {}{reason}", state.label(), cause.label())
    });
    shown.collect()
}

/// Every pair, written down once more: state, then what each event leads to.
#[test]
fn every_state_answers_every_event_as_the_table_says() {
    const EVENTS: [Event; 4] = [Event::Begin, Event::Succeed, Event::Fail, Event::Retry];
    let rows = [
        "pending executing - failed -",
        "executing - completed failed -",
        "completed - - - -",
        "failed - - - pending",
    ];
    let states = [
        OperationState::Pending,
        OperationState::Executing,
        OperationState::Completed,
        OperationState::Failed,
    ];
    for (state, row) in states.into_iter().zip(rows) {
        let mut row = row.split(' ');
        assert_eq!(row.next(), Some(state.label()));
        for event in EVENTS {
            let found = next(state, event).map_or("-", OperationState::label);
            assert_eq!(row.next(), Some(found), "{state:?} on {event:?}");
        }
    }
}

#[test]
fn steps_go_from_planned_to_their_end_and_say_what_they_are_for() {
    let (journal, db) = (journal(), volume_name("db"));
    let one = |expected: &str| assert_eq!(shown(&journal).last().unwrap(), expected);
    let once = || {
        journal.planned([unexport(&db)].into_iter());
        let ticket = journal.begin(&unexport(&db)).unwrap();
        one(&shown(&journal)
            .last()
            .unwrap()
            .replace("pending", "executing"));
        ticket.end(Ok(()));
    };
    journal.configured(revision("a"));
    journal.planned([unexport(&db)].into_iter());
    one("0 pending start");
    assert!(journal.begin(&quarantine(&db)).is_none(), "was not planned");
    once();
    one("1 completed start");
    journal.in_place(["volume.db".to_owned()].into_iter());
    once();
    one("1 completed drift");
    journal.configured(revision("b"));
    once();
    one("1 completed configuration");
    let last = journal.list().pop().unwrap();
    assert_eq!(last.revision, Some(revision("b")));
    assert_eq!(
        (last.object.as_str(), last.action.as_str()),
        ("volume.db", "Unexport")
    );
    assert!(last.started_at.is_some() && last.ended_at.is_some() && last.duration_ms.is_some());
}

#[test]
fn what_is_tried_again_is_the_same_operation() {
    let (journal, db) = (journal(), volume_name("db"));
    journal.configured(revision("a"));
    let failure = Failure {
        reason: "NoSpace".to_owned(),
        message: "can't: disk full".to_owned(),
        chain: vec!["can't".to_owned(), "disk full".to_owned()],
    };
    let attempt = |result: Result<(), &Failure>| {
        journal.planned([unexport(&db), quarantine(&db)].into_iter());
        journal.begin(&unexport(&db)).unwrap().end(result);
        journal.settled("volume.db", result.err());
    };
    attempt(Err(&failure));
    let both = ["1 failed start NoSpace", "0 failed start Skipped"];
    assert_eq!(shown(&journal), both);
    assert_eq!(journal.list()[0].errors, failure.chain);
    attempt(Err(&failure));
    assert_eq!(shown(&journal)[0], "2 failed start NoSpace");
    attempt(Ok(()));
    assert_eq!(
        shown(&journal),
        ["3 completed start", "0 failed start Superseded"]
    );
    assert_eq!(journal.list()[0].errors, [""; 0]);
    // Under another configuration it is another one.
    attempt(Err(&failure));
    journal.configured(revision("b"));
    attempt(Err(&failure));
    assert_eq!(
        shown(&journal).last().unwrap(),
        "0 failed configuration Skipped"
    );
    assert_eq!(shown(&journal).len(), 6);
}

#[test]
fn who_asked_is_told_and_what_is_dropped_has_failed() {
    let journal = journal();
    let ticket = journal.request(Named::purge("db@1"), Some("uid 0".to_owned()));
    assert_eq!(shown(&journal), ["1 executing request"]);
    assert!(!journal.was_done("quarantine.db@1", &Named::purge("db@1").summary));
    ticket.end(Ok(()));
    assert!(journal.was_done("quarantine.db@1", &Named::purge("db@1").summary));
    assert_eq!(journal.list()[0].requested_by.as_deref(), Some("uid 0"));
    drop(journal.request(Named::restore("db@1", "x"), None));
    assert_eq!(shown(&journal)[1], "1 failed request Abandoned");
    assert!(journal.was_done("quarantine.db@1", &Named::purge("db@1").summary));
    let ticket = journal.request(Named::restore("db@1", "x"), None);
    ticket.end(Ok(()));
    assert!(
        !journal.was_done("quarantine.db@1", &Named::purge("db@1").summary),
        "is back"
    );
}

#[test]
fn the_journal_stays_small_and_keeps_what_is_under_way() {
    let journal = journal();
    let running = journal.request(Named::purge("first"), None);
    for number in 0..=OPERATIONS_MAX {
        let ticket = journal.request(Named::purge(&number.to_string()), None);
        ticket.end(Ok(()));
    }
    let kept = journal.list();
    assert_eq!(kept.len(), OPERATIONS_MAX + 1);
    assert_eq!(kept[0].id, running.id());
    assert_eq!(kept[1].object, "quarantine.1");
    let unsaved = journal.take_unsaved();
    let dropped = unsaved.iter().filter(|(_, operation)| operation.is_none());
    assert_eq!(dropped.count(), 1);
    running.end(Ok(()));
    assert_eq!(journal.take_unsaved().len(), 1);
    assert_eq!(journal.list().len(), OPERATIONS_MAX);
}

/// Thousands are planned at once: what has ended is not dropped in favour of older ones that wait.
#[test]
fn the_newest_are_kept_however_many_wait() {
    let journal = journal();
    let names: Vec<VolumeName> = (0..3 * OPERATIONS_MAX)
        .map(|number| volume_name(&format!("v{number}")))
        .collect();
    journal.planned(names.iter().map(quarantine));
    for name in names.iter().rev() {
        journal.begin(&quarantine(name)).unwrap().end(Ok(()));
    }
    let kept = journal.list();
    assert_eq!(kept.len(), OPERATIONS_MAX);
    assert_eq!(kept[0].object, format!("volume.v{}", 2 * OPERATIONS_MAX));
}

#[test]
fn what_fails_after_another_configuration_came_is_not_tried_again_under_its_name() {
    let (journal, db) = (journal(), volume_name("db"));
    journal.configured(revision("a"));
    journal.planned([unexport(&db), quarantine(&db)].into_iter());
    let ticket = journal.begin(&unexport(&db)).unwrap();
    journal.configured(revision("b"));
    let failure = Failure::new("NoSpace", "disk full");
    ticket.end(Err(&failure));
    journal.settled("volume.db", Some(&failure));
    journal.planned([unexport(&db), quarantine(&db)].into_iter());
    let revisions = journal.list().into_iter().map(|operation| {
        let hash = operation.revision.map(|revision| revision.hash);
        (operation.state.label(), hash.unwrap_or_default())
    });
    let (old, new) = (("failed", "a".to_owned()), ("pending", "b".to_owned()));
    let expected = [old.clone(), old, new.clone(), new];
    assert_eq!(revisions.collect::<Vec<_>>(), expected);
}

#[test]
fn what_somebody_sends_does_not_fill_the_memory() {
    let journal = journal();
    let named = Named::purge(&"x".repeat(1 << 20));
    let failure = Failure::new("NotFound", "y".repeat(1 << 20));
    journal.request(named, None).end(Err(&failure));
    let kept = journal.list().pop().unwrap();
    let bytes = kept.object.len() + kept.errors[0].len();
    assert!(bytes < 10_000, "{bytes} bytes");
}

#[test]
fn what_a_crash_cut_off_is_said_to_be_interrupted() {
    let before = journal();
    before.request(Named::purge("a"), None).end(Ok(()));
    let running = before.request(Named::purge("b"), None);
    let after = journal();
    after.resume(before.list());
    assert_eq!(
        shown(&after),
        ["1 completed request", "1 failed request Interrupted"]
    );
    assert_eq!(after.take_unsaved().len(), 1, "the end is written");
    assert_eq!(after.request(Named::purge("c"), None).id(), 2001);
    running.end(Ok(()));
}

/// A read-only export of another kind is another step.
#[test]
fn steps_of_one_volume_are_told_apart() {
    let names = [false, true].map(|read_only| {
        let export = ExportSpec::Ublk { id: None, depth: 1 };
        let action = VolumeAction::EnsureExport { export, read_only };
        name(&Task::Volume(volume_name("db"), action))
            .unwrap()
            .summary
    });
    assert_ne!(names[0], names[1]);
}
