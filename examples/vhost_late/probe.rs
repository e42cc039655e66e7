//! How long the status page and a volume take to answer, measured until a file appears.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::content::BLOCK;
use crate::link::Link;

const PAUSE: Duration = Duration::from_millis(20);
/// One answer in so many may take longer, at most [`WORST`] times as long: the machine does other things too, and what waits
/// for the hung disk would wait for seconds, again and again.
const LATE_ONE_IN: usize = 100;
const WORST: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(socket: &Path, http: &str, file: &Path, limit_ms: &str) -> Result<()> {
    let limit = Duration::from_millis(limit_ms.parse()?);
    let mut link = Link::new(socket)?;
    let (mut pages, mut requests) = (Vec::new(), Vec::new());
    while !file.exists() {
        pages.push(timed(|| page(http))?);
        requests.push(timed(|| request(&mut link, true))?);
        requests.push(timed(|| request(&mut link, false))?);
        std::thread::sleep(PAUSE);
    }
    for (what, mut times) in [("/v1/status", pages), ("another volume", requests)] {
        times.sort();
        let slowest = times.last().copied().unwrap_or_default();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        println!(
            "{what}: {} answers, median {} ms, one in a hundred {} ms, slowest {} ms",
            times.len(),
            median.as_millis(),
            times
                .get(times.len().saturating_sub(1 + times.len() / 100))
                .copied()
                .unwrap_or_default()
                .as_millis(),
            slowest.as_millis()
        );
        ensure!(!times.is_empty(), "{what} was never asked");
        let late = times.iter().filter(|time| **time > limit).count();
        ensure!(
            late * LATE_ONE_IN <= times.len() && slowest <= limit * WORST,
            "{what} took more than {limit_ms} ms {late} times, and {} ms once",
            slowest.as_millis()
        );
    }
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

fn page(http: &str) -> Result<()> {
    let mut stream = TcpStream::connect(http)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /v1/status HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "the status page says {:?}",
        answer.lines().next()
    );
    Ok(())
}

fn request(link: &mut Link, is_write: bool) -> Result<()> {
    let place = link.place()?;
    match is_write {
        true => link.write(BLOCK as u64, place, 0)?,
        false => link.read(BLOCK as u64, place, 0)?,
    }
    let deadline = Instant::now() + PATIENCE;
    let done = link.completed(deadline)?;
    let (_, error) = done.first().context("the other volume does not answer")?;
    ensure!(
        *error == 0,
        "the other volume answers with error {}",
        -error
    );
    Ok(())
}
