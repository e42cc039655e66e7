//! What the daemon must show with real parts, one file per show. `cargo xtask test` runs each for a few rounds,
//! `cargo xtask soak` for many; every round has a seed, and can be run alone: `cargo xtask show NAME [--seed N] [--rounds N]`.

pub(crate) mod alerts;
mod client;
mod config_edits;
mod crash;
mod dashboard;
mod disk_loss;
mod fifty;
mod hung_disk;
mod idle;
mod isolation;
mod kill_points;
mod loop_pool;
mod lost_state;
mod mutated_configs;
mod package;
mod partial_rebuild;
mod pool_failure;
mod power_cut;
mod prometheus;
mod rebuilds;
mod scrub;
mod server;
mod shrink_grow;
mod status_page;
mod text;
mod thick_thin;
mod tutorial;

use anyhow::{Context, Result, bail};

use crate::{bench, daemon, demo, fuzz, guest, packages, shell, sim};

/// Seeds of one round of the crash simulation.
const SIM_SEEDS: u64 = 2000;

/// One show: how often a test and a soak run it, and one round of it.
pub(crate) struct Show {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) rounds_in_test: u32,
    pub(crate) rounds_in_soak: u32,
    round: fn(seed: u64) -> Result<String>,
}

pub(crate) const SHOWS: [Show; 42] = [
    Show {
        name: "demo",
        about: "the main job, as a newcomer sees it",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: |_| demo::run(&[]).map(|()| String::new()),
    },
    Show {
        name: "tutorial",
        about: "docs/tutorial.md, line by line, as a reader runs it",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: tutorial::round,
    },
    Show {
        name: "sim",
        about: "the nexus through crashes on simulated disks, 2,000 seeds a round that no other commit plays",
        rounds_in_test: 1,
        rounds_in_soak: 10,
        round: simulate,
    },
    Show {
        name: "fuzz",
        about: "libFuzzer on each parser of outside bytes, 60 s each; tests replay the corpora only",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: |_| fuzz::run(&[]).map(|()| String::new()),
    },
    Show {
        name: "guest-vhost",
        about: "guests on both kernels and machines use the volumes as vhost-user-blk disks",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: |_| guest::run(&["vhost".to_owned()]).map(|()| String::new()),
    },
    Show {
        name: "guest-ublk",
        about: "the daemon inside guests on both kernels, kill -9 under load included",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: |_| guest::run(&["ublk".to_owned()]).map(|()| String::new()),
    },
    Show {
        name: "guest-late-effects",
        about: "disks that are held, slowed and broken under the daemon in a guest: nothing lands late; a kernel a round",
        rounds_in_test: 0,
        rounds_in_soak: 2,
        round: |round| late_effects(round, Pace::AsPromised),
    },
    Show {
        name: "guest-late-effects-any-pace",
        about: "the same on a machine that may be busy: nobody waits for the disk, but may take longer",
        rounds_in_test: 1,
        rounds_in_soak: 0,
        round: |round| late_effects(round, Pace::ThatOfABusyMachine),
    },
    Show {
        name: "hung-disk",
        about: "a replica that hangs: its mirror goes on, nothing lands late, nobody else takes 100 ms",
        rounds_in_test: 0,
        rounds_in_soak: 10,
        round: |seed| hung_disk::round(seed, Pace::AsPromised),
    },
    Show {
        name: "hung-disk-any-pace",
        about: "the same on a machine that may be busy: nobody waits for the disk, but may take longer",
        rounds_in_test: 1,
        rounds_in_soak: 0,
        round: |seed| hung_disk::round(seed, Pace::ThatOfABusyMachine),
    },
    Show {
        name: "pool-failure",
        about: "one of two pools fails under load; a truncated replica is not trusted",
        rounds_in_test: 4,
        rounds_in_soak: 20,
        round: pool_failure::round,
    },
    Show {
        name: "scrub",
        about: "flipped bytes: repaired with three replicas, only reported with two",
        rounds_in_test: 2,
        rounds_in_soak: 20,
        round: scrub::round,
    },
    Show {
        name: "config-edits",
        about: "20 random edits of the configuration under verified load",
        rounds_in_test: 4,
        rounds_in_soak: 10,
        round: config_edits::round,
    },
    Show {
        name: "mutated-configs",
        about: "400 mutated configurations a round against four nodes with data: no byte lost, no I/O error",
        rounds_in_test: 1,
        rounds_in_soak: 25,
        round: mutated_configs::round,
    },
    Show {
        name: "fifty",
        about: "50 volumes in one edit, one of which can't be made: it is tried again, and made when there is room",
        rounds_in_test: 1,
        rounds_in_soak: 5,
        round: fifty::round,
    },
    Show {
        name: "kill-points",
        about: "kill -9 at every step of creating, removing and purging a volume: nothing leaked, nothing lost",
        rounds_in_test: 1,
        rounds_in_soak: 3,
        round: kill_points::round,
    },
    Show {
        name: "prometheus",
        about: "Prometheus scrapes the daemon and answers with a volume's IOPS; promtool finds nothing",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: prometheus::round,
    },
    Show {
        name: "status-page",
        about: "the status page of a volume that is rebuilt, in headless Chromium, desktop and phone",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: status_page::round,
    },
    Show {
        name: "alerts",
        about: "each alert fires in a real Prometheus when what it is about happens, and clears",
        rounds_in_test: 1,
        rounds_in_soak: 2,
        round: alerts::round,
    },
    Show {
        name: "dashboard",
        about: "each expression of the Grafana dashboard has data in a real Prometheus",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: dashboard::round,
    },
    Show {
        name: "package",
        about: "the Debian package in a fresh system with systemd: it serves, in a tight sandbox; purging it deletes no data",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: |_| package::round(),
    },
    Show {
        name: "disk-loss",
        about: "editing text loses no disk: removal, rename, lost state, unmounted pool",
        rounds_in_test: 2,
        rounds_in_soak: 10,
        round: disk_loss::round,
    },
    Show {
        name: "lost-state",
        about: "the state folder is deleted: same volumes, and a stale replica is refused",
        rounds_in_test: 1,
        rounds_in_soak: 10,
        round: lost_state::round,
    },
    Show {
        name: "power-cut",
        about: "power cuts on XFS and ext4, one and two replicas: what was flushed is there",
        rounds_in_test: 8,
        rounds_in_soak: 50,
        round: power_cut::round,
    },
    Show {
        name: "power-cut-mutant",
        about: "the same power cuts notice a build whose flush does nothing",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: power_cut::mutant_is_noticed,
    },
    Show {
        name: "kill-9",
        about: "100 kills a round under a client that remembers everything; little is resolved",
        rounds_in_test: 1,
        rounds_in_soak: 10,
        round: crash::kill_nine::round,
    },
    Show {
        name: "power-cuts",
        about: "10 power cuts a round, of one pool or everything, XFS and ext4, under the same client",
        rounds_in_test: 2,
        rounds_in_soak: 20,
        round: crash::power_cuts::round,
    },
    Show {
        name: "partial-rebuild",
        about: "a replica away for 10 s, over a kill -9, gets what it missed and no more",
        rounds_in_test: 1,
        rounds_in_soak: 3,
        round: partial_rebuild::round,
    },
    Show {
        name: "shrink-grow",
        about: "a replica goes stale, comes back, is taken out, written behind, and listed again",
        rounds_in_test: 1,
        rounds_in_soak: 2,
        round: shrink_grow::round,
    },
    Show {
        name: "thick-thin",
        about: "a thick volume keeps its room on a full pool; a rebuilt thin one stays thin",
        rounds_in_test: 1,
        rounds_in_soak: 2,
        round: thick_thin::round,
    },
    Show {
        name: "crash-mutants",
        about: "the same power cuts notice builds with a bug in flush, creation and intent",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: crash::mutants::all_are_noticed,
    },
    Show {
        name: "isolation",
        about: "a front end that misbehaves on a full pool does not double another volume's p99",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: isolation::round,
    },
    Show {
        name: "idle",
        about: "50 idle volumes take at most 0.5 % of a core, 50 MiB and 1 MiB each; no thread wakes more than once a second",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: |_| idle::round(),
    },
    Show {
        name: "scale",
        about: "1,000 volumes: start below 5 s, a line edited below 200 ms, a scrape below 100 ms",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: |_| bench::scale::show(),
    },
    Show {
        name: "bench-smoke",
        about: "benchmarks run with everyone who takes part; nothing is judged on speed",
        rounds_in_test: 1,
        rounds_in_soak: 1,
        round: bench::shows::smoke,
    },
    Show {
        name: "bench-depth-1",
        about: "one read at a time: latency and efficiency against qemu-storage-daemon",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: bench::shows::depth_1,
    },
    Show {
        name: "bench-depth-32",
        about: "32 small requests: speed against the raw file, efficiency against qemu-storage-daemon",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: bench::shows::depth_32,
    },
    Show {
        name: "bench-128k",
        about: "long requests: speed against the raw file, CPU against qemu-storage-daemon",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: bench::shows::large,
    },
    Show {
        name: "bench-syscalls",
        about: "at most 2.3 system calls a request at depth 1, 0.25 at depth 32",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: bench::shows::syscalls,
    },
    Show {
        name: "bench-mirror",
        about: "two-way mirrors against fio on both files, reads against one replica, flushes counted",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: bench::shows::mirror,
    },
    Show {
        name: "bench-null",
        about: "the protocol alone against qemu-storage-daemon's null-co",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: bench::shows::null,
    },
    Show {
        name: "bench-guest",
        about: "ublk keeps up with the kernel's loop device, a mirror on it with md RAID1, in a guest",
        rounds_in_test: 0,
        rounds_in_soak: 1,
        round: |_| bench::guest::round(),
    },
];

