//! Programs of others that judge what the project ships: TOML linters from PyPI, with the schema that volund prints.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::{daemon, packages, shell};

const LINTERS: [&str; 2] = ["taplo==0.9.3", "tombi==1.9.6"];

/// Every file of `configs/`: taplo and tombi against the schema that the file names, and `volund check`.
pub(crate) fn configs() -> Result<String> {
    packages::need(&[packages::BUILD, packages::JUDGES])?;
    let volund = daemon::build()?;
    let configs = shell::root().join("configs");
    let schema = fs::read_to_string(configs.join("volund.schema.json"))?;
    let printed = shell::capture(shell::command(&volund).arg("schema"))?;
    ensure!(
        schema == printed,
        "configs/volund.schema.json is not what `volund schema` prints"
    );

    let mut examples = Vec::new();
    for entry in fs::read_dir(&configs)? {
        let path = entry?.path();
        if path.is_dir() || path.extension().is_some_and(|ext| ext == "toml") {
            shell::capture(
                shell::command(&volund)
                    .args(["check", "--node", "n1", "--config"])
                    .arg(&path),
            )?;
            examples.push(path);
        }
    }
    ensure!(!examples.is_empty(), "configs/ has no example");
    let linters = linters()?;
    let files = shell::capture(
        shell::command("find")
            .arg(&configs)
            .args(["-name", "*.toml"]),
    )?;
    shell::capture(
        shell::command(linters.join("taplo"))
            .arg("lint")
            .args(files.lines()),
    )?;
    shell::capture(
        shell::command(linters.join("tombi"))
            .args(["lint", "--offline"])
            .arg(&configs),
    )?;
    Ok(format!(
        "{} examples, {} files",
        examples.len(),
        files.lines().count()
    ))
}

/// The folder of programs of a virtual environment with the linters, made once.
fn linters() -> Result<PathBuf> {
    let venv = shell::root().join("target/xtask/venv");
    let bin = venv.join("bin");
    if !bin.join("taplo").exists() || !bin.join("tombi").exists() {
        shell::capture(shell::command("python3").args(["-m", "venv"]).arg(&venv))?;
        shell::capture(
            shell::command(bin.join("pip"))
                .args(["install", "--quiet"])
                .args(LINTERS),
        )
        .context("the linters could not be installed from PyPI")?;
    }
    Ok(bin)
}
