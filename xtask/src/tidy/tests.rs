//! Each rule of tidy on a text that breaks it and on one that does not.

use super::*;

const TABLE: &str = "\
Words before.

| module | owns | may use |
|---|---|---|
| `main.rs`, `cli/` | arguments | everything below |
| `http/` | pages | state (reads), config |
| `config/` | text | |
| `state/` | files | io |
| `io/` | the ring | nothing |
| `model/` | ids | |
| `units.rs` | newtypes | nothing |
";

fn layer(path: &str, source: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let table = modules::Table::parse(TABLE).unwrap();
    table.check(path, &text::blank(source), &mut findings);
    findings
}

fn rust(path: &str, source: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let source = Source {
        path: path.to_owned(),
        text: source.to_owned(),
    };
    check_any(&source, &mut findings);
    check_rust(&source, &mut findings);
    findings
}

#[test]
fn a_path_up_the_table_is_found_with_its_line() {
    let found = layer("src/io/ring.rs", "//! x\nuse crate::state::Db;\n");
    assert_eq!(found, ["src/io/ring.rs:2: `io` may not use `state`"]);
}

#[test]
fn groups_and_plain_paths_are_taken_apart() {
    let source =
        "use crate::{io::{Ring, Buffer}, http::Page, model};\nfn f() { crate::cli::main() }";
    let found = layer("src/state/mod.rs", source);
    let expected = [
        "src/state/mod.rs:1: `state` may not use `http`",
        "src/state/mod.rs:2: `state` may not use `cli`",
    ];
    assert_eq!(found, expected);
}

#[test]
fn own_module_shared_modules_and_notes_in_brackets_are_allowed() {
    let source = "use crate::{http::x, state, config, model::Id, units::Bytes};";
    assert_eq!(layer("src/http/mod.rs", source), [""; 0]);
    assert_eq!(layer("src/main.rs", "use crate::io::Ring;"), [""; 0]);
}

#[test]
fn comments_and_strings_are_no_paths() {
    let source = "// crate::cli\n/* crate::cli /* x */ crate::cli */\nlet s = \"crate::cli\";\
                  let r = r#\"crate::cli \" x\"#; let c = '\"'; let l: &'static str = s;";
    assert_eq!(layer("src/io/ring.rs", source), [""; 0]);
}

#[test]
fn a_module_without_a_row_is_found() {
    let found = layer("src/util/mod.rs", "");
    assert_eq!(
        found,
        ["src/util/mod.rs:1: module `util` has no row in docs/ARCHITECTURE.md"]
    );
}

#[test]
fn a_row_that_names_an_unknown_module_is_refused() {
    let table = "| module | owns | may use |\n|---|---|---|\n| `io/` | ring | vibes |\n";
    let error = modules::Table::parse(table).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the row of `io` names `vibes`, which has no row"
    );
}

#[test]
fn a_file_says_what_it_is_for() {
    assert_eq!(rust("src/a.rs", "//! Why.\n"), [""; 0]);
    assert_eq!(rust("src/a.rs", "use std::io;\n").len(), 1);
}

#[test]
fn long_files_and_long_inline_tests_are_found() {
    let long = format!("//! x\n{}", "fn f() {}\n".repeat(500));
    assert!(rust("src/a.rs", &long)[0].contains("501 lines"));
    let tests = format!(
        "//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n",
        "fn f() {}\n".repeat(300)
    );
    assert!(rust("src/a.rs", &tests)[0].contains("lines of tests"));
}

#[test]
fn hops_are_marked_where_they_are_and_nowhere_else() {
    let ring = "src/io/ring.rs";
    assert_eq!(rust(ring, "//! Data path, hop 5 of 5: x.\n"), [""; 0]);
    assert_eq!(rust(ring, "//! Data path, hop 4 of 5: x.\n").len(), 1);
    assert_eq!(rust(ring, "//! The ring.\n").len(), 1);
    assert_eq!(
        rust("src/io/device.rs", "//! Data path, hop 5 of 5: x.\n").len(),
        1
    );
}

#[test]
fn unsafe_stands_only_where_the_list_says() {
    let source = "//! x\nfn f() { unsafe { g() } }\n";
    assert_eq!(rust("src/pool/mod.rs", source).len(), 1);
    assert_eq!(rust("src/frontend/ublk/control.rs", source), [""; 0]);
    assert_eq!(
        rust(
            "src/pool/mod.rs",
            "//! x\n#![deny(unsafe_code)] // unsafe\n"
        ),
        [""; 0]
    );
}

#[test]
fn a_todo_names_its_issue() {
    assert!(!has_bad_todo("x(); // TODO(#12): more"));
    assert!(has_bad_todo("x(); // TODO: more"));
    assert!(has_bad_todo("// TODO(me): more"));
    assert!(!has_bad_todo("let x = \"TODO\";"));
}

#[test]
fn banned_words_are_found_in_any_file() {
    let text = format!("see {}{}/x\n", "../sha", "red");
    let mut findings = Vec::new();
    check_any(
        &Source {
            path: "README.md".to_owned(),
            text,
        },
        &mut findings,
    );
    assert_eq!(findings.len(), 1);
}

#[test]
fn families_of_code_and_document_are_compared() {
    let source = |path: &str, text: &str| Source {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    let mut findings = Vec::new();
    let sources = [
        source("docs/metrics.md", "`volund_old_total`, `volund_up`"),
        source("src/metrics/mod.rs", "\"volund_up\" \"volund_new_total\""),
    ];
    check_metrics(&sources, &mut findings);
    assert_eq!(findings.len(), 2);
}
