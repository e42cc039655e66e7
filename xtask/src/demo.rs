//! `cargo xtask demo`: the main job, told as it goes. A daemon on `configs/quickstart.toml`, a guest on its volume, live
//! edits of the file (a good one, a broken one, a mended one), a restart, and the file in the guest is still there.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::daemon::{self, Daemon, Site};
use crate::{guest, packages, shell};

const ADDED: &str =
    "\n[volume.vm2]\nsize = \"256MiB\"\npool = \"main\"\nexport = { vhost-user = {} }\n";
const BROKEN: &str = "\n[volume.vm2]\nsize = \"256MB\"\npool = \"mian\"\n";

struct Demo {
    site: Site,
    text: String,
    daemon: Option<Daemon>,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        bail!("demo takes no argument, found {unknown:?}");
    }
    say("installing what is missing, and building");
    packages::need(&[packages::BUILD, packages::GUEST])?;
    let site = Site::new(&daemon::build()?)?;
    let kernels = guest::kernels(Some("6.12"))?;
    let kernel = kernels.first().context("there is a kernel of that name")?;

    let started = Instant::now();
    let pool = site.path("pool").display().to_string();
    let text = fs::read_to_string(shell::root().join("configs/quickstart.toml"))?;
    let text = text.replace("/var/lib/volund/main", &pool);
    say(&format!(
        "configs/quickstart.toml, its pool moved to {pool}:\n{}",
        indent(&text)
    ));
    site.configure(&text)?;
    say("starting `volund run`");
    let daemon = site.start()?;
    let mut demo = Demo {
        site,
        text,
        daemon: Some(daemon),
    };
    demo.wait_for("vm1")?;
    let socket = demo.site.socket("vm1");
    say(&format!(
        "the volume `vm1` is served on {}; booting a guest on it",
        socket.display()
    ));
    let guest = guest::Guest {
        kernel,
        machine: guest::Machine::Microvm,
        cpus: 2,
        memory_mib: 768,
        devices: vec![
            "-chardev".to_owned(),
            format!("socket,id=c0,path={},reconnect=1", socket.display()),
            "-device".to_owned(),
            "vhost-user-blk,chardev=c0,num-queues=2".to_owned(),
        ],
        contents: guest::Contents {
            programs: Vec::new(),
            files: vec![guest::test_script("demo.sh")?],
            modules: Vec::new(),
        },
        limit: Duration::from_secs(170),
    };
    let outcome = guest.run(&mut |word| demo.answer(word).map(|()| "done".to_owned()))?;
    ensure!(
        outcome.failed == 0,
        "{} checks in the guest failed",
        outcome.failed
    );
    say("stopping the daemon and removing everything again");
    demo.daemon.take().context("the daemon runs")?.stop()?;
    say(&format!(
        "done, {} s after the build",
        started.elapsed().as_secs()
    ));
    Ok(())
}

impl Demo {
    /// What the guest asks for.
    fn answer(&mut self, word: &str) -> Result<()> {
        match word {
            "add" => self.add(),
            "break" => self.spoil(),
            "mend" => self.mend(),
            "restart" => self.restart(),
            "show" => self.show(),
            other => bail!("the guest asked for {other:?}"),
        }
    }

    fn add(&mut self) -> Result<()> {
        say(&format!(
            "while the guest writes, the file gets another volume:\n{}",
            indent(ADDED.trim())
        ));
        self.site.configure(&format!("{}{ADDED}", self.text))?;
        self.wait_for("vm2")?;
        say("`vm2` is there");
        Ok(())
    }

    fn spoil(&mut self) -> Result<()> {
        say("now the file is broken; `volund check` says:");
        self.site.configure(&format!("{}{BROKEN}", self.text))?;
        let check = self.site.volund(&["check"]).output()?;
        ensure!(
            check.status.code() == Some(1),
            "`volund check` should have refused the file"
        );
        let said = [check.stdout, check.stderr].concat();
        println!("{}", indent(String::from_utf8_lossy(&said).trim_end()));
        let daemon = self.daemon()?;
        daemon.wait("refusing the broken file", Duration::from_secs(20), || {
            Ok(daemon.metric("volund_config_last_reload_successful")? == Some(0.0))
        })?;
        say(
            "the daemon says the same in its log, keeps the last good configuration, and the guest goes on",
        );
        Ok(())
    }

    fn mend(&mut self) -> Result<()> {
        self.site.configure(&format!("{}{ADDED}", self.text))?;
        let daemon = self.daemon()?;
        daemon.wait("content with the file", Duration::from_secs(20), || {
            Ok(daemon.metric("volund_config_last_reload_successful")? == Some(1.0))
        })?;
        say("the file is mended and in force");
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        say("restarting the daemon; the guest stays up and connects again");
        self.daemon.take().context("the daemon runs")?.stop()?;
        self.daemon = Some(self.site.start()?);
        self.wait_for("vm1")
    }

    fn show(&self) -> Result<()> {
        let status = shell::capture(&mut self.site.volund(&["status"]))?;
        say(&format!("`volund status`:\n{}", indent(status.trim_end())));
        let metrics = self.daemon()?.get("/metrics")?;
        let some = [
            "volund_volume_writes_completed_total",
            "volund_volume_written_bytes_total",
        ];
        let lines = metrics
            .lines()
            .filter(|line| some.iter().any(|name| line.starts_with(name)));
        let lines: Vec<&str> = lines.collect();
        say(&format!("some of /metrics:\n{}", indent(&lines.join("\n"))));
        Ok(())
    }

    fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("the daemon runs")
    }

    fn wait_for(&self, volume: &str) -> Result<()> {
        self.daemon()?.wait_status("serving the volume", |status| {
            daemon::is_true(daemon::volume(status, volume), "Ready")
        })?;
        Ok(())
    }
}

fn say(text: &str) {
    println!("demo: {text}");
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
