//! What Linux says of a running process: CPU, memory, descriptors, and how often each of its threads went to sleep.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Linux reports CPU time in hundredths of a second, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// A thread, io_uring's workers included.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) name: String,
    /// How often it has gone to sleep, and so was woken.
    pub(crate) sleeps: u64,
    cpu_seconds: f64,
}

/// A process at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) threads: BTreeMap<u32, Thread>,
    pub(crate) rss_mib: f64,
    pub(crate) fds: usize,
    /// Of all threads that ever were, in hundredths.
    cpu_seconds: f64,
}

/// Reads `/proc/PID`.
pub(crate) fn read(pid: u32) -> Result<Reading> {
    let folder = format!("/proc/{pid}");
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("{folder}/task"))? {
        let task = task?;
        let number = task.file_name().to_string_lossy().parse::<u32>();
        // A thread may end while this looks.
        if let (Ok(number), Ok(thread)) = (number, thread(&task.path())) {
            threads.insert(number, thread);
        }
    }
    let status = fs::read_to_string(format!("{folder}/status"))?;
    Ok(Reading {
        threads,
        rss_mib: field(&status, "VmRSS:").context("no VmRSS")? / 1024.0,
        fds: fs::read_dir(format!("{folder}/fd"))?.count(),
        cpu_seconds: cpu_seconds(&fs::read_to_string(format!("{folder}/stat"))?)?,
    })
}

impl Reading {
    /// CPU spent since `before`, seconds: to the nanosecond for threads that are still there, in hundredths for others.
    pub(crate) fn cpu_since(&self, before: &Reading) -> f64 {
        let exact: f64 = self
            .threads
            .iter()
            .map(|(number, thread)| {
                let old = before.threads.get(number);
                thread.cpu_seconds - old.map_or(0.0, |old| old.cpu_seconds)
            })
            .sum();
        let coarse = self.cpu_seconds - before.cpu_seconds;
        if coarse - exact > 2.0 / TICKS_PER_SECOND {
            coarse
        } else {
            exact
        }
    }

    /// How often each thread was woken since `before`: name and count, the most first.
    pub(crate) fn wakes_since(&self, before: &Reading) -> Vec<(String, u64)> {
        let wakes = self.threads.iter().map(|(number, thread)| {
            let old = before.threads.get(number).map_or(0, |old| old.sleeps);
            (thread.name.clone(), thread.sleeps - old)
        });
        let mut wakes: Vec<_> = wakes.collect();
        wakes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        wakes
    }
}

fn thread(folder: &Path) -> Result<Thread> {
    let status = fs::read_to_string(folder.join("status"))?;
    let sched = fs::read_to_string(folder.join("schedstat"))?;
    let nanoseconds = sched.split_whitespace().next().context("no schedstat")?;
    let sleeps = field(&status, "voluntary_ctxt_switches:").context("no switches")?;
    Ok(Thread {
        name: fs::read_to_string(folder.join("comm"))?.trim().to_owned(),
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count that was written as one"
        )]
        sleeps: sleeps as u64,
        cpu_seconds: nanoseconds.parse::<f64>()? / 1e9,
    })
}

fn field(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time of a process: fields 14 and 15 of proc(5), `/proc/pid/stat`.
fn cpu_seconds(stat: &str) -> Result<f64> {
    let (_, after_name) = stat
        .rsplit_once(") ")
        .context("/proc/pid/stat has a name in brackets")?;
    let ticks = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<f64>);
    let sum: f64 = ticks.collect::<Result<Vec<f64>, _>>()?.iter().sum();
    Ok(sum / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_read_itself() {
        let before = read(std::process::id()).unwrap();
        let now = read(std::process::id()).unwrap();
        assert!(now.rss_mib > 1.0 && now.fds > 2 && !now.threads.is_empty());
        assert!(now.cpu_since(&before) >= 0.0);
        assert!(now.wakes_since(&before).len() >= before.threads.len().min(1));
    }
}
