//! The ways in which people and programs put a new configuration in place, and the ways in which a file can be wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;

/// How a text gets into the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Written over, as `>` does.
    InPlace,
    /// Written beside and renamed, as one should.
    Rename,
    /// Removed and written anew, as `git checkout` does.
    Replace,
    /// A link flipped from one folder to another, as Kubernetes does with a ConfigMap.
    DataSwap,
    /// The whole folder replaced by another, as git-sync does.
    Folder,
}

pub(super) const WAYS: [Way; 5] = [
    Way::InPlace,
    Way::Rename,
    Way::Replace,
    Way::DataSwap,
    Way::Folder,
];

/// Puts `text` in place as the only file of the folder `config`. `count` makes names that were not there before.
pub(super) fn put(config: &Path, text: &str, way: Way, count: u32) -> Result<()> {
    let file = config.join("node.toml");
    match way {
        Way::InPlace => {
            make_plain(&file)?;
            fs::write(&file, text)?;
        }
        Way::Rename => {
            let beside = config.join(".node.toml.new");
            fs::write(&beside, text)?;
            fs::rename(&beside, &file)?;
        }
        Way::Replace => {
            fs::remove_file(&file)?;
            fs::write(&file, text)?;
        }
        Way::DataSwap => {
            let data = format!("..{count}");
            fs::create_dir(config.join(&data))?;
            fs::write(config.join(&data).join("node.toml"), text)?;
            let fresh = config.join("..fresh");
            symlink(&data, &fresh)?;
            fs::rename(&fresh, config.join("..data"))?;
            if !file.is_symlink() {
                let link = config.join(".node.toml.link");
                symlink("..data/node.toml", &link)?;
                fs::rename(&link, &file)?;
            }
        }
        Way::Folder => {
            let fresh = config.with_extension("new");
            fs::create_dir(&fresh)?;
            fs::write(fresh.join("node.toml"), text)?;
            let old = config.with_extension(format!("old{count}"));
            fs::rename(config, &old)?;
            fs::rename(&fresh, config)?;
            fs::remove_dir_all(&old)?;
        }
    }
    Ok(())
}

/// Writing through a link would change the folder behind it; an editor that writes in place sees a plain file.
fn make_plain(file: &Path) -> Result<()> {
    if file.is_symlink() {
        let text = fs::read(file)?;
        let plain = file.with_extension("plain");
        fs::write(&plain, text)?;
        fs::rename(&plain, file)?;
    }
    Ok(())
}

/// The same text, spoilt in one of several ways.
pub(super) fn spoil(text: &str, choice: u64) -> String {
    match choice % 6 {
        0 => text.replacen("version = 1", "version = ", 1),
        1 => text.replacen("[volume.", "[volum.", 1),
        2 => text[..text.len() / 2].to_owned() + "\n[",
        3 => String::new(),
        4 => format!("{text}\n[volume.bad]\nsize = \"10G\"\npool = \"nowhere\"\n"),
        _ => format!("{text}\n\u{0}\u{1}"),
    }
}
