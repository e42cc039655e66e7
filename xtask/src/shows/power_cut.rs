//! Show: the power goes while a client writes and flushes. When it is back, every write that was acknowledged before a
//! completed flush reads back, on XFS and ext4, with one replica and with two. A build whose flush does nothing fails.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Random;
use super::client::Load;
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use crate::daemon::{self, Site};

/// A cut may come before the first flush that matters, so the mutant gets this many chances.
const MUTANT_CUTS_MAX: u64 = 8;

pub(super) fn round(seed: u64) -> Result<String> {
    let mut random = Random::new(seed);
    let binary = daemon::build()?;
    for filesystem in [Filesystem::Xfs, Filesystem::Ext4] {
        for replicas in [1, 2] {
            let after = Duration::from_millis(100 + random.below(1200));
            let plan = Plan {
                filesystem,
                replicas,
                after,
                mutant: None,
            };
            cut(&binary, &plan, seed).with_context(|| {
                format!(
                    "{filesystem:?}, {replicas} replicas, cut after {} ms",
                    after.as_millis()
                )
            })?;
        }
    }
    Ok("four cuts, everything flushed was there".to_owned())
}

/// The same cuts, but flush does nothing: they must find lost writes, or they would prove nothing.
pub(super) fn mutant_is_noticed(seed: u64) -> Result<String> {
    let mut random = Random::new(seed);
    let binary = daemon::build_mutants()?;
    let mut noticed = None;
    for cuts in 1..=MUTANT_CUTS_MAX {
        let after = Duration::from_millis(300 + random.below(1200));
        let mutant = Some("FlushNoop");
        let plan = Plan {
            filesystem: Filesystem::Xfs,
            replicas: 1,
            after,
            mutant,
        };
        if let Err(error) = cut(&binary, &plan, seed) {
            noticed = Some((cuts, error));
            break;
        }
    }
    // The plain program again, for whoever runs it from the build folder next.
    daemon::build()?;
    let (cuts, error) = noticed.context("a flush that does nothing went unnoticed")?;
    let text = format!("{error:#}");
    ensure!(
        text.contains("holds version"),
        "failed, but not for a lost write: {text}"
    );
    Ok(format!(
        "noticed at cut {cuts}: {}",
        text.lines().last().unwrap_or_default()
    ))
}

/// One cut.
struct Plan {
    filesystem: Filesystem,
    replicas: usize,
    after: Duration,
    mutant: Option<&'static str>,
}

fn cut(binary: &Path, plan: &Plan, seed: u64) -> Result<()> {
    let mut site = Site::new(binary)?;
    site.plant(plan.mutant);
    let mut pools = Vec::new();
    for _ in 0..plan.replicas {
        pools.push(LoopPool::new(plan.filesystem)?);
    }
    let names = ["\"p0\"", "\"p1\""][..plan.replicas].join(", ");
    let tables = pools.iter().enumerate();
    let tables: String = tables
        .map(|(at, pool)| pool_table(&format!("p{at}"), &pool.pool()))
        .collect();
    site.configure(&format!(
        "version = 1\n{tables}[volume.db]\nsize = \"64MiB\"\nreplicas = [{names}]\nthin = true\n\
         export = {{ vhost-user = {{ queues = 2 }} }}\n"
    ))?;
    let load = Load::new(&site, "db", seed);
    let running = site.start()?;
    running.wait_status("serving", |status| {
        daemon::is_true(daemon::volume(status, "db"), "Ready")
    })?;
    let mut client = load.start()?;
    std::thread::sleep(plan.after);
    ensure!(
        client.is_running()?,
        "the client failed before the power did"
    );
    for pool in &pools {
        pool.cut_power()?;
    }
    client.fails_within(Duration::from_secs(60))?;
    running.kill()?;
    for pool in &mut pools {
        pool.restore_power()?;
    }
    let running = site.start()?;
    running.wait_status("serving again", |status| {
        daemon::is_true(daemon::volume(status, "db"), "Ready")
    })?;
    load.check_after_power_cut()?;
    running.stop()
}
