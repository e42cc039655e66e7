//! Fetching Debian packages of another suite under a private apt state; the machine's own settings stay untouched.
//!
//! Mirror and keyring come from the machine's own apt sources at run time, only the suite is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// One archive of the machine's apt sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Archive {
    uri: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

/// A private apt: its own lists and cache, one suite.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
}

/// What apt knows of one package.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) depends: Vec<String>,
}

impl Apt {
    /// Sets up `dir` for `suite` and refreshes its lists.
    pub(crate) fn open(dir: &Path, suite: &str) -> Result<Apt> {
        let archives = machine_archives()?;
        let archive = choose(&archives, suite)
            .with_context(|| format!("the machine's apt sources have no archive for {suite:?}"))?;
        for sub in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n",
            archive.uri
        );
        if let Some(keyring) = &archive.signed_by {
            text.push_str(&format!("Signed-By: {keyring}\n"));
        }
        fs::write(dir.join("sources/guest.sources"), text)?;
        let apt = Apt {
            dir: dir.to_path_buf(),
        };
        if let Err(error) = shell::capture(apt.command("apt-get").arg("update")) {
            let text = format!("{error:#}");
            if text.contains("NO_PUBKEY") {
                bail!(
                    "no key for {suite:?}: a newer package debian-archive-keyring brings it\n{text}"
                );
            }
            return Err(error);
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = shell::command(program);
        let sub = |name: &str| self.dir.join(name).display().to_string();
        command.args([
            "-qq".to_owned(),
            "-oDir::Etc::sourcelist=/dev/null".to_owned(),
            format!("-oDir::Etc::sourceparts={}", sub("sources")),
            format!("-oDir::State::lists={}", sub("lists")),
            format!("-oDir::Cache={}", sub("cache")),
            "-oAPT::Sandbox::User=root".to_owned(),
            "-oAPT::Architecture=amd64".to_owned(),
        ]);
        command
    }

    /// The newest version of a package in the suite.
    pub(super) fn show(&self, name: &str) -> Result<Record> {
        let text =
            shell::capture(
                self.command("apt-cache")
                    .args(["show", "--no-all-versions", name]),
            )?;
        let field = |wanted: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(wanted))
                .map(str::trim)
                .map(str::to_owned)
        };
        let depends = field("Depends:").unwrap_or_default();
        Ok(Record {
            name: name.to_owned(),
            version: field("Version:").with_context(|| format!("{name} has no version"))?,
            depends: depends
                .split(',')
                .filter_map(|item| item.split_whitespace().next().map(str::to_owned))
                .collect(),
        })
    }

    /// Downloads the packages into `into` as `.deb` files and gives their paths.
    pub(crate) fn download(&self, names: &[String], into: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(into)?;
        shell::capture(
            self.command("apt-get")
                .arg("download")
                .args(names)
                .current_dir(into),
        )?;
        let mut debs: Vec<PathBuf> = fs::read_dir(into)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .collect();
        debs.sort();
        Ok(debs)
    }
}

/// The archive whose URI also carries `suite`: security suites live apart from all others.
fn choose<'a>(archives: &'a [Archive], suite: &str) -> Option<&'a Archive> {
    let security = suite.ends_with("-security");
    let release = suite.split('-').next().unwrap_or(suite);
    let debian = [
        "bookworm",
        "trixie",
        "stable",
        "oldstable",
        "testing",
        "sid",
        release,
    ];
    archives.iter().find(|archive| {
        archive.suites.iter().any(|known| {
            known.ends_with("-security") == security
                && debian.contains(&known.split('-').next().unwrap_or(known))
        })
    })
}

/// The mirror that the machine's own sources name for a suite, and the keyring that signs it if they say.
pub(crate) fn mirror(suite: &str) -> Result<(String, Option<String>)> {
    let archives = machine_archives()?;
    let archive = choose(&archives, suite)
        .with_context(|| format!("the machine's apt sources have no archive for {suite:?}"))?;
    Ok((archive.uri.clone(), archive.signed_by.clone()))
}

fn machine_archives() -> Result<Vec<Archive>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut archives = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|ext| ext.to_str()) {
            Some("sources") => archives.extend(parse_stanzas(&text)),
            Some("list") => archives.extend(text.lines().filter_map(parse_line)),
            _ => {}
        }
    }
    if archives.is_empty() {
        bail!("no apt sources found under /etc/apt");
    }
    Ok(archives)
}

/// The deb822 format: stanzas of `Key: value`, separated by empty lines.
fn parse_stanzas(text: &str) -> Vec<Archive> {
    let stanza = |stanza: &str| {
        let field = |key: &str| {
            stanza.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(key)
                    .then(|| value.trim().to_owned())
            })
        };
        if !field("Types")?.split_whitespace().any(|kind| kind == "deb") {
            return None;
        }
        Some(Archive {
            uri: field("URIs")?.split_whitespace().next()?.to_owned(),
            suites: field("Suites")?
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            signed_by: field("Signed-By").filter(|value| value.starts_with('/')),
        })
    };
    text.split("\n\n").filter_map(stanza).collect()
}

/// The one-line format: `deb [options] uri suite component...`.
fn parse_line(line: &str) -> Option<Archive> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    Some(Archive {
        uri: words.next()?.to_owned(),
        suites: vec![words.next()?.to_owned()],
        signed_by: options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_sources_are_read() {
        let stanzas = "# note\nTypes: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
                       Components: main\nSigned-By: /k.gpg\n\nTypes: deb-src\nURIs: x\nSuites: y\n";
        let archives = parse_stanzas(stanzas);
        assert_eq!(archives.len(), 1);
        assert_eq!(archives[0].suites, ["bookworm", "bookworm-updates"]);
        let line =
            parse_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian bookworm main");
        let line = line.unwrap();
        assert_eq!(
            (line.uri.as_str(), line.signed_by.as_deref()),
            ("http://mirror/debian", Some("/k.gpg"))
        );
        assert_eq!(parse_line("# deb http://mirror/debian bookworm main"), None);
    }

    #[test]
    fn a_suite_is_looked_for_where_its_kind_lives() {
        let archive = |uri: &str, suite: &str| Archive {
            uri: uri.to_owned(),
            suites: vec![suite.to_owned()],
            signed_by: None,
        };
        let archives = [
            archive("other", "nodistro"),
            archive("security", "bookworm-security"),
            archive("main", "bookworm"),
        ];
        assert_eq!(choose(&archives, "trixie-backports").unwrap().uri, "main");
        assert_eq!(
            choose(&archives, "bookworm-security").unwrap().uri,
            "security"
        );
    }
}
