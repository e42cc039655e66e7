//! `cargo xtask tidy`: the rules of the tree that rustc and clippy do not know: who may use whom, sizes, hop markers.
//!
//! Every rule reads text, so that tidy needs no build of the daemon. `modules` has the table of who may use whom,
//! `text` blanks comments and strings out of Rust source, `runbooks` holds alerts and their pages together, the rest is here.

mod modules;
mod runbooks;
mod text;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;

/// The five files of the data path, and the hop that each is (`docs/ARCHITECTURE.md`).
const HOPS: [(&str, u32); 7] = [
    ("src/frontend/vhost_user/queue.rs", 1),
    ("src/frontend/ublk/queue.rs", 1),
    ("src/volume/volume.rs", 2),
    ("src/nexus/write.rs", 3),
    ("src/nexus/read.rs", 3),
    ("src/replica/replica.rs", 4),
    ("src/io/ring.rs", 5),
];

/// Where `unsafe` may stand. A new line here takes a decision record in `docs/adr/`.
const UNSAFE: [&str; 8] = [
    "src/frontend/ublk/",
    "src/frontend/vhost_user/memory.rs",
    "src/frontend/vhost_user/memory/",
    "src/io/buffer.rs",
    "src/io/buffer/",
    "src/io/memory.rs",
    "src/io/ring.rs",
    "src/io/ring/",
];

const FILE_LINES_MAX: usize = 500;
const INLINE_TEST_LINES_MAX: usize = 300;

/// Words that no file of the tree may contain, in two parts so that this file does not either.
const BANNED: [(&str, &str, &str); 8] = [
    ("../sha", "red", "the folder is not part of the repository"),
    (
        "deb.debian",
        ".org",
        "take the mirror from the machine's own settings",
    ),
    (
        "security.debian",
        ".org",
        "take the mirror from the machine's own settings",
    ),
    (
        "snapshot.debian",
        ".org",
        "take the mirror from the machine's own settings",
    ),
    ("crates", ".io", "use the registry that cargo is set up for"),
    ("pypi", ".org", "use the registry that pip is set up for"),
    (
        "pythonhosted",
        ".org",
        "use the registry that pip is set up for",
    ),
    (
        "registry.npmjs",
        ".org",
        "use the registry that npm is set up for",
    ),
];

/// One file of the tree: its path from the root with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("tidy takes no argument, found {unknown:?}");
    }
    let sources = tree(&shell::root())?;
    let table = sources
        .iter()
        .find(|source| source.path == "docs/ARCHITECTURE.md")
        .context("docs/ARCHITECTURE.md with the module table is missing")?;
    let table = modules::Table::parse(&table.text)?;

    let mut findings = Vec::new();
    for source in &sources {
        check_any(source, &mut findings);
        if source.path.ends_with(".rs") {
            check_rust(source, &mut findings);
        }
        if source.path.starts_with("src/") && source.path.ends_with(".rs") {
            table.check(&source.path, &text::blank(&source.text), &mut findings);
        }
    }
    check_metrics(&sources, &mut findings);
    runbooks::check(&sources, &mut findings);
    if findings.is_empty() {
        println!("tidy: {} files, nothing found", sources.len());
        return Ok(());
    }
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy found {} things to mend", findings.len())
}