impl Show {
    /// Runs one round; the error names the show and how to run that round again.
    pub(crate) fn run(&self, seed: u64) -> Result<String> {
        (self.round)(seed).with_context(|| {
            format!(
                "{} failed; again: cargo xtask show {} --seed {seed}",
                self.name, self.name
            )
        })
    }
}

/// How fast those must be who are not to wait for a disk that hangs. A test that lands or holds up a change must not fail
/// because its machine was busy for a moment; a soak is for quiet machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// What the guarantees say.
    AsPromised,
    /// Well below what it would be if they waited for the disk.
    ThatOfABusyMachine,
}

impl Pace {
    /// What the client of a mirror may wait beyond `io_timeout`, milliseconds (spec G11, and the commit). The shows' disks hang
    /// for three times that timeout, of two seconds.
    pub(crate) const fn spare_ms(self) -> u32 {
        match self {
            Self::AsPromised => 1000,
            Self::ThatOfABusyMachine => 2500,
        }
    }

    /// What the status page and other volumes may take, milliseconds.
    pub(crate) const fn others_ms(self) -> u32 {
        match self {
            Self::AsPromised => 100,
            Self::ThatOfABusyMachine => 1000,
        }
    }
}

fn late_effects(round: u64, pace: Pace) -> Result<String> {
    let kernel = if round % 2 == 1 { "6.12" } else { "7.x" };
    guest::late_effects(kernel, pace).map(|()| kernel.to_owned())
}

