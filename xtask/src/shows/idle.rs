//! Show: a daemon with nothing to do. 50 volumes with exports, a minute without I/O: CPU, memory, and how often each thread
//! wakes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::daemon::{self, Site};
use crate::process;

const VOLUMES: u32 = 50;
const WATCHED: Duration = Duration::from_secs(60);
const CPU_PERCENT_MAX: f64 = 0.5;
/// Once a second, each thread, and what this looking on costs.
const WAKES_MAX: u64 = WATCHED.as_secs() + 2;
const RSS_MIB_MAX: f64 = 50.0 + VOLUMES as f64;

pub(super) fn round() -> Result<String> {
    let site = Site::new(&daemon::build_release()?)?;
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
    let running = site.spawn(&["--io-threads", "2"])?;
    running.wait_status("serving every volume", |status| {
        let volumes = status["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        volumes.len() == VOLUMES as usize
            && volumes
                .iter()
                .all(|volume| daemon::is_true(volume, "Ready"))
    })?;
    // What the start has left to write.
    std::thread::sleep(Duration::from_secs(12));
    let (before, started) = (process::read(running.pid())?, Instant::now());
    std::thread::sleep(WATCHED);
    let now = process::read(running.pid())?;
    let percent = 100.0 * now.cpu_since(&before) / started.elapsed().as_secs_f64();
    let wakes = now.wakes_since(&before);
    running.stop()?;
    let listed: Vec<String> = wakes
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let result = format!(
        "{VOLUMES} volumes idle: {percent:.3} % of a core, RSS {:.1} MiB; wakes in {} s: {}",
        now.rss_mib,
        WATCHED.as_secs(),
        listed.join(", ")
    );
    ensure!(
        percent <= CPU_PERCENT_MAX,
        "{result}; at most {CPU_PERCENT_MAX} % is allowed"
    );
    ensure!(
        now.rss_mib <= RSS_MIB_MAX,
        "{result}; at most {RSS_MIB_MAX} MiB is allowed"
    );
    ensure!(
        wakes.iter().all(|(_, count)| *count <= WAKES_MAX),
        "{result}; at most {WAKES_MAX} of each thread are allowed"
    );
    Ok(result)
}
