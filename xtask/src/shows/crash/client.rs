//! The example `crash_client` as a process: a client that keeps its history while its daemon dies again and again.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// Whatever is waited for comes within this time, or something hangs.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running client; ended when dropped.
#[derive(Debug)]
pub(super) struct CrashClient {
    child: Child,
    orders: ChildStdin,
    events: Receiver<Value>,
}

impl CrashClient {
    pub(super) fn start(seed: u64, mebibytes: u64) -> Result<CrashClient> {
        let mut child = shell::command("target/debug/examples/crash_client")
            .args([seed.to_string(), mebibytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start crash_client")?;
        let orders = child.stdin.take().context("its input is a pipe")?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(CrashClient {
            child,
            orders,
            events,
        })
    }

    pub(super) fn run(&mut self, socket: &Path) -> Result<()> {
        self.tell(&format!("run {}", socket.display()))
    }

    pub(super) fn quiet(&mut self, socket: &Path) -> Result<()> {
        self.tell(&format!("quiet {}", socket.display()))
    }

    pub(super) fn tell(&mut self, order: &str) -> Result<()> {
        // A client that has ended says why on its output.
        let _broken_pipe = writeln!(self.orders, "{order}");
        Ok(())
    }

    /// Waits for an event and skips the ones before it.
    pub(super) fn expect(&mut self, wanted: &str) -> Result<Value> {
        loop {
            let event = self.events.recv_timeout(PATIENCE);
            let event = event.with_context(|| format!("the client never said `{wanted}`"))?;
            match event["event"].as_str() {
                Some(name) if name == wanted => return Ok(event),
                Some("connected" | "verified") => {}
                Some("failed") => bail!("{}", failure(&event)),
                _ => bail!("the client said {event} in place of `{wanted}`"),
            }
        }
    }

    /// What it has ended with, if it has; nothing is waited for.
    pub(super) fn failed(&mut self) -> Option<String> {
        let mut said = self.events.try_iter();
        said.find(|event| event["event"] == "failed")
            .map(|event| failure(&event))
    }
}

fn failure(event: &Value) -> String {
    event["error"].as_str().unwrap_or_default().to_owned()
}

impl Drop for CrashClient {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A number in an event or a status.
pub(super) fn number(value: &Value, name: &str) -> Result<u64> {
    value[name]
        .as_u64()
        .with_context(|| format!("`{name}` is no number in {value}"))
}
