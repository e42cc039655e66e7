//! `volund check`: everything that is wrong with a configuration, without a daemon.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::{Color, Format, Global};
use super::{EXIT_FAILURE, EXIT_OK, Outcome};
use crate::config::diagnostic::FINDINGS_MAX;
use crate::config::{self, Level, Loaded, render};

/// Arguments of `volund check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// A TOML file, or a directory with *.toml files [default: what --config says].
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// How to print what is wrong [default: what --output says].
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<CheckFormat>,
}

/// How to print what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// Text with source lines and carets.
    Human,
    /// One JSON object.
    Json,
    /// Annotations for GitHub workflows.
    Github,
}

/// Checks a configuration. Exits with 1 when it has errors.
#[must_use]
pub fn run(global: &Global, args: &CheckArgs) -> Outcome {
    let path = args
        .path
        .clone()
        .unwrap_or_else(|| global.config_or_default());
    let loaded = config::load_for(&path, global.node.as_ref());
    let format = args.format.unwrap_or(match global.output {
        Format::Human => CheckFormat::Human,
        Format::Json => CheckFormat::Json,
    });
    let text = match format {
        CheckFormat::Human => format!(
            "{}{}\n",
            loaded.report(use_color(global.color)),
            summary(&loaded)
        ),
        CheckFormat::Json => as_json(&loaded),
        CheckFormat::Github => render::github(&loaded.files, loaded.findings()),
    };
    Outcome {
        text,
        code: if loaded.result.is_ok() {
            EXIT_OK
        } else {
            EXIT_FAILURE
        },
    }
}

fn use_color(color: Color) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            std::io::IsTerminal::is_terminal(&std::io::stdout())
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

fn count(loaded: &Loaded, level: Level) -> usize {
    loaded
        .findings()
        .iter()
        .filter(|found| found.level == level)
        .count()
}

/// `2 errors, 0 warnings in 3 files`, and what there is when it is fine.
fn summary(loaded: &Loaded) -> String {
    let mut text = format!(
        "{}, {} in {}",
        counted(loaded, Level::Error),
        counted(loaded, Level::Warning),
        plural(loaded.files.len(), "file"),
    );
    if let Ok((state, _)) = &loaded.result {
        text.push_str(&format!(
            ": {}, {}",
            plural(state.pools.len(), "pool"),
            plural(state.volumes.len(), "volume")
        ));
    }
    text
}

fn plural(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

/// The findings of one level, which are not all counted when there are very many.
fn counted(loaded: &Loaded, level: Level) -> String {
    let count = count(loaded, level);
    let least = if count == FINDINGS_MAX {
        "at least "
    } else {
        ""
    };
    format!("{least}{}", plural(count, level.word()))
}

fn as_json(loaded: &Loaded) -> String {
    let files: Vec<&str> = loaded.files.iter().map(|file| file.path.as_str()).collect();
    let report = json!({
        "errors": count(loaded, Level::Error),
        "warnings": count(loaded, Level::Warning),
        "hash": loaded.hash,
        "files": files,
        "findings": render::json(&loaded.files, loaded.findings()),
    });
    format!("{report:#}\n")
}