/// Every text file that git tracks or would track.
fn tree(root: &Path) -> Result<Vec<Source>> {
    let list = shell::capture(shell::command("git").current_dir(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut sources = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        // A file that is deleted but not yet committed is still listed; a binary seed of a fuzz corpus is no text.
        if let Ok(text) = std::fs::read_to_string(root.join(path)) {
            sources.push(Source {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(sources)
}

fn check_any(source: &Source, findings: &mut Vec<String>) {
    // A lock file names the registry on every package; it is cargo's, not ours.
    if source.path.ends_with("Cargo.lock") {
        return;
    }
    for (number, line) in source.text.lines().enumerate() {
        let place = format!("{}:{}", source.path, number + 1);
        for (first, second, reason) in BANNED {
            let word = format!("{first}{second}");
            if line.contains(&word) {
                findings.push(format!("{place}: names {word:?}: {reason}"));
            }
        }
        if source.path.ends_with(".rs") && has_bad_todo(line) {
            findings.push(format!(
                "{place}: a TODO names its open issue: `TODO(#123): ...`"
            ));
        }
    }
}

/// Whether a comment on the line has a `TODO` marker that is not `TODO(#123):`. Markers in quotes are data.
fn has_bad_todo(line: &str) -> bool {
    let Some((code, comment)) = line.split_once("//") else {
        return false;
    };
    if code.matches('"').count() % 2 == 1 {
        return false;
    }
    let mut rest = comment;
    while let Some(at) = rest.find("TODO") {
        let quoted = rest[..at].ends_with(['`', '"']);
        rest = &rest[at + "TODO".len()..];
        let issue = rest
            .strip_prefix("(#")
            .and_then(|tail| tail.split_once("):"));
        let good = issue.is_some_and(|(number, _)| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        if !quoted && !good {
            return true;
        }
    }
    false
}

fn check_rust(source: &Source, findings: &mut Vec<String>) {
    let path = &source.path;
    let lines: Vec<&str> = source.text.lines().collect();
    let head = lines
        .iter()
        .find(|line| !line.starts_with("#!"))
        .copied()
        .unwrap_or_default();
    if !head.starts_with("//!") {
        findings.push(format!(
            "{path}:1: the file does not start with `//!` and what it is for"
        ));
    }
    if lines.len() > FILE_LINES_MAX {
        findings.push(format!(
            "{path}:{FILE_LINES_MAX}: {} lines, at most {FILE_LINES_MAX}: split it by what changes together",
            lines.len()
        ));
    }
    let tests = lines.windows(2).position(|pair| {
        pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    });
    if let Some(start) = tests
        && lines.len() - start > INLINE_TEST_LINES_MAX
    {
        findings.push(format!(
            "{path}:{}: {} lines of tests, at most {INLINE_TEST_LINES_MAX} inline: move them to tests.rs",
            start + 1,
            lines.len() - start
        ));
    }
    check_hop(path, head, findings);
    check_unsafe(source, findings);
}

fn check_hop(path: &str, head: &str, findings: &mut Vec<String>) {
    let expected = HOPS
        .iter()
        .find(|(file, _)| file == &path)
        .map(|(_, hop)| *hop);
    let marked = head.strip_prefix("//! Data path, hop ");
    match (expected, marked) {
        (Some(hop), mark) => {
            if !mark.is_some_and(|rest| rest.starts_with(&format!("{hop} of 5: "))) {
                findings.push(format!(
                    "{path}:1: starts with `//! Data path, hop {hop} of 5: ...`"
                ));
            }
        }
        (None, Some(_)) => findings.push(format!("{path}:1: is not one of the files of a hop")),
        (None, None) => {}
    }
}

fn check_unsafe(source: &Source, findings: &mut Vec<String>) {
    let path = &source.path;
    if !path.starts_with("src/") || UNSAFE.iter().any(|allowed| path.starts_with(allowed)) {
        return;
    }
    for (number, line) in text::blank(&source.text).lines().enumerate() {
        if text::words(line).any(|word| word == "unsafe") {
            findings.push(format!(
                "{path}:{}: `unsafe` outside the list in tidy",
                number + 1
            ));
        }
    }
}

/// The families that the code names and the families that `docs/metrics.md` describes are the same.
fn check_metrics(sources: &[Source], findings: &mut Vec<String>) {
    let Some(doc) = sources
        .iter()
        .find(|source| source.path == "docs/metrics.md")
    else {
        return;
    };
    let documented = text::families(&doc.text);
    let mut named = std::collections::BTreeSet::new();
    for source in sources
        .iter()
        .filter(|source| source.path.starts_with("src/metrics/"))
    {
        named.extend(text::families(&source.text));
    }
    for family in named.difference(&documented) {
        findings.push(format!("docs/metrics.md:1: does not describe `{family}`"));
    }
    for family in documented.difference(&named) {
        findings.push(format!(
            "docs/metrics.md:1: describes `{family}`, which src/metrics/ does not name"
        ));
    }
}

#[cfg(test)]
mod tests;
