//! Show: the Debian package is installed into a fresh system, whose systemd starts the unit with all its restrictions; a volume
//! is served, the unit reloads and restarts, the sandbox is as tight as promised, and purging the package deletes no data.

mod tree;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::dist;
use tree::System;

/// What `systemd-analyze security` may say at most: 0 is a service that can do nothing, 10 one that can do all.
const EXPOSURE_MAX: f64 = 3.0;
const UNIT: &str = "/lib/systemd/system/volund.service";
const CONFIG: &str = "version = 1\n[pool.main]\npath = \"/srv/pool\"\nreserve = \"0MiB\"\n\
                      [volume.db]\nsize = \"16MiB\"\npool = \"main\"\nexport = { vhost-user = {} }\n";
/// What the kernel says of a process that has CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.
const CAPABILITIES: &str = "CapBnd:\t0000000000280004";

pub(super) fn round() -> Result<String> {
    let package = dist::package()?;
    let system = System::boot()?;
    fs::copy(&package, system.root().join("root/volund.deb"))?;
    system.run("dpkg --install /root/volund.deb")?;
    files(&system)?;
    let exposure = unit(&system)?;
    service(&system)?;
    watchdog(&system).context("the watchdog")?;
    purge(&system)?;
    let bytes = fs::metadata(&package)?.len();
    Ok(format!(
        "{} MiB; installed, started, reloaded, restarted, purged; exposure {exposure}",
        bytes >> 20
    ))
}

/// What people read, and what their shells and editors use.
fn files(system: &System) -> Result<()> {
    system
        .run(
            "for page in /usr/share/man/man1/volund*.1.gz; do
                 warnings=$(MANWIDTH=80 man --warnings --local-file $page 2>&1 >/dev/null)
                 [ -z \"$warnings\" ] || { echo \"$page: $warnings\"; exit 1; }
             done
             for page in volund volund-run volund-status volund-quarantine-purge; do man --where $page; done",
        )
        .context("man pages")?;
    system
        .run("bash -n /usr/share/bash-completion/completions/volund")
        .context("completions")?;
    system
        .run(
            "cd /usr/share/doc/volund/examples
             for example in *.toml conf.d two-nodes; do volund check --node n1 --config $example; done
             test -s /usr/share/volund/prometheus/volund-alerts.yml
             test -s /usr/share/volund/grafana/volund.json
             test -s /usr/lib/udev/rules.d/90-volund.rules",
        )
        .context("examples and what is beside them")?;
    Ok(())
}

/// What systemd thinks of the unit.
fn unit(system: &System) -> Result<f64> {
    let complaints = system.run(&format!("systemd-analyze verify {UNIT} 2>&1"))?;
    ensure!(complaints.trim().is_empty(), "{UNIT}: {complaints}");
    let said = system.run(&format!(
        "systemd-analyze security --offline=true --no-pager {UNIT} | tail --lines=1"
    ))?;
    let level = said.split("volund.service: ").nth(1);
    let level = level.and_then(|rest| rest.split(' ').next());
    let Some(Ok(exposure)) = level.map(str::parse::<f64>) else {
        bail!("systemd-analyze names no level: {said}")
    };
    ensure!(
        exposure <= EXPOSURE_MAX,
        "the unit's exposure is {exposure}, at most {EXPOSURE_MAX} was promised"
    );
    Ok(exposure)
}

fn service(system: &System) -> Result<()> {
    let state = system.run("systemctl is-active volund || true")?;
    ensure!(
        state.trim() == "inactive",
        "nothing starts before there is a configuration, and it is {state}"
    );
    fs::write(system.root().join("etc/volund/node.toml"), CONFIG)?;
    let started = system.run("volund check; systemctl enable --now volund");
    if let Err(error) = started {
        let log = system.run("journalctl --no-pager --unit=volund");
        bail!("{error:#}\n{}", log.unwrap_or_default());
    }
    serving(system).context("after the start")?;
    let shown =
        system.run("systemctl show --property=StatusText,WatchdogUSec,User,Group volund")?;
    for expected in ["1 pools, 1 volumes", "WatchdogUSec=1min", "Group=volund"] {
        ensure!(shown.contains(expected), "no {expected:?} in\n{shown}");
    }
    let process =
        system.run("cat /proc/$(systemctl show --value --property=MainPID volund)/status")?;
    for expected in [CAPABILITIES, "NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(process.contains(expected), "no {expected:?} in\n{process}");
    }

    // A second volume, taken up by a reload; then everything again from the start.
    let more = CONFIG.replace("[volume.db]", "[volume.db2]")
        + "[volume.db]\nsize = \"16MiB\"\npool = \"main\"\n";
    fs::write(system.root().join("etc/volund/node.toml"), more)?;
    system.run("systemctl reload volund")?;
    let both = "for i in $(seq 100); do volund status --exit-code db db2 >/dev/null && exit 0; sleep 0.1; done
                volund status; exit 1";
    system.run(both).context("after the reload")?;
    system.run("systemctl restart volund")?;
    serving(system).context("after the restart")
}

/// `volund status` finds nothing wrong, and members of the group may use the sockets.
fn serving(system: &System) -> Result<()> {
    let status = system.run("volund status --exit-code db")?;
    ensure!(status.contains("Online"), "{status}");
    let sockets = system.run("stat --format='%A %G' /run/volund /run/volund/admin.sock")?;
    let expected = ["drwxr-x--- volund", "srw-rw---- volund"];
    ensure!(
        sockets.lines().eq(expected),
        "the sockets' owners and modes are\n{sockets}"
    );
    Ok(())
}

/// A daemon at rest feeds the watchdog; one that stands still is ended and started anew.
fn watchdog(system: &System) -> Result<()> {
    let pid = || system.run("systemctl show --value --property=MainPID volund");
    // Less than the shipped minute, and more than the ten seconds between two passes of the reconciler.
    system.run(
        "mkdir -p /etc/systemd/system/volund.service.d
         printf '[Service]\nWatchdogSec=14\n' > /etc/systemd/system/volund.service.d/short.conf
         systemctl daemon-reload
         systemctl restart volund",
    )?;
    let first = pid()?;
    std::thread::sleep(Duration::from_secs(20));
    ensure!(pid()? == first, "the daemon was ended although it works");
    system.run(&format!("kill -STOP {first}"))?;
    system.run(&format!(
        "for i in $(seq 60); do
             now=$(systemctl show --value --property=MainPID volund)
             [ $now = 0 ] || [ $now = {} ] || exit 0
             sleep 1
         done
         exit 1",
        first.trim()
    ))?;
    system.run(
        "for i in $(seq 100); do systemctl is-active volund && exit 0; sleep 0.2; done; exit 1",
    )?;
    serving(system)
}

fn purge(system: &System) -> Result<()> {
    let replicas = "ls /srv/pool/replicas | wc --lines";
    let before = system.run(replicas)?;
    let said = system.run("dpkg --purge volund 2>&1")?;
    ensure!(said.contains("are kept"), "{said}");
    let after = system.run(replicas)?;
    ensure!(
        before.trim() == "2" && after == before,
        "there were {before} replicas before the package was purged, and {after} after"
    );
    system.run("test -e /var/lib/volund/volund.redb; test -e /etc/volund/node.toml; ! test -e /usr/bin/volund")?;
    Ok(())
}
