//! `cargo xtask bench scale`: what 1, 10, 100 and 1,000 volumes cost, and the lines that 1,000 have to keep.
//!
//! For each count a release daemon makes the volumes, is stopped and started again, has single lines of its configuration
//! edited, is scraped, and is left alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::stats::median;
use crate::daemon::{self, Daemon, Site};
use crate::process;

const USAGE: &str = "usage: cargo xtask bench scale [--volumes N,N,...] [--mirrored] [--repeats N] [--idle S] [--volund PATH]";
const MIB: u64 = 1 << 20;
/// Size of a new volume, MiB. Sparse, so that 1,000 fit anywhere.
const SIZE: u64 = 64;
const LIMIT: Duration = Duration::from_secs(60);

/// The lines for 1,000 volumes, milliseconds.
const START_MS_MAX: f64 = 5000.0;
const EDIT_MS_MAX: f64 = 200.0;
const SCRAPE_MS_MAX: f64 = 100.0;

#[derive(Clone, Debug)]
struct Options {
    volumes: Vec<usize>,
    /// Every volume has two replicas.
    mirrored: bool,
    repeats: usize,
    idle: Duration,
    volund: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            volumes: vec![1, 10, 100, 1000],
            mirrored: false,
            repeats: 5,
            idle: Duration::from_secs(20),
            volund: None,
        }
    }
}

/// What one count of volumes costs: medians, and the worst where a line is drawn.
#[derive(Clone, Debug)]
struct Row {
    volumes: usize,
    create_ms: f64,
    start_ms: (f64, f64),
    edit_ms: (f64, f64),
    shown_ms: f64,
    scrape_ms: (f64, f64),
    scrape_kib: f64,
    rss_mib: f64,
    threads: usize,
    fds: usize,
    idle_percent: f64,
    wakes: u64,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    let rows = measure(&options)?;
    print!("{}", table(&rows));
    Ok(())
}

/// The item of `soak`: 1,000 volumes keep their lines.
pub(crate) fn show() -> Result<String> {
    let rows = measure(&Options::default())?;
    print!("{}", table(&rows));
    let last = rows.last().context("nothing was measured")?;
    let result = format!(
        "{} volumes: start {:.0} ms, edit {:.0} ms, scrape {:.0} ms (the worst of each)",
        last.volumes, last.start_ms.1, last.edit_ms.1, last.scrape_ms.1
    );
    ensure!(
        last.start_ms.1 < START_MS_MAX
            && last.edit_ms.1 < EDIT_MS_MAX
            && last.scrape_ms.1 < SCRAPE_MS_MAX,
        "{result}; allowed are {START_MS_MAX}, {EDIT_MS_MAX} and {SCRAPE_MS_MAX}"
    );
    Ok(result)
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--mirrored" {
            options.mirrored = true;
            continue;
        }
        let value = rest.next().with_context(|| USAGE.to_owned())?;
        match arg.as_str() {
            "--volumes" => {
                let counts = value.split(',').map(str::parse);
                options.volumes = counts.collect::<Result<_, _>>()?;
            }
            "--repeats" => options.repeats = value.parse()?,
            "--idle" => options.idle = Duration::from_secs(value.parse()?),
            "--volund" => options.volund = Some(PathBuf::from(value)),
            other => bail!("unknown option {other:?}\n{USAGE}"),
        }
    }
    ensure!(options.repeats > 0 && !options.volumes.contains(&0), USAGE);
    Ok(options)
}

fn measure(options: &Options) -> Result<Vec<Row>> {
    let volund = match &options.volund {
        Some(path) => path.clone(),
        None => daemon::build_release()?,
    };
    let rows = options.volumes.iter().map(|volumes| {
        let node = Node::new(&volund, *volumes, options.mirrored)?;
        node.measure(options)
            .with_context(|| format!("with {volumes} volumes"))
    });
    rows.collect()
}

/// A node with so many volumes.
struct Node {
    site: Site,
    /// Size of each volume, MiB.
    sizes: Vec<u64>,
    pools: &'static [&'static str],
}

