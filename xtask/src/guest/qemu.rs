//! Boots one guest under QEMU and reads what its test says.
//!
//! The guest talks over a virtio-serial port: `INIT <nonce>` when it is up, then the test's own lines, `ASK word` when it
//! wants something done on the host, at last `RESULT <nonce> <failures>`. QEMU is ended as soon as that line is read. A
//! death before INIT is the emulator's (seen in some of a hundred boots): that alone is tried again, at most twice, and said.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Machine;
use super::kernel::Kernel;
use crate::shell;

/// A guest may take this long to its first line; the rest of the test has its own limit.
const INIT_MAX: Duration = Duration::from_secs(120);
const EARLY_DEATHS_MAX: u32 = 2;
/// Without what emulation gets wrong (cx16: double faults at boot) or does a byte at a time while the guest's kernel takes it
/// for the fastest way to copy (erms, fsrm).
const CPU: &str = "max,-cx16,-erms,-fsrm";

/// One boot: kernel, machine type, memory, devices, and the initramfs already on disk.
#[derive(Debug)]
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) machine: Machine,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) devices: Vec<String>,
    pub(super) initrd: &'a Path,
    /// A folder for the socket and the console's text.
    pub(super) dir: &'a Path,
    pub(super) limit: Duration,
}

/// What a test said.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

enum End {
    Result(Outcome),
    EarlyDeath(String),
}

/// Runs the guest to its result line. `answer` does what the guest asks for and gives the word sent back.
pub(super) fn boot(
    boot: &Boot<'_>,
    answer: &mut dyn FnMut(&str) -> Result<String>,
) -> Result<Outcome> {
    let mut deaths = 0;
    loop {
        match attempt(boot, answer)? {
            End::Result(outcome) => return Ok(outcome),
            End::EarlyDeath(reason) if deaths < EARLY_DEATHS_MAX => {
                deaths += 1;
                println!(
                    "guest: died before init ({reason}); boot {} of {}",
                    deaths + 1,
                    EARLY_DEATHS_MAX + 1
                );
            }
            End::EarlyDeath(reason) => bail!(
                "the guest died before init {} times, the last time: {reason}\n{}",
                EARLY_DEATHS_MAX + 1,
                console_tail(boot.dir)
            ),
        }
    }
}

fn attempt(boot: &Boot<'_>, answer: &mut dyn FnMut(&str) -> Result<String>) -> Result<End> {
    let socket = boot.dir.join("port.sock");
    let _absent_is_fine = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let nonce = nonce();
    let mut qemu = Running(
        boot.command(&nonce, &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(boot.dir.join("qemu.log"))?)
            .spawn()
            .context("cannot start qemu-system-x86_64")?,
    );
    let Some(stream) = accept(&listener, &mut qemu.0)? else {
        let log = fs::read_to_string(boot.dir.join("qemu.log")).unwrap_or_default();
        bail!("qemu ended at once: {}", log.trim());
    };
    Talk {
        boot,
        nonce,
        stream,
        started: Instant::now(),
    }
    .run(answer)
}

/// QEMU connects while it starts; `None` when it ended instead.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<Option<UnixStream>> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if qemu.try_wait()?.is_some() {
                    return Ok(None);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

struct Talk<'a> {
    boot: &'a Boot<'a>,
    nonce: String,
    stream: UnixStream,
    started: Instant,
}

