//! `volund run`: from arguments to the daemon.

use super::args::{Global, LogFormat, RunArgs};
use super::{CliError, Outcome};
use crate::daemon;
use crate::io::clock;
use crate::model::NodeName;
use crate::model::time::Times;

/// More reactors than this only by `--io-threads`.
const IO_THREADS_DEFAULT_MAX: usize = 4;

pub(super) fn run(global: &Global, args: &RunArgs) -> Result<Outcome, CliError> {
    let options = daemon::Options {
        config: global.config_or_default(),
        node: node(global)?,
        state_dir: args.state_dir.clone(),
        runtime_dir: global.runtime_dir.clone(),
        http: args.http,
        http_token: args.http_token_file.clone(),
        io_threads: args.io_threads.map_or_else(cores, usize::from),
        poll: args.poll,
        log_format: match args.log_format {
            LogFormat::Auto => daemon::LogFormat::Auto,
            LogFormat::Text => daemon::LogFormat::Text,
            LogFormat::Json => daemon::LogFormat::Json,
        },
        times: Times {
            monotonic: clock::monotonic,
            wall: clock::wall,
        },
    };
    // With causes: each prints only its own part.
    daemon::run(options).map_err(|error| CliError::Failed(format!("{error:#}")))?;
    Ok(Outcome::default())
}

fn cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(IO_THREADS_DEFAULT_MAX)
}

/// `--node`, else the first part of the host name.
fn node(global: &Global) -> Result<NodeName, CliError> {
    if let Some(node) = &global.node {
        return Ok(node.clone());
    }
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().to_lowercase();
    let first = host.split('.').next().unwrap_or_default();
    first.parse().map_err(|error| {
        CliError::Failed(format!(
            "the host name \"{host}\" can't be a node's name ({error}): give one with --node"
        ))
    })
}