impl Node {
    fn new(volund: &Path, volumes: usize, mirrored: bool) -> Result<Node> {
        Ok(Node {
            site: Site::new(volund)?,
            sizes: vec![SIZE; volumes],
            pools: if mirrored { &["a", "b"] } else { &["a"] },
        })
    }

    /// Puts the configuration in place; returns the moment of the rename.
    fn configure(&self) -> Result<Instant> {
        let mut text = "version = 1\n".to_owned();
        for pool in self.pools {
            let path = self.site.path(pool);
            let path = path.display();
            text.push_str(&format!(
                "[pool.{pool}]\npath = \"{path}\"\nreserve = \"0MiB\"\n"
            ));
        }
        let replicas: Vec<String> = self.pools.iter().map(|p| format!("{p:?}")).collect();
        let replicas = replicas.join(", ");
        for (number, size) in self.sizes.iter().enumerate() {
            text.push_str(&format!(
                "[volume.v{number:04}]\nsize = \"{size}MiB\"\nreplicas = [{replicas}]\n\
                 export = {{ vhost-user = {{}} }}\n"
            ));
        }
        let beside = self.site.config().join(".node.toml.new");
        fs::write(&beside, text)?;
        // Writing it is not what is measured, nor what the daemon makes of that.
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        fs::rename(&beside, self.site.config().join("node.toml"))?;
        Ok(begun)
    }

    fn measure(mut self, options: &Options) -> Result<Row> {
        self.configure()?;
        let (mut running, create_ms) = self.start()?;
        let mut starts = Vec::new();
        for _ in 0..options.repeats {
            running.stop()?;
            let (again, took) = self.start()?;
            starts.push(took);
            running = again;
        }
        // What a start writes in the background.
        std::thread::sleep(Duration::from_secs(2));
        let mut edits = Vec::new();
        let mut shown = Vec::new();
        for turn in 0..options.repeats {
            let (edit, seen) = self.edit(&running, turn * self.sizes.len() / options.repeats)?;
            edits.push(edit);
            shown.push(seen);
        }
        let mut scrapes = Vec::new();
        let mut bytes = 0;
        for _ in 0..options.repeats {
            let begun = Instant::now();
            bytes = running.get("/metrics")?.len();
            scrapes.push(ms(begun));
        }
        std::thread::sleep(Duration::from_secs(2));
        let (before, begun) = (process::read(running.pid())?, Instant::now());
        std::thread::sleep(options.idle);
        let now = process::read(running.pid())?;
        let seconds = begun.elapsed().as_secs_f64();
        let wakes = now.wakes_since(&before);
        running.stop()?;
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        Ok(Row {
            volumes: self.sizes.len(),
            create_ms,
            start_ms: middle_and_worst(&starts),
            edit_ms: middle_and_worst(&edits),
            shown_ms: median(&shown),
            scrape_ms: middle_and_worst(&scrapes),
            scrape_kib: bytes as f64 / 1024.0,
            rss_mib: now.rss_mib,
            threads: now.threads.len(),
            fds: now.fds,
            idle_percent: 100.0 * now.cpu_since(&before) / seconds,
            wakes: wakes.first().map_or(0, |(_, count)| *count),
        })
    }

