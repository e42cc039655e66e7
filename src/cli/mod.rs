//! The command line: arguments, subcommands, what they print and how they exit.
//!
//! Each command is a file that turns its arguments into an [`Outcome`]; printing and exiting happen here, once.
//! All commands but `run`, `check`, `schema`, `explain`, `doctor`, `replica` and the generators ask the daemon over its admin
//! socket ([`client`]). Start with [`args`].

pub mod args;
pub mod check;
mod client;
mod doctor;
mod events;
pub mod explain;
mod fsck;
mod generate;
mod inject;
mod operations;
mod orphans;
mod plan;
mod qemu_args;
mod quarantine;
mod run;
mod scrub;
mod status;
mod table;
mod wait;
mod why;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

pub use args::{Cli, Command};

/// Exit code: fine.
pub const EXIT_OK: u8 = 0;
/// Exit code: it failed.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of `plan --detailed-exitcode`: there are changes.
pub const EXIT_CHANGES: u8 = 2;
/// Exit code of `plan --detailed-exitcode`: there are changes that remove an export or data.
pub const EXIT_REMOVALS: u8 = 3;
/// Exit code of `status --exit-code` and of `wait`: something is not ready.
pub const EXIT_NOT_READY: u8 = 4;
/// Exit code: wrong arguments. Not clap's 2, so that 2 always means "changes".
pub const EXIT_USAGE: u8 = 64;

/// What a command has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub text: String,
    /// How the process exits.
    pub code: u8,
}

impl Outcome {
    /// A success that prints `text`.
    #[must_use]
    pub fn ok(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: EXIT_OK,
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The daemon could not be asked, or said no.
    #[error(transparent)]
    Client(#[from] client::ClientError),
    /// Standard output or a file could not be written.
    #[error("can't write output: {0}")]
    Output(#[from] std::io::Error),
    /// The command ran and says itself what is wrong.
    #[error("{0}")]
    Failed(String),
}

/// Runs the command that the process's arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match dispatch(&cli) {
        Ok(outcome) => print(&outcome.text).map_or(ExitCode::from(EXIT_FAILURE), |()| {
            ExitCode::from(outcome.code)
        }),
        Err(error) => {
            complain(&error);
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn dispatch(cli: &Cli) -> Result<Outcome, CliError> {
    match &cli.command {
        Command::Check(args) => Ok(check::run(&cli.global, args)),
        Command::Schema => Ok(explain::schema()),
        Command::Explain(args) => explain::run(args),
        Command::Run(args) => run::run(&cli.global, args),
        Command::Plan(args) => plan::run(&cli.global, args),
        Command::Status(args) => status::run(&cli.global, args),
        Command::Why { volume } => why::run(&cli.global, volume),
        Command::Events(args) => events::run(&cli.global, args),
        Command::Operations(args) => operations::run(&cli.global, args),
        Command::Wait(args) => wait::run(&cli.global, args),
        Command::Scrub {
            volume,
            repair_from,
        } => scrub::run(&cli.global, volume, repair_from.as_ref()),
        Command::QemuArgs(args) => qemu_args::run(&cli.global, args),
        Command::Doctor => doctor::run(&cli.global),
        Command::Quarantine(command) => quarantine::run(&cli.global, command),
        Command::Fsck(args) => fsck::run(&cli.global, args),
        Command::Replica(command) => fsck::replica(&cli.global, command),
        Command::Orphans(command) => orphans::run(&cli.global, command),
        Command::Inject {
            volume,
            pool,
            faults,
        } => inject::run(&cli.global, (volume, pool), faults),
        Command::Approve { plan_id } => plan::approve(&cli.global, plan_id),
        Command::Completions { shell } => Ok(generate::completions(*shell)),
        Command::Man { into: None } => generate::man(),
        Command::Man { into: Some(folder) } => generate::man_pages(folder),
    }
}

/// Prints clap's message; help and version are no errors.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nothing is left to be told to when the terminal is gone.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::from(EXIT_OK),
        _ => ExitCode::from(EXIT_USAGE),
    }
}

/// Writes to standard output. A reader that has gone (`volund status | head`) is not an error.
///
/// # Errors
/// Any other failure to write.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn complain(error: &CliError) {
    // Standard error is the last resort: if it fails too, the exit code remains.
    let _ = writeln!(std::io::stderr().lock(), "volund: {error}");
}
