//! `volund doctor`: what would keep the daemon from working on this machine, and what to do about it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::args::{Format, Global};
use super::plan::json;
use super::{CliError, EXIT_FAILURE, EXIT_OK, Outcome};
use crate::io::clock;
use crate::units::{Bytes, MIB};

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    check: &'static str,
    found: String,
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            check,
            found: found.into(),
            fix: None,
        }
    }

    fn bad(verdict: Verdict, check: &'static str, found: impl Into<String>, fix: &str) -> Self {
        Self {
            verdict,
            check,
            found: found.into(),
            fix: Some(fix.to_owned()),
        }
    }
}

pub(super) fn run(global: &Global) -> Result<Outcome, CliError> {
    let findings = [
        io_uring(),
        ublk(),
        memlock(),
        files(),
        hugepages(),
        runtime_dir(&global.runtime_dir),
        by_id(),
        time(),
    ];
    let failed = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Fail);
    Ok(Outcome {
        text: match global.output {
            Format::Human => human(&findings),
            Format::Json => json(&findings)?,
        },
        code: if failed { EXIT_FAILURE } else { EXIT_OK },
    })
}

fn human(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        text.push_str(&format!(
            "{verdict:4}  {:18}  {}\n",
            finding.check, finding.found
        ));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("{:26}fix: {fix}\n", ""));
        }
    }
    text
}

fn io_uring() -> Finding {
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy().into_owned();
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match io_uring::IoUring::new(2) {
        Ok(_) => Finding::ok("io_uring", format!("kernel {release}, a ring can be made")),
        Err(error) => Finding::bad(
            Verdict::Fail,
            "io_uring",
            format!(
                "kernel {release}, io_uring_disabled={}: {error}",
                disabled.trim()
            ),
            "use a kernel >= 5.15, `sysctl kernel.io_uring_disabled=0`, and a container runtime that allows io_uring",
        ),
    }
}

fn ublk() -> Finding {
    let control = Path::new("/dev/ublk-control");
    match fs::OpenOptions::new().read(true).write(true).open(control) {
        Ok(_) => Finding::ok("ublk", format!("{} can be opened", control.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::bad(
            Verdict::Fail,
            "ublk",
            "/dev/ublk-control missing: the driver is not loaded, or not in this kernel",
            "use a kernel with ublk_drv (>= 6.5) and `modprobe ublk_drv`; vhost-user works without",
        ),
        Err(error) => Finding::bad(
            Verdict::Fail,
            "ublk",
            format!("/dev/ublk-control can't be opened: {error}"),
            "run as root or give the daemon's group access to it; vhost-user works without",
        ),
    }
}

fn memlock() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match limit {
        Some(bytes) if bytes < 64 * MIB => Finding::bad(
            Verdict::Warn,
            "memlock",
            Bytes(bytes).to_string(),
            "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`",
        ),
        Some(bytes) => Finding::ok("memlock", Bytes(bytes).to_string()),
        None => Finding::ok("memlock", "unlimited"),
    }
}

fn files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(files) if files < 4096 => Finding::bad(
            Verdict::Warn,
            "open files",
            files.to_string(),
            "LimitNOFILE=65536 in the unit: each volume takes about 20",
        ),
        Some(files) => Finding::ok("open files", files.to_string()),
        None => Finding::ok("open files", "unlimited"),
    }
}

fn hugepages() -> Finding {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Total:"))
        .map_or("0", str::trim);
    Finding::ok("hugepages", format!("{total} (optional, not needed)"))
}

fn runtime_dir(path: &Path) -> Finding {
    let shown = path.display();
    if !path.exists() {
        return Finding::ok("runtime dir", format!("{shown} is made at start"));
    }
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Finding::ok("runtime dir", format!("{shown} is writable")),
        Err(error) => Finding::bad(
            Verdict::Fail,
            "runtime dir",
            format!("{shown} is not writable: {error}"),
            "run as root, or choose another folder with --runtime-dir",
        ),
    }
}

fn by_id() -> Finding {
    match fs::read_dir("/dev/disk/by-id") {
        Ok(links) => Finding::ok("by-id links", format!("{} disks have one", links.count())),
        Err(_) => Finding::bad(
            Verdict::Warn,
            "by-id links",
            "/dev/disk/by-id is missing",
            "run udev; names like /dev/sda may point to another disk after a reboot",
        ),
    }
}

fn time() -> Finding {
    // This program did not exist before.
    let built = UNIX_EPOCH + Duration::from_secs(1_760_000_000);
    if clock::wall() < built {
        return Finding::bad(
            Verdict::Fail,
            "clock",
            "the clock says a time before this program was written",
            "set it: the ends of quarantines are read from it",
        );
    }
    Finding::ok("clock", "plausible")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_says_how_to_mend_it() {
        let findings = [
            Finding::ok("io_uring", "kernel 6.18"),
            Finding::bad(Verdict::Fail, "ublk", "missing", "modprobe ublk_drv"),
        ];
        assert_eq!(
            human(&findings),
            "ok    io_uring            kernel 6.18\n\
             FAIL  ublk                missing\n                          fix: modprobe ublk_drv\n"
        );
    }
}
