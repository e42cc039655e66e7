//! Series as text, in Prometheus' exposition format (version 0.0.4): written as they are found, with nothing in between.
//!
//! A node with 1,000 volumes has 100,000 series. Objects for each of them, as a client library makes, take longer than the
//! scrape may.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use super::families::{Family, Kind};
use super::reading::HistogramReading;

/// A label's name and value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// Series by family; a family without series does not appear.
#[derive(Default)]
pub(super) struct Series {
    families: BTreeMap<&'static str, (Family, String)>,
}

impl Series {
    /// Adds a line: `NAME[SUFFIX]{LABELS} VALUE`.
    fn push(&mut self, family: Family, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        let entry = self.families.entry(family.name);
        let (_, text) = entry.or_insert_with(|| (family, String::new()));
        text.push_str(family.name);
        text.push_str(suffix);
        let mut before = '{';
        for (name, value) in labels {
            text.push(before);
            text.push_str(name);
            text.push_str("=\"");
            escape(text, value);
            text.push('"');
            before = ',';
        }
        if !labels.is_empty() {
            text.push('}');
        }
        // Writing to a String can't fail.
        let _ = writeln!(text, " {value}");
    }

    pub(super) fn value(&mut self, family: Family, labels: &[Label<'_>], value: f64) {
        self.push(family, "", labels, value);
    }

    pub(super) fn number(&mut self, family: Family, labels: &[Label<'_>], value: u64) {
        self.push(family, "", labels, value);
    }

    pub(super) fn flag(&mut self, family: Family, labels: &[Label<'_>], value: bool) {
        self.push(family, "", labels, u8::from(value));
    }

    /// One series per state: 1 for the current one.
    pub(super) fn states<'a>(
        &mut self,
        family: Family,
        labels: &[Label<'_>],
        states: impl IntoIterator<Item = (&'a str, bool)>,
    ) {
        let mut labels = labels.to_vec();
        for (state, is_current) in states {
            labels.push(("state", state));
            self.flag(family, &labels, is_current);
            labels.pop();
        }
    }

    pub(super) fn histogram(
        &mut self,
        family: Family,
        labels: &[Label<'_>],
        reading: &HistogramReading,
    ) {
        let bounds: Vec<String> = reading.bounds.iter().map(f64::to_string).collect();
        let mut bucket_labels = labels.to_vec();
        let mut total = 0;
        for (bound, count) in bounds.iter().zip(&reading.buckets) {
            total += count;
            bucket_labels.push(("le", bound));
            self.push(family, "_bucket", &bucket_labels, total);
            bucket_labels.pop();
        }
        let beyond = reading.buckets.iter().skip(reading.bounds.len());
        total += beyond.sum::<u64>();
        bucket_labels.push(("le", "+Inf"));
        self.push(family, "_bucket", &bucket_labels, total);
        self.push(family, "_sum", labels, reading.sum);
        self.push(family, "_count", labels, total);
    }

    /// All of it, with a head for each family.
    pub(super) fn into_text(self) -> String {
        let len = self.families.values().map(|(_, text)| text.len() + 256);
        let mut all = String::with_capacity(len.sum());
        for (family, text) in self.families.into_values() {
            let Family { name, kind, help } = family;
            let kind = match kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
                Kind::Histogram => "histogram",
            };
            // Helps are constants without line breaks or backslashes, which a test checks.
            let _ = writeln!(all, "# HELP {name} {help}\n# TYPE {name} {kind}");
            all.push_str(&text);
        }
        all
    }
}

/// Appends a label's value.
fn escape(text: &mut String, value: &str) {
    if !value.contains(['\\', '"', '\n']) {
        return text.push_str(value);
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}
