//! Puts the tables of all files together. Each table may be defined in one file only.

use std::collections::BTreeMap;

use super::diagnostic::{Diagnostic, Findings, Spot};
use super::keys::{Key, Kind, ROOT};
use super::shape::{At, Shape, Value};

/// The tables of all files, as if they stood in one. Reports what is defined twice and keeps the first.
pub(crate) fn merge(files: Vec<Shape>, findings: &mut Findings) -> Shape {
    let mut whole = Shape::empty(Spot::start_of(0));
    let mut entries = BTreeMap::new();
    for mut file in files {
        for (name, value) in file.drain() {
            let key = ROOT.iter().find(|key| key.name == name);
            match (entries.remove(name), key) {
                (Some(first), Some(key)) => {
                    entries.insert(name, together(first, value, key, findings));
                }
                (_, _) => {
                    entries.insert(name, value);
                }
            }
        }
    }
    for (name, value) in entries {
        whole.put(name, value);
    }
    whole
}

fn together(
    first: Option<At<Value>>,
    second: Option<At<Value>>,
    key: &Key,
    findings: &mut Findings,
) -> Option<At<Value>> {
    let (Some(mut first), Some(second)) = (first, second) else {
        // One of them was refused and reported: what it would have been is unknown.
        return None;
    };
    if matches!(key.kind, Kind::Version) {
        // Every file may say it; there is only one version that is not refused.
        return Some(first);
    }
    match (&mut first.value, second.value) {
        (Value::Tables(tables), Value::Tables(more)) => {
            for (name, shape) in more {
                if let Some(existing) = tables.get(&name) {
                    let path = format!("{}.{name}", key.name);
                    findings.push(twice(&path, &existing.at, shape.at));
                } else {
                    tables.insert(name, shape);
                }
            }
        }
        (_, _) => findings.push(twice(key.name, &first.at, second.at)),
    }
    Some(first)
}

fn twice(path: &str, first: &Spot, second: Spot) -> Diagnostic {
    Diagnostic::error("E0105", second, format!("`{path}` is defined in two files"))
        .label("defined again here")
        .also(first.clone(), "first defined here")
        .help("a table may be in one file only: remove one of the two, or give it another name")
}
