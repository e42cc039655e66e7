//! Findings as text for people, as JSON for programs, and as annotations for GitHub.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{
    AnnotationKind, Element, Group, Level as Title, Origin, Renderer, Snippet,
};
use serde_json::{Value, json};

use super::diagnostic::{Diagnostic, Level, Spot, shown};
use super::source::{LINE_BYTES_MAX, SourceFile};
use super::syntax::line_around;

/// Most findings that are shown; all are counted.
const SHOWN_MAX: usize = 100;
/// Places of one file that are this many bytes apart are shown in one excerpt, with what lies between left out.
const NEAR: usize = 16 << 10;

/// Line and column, both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// Where byte `offset` of `text` is.
#[must_use]
pub fn position(text: &str, offset: usize) -> Position {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    // A byte order mark is no column.
    let column = before[start..]
        .trim_start_matches('\u{feff}')
        .chars()
        .count()
        + 1;
    Position { line, column }
}

/// Findings with source lines and carets, as rustc prints them, without a summary.
#[must_use]
pub fn human(files: &[SourceFile], findings: &[Diagnostic], color: bool) -> String {
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    // A fixed width, so that reports do not depend on the terminal that happens to be there.
    let renderer = renderer.decor_style(DecorStyle::Ascii).term_width(140);
    let mut text = String::new();
    for finding in findings.iter().take(SHOWN_MAX) {
        text.push_str(&renderer.render(&[group(files, finding)]));
        text.push_str("\n\n");
    }
    if findings.len() > SHOWN_MAX {
        text.push_str(&format!(
            "{} more are not shown\n\n",
            findings.len() - SHOWN_MAX
        ));
    }
    text
}

fn group<'a>(files: &'a [SourceFile], finding: &'a Diagnostic) -> Group<'a> {
    let level = match finding.level {
        Level::Error => Title::ERROR,
        Level::Warning => Title::WARNING,
    };
    let title = level
        .primary_title(finding.message.as_str())
        .id(finding.code);
    let mut group = Group::with_title(title);
    if let Some(at) = &finding.at {
        let first = Mark {
            at,
            kind: AnnotationKind::Primary,
            label: &finding.label,
        };
        let mut marks = vec![first];
        for label in &finding.also {
            let mark = Mark {
                at: &label.at,
                kind: AnnotationKind::Context,
                label: &label.text,
            };
            if label.at.file == at.file && label.at.span.start.abs_diff(at.span.start) < NEAR {
                marks.push(mark);
            } else {
                group = group.elements(excerpt(files, &marks));
                marks = vec![mark];
            }
        }
        group = group.elements(excerpt(files, &marks));
    }
    for help in &finding.help {
        group = group.element(Title::HELP.message(help.as_str()));
    }
    group
}

/// One place to be marked.
struct Mark<'a> {
    at: &'a Spot,
    kind: AnnotationKind,
    label: &'a str,
}

/// The lines that `marks`, all of one file, are in; only the path when there is nothing to show.
fn excerpt<'a>(files: &'a [SourceFile], marks: &[Mark<'a>]) -> Option<Element<'a>> {
    let first = marks.first()?;
    let file = files.get(first.at.file)?;
    let text = file.text();
    let path = shown(&file.path);
    let lines = marks
        .iter()
        .map(|mark| line_around(mark.at.span.start.min(text.len()), text));
    let window = lines.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))?;
    let Position { line, column } = position(text, first.at.span.start);
    let too_long = text[window.clone()]
        .split('\n')
        .any(|line| line.len() > LINE_BYTES_MAX);
    if window.is_empty() || too_long {
        let origin = Origin::path(path);
        let about_a_line = too_long || !first.at.span.is_empty();
        return Some(Element::from(if about_a_line {
            origin.line(line).char_column(column)
        } else {
            origin
        }));
    }
    let start = position(text, window.start).line;
    // A byte order mark would shift the carets.
    let source = text[window.clone()].trim_start_matches('\u{feff}');
    let base = window.end - source.len();
    let source = source.trim_end_matches('\r');
    let annotations = marks.iter().map(|mark| {
        // Of what spans several lines, the first one says enough.
        let line = line_around(mark.at.span.start.min(text.len()), text);
        let line_end = line.start + text[line.clone()].trim_end().len();
        let start = mark.at.span.start.max(base);
        let end = mark.at.span.end.min(line_end).max(start);
        let annotation = mark.kind.span(start - base..end - base);
        if mark.label.is_empty() {
            annotation
        } else {
            annotation.label(mark.label)
        }
    });
    let annotations: Vec<_> = annotations.collect();
    Some(Element::from(
        Snippet::source(source)
            .path(path)
            .line_start(start)
            .annotations(annotations),
    ))
}

