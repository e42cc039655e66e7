//! TOML text to [`DesiredState`], or to a list of everything that is wrong with it.
//!
//! Three passes, each of which reports all it finds, over all files, in one run: `syntax` (text to table), `shape`
//! (known keys, right kinds of values; driven by the table in `keys`), `meaning` (what objects say about one
//! another). Nothing here acts on the world beyond reading files: a configuration that is refused changes nothing.
//!
//! Start with [`load`] and [`parse`], then `keys.rs`.

mod clash;
pub mod codes;
mod commit;
pub mod diagnostic;
mod keys;
mod meaning;
mod merge;
mod place;
mod policy;
mod quantity;
mod raw;
pub mod reference;
pub mod render;
mod scalar;
pub mod schema;
mod shape;
pub mod source;
mod syntax;
#[cfg(test)]
mod tests;
mod value;
mod volumes;

use std::path::Path;

use toml::Spanned;
use toml::de::DeTable;

pub use diagnostic::{Diagnostic, Level};
use diagnostic::{Findings, Spot};
pub use place::place;
pub use source::SourceFile;

use crate::model::NodeName;
use crate::model::spec::DesiredState;

/// What parsing gives: the state and its warnings, or all errors and warnings.
pub type Parsed = Result<(DesiredState, Vec<Diagnostic>), Vec<Diagnostic>>;

/// A configuration as it was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The files, in the order that findings number them.
    pub files: Vec<SourceFile>,
    /// SHA-256 over names and contents, hexadecimal. Equal hashes mean that nothing changed.
    pub hash: String,
    /// The commit that is checked out there, if they are in a git work tree.
    pub commit: Option<String>,
    /// What they say.
    pub result: Parsed,
}

impl Loaded {
    /// All findings, in the order of the files.
    #[must_use]
    pub fn findings(&self) -> &[Diagnostic] {
        match &self.result {
            Ok((_, warnings)) => warnings,
            Err(findings) => findings,
        }
    }

    /// The findings as `volund check` prints them.
    #[must_use]
    pub fn report(&self, color: bool) -> String {
        render::human(&self.files, self.findings(), color)
    }

    /// The first error in one line, empty when there is none.
    #[must_use]
    pub fn one_line(&self) -> String {
        render::one_line(&self.files, self.findings())
    }
}

/// Files as they were read: what they say is still to be found out.
#[derive(Debug)]
pub struct Unparsed {
    files: Vec<SourceFile>,
    /// As in [`Loaded`].
    pub hash: String,
    /// As in [`Loaded`].
    pub commit: Option<String>,
    findings: Findings,
}

impl Unparsed {
    /// Finds out what they say, to the daemon of `node` or, without one, for their own sake.
    #[must_use]
    pub fn parse(self, node: Option<&NodeName>) -> Loaded {
        let result = run(&self.files, node, self.findings);
        Loaded {
            files: self.files,
            hash: self.hash,
            commit: self.commit,
            result,
        }
    }
}

/// Reads `source`, a TOML file or a directory whose `*.toml` files are read in name order. A file that was caught
/// half-written shows as errors once it is parsed: reading again soon is the caller's.
#[must_use]
pub fn read(source: &Path) -> Unparsed {
    let mut findings = Findings::default();
    let files = source::read(source, &mut findings);
    let mut hash = source::hash(&files);
    if findings.has_errors() {
        // What could not be read is a state of its own, different from the same files without it.
        let problems = findings
            .messages()
            .map(|message| SourceFile::new(message, hash.as_bytes()));
        hash = source::hash(&problems.collect::<Vec<_>>());
    }
    Unparsed {
        files,
        hash,
        commit: commit::commit(source),
        findings,
    }
}

/// Reads and parses `source` for the daemon of node `node`.
#[must_use]
pub fn load(source: &Path, node: &NodeName) -> Loaded {
    load_for(source, Some(node))
}

/// As [`load`]; without a node, the files are checked for their own sake and need not declare this machine.
#[must_use]
pub fn load_for(source: &Path, node: Option<&NodeName>) -> Loaded {
    read(source).parse(node)
}

/// Parses files that are in memory already. Never panics and never touches the disk, whatever the bytes are.
///
/// # Errors
/// All findings, errors and warnings, when there is at least one error.
pub fn parse(files: &[SourceFile], node: &NodeName) -> Parsed {
    run(files, Some(node), Findings::default())
}

