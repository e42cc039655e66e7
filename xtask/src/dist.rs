//! `cargo xtask dist`: the Debian package, with man pages, completions, unit, udev rule, examples, dashboard and alerts. What is
//! in it is in `[package.metadata.deb]` of the daemon's `Cargo.toml`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{daemon, packages, shell};

/// Shells, and what their completion scripts are called where they look for them.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "volund.bash"),
    ("zsh", "_volund"),
    ("fish", "volund.fish"),
];

pub(crate) fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("dist takes no argument, found {unknown:?}");
    }
    println!("{}", package()?.display());
    Ok(())
}

/// Builds the package from a release build; its path.
pub(crate) fn package() -> Result<PathBuf> {
    packages::need(&[packages::BUILD, packages::DIST])?;
    let cargo_deb = packages::need_cargo_deb()?;
    let volund = daemon::build_release()?;
    generate(&volund, &shell::root().join("target/dist"))?;
    let into = shell::root().join("target/debian");
    // What an earlier version left there is not this one's package.
    if into.exists() {
        fs::remove_dir_all(&into)?;
    }
    // As a subcommand of cargo, whose name comes first.
    shell::capture(
        shell::command(cargo_deb)
            .args(["deb", "--package=volund", "--no-build", "--locked"])
            .arg("--output")
            .arg(&into),
    )?;
    let made = fs::read_dir(&into)?.flatten().map(|entry| entry.path());
    made.into_iter()
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .context("cargo-deb has made no package")
}

/// Man pages and completions, as the program itself prints them.
fn generate(volund: &Path, into: &Path) -> Result<()> {
    if into.exists() {
        fs::remove_dir_all(into)?;
    }
    shell::capture(
        shell::command(volund)
            .args(["man", "--into"])
            .arg(into.join("man")),
    )?;
    let completions = into.join("completions");
    fs::create_dir_all(&completions)?;
    for (shell_name, file) in COMPLETIONS {
        let script = shell::capture(shell::command(volund).args(["completions", shell_name]))?;
        fs::write(completions.join(file), script)?;
    }
    Ok(())
}
