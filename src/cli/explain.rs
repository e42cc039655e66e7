//! `volund explain` and `volund schema`: what the configuration may say, and what a code means.

use clap::Args;

use super::{CliError, Outcome};
use crate::config::{codes, schema};

/// Arguments of `volund explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// A code such as E0204, as errors and conditions show it. All are listed when it is absent.
    pub code: Option<String>,
}

/// Explains a code.
///
/// # Errors
/// When there is no such code.
pub fn run(args: &ExplainArgs) -> Result<Outcome, CliError> {
    let Some(code) = &args.code else {
        return Ok(Outcome::ok(list()));
    };
    let Some(known) = codes::find(code) else {
        let hint = codes::closest(code).map_or_else(
            || "`volund explain` lists all codes".to_owned(),
            |close| format!("did you mean {close}?"),
        );
        return Err(CliError::Failed(format!(
            "there is no code {code:?}; {hint}"
        )));
    };
    let example = known
        .example
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect::<String>();
    Ok(Outcome::ok(format!(
        "{}: {}\n\n{}\n\nFor instance:\n\n{example}\nWhat to do:\n\n{}\n",
        known.code,
        known.title,
        wrapped(known.cause),
        wrapped(known.fix),
    )))
}

fn list() -> String {
    codes::ALL
        .iter()
        .map(|known| format!("{}  {}\n", known.code, known.title))
        .collect()
}

/// Breaks lines at 100 columns.
fn wrapped(text: &str) -> String {
    const COLUMNS: usize = 100;
    let mut wrapped = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > COLUMNS {
            wrapped.push('\n');
            column = 0;
        } else if column > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
}

/// Prints the JSON Schema of the configuration.
#[must_use]
pub fn schema() -> Outcome {
    Outcome::ok(schema::text())
}
