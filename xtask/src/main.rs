//! The project's own tasks: `cargo xtask <task>`. One file per task; what each does is the first line of its file.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the person who started it"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the bans keep the daemon deterministic; tasks wait for real processes in real time"
)]

mod blocks;
mod check;
mod daemon;
mod fuzz;
mod guest;
mod packages;
mod shell;
mod tidy;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask <task>

  check     formatting, clippy, fast tests, tidy, docs: what guards main, in under 2 minutes
  fuzz      libFuzzer on the parsers of outside bytes
  guest     tests inside QEMU guests
  tidy      the rules of the tree that rustc and clippy do not know
";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = dispatch(&args) {
        eprintln!("xtask: {error:#}");
        std::process::exit(1);
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((task, rest)) = args.split_first() else {
        print!("{USAGE}");
        return Ok(());
    };
    match task.as_str() {
        "blocks" => blocks::run(rest),
        "check" => check::run(rest),
        "fuzz" => fuzz::run(rest),
        "guest" => guest::run(rest),
        "tidy" => tidy::run(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task {other:?}\n\n{USAGE}"),
    }
}
