//! `volund completions` and `volund man`: generated from the arguments, so they can't be out of step.

use std::path::Path;

use clap::CommandFactory;

use super::{Cli, CliError, Outcome};

/// The completion script for `shell`.
pub(super) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "volund", &mut script);
    Outcome::ok(String::from_utf8_lossy(&script))
}

/// One man page, the subcommands and their options included.
pub(super) fn man() -> Result<Outcome, CliError> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    let mut text = String::from_utf8_lossy(&page).into_owned();
    for subcommand in command.get_subcommands() {
        describe(subcommand, &mut text)?;
    }
    Ok(Outcome::ok(text))
}

/// `volund.1` and a page for each command, `volund-quarantine-purge.1` for one below another.
pub(super) fn man_pages(folder: &Path) -> Result<Outcome, CliError> {
    let command = Cli::command().disable_help_subcommand(true);
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)?;
    Ok(Outcome::ok(String::new()))
}

/// Appends a section about `command`, and those of its own subcommands.
fn describe(command: &clap::Command, text: &mut String) -> Result<(), CliError> {
    // Global options are in the section of the program.
    let command = command
        .clone()
        .mut_args(|argument| {
            let hide = argument.is_global_set();
            argument.hide(hide)
        })
        .disable_help_flag(true);
    let title = command.get_bin_name().unwrap_or(command.get_name());
    text.push_str(&format!(".SH \"{}\"\n", title.to_uppercase()));
    let man = clap_mangen::Man::new(command.clone());
    let mut section = Vec::new();
    man.render_description_section(&mut section)?;
    man.render_synopsis_section(&mut section)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut section)?;
    }
    let section = String::from_utf8_lossy(&section).replace(".SH ", ".SS ");
    text.push_str(&section);
    for subcommand in command.get_subcommands() {
        describe(subcommand, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_man_page_has_every_commands_options() {
        let page = man().unwrap().text.replace('\\', "");
        for expected in [
            "--detailed-exitcode",
            "--state-dir",
            "VOLUND QUARANTINE PURGE",
            "--yes",
        ] {
            assert!(page.contains(expected), "no {expected} in\n{page}");
        }
    }

    #[test]
    fn every_command_has_a_man_page_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        man_pages(folder.path()).unwrap();
        let mut commands = vec![Cli::command().disable_help_subcommand(true)];
        commands[0].build();
        while let Some(command) = commands.pop() {
            let name = command.get_display_name().unwrap_or(command.get_name());
            let page = folder.path().join(format!("{name}.1"));
            let text = std::fs::read_to_string(&page);
            assert!(text.unwrap().contains(".SH NAME"), "{}", page.display());
            commands.extend(command.get_subcommands().cloned());
        }
        let purge = std::fs::read_to_string(folder.path().join("volund-quarantine-purge.1"));
        assert!(purge.unwrap().contains("Do not ask"));
    }

    #[test]
    fn completions_know_the_commands() {
        let script = completions(clap_complete::Shell::Bash).text;
        assert!(script.contains("quarantine") && script.contains("--qemu-version"));
    }
}
