//! Who may use whom: the module table of `docs/ARCHITECTURE.md` against every `crate::` path under `src/`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

/// Modules of vocabulary that every other module may use.
const SHARED: [&str; 2] = ["model", "units"];

/// The parsed table: module -> modules that it may use. `None` means everything.
#[derive(Debug)]
pub(super) struct Table {
    rows: BTreeMap<String, Option<BTreeSet<String>>>,
}

impl Table {
    /// Reads the Markdown table whose header is `| module | owns | may use |`.
    pub(super) fn parse(text: &str) -> Result<Table> {
        let mut lines = text
            .lines()
            .skip_while(|line| cells(line) != ["module", "owns", "may use"]);
        lines
            .next()
            .context("no table with the header `| module | owns | may use |`")?;
        let mut rows = BTreeMap::new();
        for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
            let [modules, _, uses] = cells(line)[..] else {
                bail!("the row {line:?} has not three cells");
            };
            for module in modules.split(',').map(name) {
                rows.insert(module.clone(), allowed(&module, uses));
            }
        }
        let table = Table { rows };
        table.check_names()?;
        Ok(table)
    }

    fn check_names(&self) -> Result<()> {
        for (module, uses) in &self.rows {
            for used in uses.iter().flatten() {
                if !self.rows.contains_key(used) && !SHARED.contains(&used.as_str()) {
                    bail!("the row of `{module}` names `{used}`, which has no row");
                }
            }
        }
        Ok(())
    }

    /// Adds a finding for each path in `blanked` (source without comments and strings) that the table forbids.
    pub(super) fn check(&self, path: &str, blanked: &str, findings: &mut Vec<String>) {
        let module = module_of(path);
        if module == "lib" {
            return;
        }
        let Some(row) = self.rows.get(module) else {
            findings.push(format!(
                "{path}:1: module `{module}` has no row in docs/ARCHITECTURE.md"
            ));
            return;
        };
        let Some(allowed) = row else { return };
        for (line, used) in paths(blanked) {
            if used != module && !allowed.contains(&used) {
                findings.push(format!("{path}:{line}: `{module}` may not use `{used}`"));
            }
        }
    }
}

/// The trimmed cells of a table row; empty for any other line.
fn cells(line: &str) -> Vec<&str> {
    let inner = line
        .trim()
        .strip_prefix('|')
        .and_then(|rest| rest.strip_suffix('|'));
    inner.map_or_else(Vec::new, |inner| inner.split('|').map(str::trim).collect())
}

fn name(cell: &str) -> String {
    let cell = cell.trim().trim_matches('`');
    cell.trim_end_matches('/')
        .trim_end_matches(".rs")
        .to_owned()
}

/// The modules that a cell allows: names with commas, notes in brackets left out, `everything` for no limit.
fn allowed(module: &str, cell: &str) -> Option<BTreeSet<String>> {
    if cell.starts_with("everything") {
        return None;
    }
    let mut plain = String::new();
    let mut depth = 0usize;
    for c in cell.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let mut uses: BTreeSet<String> = plain
        .split(',')
        .map(name)
        .filter(|used| !used.is_empty() && used != "nothing")
        .collect();
    match module {
        "units" => {}
        "model" => drop(uses.insert("units".to_owned())),
        _ => uses.extend(SHARED.map(str::to_owned)),
    }
    Some(uses)
}

/// The top-level module that a file under `src/` belongs to.
fn module_of(path: &str) -> &str {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    let first = inner.split('/').next().unwrap_or(inner);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// Every top-level module that a `crate::` path names, with its line number. Groups are taken apart.
fn paths(blanked: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = blanked[from..].find("crate::").map(|at| from + at) {
        from = at + "crate::".len();
        let line = blanked[..at].matches('\n').count() + 1;
        let rest = &blanked[from..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads(group).into_iter().map(|head| (line, head))),
            None => found.extend(head(rest).map(|head| (line, head))),
        }
    }
    found
}

/// The first word of each item of a `{...}` group whose opening brace is already taken.
fn heads(group: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut depth = 1usize;
    let mut item = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => found.extend(head(&std::mem::take(&mut item))),
            _ if depth == 1 => item.push(c),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found.extend(head(&item));
    found
}

fn head(text: &str) -> Option<String> {
    let text = text.trim_start();
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}
