//! The `volund` program: see `cli/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    volund::cli::main()
}
