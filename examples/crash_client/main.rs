//! `crash_client SEED MEBIBYTES`: a client of one vhost-user-blk volume whose daemon dies again and again.
//!
//! It keeps the history of every block across the daemon's deaths and checks every read against it. A harness tells it
//! on standard input what happens, one word a line, and reads one line of JSON for each event:
//!
//! | line | meaning |
//! |---|---|
//! | `run SOCKET` | Connect as soon as the socket is there (`connected`), read what is in doubt (`verified`), then write, read and flush at random until told otherwise. |
//! | `quiet SOCKET` | The same, but after `verified` it does nothing by itself. |
//! | `poke` | When quiet: one block of each region that was ever written is written again (`poked`), unflushed. |
//! | `errors` | From now on errors may be answered: the power is about to go. |
//! | `killed`, `cut` | The daemon is dead; or all copies lost their power as well. Answered by `down`, with figures. |
//! | `drain` | End what is in flight, flush, read everything that was ever written. Answered by `drained`. |
//!
//! Whatever is wrong ends it, with `failed`.

#![allow(
    unsafe_code,
    reason = "buffers are memory shared with the daemon, seen as bytes"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program for tests works in real time and talks to its harness"
)]

#[path = "../../xtask/src/blocks/mod.rs"]
#[allow(dead_code, reason = "the other programs work on devices and files")]
mod blocks;
mod link;
mod load;

use std::collections::VecDeque;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::Timespec;
use serde_json::json;

use link::{Link, Memory};
use load::Load;

/// Between two tries to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(2);
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// A request that is not answered for so long never will be.
const ANSWER: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&args) {
        say(&json!({ "event": "failed", "error": format!("{error:#}") }));
        std::process::exit(1);
    }
}

fn say(event: &serde_json::Value) {
    println!("{event}");
}

/// What the harness says.
struct Orders {
    buffer: Vec<u8>,
    lines: VecDeque<String>,
}

impl Orders {
    /// Reads what is there; waits when nothing is. None when the harness is gone.
    fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let mut chunk = [0; 512];
            // The lock's own buffer is empty whenever this returns, since it is asked for all that came.
            let count = std::io::stdin().lock().read(&mut chunk)?;
            if count == 0 {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&chunk[..count]);
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                self.lines.push_back(text);
            }
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let [seed, mebibytes] = args else {
        bail!("usage: crash_client SEED MEBIBYTES");
    };
    let mut load = Load::new(seed.parse()?, mebibytes.parse()?);
    let mut memory = Memory::new()?;
    let mut orders = Orders {
        buffer: Vec::new(),
        lines: VecDeque::new(),
    };
    while let Some(order) = orders.next()? {
        match order.split_once(' ') {
            Some((how @ ("run" | "quiet"), socket)) => {
                load.is_quiet = how == "quiet";
                session(&mut load, &mut memory, &mut orders, socket.into())?;
            }
            _ if order == "errors" => load.takes_errors = true,
            _ => down(&mut load, &order)?,
        }
    }
    Ok(())
}

/// From one start of the daemon to its end.
fn session(
    load: &mut Load,
    memory: &mut Memory,
    orders: &mut Orders,
    socket: PathBuf,
) -> Result<()> {
    let Some(mut link) = connect(memory, orders, &socket)? else {
        return Ok(());
    };
    say(&json!({ "event": "connected" }));
    load.begin();
    let (mut is_verified, mut is_poking) = (false, false);
    loop {
        load.submit(&mut link, memory)?;
        let has_orders = !orders.lines.is_empty();
        let (is_spoken_to, is_late) = link.wait(if has_orders { &NOW } else { &ANSWER })?;
        load.reap(&mut link, memory)?;
        ensure!(has_orders || !is_late, "no answer within a minute");
        if !is_verified && load.has_verified() {
            is_verified = true;
            say(&json!({ "event": "verified" }));
        }
        if is_poking && load.has_poked() {
            is_poking = false;
            say(&json!({ "event": "poked" }));
        }
        if load.has_drained() {
            say(&load.figures("drained"));
            return Ok(());
        }
        if !is_spoken_to && !has_orders {
            continue;
        }
        let order = orders.next()?.context("the harness is gone")?;
        match order.as_str() {
            "errors" => load.takes_errors = true,
            "drain" => load.drain(),
            "poke" => {
                load.poke();
                is_poking = true;
            }
            _ => {
                // What was answered before the end was answered.
                load.reap(&mut link, memory)?;
                return down(load, &order);
            }
        }
    }
}

/// Connects as soon as the daemon is there; none when it is said to be dead before that.
fn connect(memory: &Memory, orders: &mut Orders, socket: &std::path::Path) -> Result<Option<Link>> {
    loop {
        if let Ok(link) = Link::connect(socket, memory) {
            return Ok(Some(link));
        }
        if is_spoken_to()? {
            let order = orders.next()?.context("the harness is gone")?;
            orders.lines.push_front(order);
            return Ok(None);
        }
        std::thread::sleep(CONNECT_PAUSE);
    }
}

fn is_spoken_to() -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&NOW))? > 0)
}

fn down(load: &mut Load, order: &str) -> Result<()> {
    let is_power_cut = match order {
        "killed" => false,
        "cut" => true,
        other => bail!("crash_client knows no order {other:?}"),
    };
    let figures = load.figures("down");
    load.end(is_power_cut);
    say(&figures);
    Ok(())
}
