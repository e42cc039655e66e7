//! Where the log goes.

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// What is logged when `RUST_LOG` does not say. libublk tells of each object that it makes, under numbers of its own.
const DEFAULT_FILTER: &str = "info,libublk=warn";

/// How to write the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// To the journal under systemd, else as text.
    Auto,
    /// Text lines on standard error.
    Text,
    /// One JSON object per line on standard error.
    Json,
}

/// Sets the process's log up. `RUST_LOG` chooses levels; `info` unless it is set.
pub(super) fn start(format: LogFormat) -> Result<()> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // systemd sets this when standard error goes to the journal; see systemd.exec(5).
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Auto if under_systemd => match tracing_journald::layer() {
            Ok(layer) => layer.boxed(),
            // A container may have the variable but not the socket.
            Err(_) => text(),
        },
        LogFormat::Auto | LogFormat::Text => text(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .with_writer(std::io::stderr)
            .boxed(),
    };
    Registry::default()
        .with(layer.with_filter(filter))
        .try_init()
        .context("the log can't be set up")
}

fn text() -> Box<dyn Layer<Registry> + Send + Sync> {
    use std::io::IsTerminal;
    tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .boxed()
}
