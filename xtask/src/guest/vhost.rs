//! `cargo xtask guest vhost`: the daemon on this host, its volumes in a guest as vhost-user-blk disks with four queues.
//!
//! The guest makes filesystems, verifies, discards; then the daemon is restarted cleanly under it, and everything again.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Contents, Guest, Kernel, Machine, Outcome, own_program, test_script};
use crate::daemon::{self, Site};

/// The guest's disks, in the order it sees them, `/dev/vda` first, and what is special about each.
const VOLUMES: [(&str, &str); 4] = [
    ("ext4", "size = \"512MiB\""),
    ("xfs", "size = \"512MiB\""),
    ("raw", "size = \"64MiB\"\nblock_size = 512"),
    ("fixed", "size = \"16MiB\"\nread_only = true"),
];

pub(super) fn run(kernel: &Kernel, machine: Machine) -> Result<Outcome> {
    let site = Site::new(&daemon::build()?)?;
    let pool = site.path("pool");
    let mut text = format!("version = 1\n[pool.main]\npath = \"{}\"\n", pool.display());
    for (name, more) in VOLUMES {
        text.push_str(&format!(
            "[volume.{name}]\npool = \"main\"\nexport = {{ vhost-user = {{ queues = 4 }} }}\n{more}\n"
        ));
    }
    site.configure(&text)?;
    let mut running = Some(site.start()?);
    let guest = Guest {
        kernel,
        machine,
        cpus: 4,
        memory_mib: 1024,
        devices: devices(&site, machine),
        contents: Contents {
            programs: vec![own_program()?],
            files: vec![test_script("vhost.sh")?],
            modules: Vec::new(),
        },
        limit: Duration::from_secs(900),
    };
    let outcome = guest.run(&mut |word| {
        match word {
            "restart" => {
                running.take().context("the daemon runs")?.stop()?;
                running = Some(site.start()?);
            }
            other => return Ok(format!("the host does not know {other:?}")),
        }
        Ok("restarted".to_owned())
    });
    let daemon = running.take().context("the daemon runs")?;
    let outcome = outcome.with_context(|| daemon.log_tail())?;
    if outcome.failed > 0 {
        println!("{}", daemon.log_tail());
    }
    daemon.stop()?;
    Ok(outcome)
}

fn devices(site: &Site, machine: Machine) -> Vec<String> {
    let device = match machine {
        Machine::Microvm => "vhost-user-blk",
        Machine::Q35 => "vhost-user-blk-pci",
    };
    let disk = |(name, _): &(&str, &str)| {
        let socket = site.socket(name);
        [
            "-chardev".to_owned(),
            format!("socket,id=c-{name},path={},reconnect=1", socket.display()),
            "-device".to_owned(),
            format!("{device},chardev=c-{name},num-queues=4"),
        ]
    };
    VOLUMES.iter().flat_map(disk).collect()
}
