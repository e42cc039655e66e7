//! The process's own figures, under the names that every Prometheus client uses.

use std::fs;

/// CPU seconds, resident bytes and open file descriptors of this process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) open_fds: u64,
}

/// Reads `/proc/self`. What can't be read is 0: a scrape must not fail for it.
pub(super) fn read() -> Process {
    let fds = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Process {
        cpu_seconds: fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|stat| cpu_seconds(&stat))
            .unwrap_or_default(),
        resident_bytes: fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|statm| resident_bytes(&statm))
            .unwrap_or_default(),
        open_fds: u64::try_from(fds).unwrap_or(u64::MAX),
    }
}

/// Fields 14 and 15 of proc(5) stat, in clock ticks. The name in field 2 may contain anything, so count from its end.
#[allow(
    clippy::cast_precision_loss,
    reason = "seconds are a float in Prometheus"
)]
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second();
    Some((user + system) as f64 / ticks as f64)
}

/// Field 2 of proc(5) statm, in pages.
fn resident_bytes(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) R 1 2 3 4 5 6 7 8 9 10 300 100 0 0 20";
        let ticks = rustix::param::clock_ticks_per_second();
        let seconds = cpu_seconds(stat).unwrap();
        assert!((seconds * ticks as f64 - 400.0).abs() < 1e-6, "{seconds}");
        assert!(read().resident_bytes > 0);
    }
}
