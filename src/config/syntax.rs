//! First pass: text to table, with every syntax error. Also finds what is TOML 1.1 only, because editors' tools still
//! refuse that.

use std::ops::Range;

use toml::Spanned;
use toml::de::DeTable;

use super::diagnostic::{Diagnostic, Findings, Spot};
use super::{quantity, scalar};

/// Most syntax errors that are reported for one file; a file of another format would have thousands.
const ERRORS_MAX: usize = 20;

/// Parses file number `file`. After errors the table has what could be recovered, and the lines with errors are
/// returned, so that later passes need not trust what stands there.
pub(crate) fn parse<'t>(
    file: usize,
    text: &'t str,
    findings: &mut Findings,
) -> (Spanned<DeTable<'t>>, Vec<Range<usize>>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut lines = Vec::new();
    let mut shown = 0;
    let mut repeated_table = None;
    for error in &errors {
        let span = widened(error.span().unwrap_or(text.len()..text.len()), text);
        let line = line_around(span.start, text);
        let duplicate = error.message().starts_with("duplicate key");
        if duplicate && repeated_table.is_some_and(|table| same_table(table, span.start, text)) {
            // A table that is there twice makes each of its keys one that is there twice.
            repeated_table = Some(span.start);
            continue;
        }
        if duplicate && text[line.clone()].trim_start().starts_with('[') {
            repeated_table = Some(line.end);
        }
        lines.push(line.clone());
        shown += 1;
        if shown <= ERRORS_MAX {
            findings.push(described(file, error.message(), span, line, text));
        }
    }
    if shown > ERRORS_MAX {
        let message = format!(
            "{} more syntax errors in this file are not shown",
            shown - ERRORS_MAX
        );
        let end = Spot::new(file, text.len()..text.len());
        findings.push(Diagnostic::error("E0001", end, message));
    }
    if errors.is_empty() {
        for (span, what) in newer_syntax(text) {
            findings.push(
                Diagnostic::warning(
                    "W0003",
                    Spot::new(file, span),
                    format!("{what} is TOML 1.1"),
                )
                .help("volund reads it, but taplo, tombi and Python's tomllib refuse the file"),
            );
        }
    } else {
        findings.set_incomplete();
    }
    (table, lines)
}

/// `span` cut to the text and to whole characters.
fn widened(span: Range<usize>, text: &str) -> Range<usize> {
    let mut start = span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let mut end = span.end.clamp(start, text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    start..end
}

/// The line that byte `at` is in, without its end.
pub(crate) fn line_around(at: usize, text: &str) -> Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[at..]
        .find('\n')
        .map_or(text.len(), |length| at + length);
    start..end
}

/// Whether no table header stands between two places.
fn same_table(from: usize, to: usize, text: &str) -> bool {
    text.get(from..to)
        .is_some_and(|between| !between.contains("\n["))
}

/// The parser's finding in our words, with what experience says about it.
fn described(
    file: usize,
    message: &str,
    span: Range<usize>,
    line: Range<usize>,
    text: &str,
) -> Diagnostic {
    let at = Spot::new(file, span);
    let content = &text[line.clone()];
    if message.starts_with("duplicate key") {
        return duplicate(at, line, text);
    }
    if message.starts_with("cannot recurse") {
        return Diagnostic::error("E0001", at, "values are nested too deeply");
    }
    if message.starts_with("string values must be quoted") {
        let value = content
            .split_once('=')
            .map(|(_, value)| value.split('#').next().unwrap_or("").trim())
            .filter(|value| scalar::size(value).is_ok() || quantity::duration(value).is_ok());
        let help = value.map_or_else(
            || "put it into quotes".to_owned(),
            |value| format!("put it into quotes: \"{value}\""),
        );
        return Diagnostic::error("E0001", at, "strings must be quoted").help(help);
    }
    let mut message = message.to_owned();
    if let Some(first) = message.get(..1) {
        message.replace_range(..1, &first.to_lowercase());
    }
    Diagnostic::error("E0001", at, message)
}

fn duplicate(at: Spot, line: Range<usize>, text: &str) -> Diagnostic {
    let content = text[line.clone()].trim();
    if !content.starts_with('[') {
        return Diagnostic::error("E0001", at, "this key is there twice")
            .help("each key may be written once in a table");
    }
    let finding = Diagnostic::error("E0001", at.clone(), "this table is there twice")
        .label("defined again here")
        .help("a table may be written once: put all of its keys into one place");
    let first = text[..line.start]
        .split_inclusive('\n')
        .scan(0, |start, line| {
            let this = *start;
            *start += line.len();
            Some((this, line))
        })
        .find(|(_, line)| line.trim() == content);
    match first {
        Some((start, line)) => {
            let end = start + line.trim_end().len();
            finding.also(Spot::new(at.file, start..end), "first defined here")
        }
        None => finding,
    }
}

