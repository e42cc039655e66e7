//! Where the log goes.

mod format;
mod limit;

use std::sync::Mutex;

use anyhow::{Context, Result};
use tracing_subscriber::fmt::format as standard;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::model::time::Times;
use format::{Journal, JsonLines, Limited, Text};

/// What is logged when `RUST_LOG` does not say. libublk tells of each object that it makes, under numbers of its own.
const DEFAULT_FILTER: &str = "info,libublk=warn";

/// How to write the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// As the journal takes it under systemd, else as text.
    Auto,
    /// Text lines on standard error.
    Text,
    /// One JSON object per line on standard error.
    Json,
}

/// Sets the process's log up. `RUST_LOG` chooses levels; `info` unless it is set. A warning or an error that was told within
/// the last minute, of the same thing, is counted instead, and the count is told afterwards.
pub(super) fn start(format: LogFormat, times: Times) -> Result<()> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // systemd sets this when standard error goes to the journal; see systemd.exec(5).
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Auto if under_systemd => {
            let style = standard().without_time().with_level(false);
            let style = Journal(style.with_target(false).with_ansi(false));
            lines()
                .with_ansi(false)
                .event_format(limited(style, times))
                .boxed()
        }
        LogFormat::Auto | LogFormat::Text => text(times),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .event_format(limited(JsonLines(standard().json()), times))
            .with_writer(std::io::stderr)
            .boxed(),
    };
    Registry::default()
        .with(layer.with_filter(filter))
        .try_init()
        .context("the log can't be set up")
}

fn text(times: Times) -> Box<dyn Layer<Registry> + Send + Sync> {
    use std::io::IsTerminal;
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    lines()
        .with_ansi(ansi)
        .event_format(limited(Text(standard()), times))
        .boxed()
}

fn lines() -> tracing_subscriber::fmt::Layer<
    Registry,
    standard::DefaultFields,
    standard::Format,
    fn() -> std::io::Stderr,
> {
    tracing_subscriber::fmt::layer().with_writer(std::io::stderr as fn() -> std::io::Stderr)
}

fn limited<T>(style: T, times: Times) -> Limited<T> {
    Limited {
        style,
        times,
        limit: Mutex::default(),
    }
}
