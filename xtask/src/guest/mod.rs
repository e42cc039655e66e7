//! `cargo xtask guest TEST [--kernel NAME] [--machine microvm|q35]`: tests inside QEMU guests, on every kernel of
//! `vm-images/guest.json`, under software emulation, so that neither KVM nor any module of the host is needed.
//!
//! `apt` and `kernel` fetch and unpack kernels, `cpio` and `initramfs` put the root filesystem together, `qemu` boots it.

pub(crate) mod apt;
pub(crate) mod bench;
mod cpio;
mod fio;
mod initramfs;
mod kernel;
mod late_effects;
mod qemu;
mod ublk;
mod ublk_ram;
mod vhost;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use initramfs::Contents;
pub(crate) use kernel::Kernel;
pub(crate) use qemu::Outcome;

use crate::shows::Pace;
use crate::{packages, shell};

/// The two machines of QEMU that tests run on: the small fast one, and the one users have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    Microvm,
    Q35,
}

impl Machine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Machine::Microvm => "microvm",
            Machine::Q35 => "q35",
        }
    }
}

/// Which kernels and machines of the matrix to run.
#[derive(Debug, Default)]
struct Choice {
    kernel: Option<String>,
    machine: Option<Machine>,
}

/// A guest to be booted, as a test describes it.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) machine: Machine,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// Further arguments of QEMU.
    pub(crate) devices: Vec<String>,
    pub(crate) contents: Contents,
    pub(crate) limit: Duration,
}

impl Guest<'_> {
    /// Boots, runs `/test.sh` of the contents, and gives what it said. `answer` serves the guest's `ask`.
    pub(crate) fn run(&self, answer: &mut dyn FnMut(&str) -> Result<String>) -> Result<Outcome> {
        let dir = shell::TempDir::new("guest")?;
        let initrd = dir.path().join("initrd");
        fs::write(
            &initrd,
            initramfs::build(&kernel::description()?, self.kernel, &self.contents)?,
        )?;
        println!(
            "guest: kernel {} ({}) on {}",
            self.kernel.name,
            self.kernel.version,
            self.machine.name()
        );
        qemu::boot(
            &qemu::Boot {
                kernel: self.kernel,
                machine: self.machine,
                cpus: self.cpus,
                memory_mib: self.memory_mib,
                devices: self.devices.clone(),
                initrd: &initrd,
                dir: dir.path(),
                limit: self.limit,
            },
            answer,
        )
    }
}

/// Every kernel of the description, or the one named.
pub(crate) fn kernels(only: Option<&str>) -> Result<Vec<Kernel>> {
    packages::need(&[packages::GUEST])?;
    let about = kernel::description()?;
    let wanted = about
        .kernels
        .iter()
        .filter(|wanted| only.is_none_or(|name| name == wanted.name));
    let kernels = wanted.map(kernel::get).collect::<Result<Vec<_>>>()?;
    if kernels.is_empty() {
        let names: Vec<&str> = about
            .kernels
            .iter()
            .map(|wanted| wanted.name.as_str())
            .collect();
        bail!(
            "no kernel {:?}; there are {}",
            only.unwrap_or_default(),
            names.join(", ")
        );
    }
    Ok(kernels)
}

/// This program, to be put into guests: it brings `blocks`, which writes and verifies.
pub(crate) fn own_program() -> Result<(PathBuf, String)> {
    Ok((std::env::current_exe()?, "/usr/bin/xtask".to_owned()))
}

/// A script of `vm-images/` as the guest's `/test.sh`.
pub(crate) fn test_script(name: &str) -> Result<(String, String)> {
    Ok(("/test.sh".to_owned(), initramfs::image_file(name)?))
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let (test, rest) = args
        .split_first()
        .context("which test? one of: boot, vhost, ublk, ublk-ram, fio, late-effects")?;
    let choice = Choice::parse(rest)?;
    let mut total = Outcome::default();
    for kernel in kernels(choice.kernel.as_deref())? {
        for machine in [Machine::Microvm, Machine::Q35] {
            // The machine makes no difference to a daemon inside, which needs no device of it but a plain disk.
            let is_inside = test.starts_with("ublk") || test == "late-effects";
            let matters = !is_inside || machine == Machine::Microvm;
            if !choice.machine.map_or(matters, |only| only == machine) {
                continue;
            }
            let outcome = match test.as_str() {
                "boot" => boot(&kernel, machine)?,
                "fio" => fio::run(&kernel, machine)?,
                "vhost" => vhost::run(&kernel, machine)?,
                "late-effects" => late_effects::run(&kernel, machine, Pace::AsPromised)?,
                "ublk" => ublk::run(&kernel, machine)?,
                "ublk-ram" => ublk_ram::run(&kernel, machine)?,
                other => bail!("there is no guest test {other:?}"),
            };
            total.passed += outcome.passed;
            total.failed += outcome.failed;
        }
    }
    judge(test, &total)
}

/// The test of late effects on one kernel.
pub(crate) fn late_effects(kernel: &str, pace: Pace) -> Result<()> {
    let mut total = Outcome::default();
    for kernel in kernels(Some(kernel))? {
        let outcome = late_effects::run(&kernel, Machine::Microvm, pace)?;
        total.passed += outcome.passed;
        total.failed += outcome.failed;
    }
    judge("late-effects", &total)
}

fn judge(test: &str, total: &Outcome) -> Result<()> {
    println!(
        "guest {test}: {} checks passed, {} failed",
        total.passed, total.failed
    );
    if total.failed > 0 {
        bail!("guest {test} failed");
    }
    Ok(())
}

impl Choice {
    fn parse(args: &[String]) -> Result<Choice> {
        let mut choice = Choice::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = args
                .next()
                .with_context(|| format!("{arg} takes a value"))?;
            match (arg.as_str(), value.as_str()) {
                ("--kernel", name) => choice.kernel = Some(name.to_owned()),
                ("--machine", "microvm") => choice.machine = Some(Machine::Microvm),
                ("--machine", "q35") => choice.machine = Some(Machine::Q35),
                _ => bail!("unknown argument {arg} {value}"),
            }
        }
        Ok(choice)
    }
}

/// The harness itself: modules load, tools run, blocks of a plain virtio disk verify.
fn boot(kernel: &Kernel, machine: Machine) -> Result<Outcome> {
    let disk = shell::TempDir::below(&shell::root().join("target"), "disk")?;
    let image = disk.path().join("disk.img");
    fs::File::create(&image)?.set_len(512 << 20)?;
    let guest = Guest {
        kernel,
        machine,
        cpus: 2,
        memory_mib: 768,
        devices: ublk::plain_disk(&image, machine),
        contents: Contents {
            programs: vec![own_program()?],
            files: vec![test_script("boot.sh")?],
            modules: Vec::new(),
        },
        limit: Duration::from_secs(300),
    };
    guest.run(&mut |word| Ok(format!("heard {word}")))
}
