//! `bench_client --socket PATH ...`: the front end that measurements are made with, against any vhost-user-blk backend.
//!
//! It behaves as a guest: memory in a memfd, a split ring a queue, one thread a queue that sleeps until the backend calls, event
//! indices as Linux's driver keeps them. It prints one JSON object on one line. Requests, their latency and the backend's
//! processor time are those of the measured time, which begins after `--warm` seconds; a latency goes from just before the
//! batch that a request is in is published to when its answer is seen. Requests that fail are counted as errors and nowhere
//! else; flushes are counted apart, and their time is in no quantile.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for measurements works in real time and talks to its harness"
)]

mod abuse;
mod backend;
mod connection;
mod latency;
mod load;
mod memory;
mod queue;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde_json::json;
use vmm_sys_util::eventfd::EventFd;
use volund::frontend::vhost_user::feature;

use abuse::Abuse;
use backend::Usage;
use connection::Connection;
use load::{Counts, Load, Phase, Plan, Random};
use memory::Memory;
use queue::{Layout, Queue};

/// Longer than the warm-up and the measurement, nothing may take: connecting, and the last answers.
const PATIENCE: Duration = Duration::from_secs(30);
const DEPTH_MAX: u16 = 256;
const BLOCK_MAX: u32 = 16 << 20;

/// A vhost-user-blk front end for measurements.
#[derive(Debug, Parser)]
struct Args {
    /// The backend's socket.
    #[arg(long)]
    socket: PathBuf,
    #[arg(long, value_enum, default_value = "randread")]
    op: Op,
    /// Bytes of a request.
    #[arg(long, default_value_t = 4096)]
    block: u32,
    /// Requests in flight, of each queue.
    #[arg(long, default_value_t = 1)]
    depth: u16,
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// How long is measured.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long it runs before that.
    #[arg(long, default_value_t = 1.0)]
    warm: f64,
    /// How many bytes of the device are used, from its start; all without it.
    #[arg(long)]
    size: Option<u64>,
    /// After so many writes of a queue, one flush when all of them are answered.
    #[arg(long, default_value_t = 0)]
    flush_every: u64,
    /// Requests a second, of all queues together, however long they take; 0 for a client that does nothing.
    #[arg(long)]
    pace: Option<f64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instead of all that, what no driver does, until the time is over: so many bursts a second (`--pace`, 50 without it).
    #[arg(long, value_enum)]
    abuse: Option<Abuse>,
    /// The backend's process, whose processor time is measured.
    #[arg(long)]
    pid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    Randread,
    Randwrite,
    Read,
    Write,
    Discard,
}

impl Op {
    fn kind(self) -> u32 {
        match self {
            Op::Randread | Op::Read => queue::READ,
            Op::Randwrite | Op::Write => queue::WRITE,
            Op::Discard => queue::DISCARD,
        }
    }
}

fn main() {
    let args = Args::parse();
    watch(Duration::from_secs_f64(args.warm + args.seconds) + PATIENCE);
    let done = match args.abuse {
        Some(abuse) => abuse::run(&args, abuse),
        None => measure(&args),
    };
    match done {
        Ok(line) => println!("{line}"),
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("bench_client: {why}");
    // Threads may wait for a backend that never answers.
    std::process::exit(1)
}

/// Ends the program when it takes too long, whatever it waits for.
fn watch(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let seconds = limit.as_secs();
        fail(&format!(
            "the backend does not answer: not done after {seconds} s"
        ));
    });
}

fn measure(args: &Args) -> Result<serde_json::Value> {
    let mut connection = Connection::new(&args.socket)?;
    let blocks = check(args, &mut connection)?;
    let queues = queues(args, &mut connection)?;
    let count = queues.len();
    let crew = Crew::start(args, blocks, queues)?;
    crew.sleep(&connection, args.warm)?;
    let before = args.pid.map(Usage::of).transpose()?;
    let began = Instant::now();
    crew.phase.set(load::MEASURING);
    crew.sleep(&connection, args.seconds)?;
    crew.phase.set(load::ENDING);
    let seconds = began.elapsed().as_secs_f64();
    let after = args.pid.map(Usage::of).transpose()?;
    let counts = crew.end(&connection)?;
    connection.stop(count)?;
    let usage = before.zip(after);
    Ok(report(args, &counts, seconds, usage.as_ref()))
}

/// Refuses what can't be; returns how many blocks are used.
fn check(args: &Args, connection: &mut Connection) -> Result<u64> {
    ensure!(
        args.block.is_multiple_of(512) && (512..=BLOCK_MAX).contains(&args.block),
        "--block is a multiple of 512, at most {BLOCK_MAX}"
    );
    ensure!(
        (1..=DEPTH_MAX).contains(&args.depth),
        "--depth is 1 to {DEPTH_MAX}"
    );
    ensure!(args.queues > 0, "--queues is at least 1");
    let most = connection.queues()?;
    ensure!(
        u64::from(args.queues) <= most,
        "the backend has {most} queues"
    );
    let device = connection.size();
    let size = args.size.or(device);
    let size = size.context("the backend does not say the device's size: --size is needed")?;
    ensure!(
        device.is_none_or(|device| size <= device),
        "the device has {} bytes, less than {size}",
        device.unwrap_or_default()
    );
    let blocks = size / u64::from(args.block);
    ensure!(
        blocks >= u64::from(args.queues),
        "{size} bytes are less than a block for each queue"
    );
    if args.op == Op::Discard {
        ensure!(
            connection.has(feature::DISCARD),
            "the backend can't discard"
        );
    }
    if args.flush_every > 0 {
        ensure!(
            args.op.kind() == queue::WRITE,
            "--flush-every is for writes"
        );
        ensure!(connection.has(feature::FLUSH), "the backend can't flush");
    }
    Ok(blocks)
}