    /// Starts the daemon; how long that took until every volume was ready, by its own word.
    fn start(&self) -> Result<(Daemon, f64)> {
        let begun = Instant::now();
        let running = self.site.spawn(&["--io-threads", "2"])?;
        loop {
            if running.get("/readyz").is_ok() {
                let status = running.status()?;
                let volumes = status["volumes"].as_array().map_or(&[][..], Vec::as_slice);
                let ready = |volume: &&Value| daemon::is_true(volume, "Ready");
                if volumes.iter().filter(ready).count() == self.sizes.len() {
                    return Ok((running, ms(begun)));
                }
            }
            ensure!(
                begun.elapsed() < LIMIT,
                "not ready after {LIMIT:?}\n{}",
                running.log_tail()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Enlarges one volume, which is one line; how long until the daemon says in its log that it has done so, and until the
    /// status has it, which is asked for again and again. No other volume's files may be written to.
    fn edit(&mut self, running: &Daemon, volume: usize) -> Result<(f64, f64)> {
        let name = format!("v{volume:04}");
        let status = running.status()?;
        let files = self.files_of(daemon::volume(&status, &name))?;
        let before = self.modified()?;
        self.sizes[volume] += 1;
        let bytes = self.sizes[volume] * MIB;
        let begun = self.configure()?;
        let wait = |what: &str, is_so: &dyn Fn() -> Result<bool>| {
            while !is_so()? {
                ensure!(
                    begun.elapsed() < LIMIT,
                    "{name} is not {what}\n{}",
                    running.log_tail()
                );
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(ms(begun))
        };
        // Said once every replica has it, and the table that names the size is durable.
        let said = format!("grown volume={name} size={}MiB", self.sizes[volume]);
        let applied = wait("enlarged", &|| Ok(running.log_tail().contains(&said)))?;
        let mut sizes = files.iter().map(fs::metadata);
        let is_large =
            |file: std::io::Result<fs::Metadata>| file.is_ok_and(|file| file.len() >= MIB + bytes);
        ensure!(sizes.all(is_large), "{name} is not as large as it says");
        let shown = wait("shown", &|| {
            Ok(daemon::volume(&running.status()?, &name)["sizeBytes"] == bytes)
        })?;
        let after = self.modified()?;
        for (path, time) in &after {
            let is_its = files.contains(path);
            ensure!(
                is_its || before.get(path) == Some(time),
                "an edit of {name} wrote to {}",
                path.display()
            );
        }
        Ok((applied, shown))
    }

    fn files_of(&self, volume: &Value) -> Result<Vec<PathBuf>> {
        let replicas = volume["replicas"].as_array().context("no replicas")?;
        let files = replicas.iter().map(|replica| {
            let pool = replica["pool"].as_str().context("no pool")?;
            let id = replica["uuid"].as_str().context("no uuid")?;
            Ok(self.site.path(pool).join("replicas").join(id))
        });
        files.collect()
    }

    /// When each replica's file was last written to.
    fn modified(&self) -> Result<BTreeMap<PathBuf, SystemTime>> {
        let mut times = BTreeMap::new();
        for pool in self.pools {
            for entry in fs::read_dir(self.site.path(pool).join("replicas"))? {
                let entry = entry?;
                times.insert(entry.path(), entry.metadata()?.modified()?);
            }
        }
        Ok(times)
    }
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn middle_and_worst(values: &[f64]) -> (f64, f64) {
    (median(values), values.iter().copied().fold(0.0, f64::max))
}

/// One line per count; below each, what ten times the volumes cost.
fn table(rows: &[Row]) -> String {
    let mut text = "volumes  create   start (worst)    edit (worst)  shown  scrape (worst)      KiB  RSS MiB  threads   fds  \
                    idle CPU  most wakes\n"
        .to_owned();
    for row in rows {
        text.push_str(&format!(
            "{:7} {:7.0} {:7.0} ({:5.0}) {:7.0} ({:5.0}) {:6.0} {:7.1} ({:5.1}) {:9.0} {:8.1} {:8} {:5} {:8.3}% {:11}\n",
            row.volumes,
            row.create_ms,
            row.start_ms.0,
            row.start_ms.1,
            row.edit_ms.0,
            row.edit_ms.1,
            row.shown_ms,
            row.scrape_ms.0,
            row.scrape_ms.1,
            row.scrape_kib,
            row.rss_mib,
            row.threads,
            row.fds,
            row.idle_percent,
            row.wakes
        ));
    }
    for pair in rows.windows(2) {
        let (few, many) = (&pair[0], &pair[1]);
        let growth = |figure: fn(&Row) -> f64| figure(many) / figure(few);
        text.push_str(&format!(
            "{} -> {}: start x{:.1}, create x{:.1}, edit x{:.1}, scrape x{:.1}, RSS x{:.1}, idle CPU x{:.1}\n",
            few.volumes,
            many.volumes,
            growth(|row| row.start_ms.0),
            growth(|row| row.create_ms),
            growth(|row| row.edit_ms.0),
            growth(|row| row.scrape_ms.0),
            growth(|row| row.rss_mib),
            growth(|row| row.idle_percent),
        ));
    }
    text.push_str("times in ms\n");
    text
}
