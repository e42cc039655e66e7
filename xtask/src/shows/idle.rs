//! Show: a daemon with nothing to do. 50 volumes with exports, a minute without I/O: CPU and memory are both printed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::daemon::{self, Site};

const VOLUMES: u32 = 50;
const WATCHED: Duration = Duration::from_secs(60);
/// Linux reports CPU time in hundredths of a second, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;
const CPU_PERCENT_MAX: f64 = 1.0;
const RSS_MIB_MAX: f64 = 50.0 + VOLUMES as f64;

pub(super) fn round() -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    let mut text = format!(
        "version = 1\n[pool.main]\npath = \"{}\"\nreserve = \"0MiB\"\n",
        site.path("pool").display()
    );
    for number in 0..VOLUMES {
        text.push_str(&format!(
            "[volume.v{number}]\nsize = \"64MiB\"\npool = \"main\"\nexport = {{ vhost-user = {{}} }}\n"
        ));
    }
    site.configure(&text)?;
    let running = site.start()?;
    running.wait_status("serving every volume", |status| {
        let volumes = status["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        volumes.len() == VOLUMES as usize
            && volumes
                .iter()
                .all(|volume| daemon::is_true(volume, "Ready"))
    })?;
    let before = cpu_seconds(running.pid())?;
    let started = Instant::now();
    std::thread::sleep(WATCHED);
    let spent = cpu_seconds(running.pid())? - before;
    let percent = 100.0 * spent / started.elapsed().as_secs_f64();
    let rss = rss_mib(running.pid())?;
    running.stop()?;
    let result = format!("{VOLUMES} volumes idle: {percent:.2} % of a core, RSS {rss:.1} MiB");
    ensure!(
        percent <= CPU_PERCENT_MAX,
        "{result}; at most {CPU_PERCENT_MAX} % is allowed"
    );
    ensure!(
        rss <= RSS_MIB_MAX,
        "{result}; at most {RSS_MIB_MAX} MiB is allowed"
    );
    Ok(result)
}

/// User and system time of a process: fields 14 and 15 of proc(5), `/proc/pid/stat`.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
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

fn rss_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}
