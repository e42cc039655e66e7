//! The files: which ones are read, what is refused before any parsing, and the hash that tells whether they changed.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::diagnostic::{Diagnostic, Findings, Spot, shown};

/// Largest file that is read: a thousand times what a large installation needs.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most files in a directory.
pub const FILES_MAX: usize = 1000;
/// Longest line. Keeps reports readable and, with [`LINE_DOTS_MAX`], nesting bounded.
pub const LINE_BYTES_MAX: usize = 4096;
/// Most dots in a line that is not a comment. `a.b.c.d = 1` nests a table per dot, and the parser drops nested tables
/// recursively: without a limit a short file could overflow the stack. (Brackets are limited by the parser itself.)
pub const LINE_DOTS_MAX: usize = 32;

/// One file as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceFile {
    /// Its path as reports show it.
    pub path: String,
    /// Its bytes, which may be anything.
    #[serde(with = "bytes_as_text")]
    #[schema(value_type = String)]
    pub bytes: Vec<u8>,
}

impl SourceFile {
    /// A file from memory.
    #[must_use]
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            bytes: bytes.into(),
        }
    }

    /// The text, or `""` when the file is not text; the parser reports that.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap_or("")
    }
}

/// Accepted configurations are always text, and the only ones that are kept.
mod bytes_as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        String::deserialize(deserializer).map(String::into_bytes)
    }
}

/// Puts files into one text, to be kept as the last good configuration.
///
/// # Panics
/// Never: strings always serialise.
#[must_use]
pub fn encode(files: &[SourceFile]) -> String {
    serde_json::to_string(files).expect("strings always serialise")
}

/// Takes apart what [`encode`] made.
///
/// # Errors
/// When `blob` is something else.
pub fn decode(blob: &str) -> Result<Vec<SourceFile>, serde_json::Error> {
    serde_json::from_str(blob)
}

