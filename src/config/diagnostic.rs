//! One finding about the configuration: what, where, and what to do about it.

use std::ops::Range;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The configuration is refused.
    Error,
    /// The configuration is accepted, but something should be changed.
    Warning,
}

impl Level {
    /// The word that reports use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A place in one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Index into the list of files.
    pub file: usize,
    /// Bytes of that file's text.
    pub span: Range<usize>,
}

impl Spot {
    /// A place in file number `file`.
    #[must_use]
    pub const fn new(file: usize, span: Range<usize>) -> Self {
        Self { file, span }
    }

    /// The very start of file number `file`, for findings about the file as a whole.
    #[must_use]
    pub const fn start_of(file: usize) -> Self {
        Self { file, span: 0..0 }
    }

    /// Sorts places as a reader meets them.
    pub(crate) const fn order(&self) -> (usize, usize, usize) {
        (self.file, self.span.start, self.span.end)
    }
}

/// A second place that explains a finding, with what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub at: Spot,
    /// What is there, in a few words.
    pub text: String,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code, `E0204`; `volund explain` knows it.
    pub code: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What is wrong, in one lower-case sentence that names the object.
    pub message: String,
    /// Where. None when no file could be read.
    pub at: Option<Spot>,
    /// A few words under the caret; may be empty.
    pub label: String,
    /// Further places that matter.
    pub also: Vec<Label>,
    /// What to do, one sentence each.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// An error at `at`.
    #[must_use]
    pub fn error(code: &'static str, at: Spot, message: impl Into<String>) -> Self {
        Self {
            code,
            level: Level::Error,
            message: message.into(),
            at: Some(at),
            label: String::new(),
            also: Vec::new(),
            help: Vec::new(),
        }
    }

    /// A warning at `at`.
    #[must_use]
    pub fn warning(code: &'static str, at: Spot, message: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            ..Self::error(code, at, message)
        }
    }

    /// An error that belongs to no file's text.
    #[must_use]
    pub fn error_nowhere(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            at: None,
            ..Self::error(code, Spot::start_of(0), message)
        }
    }

    /// Puts a few words under the caret.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = text.into();
        self
    }

    /// Adds a second place.
    #[must_use]
    pub fn also(mut self, at: Spot, text: impl Into<String>) -> Self {
        self.also.push(Label {
            at,
            text: text.into(),
        });
        self
    }

    /// Adds a line of help.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// On the heap, to be returned as an error.
    pub(crate) fn boxed(self) -> Box<Self> {
        Box::new(self)
    }

    /// Adds a line of help if there is one.
    #[must_use]
    pub fn help_if(self, text: Option<String>) -> Self {
        match text {
            Some(text) => self.help(text),
            None => self,
        }
    }
}

/// Most errors, and most warnings, that are kept of one run: a wrong file must not take the daemon's memory.
pub const FINDINGS_MAX: usize = 1000;

/// What a run of the passes has found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
    incomplete: bool,
}

impl Findings {
    /// Adds a finding, unless there are too many of its level already.
    pub(crate) fn push(&mut self, finding: Diagnostic) {
        let count = match finding.level {
            Level::Error => &mut self.errors,
            Level::Warning => &mut self.warnings,
        };
        if *count < FINDINGS_MAX {
            *count += 1;
            self.list.push(finding);
        }
    }

    /// Adds a finding that something is *not* there. When a file could not be read to its end, the thing may well be
    /// in the part that was lost, so such findings would only distract.
    pub(crate) fn push_absence(&mut self, finding: Diagnostic) {
        if !self.incomplete {
            self.push(finding);
        }
    }

    /// Notes that a part of the files was not understood, see [`Findings::push_absence`].
    pub(crate) fn set_incomplete(&mut self) {
        self.incomplete = true;
    }

    /// The messages so far.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|found| found.message.as_str())
    }

    /// Whether an error was found.
    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// All findings in the order of the files.
    pub(crate) fn into_sorted(mut self) -> Vec<Diagnostic> {
        let order = |found: &Diagnostic| found.at.as_ref().map(Spot::order);
        self.list
            .sort_by(|a, b| (order(a), a.code, &a.message).cmp(&(order(b), b.code, &b.message)));
        self.list.dedup();
        self.list
    }
}

/// `text` as it may stand in a message: control characters escaped, and not longer than a line can bear.
#[must_use]
pub(crate) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut shown: String = text
        .chars()
        .take(CHARS_MAX)
        .flat_map(|c| {
            let escape = c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
            let escaped = escape.then(|| c.escape_default());
            let plain = (!escape).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The one of `known` that is closest to `wrong`, if it is within two edits and no other is as close.
#[must_use]
pub(crate) fn closest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    const EDITS_MAX: usize = 2;
    const LENGTH_MAX: usize = 100;
    if wrong.len() > LENGTH_MAX {
        return None;
    }
    let mut candidates: Vec<_> = known
        .into_iter()
        .map(|name| (strsim::osa_distance(wrong, name), name))
        // Two edits turn any two-letter word into any other: the edits must be fewer than the letters.
        .filter(|(edits, name)| *edits <= EDITS_MAX && *edits < name.chars().count())
        .collect();
    candidates.sort_unstable();
    match candidates.as_slice() {
        [(best, _), (second, _), ..] if best == second => None,
        [(_, name), ..] => Some(*name),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_stay_within_two_edits() {
        let known = ["size", "pool", "replicas"];
        assert_eq!(closest("sise", known), Some("size"));
        assert_eq!(closest("szie", known), Some("size"));
        assert_eq!(closest("replica", known), Some("replicas"));
        assert_eq!(closest("bandwidth", known), None);
        assert_eq!(closest("zz", ["ab"]), None);
        assert_eq!(closest("n3", ["n1", "n2"]), None);
    }

    #[test]
    fn hostile_text_is_escaped_and_cut() {
        assert_eq!(shown("a\0b\u{1b}[31m"), "a\\u{0}b\\u{1b}[31m");
        assert_eq!(shown("\u{202e}x"), "\\u{202e}x");
        assert_eq!(shown(&"x".repeat(300)).len(), 83);
    }

    #[test]
    fn absences_are_not_reported_after_a_syntax_error() {
        let mut findings = Findings::default();
        findings.set_incomplete();
        findings.push_absence(Diagnostic::error("E0104", Spot::start_of(0), "missing"));
        assert!(!findings.has_errors());
    }
}
