//! Where an object is declared, for those who want to change it.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Findings;
use super::{render, source};

/// Where `[kind.name]` is declared in the files as they are now: `/etc/volund/20-db.toml:6`. Reads files: may block.
#[must_use]
pub fn place(path: &Path, kind: &str, name: &str) -> Option<String> {
    let files = source::read(path, &mut Findings::default());
    let mut files = files.iter().enumerate();
    files.find_map(|(index, file)| {
        // Text that would not be parsed for its own sake is not parsed for this.
        let text = source::admit(index, file).ok()?;
        let (table, _) = DeTable::parse_recoverable(text);
        let of_kind = value(table.get_ref(), kind)?.1;
        let DeValue::Table(objects) = of_kind else {
            return None;
        };
        let (offset, _) = value(objects, name)?;
        let line = render::position(text, offset).line;
        Some(format!("{}:{line}", file.path))
    })
}

/// A key's place and value.
fn value<'t, 'a>(table: &'a DeTable<'t>, key: &str) -> Option<(usize, &'a DeValue<'t>)> {
    let mut pairs = table.iter();
    let (key, value) = pairs.find(|(known, _)| known.get_ref().as_ref() == key)?;
    Some((key.span().start, value.get_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_in_the_file_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a.toml", "version = 1\n[pool.main]\npath = \"/x\"\n");
        write(
            "b.toml",
            "# two\n\n[volume.web]\nsize = 7\n\n[volume.db]\nbroken =\n",
        );
        let check = |kind: &str, name: &str, expected: Option<&str>| {
            let found = place(folder.path(), kind, name);
            let found = found.as_deref().and_then(|found| found.rsplit('/').next());
            assert_eq!(found, expected, "{kind}.{name}");
        };
        check("volume", "db", Some("b.toml:6"));
        check("volume", "web", Some("b.toml:3"));
        check("pool", "main", Some("a.toml:2"));
        check("pool", "web", None);
        check("volume", "main", None);
    }
}
