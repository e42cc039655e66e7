//! Which commit a configuration's files are from: what `HEAD` of the git work tree around them names.
//!
//! Read straight from git's own files, so that no git has to be installed, and nobody's ownership rules are in the way.
//! It is what was checked out; whether the files were edited since, the content hash tells.

use std::fs;
use std::path::{Path, PathBuf};

/// Largest file of git's that is looked at: `packed-refs` of a large repository.
const BYTES_MAX: u64 = 4 << 20;
/// Longest chain of symbolic references.
const LINKS_MAX: usize = 5;

/// The commit that is checked out around `source`; none without a work tree, before its first commit, or where git keeps
/// its references in another way.
pub(super) fn commit(source: &Path) -> Option<String> {
    // Behind links: a folder that is swapped by a link is the work tree of its target.
    let source = fs::canonicalize(source).ok()?;
    let folder = source
        .ancestors()
        .map(|folder| folder.join(".git"))
        .find_map(|dot_git| git_folder(&dot_git))?;
    let common = match text(&folder.join("commondir")) {
        Some(common) => folder.join(common.trim()),
        None => folder.clone(),
    };
    let mut head = text(&folder.join("HEAD"))?;
    for _ in 0..LINKS_MAX {
        let Some(name) = head.strip_prefix("ref: ") else {
            break;
        };
        head = reference(&folder, &common, name.trim())?;
    }
    let head = head.trim();
    let is_id = matches!(head.len(), 40 | 64) && head.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| head.to_ascii_lowercase())
}

/// `.git` is the folder itself, or a file that names it.
fn git_folder(dot_git: &Path) -> Option<PathBuf> {
    if dot_git.is_dir() {
        return Some(dot_git.to_owned());
    }
    let text = text(dot_git)?;
    let named = text.strip_prefix("gitdir:")?.trim();
    Some(dot_git.parent()?.join(named))
}

/// What a reference names: from a file of its own, else from the packed ones.
fn reference(folder: &Path, common: &Path, name: &str) -> Option<String> {
    if !name.starts_with("refs/") || name.split('/').any(|part| part == "..") {
        return None;
    }
    let own = [folder, common].into_iter();
    let mut own = own.filter_map(|folder| text(&folder.join(name)));
    own.next().or_else(|| {
        let packed = text(&common.join("packed-refs"))?;
        let mut pairs = packed.lines().filter_map(|line| line.split_once(' '));
        let (id, _) = pairs.find(|(_, packed)| *packed == name)?;
        Some(id.to_owned())
    })
}

/// A small text file, or nothing.
fn text(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let is_small = metadata.is_file() && metadata.len() <= BYTES_MAX;
    is_small.then(|| fs::read_to_string(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef01234567";
    const TWO: &str = "76543210fedcba9876543210fedcba9876543210";

    /// A folder with these files in it.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn check(files: &[(&str, &str)], expected: Option<&str>) {
        let folder = tree(files);
        let config = folder.path().join("nodes/conf.d");
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("a.toml"), "").unwrap();
        assert_eq!(commit(&config).as_deref(), expected, "{files:?}");
        let file = config.join("a.toml");
        assert_eq!(commit(&file).as_deref(), expected, "{files:?}");
    }

    #[test]
    fn the_commit_is_the_one_that_is_checked_out() {
        let main = ".git/refs/heads/main";
        let head = (".git/HEAD", "ref: refs/heads/main\n");
        let packed =
            format!("# pack-refs with: peeled\n{TWO} refs/heads/other\n{ONE} refs/heads/main\n");
        let packed = (".git/packed-refs", packed.as_str());
        let detached = format!("{ONE}\n");
        check(&[head, (main, &detached)], Some(ONE));
        check(&[head, packed], Some(ONE));
        check(&[head, packed, (main, TWO)], Some(TWO));
        check(&[(".git/HEAD", &detached)], Some(ONE));
        check(&[head], None);
        check(&[(".git/HEAD", "ref: ../../etc/passwd")], None);
        check(&[(".git/HEAD", "not a commit")], None);
        check(&[], None);
    }

    #[test]
    fn a_linked_work_tree_has_a_head_of_its_own() {
        let link = "gitdir: ../../repo/.git/worktrees/nodes";
        let own = "repo/.git/worktrees/nodes";
        let head = format!("{own}/HEAD");
        let common = format!("{own}/commondir");
        let folder = tree(&[
            ("repo/.git/HEAD", TWO),
            ("repo/.git/refs/heads/nodes", ONE),
            (&head, "ref: refs/heads/nodes"),
            (&common, "../..\n"),
            ("trees/nodes/.git", link),
            ("trees/nodes/a.toml", ""),
        ]);
        let link = folder.path().join("current");
        std::os::unix::fs::symlink("trees/nodes", &link).unwrap();
        assert_eq!(commit(&link).as_deref(), Some(ONE), "behind a link");
    }
}