/// The first findings as a JSON array; `check --output json` puts it into an object with their full number.
#[must_use]
pub fn json(files: &[SourceFile], findings: &[Diagnostic]) -> Value {
    Value::Array(
        findings
            .iter()
            .take(SHOWN_MAX)
            .map(|finding| finding_json(files, finding))
            .collect(),
    )
}

fn finding_json(files: &[SourceFile], finding: &Diagnostic) -> Value {
    let also: Vec<Value> = finding
        .also
        .iter()
        .map(|label| json!({ "place": place_json(files, &label.at), "text": label.text }))
        .collect();
    json!({
        "code": finding.code,
        "level": finding.level.word(),
        "message": finding.message,
        "place": finding.at.as_ref().map(|at| place_json(files, at)),
        "label": finding.label,
        "also": also,
        "help": finding.help,
    })
}

fn place_json(files: &[SourceFile], at: &Spot) -> Value {
    let Some(file) = files.get(at.file) else {
        return Value::Null;
    };
    let start = position(file.text(), at.span.start);
    let end = position(file.text(), at.span.end);
    json!({
        "file": file.path,
        "line": start.line,
        "column": start.column,
        "endLine": end.line,
        "endColumn": end.column,
        "startByte": at.span.start,
        "endByte": at.span.end,
    })
}

/// Findings as GitHub workflow commands, one a line.
#[must_use]
pub fn github(files: &[SourceFile], findings: &[Diagnostic]) -> String {
    let mut text = String::new();
    for finding in findings.iter().take(SHOWN_MAX) {
        let place = finding.at.as_ref().and_then(|at| {
            let file = files.get(at.file)?;
            let start = position(file.text(), at.span.start);
            let end = position(file.text(), at.span.end);
            Some(format!(
                "file={},line={},col={},endLine={},endColumn={},",
                escaped_property(&file.path),
                start.line,
                start.column,
                end.line,
                end.column
            ))
        });
        let message = std::iter::once(finding.message.clone())
            .chain(finding.help.iter().map(|help| format!("help: {help}")))
            .collect::<Vec<_>>()
            .join("\n");
        text.push_str(&format!(
            "::{} {}title={}::{}\n",
            finding.level.word(),
            place.unwrap_or_default(),
            finding.code,
            escaped(&message)
        ));
    }
    text
}

/// Escapes as the workflow command protocol wants (`@actions/core`, command.ts).
fn escaped(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

fn escaped_property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}

/// The same text in one line, for a log field or a condition: the first error, and how many more there are.
#[must_use]
pub fn one_line(files: &[SourceFile], findings: &[Diagnostic]) -> String {
    let errors: Vec<_> = findings
        .iter()
        .filter(|found| found.level == Level::Error)
        .collect();
    let Some(first) = errors.first() else {
        return String::new();
    };
    let place = first.at.as_ref().and_then(|at| {
        let file = files.get(at.file)?;
        let Position { line, column } = position(file.text(), at.span.start);
        Some(format!("{}:{line}:{column}: ", shown(&file.path)))
    });
    let more = match errors.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    format!(
        "{}{} [{}]{more}",
        place.unwrap_or_default(),
        first.message,
        first.code
    )
}
