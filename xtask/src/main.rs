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

mod bench;
mod blocks;
mod check;
mod daemon;
mod demo;
mod dist;
mod fuzz;
mod guest;
mod judges;
mod packages;
mod process;
mod shell;
mod shows;
mod sim;
mod soak;
mod test;
mod tidy;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask <task>

  bench     speed against qemu-storage-daemon and fio in interleaved rounds; `bench idle`, `bench scale`
  check     formatting, clippy, fast tests, tidy, docs: what guards main, in under 2 minutes
  demo      the main job from end to end, told as it goes
  dist      the Debian package
  fuzz      libFuzzer on the parsers of outside bytes
  guest     tests inside QEMU guests
  record-alerts  the unit tests of the alert rules, from runs of the daemon with faults
  show      one show with real parts, some rounds of it; without a name: what there is
  sim       the nexus on simulated disks: many seeds of faults and crashes, checked
  soak      every show with its full count; stops and goes on at any time
  test      everything, in at most 45 minutes; what CI runs
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
        "bench" => bench::run(rest),
        "blocks" => blocks::run(rest),
        "check" => check::run(rest),
        "demo" => demo::run(rest),
        "dist" => dist::run(rest),
        "fuzz" => fuzz::run(rest),
        "guest" => guest::run(rest),
        "record-alerts" => shows::alerts::record(rest),
        "show" => shows::run(rest),
        "sim" => sim::run(rest),
        "soak" => soak::run(rest),
        "test" => test::run(rest),
        "tidy" => tidy::run(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task {other:?}\n\n{USAGE}"),
    }
}
