//! A front end that misbehaves: chains that make no sense among writes that may fail, and memory that shrinks under them. For
//! measuring what its neighbours notice of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::Args;
use crate::connection::Connection;
use crate::load::Random;
use crate::memory::Memory;
use crate::queue::{self, Layout, Queue, Request};

/// Requests of a burst: every second one is a write, the others are malformed.
const BURST: u16 = 32;
const BLOCK: u32 = 4096;
/// Bursts a second without `--pace`.
const PACE: f64 = 50.0;
/// A connection lasts for so many bursts at most; then its ring breaks, or its memory shrinks.
const BURSTS: u32 = 8;
/// For an answer, and for the connection's end.
const PATIENCE: Duration = Duration::from_millis(500);
const SHORT: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Abuse {
    Malformed,
    Shrink,
    Both,
}

#[derive(Debug, Default)]
struct Done {
    connections: u64,
    malformed: u64,
    shrunk: u64,
    broken: u64,
    written: u64,
    refused: u64,
    unanswered: u64,
}

pub(crate) fn run(args: &Args, abuse: Abuse) -> Result<serde_json::Value> {
    let end = Instant::now() + Duration::from_secs_f64(args.warm + args.seconds);
    let pause = Duration::from_secs_f64(1.0 / args.pace.unwrap_or(PACE));
    let mut random = Random::new(args.seed);
    let mut done = Done::default();
    while Instant::now() < end {
        let is_shrinking = match abuse {
            Abuse::Malformed => false,
            Abuse::Shrink => true,
            Abuse::Both => random.below(2) == 0,
        };
        let mut guest = Guest::connect(&args.socket, end)?;
        done.connections += 1;
        for _ in 0..BURSTS {
            if Instant::now() >= end {
                break;
            }
            guest.burst(&mut random, abuse, &mut done)?;
            guest.take_answers(&mut done)?;
            std::thread::sleep(pause);
        }
        match is_shrinking {
            true => guest.shrink(&mut random, &mut done)?,
            false => guest.break_ring(&mut done)?,
        }
    }
    Ok(json!({
        "connections": done.connections,
        "malformed": done.malformed,
        "shrunk": done.shrunk,
        "broken": done.broken,
        "written": done.written,
        "refused": done.refused,
        "unanswered": done.unanswered,
    }))
}

struct Guest {
    connection: Connection,
    memory: Arc<Memory>,
    queue: Queue,
    blocks: u64,
    in_flight: u16,
}

impl Guest {
    /// Connects; the backend may still be busy with the end of the last connection.
    fn connect(socket: &Path, end: Instant) -> Result<Self> {
        loop {
            match Self::try_connect(socket) {
                Ok(guest) => return Ok(guest),
                Err(error) if Instant::now() > end + PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn try_connect(socket: &Path) -> Result<Self> {
        let mut connection = Connection::new(socket)?;
        let dialect = connection.dialect();
        let layout = Layout::new(0, BURST, usize::try_from(BLOCK)?, dialect);
        let memory = Arc::new(Memory::new(layout.end())?);
        let queue = Queue::new(Arc::clone(&memory), layout, dialect)?;
        let size = connection.size().context("the device has no size")?;
        connection.start(&memory, std::slice::from_ref(&queue))?;
        Ok(Self {
            connection,
            memory,
            queue,
            blocks: size / u64::from(BLOCK),
            in_flight: 0,
        })
    }

    /// Writes, and between them chains that make no sense.
    fn burst(&mut self, random: &mut Random, abuse: Abuse, done: &mut Done) -> Result<()> {
        for slot in 0..BURST {
            if slot % 2 == 0 || abuse == Abuse::Shrink {
                self.write(slot, random);
            } else {
                self.malformed(slot, random);
                done.malformed += 1;
            }
        }
        self.in_flight = BURST;
        self.queue.kick()
    }

    fn write(&mut self, slot: u16, random: &mut Random) {
        let request = Request {
            kind: queue::WRITE,
            offset: random.below(self.blocks) * u64::from(BLOCK),
            len: BLOCK,
        };
        self.queue.add(slot, request);
    }

    fn malformed(&mut self, slot: u16, random: &mut Random) {
        let far = 1 << 40;
        let request = |kind, offset| Request {
            kind,
            offset,
            len: BLOCK,
        };
        match random.below(6) {
            // A table of one and a half descriptors; one that is nowhere; a loop; nothing at all.
            0 => self.queue.add_raw(slot, (0, 24, queue::INDIRECT, 0)),
            1 => self.queue.add_raw(slot, (far, 48, queue::INDIRECT, 0)),
            2 => self.queue.add_raw(slot, (0, 16, queue::NEXT, slot)),
            3 => self.queue.add_raw(slot, (0, 0, 0, 0)),
            // A type that there is not, and a place that the disk does not have.
            4 => self.queue.add(slot, request(77, 0)),
            _ => self.queue.add(slot, request(queue::READ, 1 << 60)),
        }
    }

    fn take_answers(&mut self, done: &mut Done) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.in_flight > 0 && Instant::now() < end {
            self.queue.disable_calls();
            while let Some((slot, status)) = self.queue.next_answer()? {
                self.in_flight -= 1;
                let is_write = slot % 2 == 0;
                done.written += u64::from(is_write && status == 0);
                done.refused += u64::from(is_write && status != 0);
            }
            if self.queue.enable_calls() && self.in_flight > 0 {
                self.queue.wait(Some(PATIENCE))?;
            }
        }
        done.unanswered += u64::from(std::mem::take(&mut self.in_flight));
        Ok(())
    }

    /// Ends it by an index that can't be.
    fn break_ring(mut self, done: &mut Done) -> Result<()> {
        self.queue.jump();
        self.queue.kick()?;
        done.broken += 1;
        // It may end the ring only, or all.
        let _either = self.ends(SHORT)?;
        Ok(())
    }

    /// Ends it by taking the memory away under writes.
    fn shrink(mut self, random: &mut Random, done: &mut Done) -> Result<()> {
        for slot in 0..BURST {
            self.write(slot, random);
        }
        self.queue.kick()?;
        self.memory.shrink(0)?;
        self.queue.kick_anyway()?;
        done.shrunk += u64::from(self.ends(PATIENCE)?);
        Ok(())
    }

    /// Whether the backend closes the connection in time.
    fn ends(&self, limit: Duration) -> Result<bool> {
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.connection.socket, PollFlags::RDHUP)];
        Ok(poll(&mut fds, Some(&limit))? > 0)
    }
}
