//! `cargo xtask guest late-effects`: the daemon inside the guest, its pools on device-mapper disks that are held, slowed and
//! broken under it; what lands late must not reach a client.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Contents, Guest, Kernel, Machine, Outcome, own_program, test_script};
use crate::shows::Pace;
use crate::{daemon, packages, shell};

pub(super) fn run(kernel: &Kernel, machine: Machine, pace: Pace) -> Result<Outcome> {
    packages::need(&[packages::MAPPER, packages::LOAD])?;
    let fio = shell::which("fio").context("fio is not installed")?;
    let dmsetup = shell::which("dmsetup").context("dmsetup is not installed")?;
    let guest = Guest {
        kernel,
        machine,
        cpus: 2,
        memory_mib: 2048,
        devices: Vec::new(),
        contents: Contents {
            programs: vec![
                own_program()?,
                example("vhost_late")?,
                example("vhost_blocks")?,
                (fio, "/usr/bin/fio".to_owned()),
                (dmsetup, "/usr/sbin/dmsetup".to_owned()),
                (daemon::build()?, "/usr/bin/volund".to_owned()),
            ],
            files: vec![test_script("late-effects.sh")?],
            modules: Vec::new(),
        },
        limit: Duration::from_secs(1100),
    };
    guest.run(&mut |word| match word {
        "spare" => Ok(pace.spare_ms().to_string()),
        "others" => Ok(pace.others_ms().to_string()),
        other => bail!("the guest asks for {other:?}"),
    })
}

/// A client, built if it isn't.
fn example(name: &str) -> Result<(PathBuf, String)> {
    shell::run(shell::cargo().args(["build", "--quiet", "--example", name]))?;
    let path = shell::root().join("target/debug/examples").join(name);
    Ok((path, format!("/usr/bin/{name}")))
}
