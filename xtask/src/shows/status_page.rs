//! Show: the status page in headless Chromium while a volume that lost a pool is rebuilt. The DOM has the bar of the copy that is
//! rebuilt, and of that one alone; a phone's width is enough; afterwards all is well. The pictures are left in
//! `target/status-page/`; the ones in `docs/` come from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::client::Load;
use super::loop_pool::{Filesystem, LoopPool, pool_table};
use super::rebuilds::{replica, wait_for};
use crate::daemon::{self, Site};
use crate::shell::{self, TempDir};

/// Written while the pool is away, so that the rebuild takes half a minute at the bandwidth of the configuration.
const MISSED_MIB: u64 = 64;
/// CSS pixels.
const DESKTOP: (u32, u32) = (1000, 1150);
/// A small phone's width; as high as needed to see everything.
const PHONE: (u32, u32) = (360, 1800);

pub(super) fn round(seed: u64) -> Result<String> {
    let site = Site::new(&daemon::build()?)?;
    let mut lost = LoopPool::new(Filesystem::Xfs)?;
    configure(&site, &lost, true)?;
    let running = site.start()?;
    wait_for(&running, &[("a", "InSync"), ("b", "InSync")])?;
    // What is removed is in quarantine, which the page shows too.
    configure(&site, &lost, false)?;

    lost.cut_power()?;
    let load = Load::new(&site, "db", seed).on(MISSED_MIB);
    load.run(20)?;
    running.wait_status("degraded", |status| {
        replica(status, "b")["state"] == "Stale"
    })?;
    running.wait(
        "done with the dead filesystem",
        Duration::from_secs(60),
        || {
            // Busy until then.
            Ok(lost.restore_power().is_ok())
        },
    )?;
    running.wait_status("rebuilding at a known rate", |status| {
        let rebuild = &replica(status, "b")["rebuild"];
        rebuild["etaSeconds"].is_u64() && rebuild["copiedBytes"].as_u64() > Some(4 << 20)
    })?;

    let browser = Browser::new()?;
    let url = format!("http://{}/", site.http());
    let pictures = shell::root().join("target/status-page");
    fs::create_dir_all(&pictures)?;
    let percent = check_bar(&browser.dom(&url)?)?;
    let phone = browser.on_a_phone(&running.get("/")?)?;
    browser.picture(&url, DESKTOP, &pictures.join("desktop.png"))?;
    browser.picture(&phone, PHONE, &pictures.join("phone.png"))?;
    let width = browser.needed_width(&phone)?;
    ensure!(
        width <= PHONE.0,
        "at {} px the page is {width} px wide",
        PHONE.0
    );

    wait_for(&running, &[("a", "InSync"), ("b", "InSync")])?;
    let whole = browser.dom(&url)?;
    ensure!(
        whole.contains("All is well") && !whole.contains("<progress"),
        "the rebuild is over, but the page does not say so: {whole}"
    );
    running.stop()?;
    Ok(format!(
        "the bar was at {percent} %, {width} px wide at {}; pictures in {}",
        PHONE.0,
        pictures.display()
    ))
}

fn configure(site: &Site, lost: &LoopPool, with_old: bool) -> Result<()> {
    let mut text = format!(
        "version = 1\n{}{}[volume.db]\nsize = \"256MiB\"\nreplicas = [\"a\", \"b\"]\nrebuild_bandwidth = \"2MiB/s\"\n\
         export = {{ vhost-user = {{ queues = 2 }} }}\n\
         [volume.vm1-root]\nsize = \"1GiB\"\npool = \"a\"\nexport = {{ vhost-user = {{}} }}\n",
        pool_table("a", &site.path("a")),
        pool_table("b", &lost.pool())
    );
    if with_old {
        text.push_str("[volume.old]\nsize = \"64MiB\"\npool = \"a\"\n");
    }
    site.configure(&text)
}

/// How far the bar is of the copy that is rebuilt, in hundredths.
fn check_bar(dom: &str) -> Result<u32> {
    let copy = |pool: &str| {
        let start = format!("<li data-pool=\"{pool}\"");
        let after = dom.split(start.as_str()).nth(1)?;
        after.split("</li>").next()
    };
    let rebuilt = copy("b").with_context(|| format!("no copy in pool b: {dom}"))?;
    ensure!(
        rebuilt.starts_with(" data-state=\"Rebuilding\""),
        "the copy in pool b is not rebuilt: {rebuilt}"
    );
    let value = rebuilt.split("<progress max=\"100\" value=\"").nth(1);
    let value = value.and_then(|rest| rest.split('"').next());
    let percent: u32 = value.context("it has no bar")?.parse()?;
    ensure!(percent < 100, "the bar of a rebuild that runs is full");
    for part in ["/s", "done in about"] {
        ensure!(
            rebuilt.contains(part),
            "the bar does not say {part:?}: {rebuilt}"
        );
    }
    ensure!(
        dom.matches("<progress").count() == 1,
        "another copy has a bar: {dom}"
    );
    for part in [
        "Degraded: ReplicaRebuilding",
        "class=\"next\"",
        "Quarantine",
        "volume.db",
    ] {
        ensure!(dom.contains(part), "the page does not have {part:?}: {dom}");
    }
    ensure!(!dom.contains("<script"), "the page has a script");
    Ok(percent)
}

/// Headless Chromium with a profile of its own.
struct Browser {
    folder: TempDir,
}

impl Browser {
    fn new() -> Result<Browser> {
        let folder = TempDir::new("chromium")?;
        Ok(Browser { folder })
    }

    fn command(&self) -> Command {
        let mut command = shell::command("chromium");
        // Tests run as root, where its sandbox refuses to work; it opens nothing but our own pages.
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ]);
        command.arg(format!(
            "--user-data-dir={}",
            self.folder.path().join("profile").display()
        ));
        command
    }

    /// The page as the browser understood it.
    fn dom(&self, url: &str) -> Result<String> {
        shell::capture(self.command().arg("--dump-dom").arg(url))
    }

    fn picture(&self, url: &str, (width, height): (u32, u32), into: &Path) -> Result<()> {
        let size = format!("--window-size={width},{height}");
        let into = format!("--screenshot={}", into.display());
        shell::capture(self.command().args([&size, &into]).arg(url)).map(drop)
    }

    /// A page that shows `html` in a frame of a phone's width and has the width that it would need as its title: Chromium's own
    /// windows have 500 px at least.
    fn on_a_phone(&self, html: &str) -> Result<String> {
        let (width, height) = PHONE;
        let quoted = html.replace('&', "&amp;").replace('"', "&quot;");
        let page = format!(
            "<!doctype html><body style=\"margin:0\"><iframe style=\"border:0;width:{width}px;height:{height}px\" \
             onload=\"document.title = this.contentDocument.documentElement.scrollWidth\" srcdoc=\"{quoted}\"></iframe>"
        );
        let file: PathBuf = self.folder.path().join("phone.html");
        fs::write(&file, page)?;
        Ok(format!("file://{}", file.display()))
    }

    fn needed_width(&self, phone: &str) -> Result<u32> {
        let dom = self.dom(phone)?;
        let title = dom.split("<title>").nth(1);
        let title = title.and_then(|rest| rest.split('<').next());
        Ok(title.with_context(|| format!("no title: {dom}"))?.parse()?)
    }
}
