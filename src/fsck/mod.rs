//! Integrity check: what is durable, and what is around it, held against each other.
//!
//! [`gather`] reads everything as it lies there, beside a daemon or without one; `check` compares, without touching
//! anything; [`repair()`] does the safe part of what the report proposes. Must never write to a pool or to a witness that
//! has a record: nothing here removes data. Start with [`examine`].

mod check;
mod outside;
mod repair;
mod report;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use repair::repair;
pub use report::{Finding, Repair, Report, Severity};

use crate::model::{PoolName, VolumeId, VolumeName};
use crate::pool::scan::{Scanned, scan};
use crate::state::{self, Contents, WitnessFound};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Site {
    /// Directory pools of this node, with their paths.
    pub pools: Vec<(PoolName, PathBuf)>,
    /// Volumes that the files declare for this node; none when the files can't be read.
    pub declared: Option<BTreeSet<VolumeName>>,
    /// The state folder.
    pub state_dir: PathBuf,
    /// The folder of sockets.
    pub runtime_dir: PathBuf,
    /// Where links to block devices are, `/dev/volund`.
    pub links: PathBuf,
    /// Where block devices are, `/dev`.
    pub devices: PathBuf,
    /// The volumes that a daemon serves at this moment; none without a daemon.
    pub live: Option<BTreeSet<VolumeId>>,
}

/// Everything that was found.
#[derive(Debug)]
struct Facts {
    site: Site,
    database: Result<Contents, String>,
    witnesses: Result<Vec<WitnessFound>, String>,
    pools: BTreeMap<PoolName, Result<Scanned, String>>,
    /// Sockets in the runtime folder that nobody listens on.
    dead_sockets: Vec<PathBuf>,
    /// Links to block devices that lead nowhere.
    dead_links: Vec<PathBuf>,
    /// Numbers of the ublk devices that exist.
    ublk: BTreeSet<u32>,
}

/// Looks at everything and says what is wrong. Blocks, and changes nothing. `database` is what the state folder's database
/// holds, or what is wrong with it.
#[must_use]
pub fn examine(site: Site, database: Result<Contents, String>) -> Report {
    let facts = gather(site, database);
    let mut report = Report {
        online: facts.site.live.is_some(),
        pools: facts.pools.len(),
        replicas: facts.scanned().map(|(_, pool)| pool.replicas.len()).sum(),
        witnesses: facts.witnesses.as_ref().map_or(0, Vec::len),
        findings: Vec::new(),
    };
    check::state(&facts, &mut report);
    check::pools(&facts, &mut report);
    volumes::check(&facts, &mut report);
    outside::check(&facts, &mut report);
    report.findings.sort_by_key(|finding| finding.severity);
    report
}

fn gather(site: Site, database: Result<Contents, String>) -> Facts {
    let pools = site.pools.iter();
    Facts {
        witnesses: state::witnesses(&site.state_dir),
        pools: pools
            .map(|(name, path)| (name.clone(), scan(path)))
            .collect(),
        dead_sockets: outside::dead_sockets(&site.runtime_dir),
        dead_links: outside::dead_links(&site.links),
        ublk: outside::ublk_devices(&site.devices),
        database,
        site,
    }
}

impl Facts {
    /// The pools that could be read.
    fn scanned(&self) -> impl Iterator<Item = (&PoolName, &Scanned)> {
        let pools = self.pools.iter();
        pools.filter_map(|(name, pool)| Some((name, pool.as_ref().ok()?)))
    }

    /// Whether every declared pool of this node could be read: only then is something missing that was not found.
    fn saw_everything(&self) -> bool {
        self.site.declared.is_some() && self.pools.values().all(Result::is_ok)
    }

    fn is_live(&self, volume: VolumeId) -> bool {
        self.site
            .live
            .as_ref()
            .is_some_and(|live| live.contains(&volume))
    }

    fn path_of(&self, pool: &PoolName) -> Option<&Path> {
        let mut pools = self.site.pools.iter();
        pools
            .find(|(name, _)| name == pool)
            .map(|(_, path)| path.as_path())
    }
}
