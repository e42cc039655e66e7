//! The checker of clients' histories notices what it is there for.

use super::*;

/// Two writes to one block, one after the other, then reads of the given ones.
fn check(reads: &[usize], expected: bool) {
    let sim = Sim::new(1);
    let history = History::new(&sim, &[0..1], 512);
    let tags: Vec<Tag> = (0..2)
        .map(|_| {
            let tag = history.begin_write(0..1, false, false).unwrap();
            history.end_write(tag, true);
            tag
        })
        .collect();
    for read in reads {
        let started = sim.tick();
        history.read(0, &history.content(tags[*read], 0), started);
    }
    assert_eq!(history.violation().is_none(), expected, "{reads:?}");
}

#[test]
fn only_the_newest_acknowledged_write_may_be_read() {
    check(&[1, 1], true);
    check(&[0], false);
    check(&[1, 0], false);
}

#[test]
fn after_a_failed_write_either_value_is_right_but_only_one_of_them() {
    let run = |reads: &[bool]| {
        let sim = Sim::new(1);
        let history = History::new(&sim, &[0..1], 512);
        let failed = history.begin_write(0..1, false, false).unwrap();
        history.end_write(failed, false);
        for new in reads {
            let tag = if *new { failed } else { 0 };
            let started = sim.tick();
            history.read(0, &history.content(tag, 0), started);
        }
        history.violation().is_none()
    };
    assert!(run(&[true, true]) && run(&[false, false]));
    assert!(!run(&[true, false]), "G5");
    assert!(!run(&[false, true]), "G5");
}

#[test]
fn a_power_cut_may_take_only_what_was_not_flushed() {
    let run = |flush: bool, survivor: usize| {
        let sim = Sim::new(1);
        let history = History::new(&sim, &[0..1], 512);
        let tag = history.begin_write(0..1, false, false).unwrap();
        history.end_write(tag, true);
        if flush {
            history.flushed(sim.tick());
        }
        history.killed();
        history.power_lost();
        let seen = [0, tag][survivor];
        let started = sim.tick();
        history.read(0, &history.content(seen, 0), started);
        history.violation().is_none()
    };
    assert!(run(false, 0) && run(false, 1) && run(true, 1));
    assert!(!run(true, 0), "G4");
}

/// What the checker says when a block holds `bytes` of the first write, or of nobody.
fn told(check: impl FnOnce(&History, Tag, Tag)) -> String {
    let sim = Sim::new(1);
    let history = History::new(&sim, &[0..2], 512);
    let tags = [true, true].map(|fua| {
        let tag = history.begin_write(0..1, fua, false).unwrap();
        history.end_write(tag, true);
        tag
    });
    check(&history, tags[0], tags[1]);
    history.violation().unwrap_or_default()
}

#[test]
fn an_acknowledged_write_is_on_every_member() {
    let fine = told(|h, _, new| h.check_member(new, 0, &h.content(new, 0), 1));
    assert_eq!(fine, "");
    let stale = told(|h, old, new| h.check_member(new, 0, &h.content(old, 0), 1));
    assert!(stale.contains("G1: "), "{stale}");
}

#[test]
fn what_was_promised_is_durable() {
    let fine = told(|h, _, new| h.check_durable(0, &h.content(new, 0), 1));
    assert_eq!(fine, "");
    let lost = told(|h, old, _| h.check_durable(0, &h.content(old, 0), 1));
    assert!(lost.contains("G2: "), "{lost}");
}

#[test]
fn what_nobody_wrote_and_what_two_wrote_is_told() {
    let read = |h: &History, bytes: &[u8]| h.read(0, bytes, h.begin_read(0..1));
    let foreign = told(|h, _, new| read(h, &h.content(new, 1)));
    assert!(foreign.contains("G12: "), "{foreign}");
    let torn = told(|h, old, new| {
        let (mut bytes, other) = (h.content(new, 0), h.content(old, 0));
        bytes[256..].copy_from_slice(&other[256..]);
        read(h, &bytes);
    });
    assert!(torn.contains("G4: "), "{torn}");
}