impl Talk<'_> {
    fn run(mut self, answer: &mut dyn FnMut(&str) -> Result<String>) -> Result<End> {
        let mut lines = BufReader::new(self.stream.try_clone()?);
        let init = format!("INIT {}", self.nonce);
        let result = format!("RESULT {} ", self.nonce);
        let mut outcome = Outcome::default();
        let mut is_up = false;
        loop {
            let limit = if is_up { self.boot.limit } else { INIT_MAX };
            let line = match self.line(&mut lines, limit) {
                Ok(line) => line,
                Err(reason) if is_up => {
                    bail!("after init: {reason}\n{}", console_tail(self.boot.dir))
                }
                Err(reason) => return Ok(End::EarlyDeath(reason)),
            };
            if line == init {
                is_up = true;
                println!(
                    "guest: up after {:.1} s",
                    self.started.elapsed().as_secs_f32()
                );
                self.started = Instant::now();
            } else if let Some(count) = line.strip_prefix(&result) {
                let said: u32 = count.trim().parse().context("the result is no number")?;
                // A script that broke off counts as a failure even when every check before passed.
                outcome.failed = outcome.failed.max(said);
                if outcome.failed > 0 {
                    println!("{}", console_tail(self.boot.dir));
                }
                return Ok(End::Result(outcome));
            } else if let Some(word) = line.strip_prefix("ASK ") {
                let reply = answer(word)?;
                writeln!(self.stream, "{reply}")?;
            } else {
                outcome.passed += u32::from(line.starts_with("PASS "));
                outcome.failed += u32::from(line.starts_with("FAIL "));
                println!("  {line}");
            }
        }
    }

    /// The next line, or why there is none. A test that goes on saying things is not cut off between them.
    fn line(&self, lines: &mut BufReader<UnixStream>, limit: Duration) -> Result<String, String> {
        let left = limit.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Err(format!("no result within {} s", limit.as_secs()));
        }
        let said = self.stream.set_read_timeout(Some(left));
        said.map_err(|error| error.to_string())?;
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(0) => Err("qemu ended".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!(
                "nothing heard within {} s: {error}",
                limit.as_secs()
            )),
        }
    }
}

/// Ends QEMU when dropped, however the test went.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Boot<'_> {
    fn command(&self, nonce: &str, socket: &Path) -> Command {
        let mut qemu = shell::command("qemu-system-x86_64");
        let machine = match self.machine {
            Machine::Microvm => "microvm,rtc=on",
            Machine::Q35 => "q35",
        };
        let (serial, append) = match self.machine {
            Machine::Microvm => ("virtio-serial-device", "console=ttyS0"),
            Machine::Q35 => ("virtio-serial-pci", "console=ttyS0"),
        };
        qemu.args(["-M", machine, "-accel", "tcg,thread=multi", "-cpu", CPU]);
        qemu.arg("-smp")
            .arg(self.cpus.to_string())
            .arg("-m")
            .arg(self.memory_mib.to_string());
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        let memory = format!(
            "memory-backend-memfd,id=mem,size={}M,share=on",
            self.memory_mib
        );
        qemu.args(["-object", &memory, "-machine", "memory-backend=mem"]);
        qemu.args(["-global", "virtio-mmio.force-legacy=false"]);
        qemu.arg("-kernel")
            .arg(&self.kernel.vmlinux)
            .arg("-initrd")
            .arg(self.initrd);
        qemu.arg("-append").arg(format!(
            "{append} panic=-1 oops=panic mitigations=off tsc_early_khz={} no_timer_check \
             random.trust_cpu=on quiet volund.nonce={nonce}",
            host_khz()
        ));
        qemu.arg("-serial")
            .arg(format!("file:{}", self.dir.join("console.log").display()));
        qemu.args(["-device", serial]);
        qemu.arg("-chardev")
            .arg(format!("socket,id=port,path={}", socket.display()));
        qemu.args(["-device", "virtserialport,chardev=port,name=volund"]);
        qemu.args(&self.devices);
        qemu
    }
}

/// The host's clock rate: microvm has no timer to measure it by, and now and then hangs trying.
fn host_khz() -> u64 {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = text.lines().find_map(|line| {
        line.strip_prefix("cpu MHz")?
            .split(": ")
            .nth(1)?
            .parse()
            .ok()
    });
    let mhz: f64 = mhz.unwrap_or(2000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a clock rate in kHz fits"
    )]
    let khz = (mhz * 1000.0) as u64;
    khz
}

fn nonce() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}{:x}", now.as_nanos(), std::process::id())
}

fn console_tail(dir: &Path) -> String {
    let console: PathBuf = dir.join("console.log");
    let text = fs::read(&console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(40)..].join("\n");
    format!("--- the guest's console, last lines ---\n{tail}\n---")
}
