//! `cargo xtask guest ublk-ram`: volumes as block devices, served inside the guest, since the host needs no ublk for it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{Contents, Guest, Kernel, Machine, Outcome, own_program, test_script};
use crate::shell;

/// Checks everything on one kernel.
pub(super) fn run(kernel: &Kernel, machine: Machine) -> Result<Outcome> {
    let guest = Guest {
        kernel,
        machine,
        cpus: 2,
        memory_mib: 1024,
        devices: Vec::new(),
        contents: Contents {
            programs: vec![own_program()?, example()?],
            files: vec![test_script("ublk-ram.sh")?],
            modules: Vec::new(),
        },
        limit: Duration::from_secs(600),
    };
    guest.run(&mut |word| Ok(word.to_owned()))
}

/// The program that serves memory, built if it isn't.
fn example() -> Result<(PathBuf, String)> {
    shell::run(shell::command("cargo").args(["build", "--quiet", "--example", "ublk_ram"]))?;
    let path = shell::root().join("target/debug/examples/ublk_ram");
    Ok((path, "/usr/bin/ublk_ram".to_owned()))
}
