//! Which directories to watch so that a change of the configuration's files is noticed soon.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Most links followed for one path: the kernel's own limit.
const LINKS_MAX: usize = 40;

/// A directory's identity: another one may take its name.
pub(super) type Identity = (u64, u64);

/// The directories in which a change can mean a changed configuration: the one with the files, that of every symbolic
/// link on the way there, and those that files in it link to.
pub(super) fn directories(config: &Path) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    follow(&absolute, &mut found, &mut 0);
    let Ok(entries) = fs::read_dir(config) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link
            && path
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            follow(&path, &mut found, &mut 0);
        }
    }
    found
}

/// Adds what matters about `path`, which is absolute.
fn follow(path: &Path, found: &mut BTreeMap<PathBuf, Identity>, links: &mut usize) {
    let mut prefix = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        match component {
            Component::ParentDir => drop(prefix.pop()),
            other => prefix.push(other),
        }
        if let Ok(target) = fs::read_link(&prefix) {
            let parent = prefix.parent().unwrap_or(Path::new("/")).to_owned();
            add(&parent, found);
            *links += 1;
            if *links <= LINKS_MAX {
                follow(
                    &parent.join(target).join(components.as_path()),
                    found,
                    links,
                );
            }
            return;
        }
    }
    if prefix.is_dir() {
        add(&prefix, found);
    } else if let Some(parent) = prefix.parent() {
        add(parent, found);
    }
}

fn add(directory: &Path, found: &mut BTreeMap<PathBuf, Identity>) {
    if let Ok(metadata) = fs::metadata(directory) {
        found.insert(directory.to_owned(), (metadata.dev(), metadata.ino()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(config: &Path, root: &Path) -> Vec<String> {
        let found = directories(config);
        let relative = found.keys().map(|path| {
            let path = path.strip_prefix(root).unwrap_or(path);
            path.display().to_string()
        });
        relative.collect()
    }

    #[test]
    fn links_on_the_way_and_links_to_files_are_watched_too() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["real", "shared", "linked"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("real/a.toml"), "").unwrap();
        fs::write(root.join("shared/b.toml"), "").unwrap();
        symlink("../real", root.join("linked/current")).unwrap();
        symlink(root.join("shared/b.toml"), root.join("real/b.toml")).unwrap();
        assert_eq!(names(&root.join("real/a.toml"), &root), ["real"]);
        assert_eq!(names(&root.join("real"), &root), ["real", "shared"]);
        assert_eq!(
            names(&root.join("linked/current"), &root),
            ["linked", "real", "shared"]
        );
        assert_eq!(
            names(&root.join("linked/current/a.toml"), &root),
            ["linked", "real"]
        );
        assert_eq!(names(&root.join("real/not-there.toml"), &root), ["real"]);
    }

    #[test]
    fn links_in_a_circle_end() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        assert!(!directories(&folder.path().join("a")).is_empty());
    }
}
