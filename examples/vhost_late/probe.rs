//! How long the status page and a volume take to answer, measured until a file appears. An answer is late when it takes more
//! than the limit even without the time in which a control beside it was not served; no answer may be.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::content::BLOCK;
use crate::control::{Control, Habit, Span, Stalls};
use crate::link::Link;

const PAUSE: Duration = Duration::from_millis(20);
/// However late the machine is: what waits for the hung disk waits for seconds, so that no answer may take so many times the limit.
const WORST: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(
    socket: &Path,
    http: &str,
    file: &Path,
    limit_ms: &str,
    habit: Habit,
) -> Result<()> {
    let limit = Duration::from_millis(limit_ms.parse()?);
    let mut link = Link::new(socket)?;
    let (mut pages, mut requests) = (Vec::new(), Vec::new());
    let control = Control::start(habit)?;
    let began = Instant::now();
    while !file.exists() {
        pages.push(timed(|| page(http))?);
        requests.push(timed(|| request(&mut link, true))?);
        requests.push(timed(|| request(&mut link, false))?);
        std::thread::sleep(PAUSE);
    }
    let watched = began.elapsed();
    let stalls = control.stop()?;
    println!(
        "control: late by {} ms at worst, {} ms of {} ms in all",
        stalls.worst().as_millis(),
        stalls.total().as_millis(),
        watched.as_millis()
    );
    let verdicts = [("/v1/status", pages), ("another volume", requests)]
        .map(|(what, spans)| judge(what, &spans, &stalls, limit));
    verdicts.into_iter().collect()
}

/// Says how long the answers took, as measured and without the machine's own lateness, and whether each was in time.
fn judge(what: &str, spans: &[Span], stalls: &Stalls, limit: Duration) -> Result<()> {
    let took = |(from, until): &Span| *until - *from;
    let fair = |span: &Span| took(span).saturating_sub(stalls.within(span.0, span.1));
    let mut raw: Vec<Duration> = spans.iter().map(took).collect();
    raw.sort();
    let slowest = raw
        .last()
        .with_context(|| format!("{what} was never asked"))?;
    let slowest_fair = spans.iter().map(fair).max().unwrap_or_default();
    println!(
        "{what}: {} answers, median {} ms, slowest {} ms, slowest without the machine's lateness {} ms",
        raw.len(),
        raw[raw.len() / 2].as_millis(),
        slowest.as_millis(),
        slowest_fair.as_millis()
    );
    let is_late = |span: &&Span| fair(span) > limit || took(span) > limit * WORST;
    let late: Vec<&Span> = spans.iter().filter(is_late).collect();
    let began = spans.first().map(|(from, _)| *from);
    let when: Vec<u128> = late
        .iter()
        .filter_map(|(from, _)| Some((*from - began?).as_millis()))
        .collect();
    ensure!(
        late.is_empty(),
        "{what} took more than {} ms {} times, asked {when:?} ms after the start",
        limit.as_millis(),
        late.len()
    );
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Span> {
    let started = Instant::now();
    work()?;
    Ok((started, Instant::now()))
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