/// SHA-256 over names and contents, hexadecimal: equal exactly when nothing changed.
#[must_use]
pub fn hash(files: &[SourceFile]) -> String {
    let mut hasher = Sha256::new();
    for file in files {
        for part in [file.path.as_bytes(), &file.bytes] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reads `source`, a file or a directory of `*.toml` files in name order. What can't be read is a finding.
pub(crate) fn read(source: &Path, findings: &mut Findings) -> Vec<SourceFile> {
    let paths = match list(source) {
        Ok(paths) => paths,
        Err(finding) => {
            findings.push(*finding);
            return Vec::new();
        }
    };
    let mut files = Vec::new();
    for path in paths {
        match read_one(&path) {
            Ok(bytes) => files.push(SourceFile::new(path.to_string_lossy(), bytes)),
            Err(problem) => {
                let code = if matches!(problem, ReadProblem::TooLarge(_)) {
                    "E0004"
                } else {
                    "E0002"
                };
                let message = format!("can't read `{}`: {problem}", shown(&path.to_string_lossy()));
                findings.push(Diagnostic::error_nowhere(code, message));
                findings.set_incomplete();
            }
        }
    }
    files
}

fn list(source: &Path) -> Result<Vec<PathBuf>, Box<Diagnostic>> {
    let name = shown(&source.to_string_lossy());
    let unreadable = |error: std::io::Error| {
        Diagnostic::error_nowhere("E0002", format!("can't read `{name}`: {error}"))
            .help("--config takes a TOML file, or a directory with *.toml files")
            .boxed()
    };
    if !std::fs::metadata(source).map_err(unreadable)?.is_dir() {
        return Ok(vec![source.to_path_buf()]);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(source).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if is_configuration(&path) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Diagnostic::error_nowhere(
            "E0005",
            format!("directory `{name}` has no *.toml files"),
        )
        .help(
            "an empty directory is never taken as \"no volumes\": for that, say `version = 1` in a file",
        ).boxed());
    }
    if paths.len() > FILES_MAX {
        return Err(Diagnostic::error_nowhere(
            "E0004",
            format!(
                "directory `{name}` has {} *.toml files, at most {FILES_MAX} are read",
                paths.len()
            ),
        )
        .boxed());
    }
    paths.sort();
    Ok(paths)
}

/// Whether a directory entry is a part of the configuration: not hidden (`..data`, editors' locks), and `*.toml`.
fn is_configuration(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !name.starts_with('.') && name.ends_with(".toml")
}

#[derive(Debug, thiserror::Error)]
enum ReadProblem {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it has {0} bytes, at most {FILE_BYTES_MAX} are read")]
    TooLarge(u64),
}

fn read_one(path: &Path) -> Result<Vec<u8>, ReadProblem> {
    // A named pipe would otherwise block the daemon until someone writes to it.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadProblem::NotAFile);
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(ReadProblem::TooLarge(metadata.len()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ReadProblem::TooLarge(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Checks what must hold before the TOML parser may see file number `index`, and returns its text.
pub(crate) fn admit(index: usize, file: &SourceFile) -> Result<&str, Box<Diagnostic>> {
    let path = shown(&file.path);
    let whole = Spot::start_of(index);
    if file.bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!(
            "`{path}` has {} bytes, at most {FILE_BYTES_MAX} are read",
            file.bytes.len()
        );
        return Err(Diagnostic::error("E0004", whole, message).boxed());
    }
    let text = std::str::from_utf8(&file.bytes).map_err(|error| {
        let offset = error.valid_up_to();
        let message = format!(
            "`{path}` is not UTF-8 text: byte {offset} is 0x{:02x}",
            file.bytes[offset]
        );
        Diagnostic::error("E0003", whole.clone(), message)
            .help("save it as UTF-8; TOML knows no other encoding")
            .boxed()
    })?;
    if let Some(offset) = file.bytes.iter().position(|byte| *byte == 0) {
        let message = format!("`{path}` is not text: byte {offset} is NUL");
        let at = Spot::new(index, offset..offset + 1);
        return Err(Diagnostic::error("E0003", at, message).boxed());
    }
    let mut start = 0;
    for line in text.split('\n') {
        if line.len() > LINE_BYTES_MAX {
            let message = format!(
                "a line has {} bytes, at most {LINE_BYTES_MAX} are read",
                line.len()
            );
            return Err(
                Diagnostic::error("E0004", Spot::new(index, start..start), message).boxed(),
            );
        }
        let dots = line.bytes().filter(|byte| *byte == b'.').count();
        if dots > LINE_DOTS_MAX && !line.trim_start().starts_with('#') {
            let message = format!("a line has {dots} dots, at most {LINE_DOTS_MAX} are read");
            let at = Spot::new(index, start..start + line.len());
            return Err(Diagnostic::error("E0004", at, message)
                .help("every dot in a key nests a table; nothing here needs more than four")
                .boxed());
        }
        start += line.len() + 1;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_configuration_comes_back_unchanged() {
        let files = vec![
            SourceFile::new("a.toml", "version = 1 # \u{e9}\n"),
            SourceFile::new("b.toml", ""),
        ];
        assert_eq!(decode(&encode(&files)).expect("own encoding"), files);
        assert!(decode("{").is_err());
    }

    #[test]
    fn the_hash_sees_names_contents_and_their_borders() {
        let one = |path: &str, text: &str| hash(&[SourceFile::new(path, text)]);
        assert_eq!(one("a", "x"), one("a", "x"));
        assert_ne!(one("a", "x"), one("b", "x"));
        assert_ne!(one("a", "x"), one("a", "y"));
        assert_ne!(one("ab", "c"), one("a", "bc"));
        assert_eq!(one("a", "x").len(), 64);
    }

    #[test]
    fn a_directory_is_read_in_name_order_without_hidden_and_backup_files() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("..2026_11");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("20.toml"), "b = 1").unwrap();
        std::os::unix::fs::symlink("..2026_11", dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/20.toml", dir.path().join("20.toml")).unwrap();
        for name in [
            "10.toml",
            ".hidden.toml",
            "30.toml~",
            "#40.toml#",
            "50.toml.bak",
        ] {
            std::fs::write(dir.path().join(name), "a = 1").unwrap();
        }
        let mut findings = Findings::default();
        let files = read(dir.path(), &mut findings);
        let names: Vec<_> = files
            .iter()
            .map(|file| file.path.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(names, ["10.toml", "20.toml"]);
        assert_eq!(files[1].text(), "b = 1");
        assert!(!findings.has_errors());
    }

    #[test]
    fn what_is_no_readable_file_is_an_error() {
        let check = |make: &dyn Fn(&Path), code: &str| {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path());
            let mut findings = Findings::default();
            read(dir.path(), &mut findings);
            let found = findings.into_sorted();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].code, code, "{found:?}");
        };
        check(&|_| {}, "E0005");
        check(&|dir| std::fs::remove_dir(dir).unwrap(), "E0002");
        check(
            &|dir| std::fs::create_dir(dir.join("x.toml")).unwrap(),
            "E0002",
        );
        check(
            &|dir| std::os::unix::fs::symlink("gone", dir.join("x.toml")).unwrap(),
            "E0002",
        );
        check(
            &|dir| {
                let file = File::create(dir.join("x.toml")).unwrap();
                file.set_len(FILE_BYTES_MAX + 1).unwrap();
            },
            "E0004",
        );
        check(
            &|dir| {
                let path = dir.join("x.toml");
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &path,
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                    0,
                )
                .unwrap();
            },
            "E0002",
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_named_by_offset() {
        let check = |bytes: &[u8], expected: &str| {
            let file = SourceFile::new("x.toml", bytes);
            let found = admit(0, &file).expect_err("refused");
            assert!(found.message.contains(expected), "{found:?}");
        };
        check(b"a = 1\n\xff\xfe", "byte 6 is 0xff");
        check(b"a = \"\0\"", "byte 5 is NUL");
        check(&[b'x'; LINE_BYTES_MAX + 1], "4097 bytes");
        check("a.".repeat(40).as_bytes(), "40 dots");
    }
}