/// Places where a text that TOML 1.1 permits is not TOML 1.0: inline tables over several lines or with a trailing
/// comma, and the escapes `\e` and `\x`. Only for texts without syntax errors.
fn newer_syntax(text: &str) -> Vec<(Range<usize>, &'static str)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    // Which brackets are open: an inline table inside an array inside an inline table, and so on.
    let mut open: Vec<(u8, bool)> = Vec::new();
    let mut last_comma = None;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'#' => {
                at = line_around(at, text).end;
                continue;
            }
            b'"' | b'\'' => {
                let end = string_end(bytes, at);
                if byte == b'"' {
                    found.extend(newer_escapes(bytes, at..end));
                }
                last_comma = None;
                at = end;
                continue;
            }
            b'{' | b'[' => open.push((byte, false)),
            b'}' | b']' => {
                if let (b'}', Some(comma)) = (byte, last_comma) {
                    found.push((comma..comma + 1, "a trailing comma in an inline table"));
                }
                open.pop();
            }
            b'\n' => {
                if let Some((b'{', reported @ false)) = open.last_mut() {
                    *reported = true;
                    // The line's last character stands for the newline, which has no width.
                    let end = text[..at].trim_end().len().max(1);
                    let start = text[..end]
                        .char_indices()
                        .next_back()
                        .map_or(0, |(start, _)| start);
                    found.push((start..end, "an inline table over several lines"));
                }
            }
            _ => {}
        }
        match byte {
            b',' => last_comma = Some(at),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => last_comma = None,
        }
        at += 1;
    }
    found
}

/// The byte after the string that starts at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let quote = bytes[start];
    let triple = [quote; 3];
    if bytes[start..].starts_with(&triple) {
        let mut at = start + 3;
        while at < bytes.len() {
            match bytes[at] {
                b'\\' if quote == b'"' => at += 2,
                _ if bytes[at..].starts_with(&triple) => {
                    // Up to two quotes may stand directly before the closing three.
                    at += 3;
                    while bytes.get(at) == Some(&quote) {
                        at += 1;
                    }
                    return at;
                }
                _ => at += 1,
            }
        }
        return bytes.len();
    }
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quote == b'"' => at += 2,
            b'\n' => return at,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn newer_escapes(bytes: &[u8], string: Range<usize>) -> Vec<(Range<usize>, &'static str)> {
    let mut found = Vec::new();
    let mut at = string.start;
    while at + 1 < string.end {
        if bytes[at] == b'\\' {
            if matches!(bytes[at + 1], b'e' | b'x') {
                found.push((at..at + 2, "this escape"));
            }
            at += 1;
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str) -> Vec<&'static str> {
        let mut findings = Findings::default();
        parse(0, text, &mut findings);
        findings
            .into_sorted()
            .iter()
            .map(|found| found.code)
            .collect()
    }

    #[test]
    fn toml_1_1_is_read_with_a_warning() {
        let check = |text: &str, warnings: usize| {
            assert_eq!(codes(text), vec!["W0003"; warnings], "{text}");
        };
        check("a = { b = 1 }\n", 0);
        check("a = { b = [\n1,\n2,\n] }\n", 0);
        check("a = { b = '''\n,}''' } # {\n", 0);
        check("a = [\n1,\n]\n[b]\nc = 1\n", 0);
        check("a = \"{,}\\\"{\"\nb = 1", 0);
        check("a = {\n b = 1\n}\n", 1);
        check("a = { b = 1, }\n", 1);
        check("a = {\n b = 1,\n}\n", 2);
        check("a = \"\\e\\x41\\\\e\"\n", 2);
    }

    #[test]
    fn all_syntax_errors_are_found_in_one_run() {
        let found = codes("a = \nb = 10GiB\n[c\nd = 1\n");
        assert!(found.len() >= 3, "{found:?}");
    }

    #[test]
    fn another_format_does_not_flood_the_report() {
        assert_eq!(codes(&"}{\n".repeat(1000)).len(), ERRORS_MAX + 1);
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        let check = |text: &str| assert!(!codes(text).is_empty());
        check(&format!("a = {}", "[".repeat(4000)));
        check(&format!("a = {}", "{a=".repeat(1300)));
        check(&format!("a = {}", "{ a.a.a.a.a.a = \n".repeat(1300)));
        // The deepest table that passes all limits is dropped without trouble, on a test's small stack.
        let dots = "a.".repeat(crate::config::source::LINE_DOTS_MAX);
        let text = format!(
            "b = {}1{}",
            format!("{{ {dots}a = \n").repeat(80),
            " }".repeat(80)
        );
        let file = crate::config::SourceFile::new("x.toml", text.as_str());
        assert_eq!(
            crate::config::source::admit(0, &file).ok(),
            Some(text.as_str())
        );
        let found = codes(&text);
        assert!(found.iter().all(|code| *code == "W0003"), "{found:?}");
    }
}
