//! `cargo xtask guest ublk`: the daemon inside the guest, since this host needs no ublk then; its pool on a virtio disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::{Contents, Guest, Kernel, Machine, Outcome, own_program, test_script};
use crate::daemon;
use crate::shell::{self, TempDir};

const POOL_BYTES: u64 = 3 << 30;

pub(super) fn run(kernel: &Kernel, machine: Machine) -> Result<Outcome> {
    let disk = TempDir::below(&shell::root().join("target"), "disk")?;
    let image = disk.path().join("pool.img");
    fs::File::create(&image)?.set_len(POOL_BYTES)?;
    let guest = Guest {
        kernel,
        machine,
        cpus: 2,
        memory_mib: 1280,
        devices: plain_disk(&image, machine),
        contents: Contents {
            programs: vec![
                own_program()?,
                (daemon::build()?, "/usr/bin/volund".to_owned()),
            ],
            files: vec![test_script("ublk.sh")?],
            modules: Vec::new(),
        },
        limit: Duration::from_secs(900),
    };
    guest.run(&mut |word| Ok(word.to_owned()))
}

/// A disk that QEMU itself serves from a file.
pub(super) fn plain_disk(image: &Path, machine: Machine) -> Vec<String> {
    let device = match machine {
        Machine::Microvm => "virtio-blk-device",
        Machine::Q35 => "virtio-blk-pci",
    };
    let drive = format!(
        "file={},format=raw,if=none,id=d0,discard=unmap,cache=none",
        image.display()
    );
    [
        "-drive",
        &drive,
        "-device",
        &format!("{device},drive=d0,num-queues=2"),
    ]
    .map(str::to_owned)
    .into()
}