fn simulate(round: u64) -> Result<String> {
    let from = sim::fresh_range()? + round.saturating_sub(1) * SIM_SEEDS;
    sim::play(from, SIM_SEEDS, None)
}

/// Everything that the shows need: packages, the daemon and the client, built.
pub(crate) fn prepare() -> Result<()> {
    packages::need(&[
        packages::BUILD,
        packages::GUEST,
        packages::POOLS,
        packages::JUDGES,
        packages::BROWSER,
    ])?;
    daemon::build()?;
    let examples = ["vhost_blocks", "vhost_late", "crash_client", "bench_client"];
    let examples = examples.map(|name| format!("--example={name}"));
    shell::run(shell::cargo().args(["build", "--quiet"]).args(examples))
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let Some((name, rest)) = args.split_first() else {
        for show in &SHOWS {
            println!("{:18} {}", show.name, show.about);
        }
        return Ok(());
    };
    let show = SHOWS.iter().find(|show| show.name == name);
    let show = show.with_context(|| format!("there is no show {name:?}"))?;
    let (mut seed, mut rounds) = (1, 1);
    let mut rest = rest.iter();
    while let Some(name) = rest.next() {
        let value = rest
            .next()
            .with_context(|| format!("{name} takes a value"))?;
        match name.as_str() {
            "--seed" => seed = value.parse()?,
            "--rounds" => rounds = value.parse()?,
            other => bail!("unknown argument {other:?}"),
        }
    }
    prepare()?;
    for round in 0..rounds {
        println!(
            "{} seed {}: {}",
            show.name,
            seed + round,
            show.run(seed + round)?
        );
    }
    Ok(())
}

/// `cargo xtask bench idle`.
pub(crate) fn bench_idle(args: &[String]) -> Result<()> {
    match args {
        [which] if which == "idle" => {
            prepare()?;
            println!("{}", idle::round()?);
            Ok(())
        }
        _ => bail!("which bench? one of: idle"),
    }
}

/// xorshift64*, for choices that a seed decides.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}
