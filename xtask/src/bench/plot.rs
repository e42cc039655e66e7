//! `--plot`: the ratios as bars with their intervals, in an SVG that needs nothing else.

use std::fmt::Write as _;

use super::report::{Outcome, Pair};
use super::stats::Ratio;

const LABEL: f64 = 250.0;
const CHART: f64 = 520.0;
const ROW: f64 = 16.0;
const TOP: f64 = 56.0;
/// What is drawn for each pair of contenders, with its colour.
type Figure = (&'static str, &'static str, fn(&Pair) -> Ratio);
const FIGURES: [Figure; 3] = [
    ("IOPS", "#3b6ea5", |pair| pair.iops),
    ("p50", "#c98b2b", |pair| pair.p50),
    ("IOPS per CPU-second", "#4c8f5b", |pair| pair.iops_per_cpu),
];

/// The whole picture.
pub(crate) fn svg(outcomes: &[Outcome]) -> String {
    let rows: Vec<(String, Vec<(&str, Ratio)>)> = outcomes
        .iter()
        .flat_map(|outcome| {
            outcome
                .ratios
                .iter()
                .map(move |pair| row(outcome.case, pair))
        })
        .collect();
    let highest = rows
        .iter()
        .flat_map(|(_, bars)| bars)
        .map(|(_, ratio)| ratio.high)
        .fold(1.25, f64::max);
    let mut body = String::new();
    let mut y = TOP;
    for (label, bars) in &rows {
        text(&mut body, (LABEL - 8.0, y + ROW, "end"), label);
        for (colour, ratio) in bars {
            bar(&mut body, (y, CHART / highest), colour, *ratio);
            y += ROW;
        }
        y += ROW / 2.0;
    }
    let one = LABEL + CHART / highest;
    let mut head = String::new();
    let mut x = LABEL;
    for (name, colour, _) in FIGURES {
        let _cannot_fail = write!(
            head,
            "<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        text(&mut head, (x + 18.0, 20.0, "start"), name);
        x += 150.0;
    }
    text(&mut head, (one, TOP - 10.0, "middle"), "1.0");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{head}{body}\
         <path d=\"M{one:.1} {} V{y:.1}\" stroke=\"#444\" stroke-dasharray=\"4 3\"/>\n</svg>\n",
        LABEL + CHART + 70.0,
        y + 16.0,
        TOP - 6.0,
    )
}

/// One pair of contenders: its label, and the ratios that exist.
fn row(case: &str, pair: &Pair) -> (String, Vec<(&'static str, Ratio)>) {
    let bars = FIGURES
        .iter()
        .map(|(_, colour, figure)| (*colour, figure(pair)))
        .filter(|(_, ratio)| ratio.median.is_finite());
    (format!("{case}: {} / {}", pair.of, pair.to), bars.collect())
}

fn bar(out: &mut String, (y, scale): (f64, f64), colour: &str, ratio: Ratio) {
    let at = |value: f64| LABEL + value * scale;
    let middle = y + ROW / 2.0 - 1.0;
    let _cannot_fail = writeln!(
        out,
        "<rect x=\"{LABEL}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
         <path d=\"M{:.1} {middle:.1} H{:.1}\" stroke=\"black\" stroke-width=\"1.5\"/>",
        ratio.median * scale,
        ROW - 3.0,
        at(ratio.low),
        at(ratio.high),
    );
    let label = format!("{:.2}", ratio.median);
    text(out, (at(ratio.high) + 5.0, y + ROW - 4.0, "start"), &label);
}

fn text(out: &mut String, (x, y, anchor): (f64, f64, &str), words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _cannot_fail = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ends_at_the_median_and_its_whisker_at_the_interval() {
        let ratio = Ratio {
            median: 1.0,
            low: 0.5,
            high: 2.0,
            rounds: 15,
            played: 15,
        };
        let mut out = String::new();
        bar(&mut out, (0.0, 100.0), "red", ratio);
        assert!(out.contains("width=\"100.0\"") && out.contains("M300.0 7.0 H450.0"));
    }

    #[test]
    fn a_picture_of_nothing_is_still_one() {
        let picture = svg(&[]);
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