/// The line that splits the input of [`exercise`] into files.
pub const FILE_BORDER: &str = "#---";

/// Does all that is ever done with files that nobody vouches for: parses and renders them. For fuzzing and for tests.
///
/// # Panics
/// When an accepted configuration can't be kept for the next start. Otherwise never: that is what is tested.
pub fn exercise(bytes: &[u8]) {
    let border = format!("\n{FILE_BORDER}\n");
    let mut files = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest
        .windows(border.len())
        .position(|part| part == border.as_bytes())
    {
        files.push(SourceFile::new(
            format!("{}.toml", files.len()),
            &rest[..at],
        ));
        rest = &rest[at + border.len()..];
    }
    files.push(SourceFile::new(format!("{}.toml", files.len()), rest));
    for node in [None, "n1".parse().ok()] {
        let result = run(&files, node.as_ref(), Findings::default());
        let hash = source::hash(&files);
        let loaded = Loaded {
            files: files.clone(),
            hash,
            commit: None,
            result,
        };
        std::hint::black_box((loaded.report(false), loaded.report(true), loaded.one_line()));
        std::hint::black_box(render::github(&files, loaded.findings()));
        std::hint::black_box(render::json(&files, loaded.findings()));
        if loaded.result.is_ok() {
            let kept = source::decode(&source::encode(&files)).ok();
            assert!(
                kept.as_ref() == Some(&files),
                "an accepted configuration can be kept"
            );
        }
    }
}

fn run(files: &[SourceFile], node: Option<&NodeName>, mut findings: Findings) -> Parsed {
    let mut shapes = Vec::new();
    for (index, file) in files.iter().enumerate() {
        match source::admit(index, file) {
            Ok(text) => shapes.extend(file_shape(index, text, files.len(), &mut findings)),
            Err(finding) => {
                findings.push(*finding);
                findings.set_incomplete();
            }
        }
    }
    // Without any table there is nothing more to say, and what could not be read was said already.
    if shapes.is_empty() {
        return Err(findings.into_sorted());
    }
    let raw = raw::RawConfig::new(merge::merge(shapes, &mut findings));
    let state = meaning::resolve(&raw, node, &mut findings);
    match state {
        Some(state) if !findings.has_errors() => Ok((state, findings.into_sorted())),
        _ => Err(only_what_matters(findings.into_sorted())),
    }
}

/// First and second pass over one file. None if the file says nothing at all, which is reported.
fn file_shape(
    index: usize,
    text: &str,
    files: usize,
    findings: &mut Findings,
) -> Option<shape::Shape> {
    let (table, bad_lines) = syntax::parse(index, text, findings);
    let table: Spanned<DeTable<'_>> = table;
    if table.get_ref().is_empty() && bad_lines.is_empty() {
        // An editor that writes in place leaves an empty file for a moment; so does a full disk, for longer.
        let finding = Diagnostic::error("E0005", Spot::start_of(index), "the file says nothing");
        findings.push(if files == 1 {
            finding.help("for a configuration without volumes, say `version = 1`")
        } else {
            finding.help("remove it if it is not needed: an empty file may be one that was cut off")
        });
        findings.set_incomplete();
        return None;
    }
    let mut own = Findings::default();
    let mut checker = shape::Checker {
        file: index,
        findings: &mut own,
    };
    let shape = checker.table(table.get_ref(), keys::ROOT, "", Spot::start_of(index));
    for finding in own.into_sorted() {
        // What the parser made of a line with a syntax error is a guess.
        let guessed = finding.at.as_ref().is_some_and(|at| {
            bad_lines
                .iter()
                .any(|line| line.start <= at.span.start && at.span.start <= line.end)
        });
        if !guessed {
            findings.push(finding);
        }
    }
    Some(shape)
}

/// A file of a newer version may be full of keys that this release does not know: the version is the news.
fn only_what_matters(findings: Vec<Diagnostic>) -> Vec<Diagnostic> {
    if findings.iter().any(|found| found.code == "E0112") {
        return findings
            .into_iter()
            .filter(|found| found.code == "E0112")
            .collect();
    }
    findings
}
