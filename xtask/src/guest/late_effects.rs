//! `cargo xtask guest late-effects`: the daemon inside the guest, its pools on device-mapper disks that are held, slowed and
//! broken under it; what lands late must not reach a client.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ublk::plain_disk;
use super::{Contents, Guest, Kernel, Machine, Outcome, own_program, test_script};
use crate::shell::{self, TempDir};
use crate::{daemon, packages};

const DISK_BYTES: u64 = 3 << 30;

pub(super) fn run(kernel: &Kernel, machine: Machine) -> Result<Outcome> {
    packages::need(&[packages::MAPPER])?;
    let disk = TempDir::below(&shell::root().join("target"), "disk")?;
    let image = disk.path().join("disk.img");
    fs::File::create(&image)?.set_len(DISK_BYTES)?;
    let dmsetup = shell::which("dmsetup").context("dmsetup is not installed")?;
    let guest = Guest {
        kernel,
        machine,
        cpus: 2,
        memory_mib: 1280,
        devices: plain_disk(&image, machine),
        contents: Contents {
            programs: vec![
                own_program()?,
                example("vhost_late")?,
                example("vhost_blocks")?,
                (dmsetup, "/usr/sbin/dmsetup".to_owned()),
                (daemon::build()?, "/usr/bin/volund".to_owned()),
            ],
            files: vec![test_script("late-effects.sh")?],
        },
        limit: Duration::from_secs(900),
    };
    guest.run(&mut |word| Ok(word.to_owned()))
}

/// A client, built if it isn't.
fn example(name: &str) -> Result<(PathBuf, String)> {
    shell::run(shell::cargo().args(["build", "--quiet", "--example", name]))?;
    let path = shell::root().join("target/debug/examples").join(name);
    Ok((path, format!("/usr/bin/{name}")))
}
