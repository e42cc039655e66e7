//! `cargo xtask guest fio`: the jobs of `fio-jobs/` on a volume and on a disk that QEMU serves itself, in one boot, in turns.
//!
//! A look at ratios, not a benchmark: everything is emulated.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ublk::plain_disk;
use super::{Contents, Guest, Kernel, Machine, Outcome, test_script};
use crate::daemon::{self, Site};
use crate::{packages, shell};

const DISK_BYTES: u64 = 256 << 20;

pub(super) fn run(kernel: &Kernel, machine: Machine) -> Result<Outcome> {
    packages::need(&[packages::LOAD])?;
    let site = Site::new(&daemon::build()?)?;
    site.configure(&format!(
        "version = 1\n[pool.main]\npath = \"{}\"\n\
         [volume.fio]\nsize = \"256MiB\"\npool = \"main\"\nexport = {{ vhost-user = {{ queues = 2 }} }}\n",
        site.path("pool").display()
    ))?;
    let image = site.path("qemu.img");
    fs::File::create(&image)?.set_len(DISK_BYTES)?;
    let running = site.start()?;
    let device = match machine {
        Machine::Microvm => "vhost-user-blk",
        Machine::Q35 => "vhost-user-blk-pci",
    };
    let mut devices = vec![
        "-chardev".to_owned(),
        format!(
            "socket,id=c0,path={},reconnect=1",
            site.socket("fio").display()
        ),
        "-device".to_owned(),
        format!("{device},chardev=c0,num-queues=2"),
    ];
    devices.extend(plain_disk(&image, machine));
    let fio = shell::which("fio").context("fio is not installed")?;
    let guest = Guest {
        kernel,
        machine,
        cpus: 2,
        memory_mib: 1536,
        devices,
        contents: Contents {
            programs: vec![(fio, "/usr/bin/fio".to_owned())],
            files: [vec![test_script("fio.sh")?], jobs()?].concat(),
            modules: Vec::new(),
        },
        limit: Duration::from_secs(600),
    };
    let outcome = guest.run(&mut |word| Ok(word.to_owned()))?;
    running.stop()?;
    Ok(outcome)
}

/// Every job file, at its place in the guest.
fn jobs() -> Result<Vec<(String, String)>> {
    let mut jobs = Vec::new();
    for entry in fs::read_dir(shell::root().join("fio-jobs"))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            // `bench` has its own.
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        jobs.push((
            format!("/fio-jobs/{name}"),
            fs::read_to_string(entry.path())?,
        ));
    }
    Ok(jobs)
}
