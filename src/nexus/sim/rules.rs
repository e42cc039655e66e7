//! Which checker looks after which guarantee and invariant of the specification (sections 2 and 11).

/// A rule, and the function that checks it.
type Row = (&'static str, &'static str);

#[rustfmt::skip]
const RULES: [Row; 24] = [
    ("G1", "fn check_member"),
    ("G2", "fn check_durable"),
    ("G3", "fn widen"),
    ("G4", "fn allowed"),
    ("G5", "fn saw"),
    ("G6", "fn saw"),
    ("G7", "fn check_written"),
    ("G8", "fn write_label"),
    ("G9", "fn finish"),
    ("G10", "fn saw"),
    ("G11", "fn check_errors"),
    ("G12", "fn decode"),
    ("I1", "fn check_member"),
    ("I2", "fn saw"),
    ("I3", "fn inspect_labels"),
    ("I4", "fn inspect_labels"),
    ("I5", "fn check_marked"),
    ("I6", "fn on_witness_error"),
    ("I7", "fn check_written"),
    ("I8", "fn check_written"),
    ("I9", "fn unmarked"),
    ("I10", "fn finish"),
    ("I11", "fn widen"),
    ("I12", "fn cycle"),
];

#[test]
fn every_rule_has_a_checker() {
    let sources = [
        include_str!("bits.rs"),
        include_str!("client.rs"),
        include_str!("history.rs"),
        include_str!("inspect.rs"),
        include_str!("marks.rs"),
        include_str!("run.rs"),
        include_str!("trouble.rs"),
        include_str!("../table.rs"),
    ];
    for (letter, count) in [("G", 12), ("I", 12)] {
        for number in 1..=count {
            let id = format!("{letter}{number}");
            let row = RULES.iter().find(|(rule, _)| *rule == id);
            let (_, checker) = row.unwrap_or_else(|| panic!("{id} has no checker"));
            let is_there = sources.iter().any(|source| source.contains(checker));
            assert!(is_there, "{id}: there is no {checker}");
        }
    }
}
