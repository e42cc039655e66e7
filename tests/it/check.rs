//! `volund check` on bad files prints what the golden files say.
//!
//! Each `tests/golden/check/NAME.toml`, or folder `NAME/`, has its expected output in `NAME.txt`; further arguments may
//! be in `NAME.args`. `UPDATE_GOLDEN=1 cargo nextest run -E 'test(golden)'` writes the expected files anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/check")
}

/// Runs the real program in the golden folder, with nothing of the environment that it would listen to.
fn volund(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_volund"))
        .args(arguments)
        .current_dir(folder())
        .env_clear()
        .output()
        .expect("the program starts")
}

fn cases() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .expect("the golden folder")
        .map(|entry| {
            entry
                .expect("a golden file")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .filter(|name| !name.ends_with(".txt") && !name.ends_with(".args"))
        .collect();
    names.sort();
    names
}

/// What the case prints, and how it exits.
fn transcript(name: &str) -> String {
    let stem = name.trim_end_matches(".toml");
    let extra = std::fs::read_to_string(folder().join(format!("{stem}.args"))).unwrap_or_default();
    let mut arguments = vec!["check", name];
    arguments.extend(extra.split_whitespace());
    let output = volund(&arguments);
    assert!(
        output.stderr.is_empty(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let code = output.status.code().expect("no signal");
    let text = String::from_utf8(output.stdout).expect("reports are UTF-8");
    assert!(
        !text.contains('\u{1b}') && !text.contains('\0'),
        "{name}: control characters in a report"
    );
    format!("{text}exit {code}\n")
}

#[test]
fn golden_files_say_what_check_prints() {
    let cases = cases();
    assert!(cases.len() >= 30, "{cases:?}");
    let mut different = Vec::new();
    for name in &cases {
        let stem = name.trim_end_matches(".toml");
        let expected_path = folder().join(format!("{stem}.txt"));
        let printed = transcript(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&expected_path, &printed).expect("the golden folder is writable");
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if printed != expected {
            different.push(format!("{name}: expected\n{expected}\nfound\n{printed}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn a_huge_file_is_refused_without_reading_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("huge.toml");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(1 << 40).expect("a sparse file");
    let output = volund(&["check", path.to_str().expect("UTF-8")]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.starts_with("error[E0004]: can't read `"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_file_full_of_errors_is_counted_and_cut() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("many.toml");
    let keys: String = (0..100_000)
        .map(|number| format!("k{number} = 1\n"))
        .collect();
    std::fs::write(&path, keys).expect("a file");
    let output = volund(&["check", path.to_str().expect("UTF-8")]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        text.contains("900 more are not shown"),
        "{}",
        &text[text.len() - 200..]
    );
    assert!(
        text.ends_with("at least 1000 errors, 0 warnings in 1 file\n"),
        "{}",
        &text[text.len() - 200..]
    );
}

#[test]
fn check_exits_with_0_1_and_64() {
    let check = |arguments: &[&str], code: i32| {
        let output = volund(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    };
    check(&["check", "../../../configs/quickstart.toml"], 0);
    check(&["check", "toml-1-1.toml"], 0);
    check(&["check", "empty.toml"], 1);
    check(&["check", "not-there.toml"], 1);
    check(&["--config", "empty.toml", "check"], 1);
    check(&["check", "--colour"], 64);
    check(&["check", "--format", "xml", "empty.toml"], 64);
    check(&["explain", "E0204"], 0);
    check(&["explain", "E9999"], 1);
    check(&["schema"], 0);
}

#[test]
fn json_and_github_formats_carry_the_same_findings() {
    let json = volund(&["check", "--format", "json", "two-files"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("a list");
    assert_eq!(report["errors"], findings.len());
    assert_eq!(findings[0]["place"]["file"], "two-files/20-db.toml");
    assert_eq!(findings[0]["place"]["line"], 2);
    let github = volund(&["check", "--format", "github", "two-files"]);
    let github = String::from_utf8(github.stdout).expect("UTF-8");
    assert_eq!(github.lines().count(), findings.len());
    for (line, finding) in github.lines().zip(findings) {
        let code = finding["code"].as_str().expect("a code");
        assert!(
            line.starts_with("::error file=two-files/") && line.contains(code),
            "{line}"
        );
    }
}
