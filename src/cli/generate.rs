//! `volund completions` and `volund man`: generated from the arguments, so they can't be out of step.

use clap::CommandFactory;

use super::{Cli, CliError, Outcome};

/// The completion script for `shell`.
pub(super) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "volund", &mut script);
    Outcome::ok(String::from_utf8_lossy(&script))
}

/// One man page, the subcommands' options included.
pub(super) fn man() -> Result<Outcome, CliError> {
    let mut page = Vec::new();
    let command = Cli::command().flatten_help(true);
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(Outcome::ok(String::from_utf8_lossy(&page)))
}
