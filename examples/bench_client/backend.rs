//! What the backend's process used: processor time and voluntary context switches.
//!
//! The time is that of the process's CPU clock, which the kernel keeps in nanoseconds and which includes threads that have
//! ended. `/proc/PID/task/*/schedstat` counts the same, but only of threads that are still there: io_uring's workers come and
//! go within a measurement and would take their time along. Those workers, and the polling thread of an `SQPOLL` ring, are threads of the
//! process and so in the clock. What the kernel does elsewhere (softirq, kworkers of a filesystem) is in neither, for no contender.

#![allow(
    unsafe_code,
    reason = "the CPU clock of another process is only in libc"
)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What it had used at one moment.
#[derive(Debug)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    switches: BTreeMap<String, u64>,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            switches: switches(pid)?,
            cpu: cpu(pid)?,
        })
    }

    /// Voluntary switches since `before`; those of threads that ended in between are not known.
    pub(crate) fn switches_since(&self, before: &Usage) -> u64 {
        let of_thread = |(thread, now): (&String, &u64)| {
            now.saturating_sub(before.switches.get(thread).copied().unwrap_or_default())
        };
        self.switches.iter().map(of_thread).sum()
    }
}

fn cpu(pid: u32) -> Result<Duration> {
    let number = libc::pid_t::try_from(pid)?;
    let mut clock = 0;
    // SAFETY: the function writes one clock id to the variable that it is given.
    let code = unsafe { libc::clock_getcpuclockid(number, &raw mut clock) };
    ensure!(code == 0, "process {pid} has no CPU clock: error {code}");
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the function writes one time to the variable that it is given.
    let code = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(code == 0, "the CPU clock of process {pid} can't be read");
    Ok(Duration::new(
        u64::try_from(time.tv_sec)?,
        u32::try_from(time.tv_nsec)?,
    ))
}

fn switches(pid: u32) -> Result<BTreeMap<String, u64>> {
    let folder = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    let mut found = BTreeMap::new();
    for thread in threads {
        let thread = thread?;
        // A thread may end between the two.
        let Ok(text) = fs::read_to_string(thread.path().join("status")) else {
            continue;
        };
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .context("a thread's status has no voluntary_ctxt_switches")?;
        let name = thread.file_name().to_string_lossy().into_owned();
        found.insert(name, count.trim().parse()?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_threads_that_ended_counts() {
        let own = std::process::id();
        let before = Usage::of(own).unwrap();
        let busy =
            std::thread::spawn(|| (0..20_000_000u64).fold(1, |a, b| std::hint::black_box(a ^ b)));
        busy.join().unwrap();
        let after = Usage::of(own).unwrap();
        assert!(after.cpu > before.cpu + Duration::from_millis(1));
        assert!(after.switches_since(&before) < 1000);
    }
}