/// The memory with all queues in it, known to the backend.
fn queues(args: &Args, connection: &mut Connection) -> Result<Vec<Queue>> {
    let dialect = connection.dialect();
    let block = usize::try_from(args.block)?;
    let mut layouts: Vec<Layout> = Vec::new();
    for _ in 0..args.queues {
        let start = layouts.last().map_or(0, Layout::end);
        layouts.push(Layout::new(start, args.depth, block, dialect));
    }
    let memory = Arc::new(Memory::new(layouts.last().map_or(0, Layout::end))?);
    let mut random = Random::new(args.seed);
    for layout in &layouts {
        for slot in 0..args.depth {
            let words = (0..block / 8).map(|_| random.next().to_le_bytes());
            let bytes: Vec<u8> = words.flatten().collect();
            memory.fill(layout.buffer(slot), &bytes);
        }
    }
    let queues = layouts
        .iter()
        .map(|layout| Queue::new(Arc::clone(&memory), *layout, dialect));
    let queues = queues.collect::<Result<Vec<Queue>>>()?;
    connection.start(&memory, &queues)?;
    Ok(queues)
}

/// The threads, one a queue.
struct Crew {
    phase: Phase,
    calls: Vec<EventFd>,
    results: Receiver<Result<Counts>>,
    /// Readable as soon as a thread has ended.
    ended: Arc<OwnedFd>,
}

impl Crew {
    fn start(args: &Args, blocks: u64, queues: Vec<Queue>) -> Result<Self> {
        let phase = Phase::new();
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (sender, results) = channel();
        let mut calls = Vec::new();
        for (number, queue) in (0..).zip(queues) {
            calls.push(queue.call_fd().try_clone()?);
            let load = Load::new(queue, plan(args, blocks, number), phase.clone());
            let (sender, ended) = (sender.clone(), Arc::clone(&ended));
            let thread = std::thread::Builder::new().name(format!("queue-{number}"));
            thread.spawn(move || {
                let _the_program_may_have_failed = sender.send(load.run());
                let _as_well = rustix::io::write(&*ended, &1u64.to_le_bytes());
            })?;
        }
        Ok(Self {
            phase,
            calls,
            results,
            ended,
        })
    }

    /// Sleeps; an error if a thread ends or the backend goes meanwhile.
    fn sleep(&self, connection: &Connection, seconds: f64) -> Result<()> {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        if self.poll(connection, Some(end))? {
            return match self.results.recv()? {
                Err(error) => Err(error),
                Ok(_) => bail!("a queue's thread has ended too early"),
            };
        }
        Ok(())
    }

    /// Waits until a thread has ended, or for so long; says which.
    fn poll(&self, connection: &Connection, end: Option<Instant>) -> Result<bool> {
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            let limit = left.map(|left| Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut fds = [
                PollFd::new(&connection.socket, PollFlags::RDHUP),
                PollFd::new(&self.ended, PollFlags::IN),
            ];
            poll(&mut fds, limit.as_ref())?;
            if !fds[1].revents().is_empty() {
                return Ok(true);
            }
            ensure!(
                fds[0].revents().is_empty(),
                "the backend closed the connection"
            );
        }
    }

    /// What all queues counted, when nothing is in flight any more.
    fn end(self, connection: &Connection) -> Result<Counts> {
        for call in &self.calls {
            // Whoever sleeps without a request in flight sees that the end has come.
            call.write(queue::WAKE)?;
        }
        let mut counts = Counts::new();
        for _ in &self.calls {
            self.poll(connection, None)?;
            counts.add(&self.results.recv()??);
        }
        Ok(counts)
    }
}

/// What the queue of this number does: a sequential load has a part of the device for each queue.
fn plan(args: &Args, blocks: u64, number: u16) -> Plan {
    let is_random = matches!(args.op, Op::Randread | Op::Randwrite | Op::Discard);
    let share = blocks / u64::from(args.queues);
    let from = share * u64::from(number);
    let interval = |pace: f64| match pace > 0.0 {
        true => Duration::from_secs_f64(f64::from(args.queues) / pace),
        false => Duration::MAX,
    };
    Plan {
        kind: args.op.kind(),
        is_random,
        block: args.block,
        depth: args.depth,
        blocks: match is_random {
            true => (0, blocks),
            false => (from, from + share),
        },
        flush_every: args.flush_every,
        interval: args.pace.map(interval),
        seed: args.seed.wrapping_mul(1000).wrapping_add(u64::from(number)),
    }
}

fn report(
    args: &Args,
    counts: &Counts,
    seconds: f64,
    usage: Option<&(Usage, Usage)>,
) -> serde_json::Value {
    let requests = counts.latency.count();
    let quantile = |thousandths| micros(counts.latency.quantile(thousandths));
    let cpu = usage.map(|(before, after)| (after.cpu.saturating_sub(before.cpu)).as_secs_f64());
    let switches = usage.map(|(before, after)| after.switches_since(before));
    json!({
        "requests": requests,
        "bytes": requests * u64::from(args.block),
        "seconds": seconds,
        "iops": float(requests) / seconds,
        "errors": counts.errors,
        "p50_us": quantile(500),
        "p99_us": quantile(990),
        "p999_us": quantile(999),
        "max_us": micros(counts.latency.max()),
        "kicks": counts.kicks,
        "calls": counts.calls,
        "flushes": counts.flushes,
        "backend_cpu_seconds": cpu,
        "voluntary_switches": switches,
    })
}

fn micros(nanos: u64) -> f64 {
    float(nanos) / 1000.0
}

#[allow(
    clippy::cast_precision_loss,
    reason = "figures have far fewer digits than a float"
)]
fn float(number: u64) -> f64 {
    number as f64
}
