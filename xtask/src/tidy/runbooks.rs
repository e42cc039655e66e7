//! Each alert has a page in `docs/runbooks/` that answers what somebody asks who was woken by it, and each page an alert; links
//! from page to page lead somewhere.

use std::collections::BTreeSet;

use super::Source;

const RULES: &str = "contrib/prometheus/volund-alerts.yml";
const PAGES: &str = "docs/runbooks/";
const HEADINGS: [&str; 5] = [
    "## What it means",
    "## What volund does by itself",
    "## What to look at",
    "## What to do",
    "## What not to do",
];

pub(super) fn check(sources: &[Source], findings: &mut Vec<String>) {
    let Some(rules) = sources.iter().find(|source| source.path == RULES) else {
        return;
    };
    let alerts = alerts(&rules.text);
    let mut pages = BTreeSet::new();
    for source in sources {
        let name = source.path.strip_prefix(PAGES);
        let Some(name) = name.and_then(|name| name.strip_suffix(".md")) else {
            continue;
        };
        pages.insert(name.to_owned());
        check_page(name, source, &alerts, findings);
    }
    for alert in alerts.difference(&pages) {
        findings.push(format!(
            "{RULES}:1: `{alert}` has no page {PAGES}{alert}.md"
        ));
    }
}

fn check_page(name: &str, page: &Source, alerts: &BTreeSet<String>, findings: &mut Vec<String>) {
    let path = &page.path;
    if !alerts.contains(name) {
        findings.push(format!("{path}:1: {RULES} has no alert `{name}`"));
    }
    let title = format!("# {name}");
    if page.text.lines().next() != Some(title.as_str()) {
        findings.push(format!("{path}:1: does not start with `{title}`"));
    }
    let headings: Vec<&str> = page
        .text
        .lines()
        .filter(|line| line.starts_with("## "))
        .collect();
    if headings != HEADINGS {
        findings.push(format!("{path}:1: its headings are not {HEADINGS:?}"));
    }
    for target in page.text.split("](").skip(1) {
        let target = target.split(')').next().unwrap_or_default();
        let is_page = !target.contains('/') && target.ends_with(".md");
        if is_page && !alerts.contains(target.trim_end_matches(".md")) {
            findings.push(format!("{path}:1: links to {target}, which no alert has"));
        }
    }
}

/// The names after `- alert:`.
fn alerts(rules: &str) -> BTreeSet<String> {
    let names = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert:"));
    names.map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let sources = [
            source(RULES, "    - alert: VolundDown\n      expr: up == 0\n"),
            source(&format!("{PAGES}{name}.md"), text),
        ];
        let mut findings = Vec::new();
        check(&sources, &mut findings);
        findings
    }

    #[test]
    fn a_page_for_each_alert_and_an_alert_for_each_page() {
        let good = format!("# VolundDown\n\n{}\n", HEADINGS.join("\n\ntext\n\n"));
        assert_eq!(found("VolundDown", &good), Vec::<String>::new());
        let wrong = found("VolundUp", &good.replace("VolundDown", "VolundUp"));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        let headless = found("VolundDown", &good.replace("## What to do\n", ""));
        assert!(headless[0].contains("headings"), "{headless:?}");
        let linked = good.replace("text", "[text](VolundUp.md), [more](../config.md)");
        assert!(found("VolundDown", &linked)[0].contains("VolundUp.md"));
        assert!(found("VolundDown", &good.replace("# VolundDown", "# Down"))[0].contains("start"));
    }
}
