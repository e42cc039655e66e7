//! A real daemon on this host, in folders of its own, for tests: started, watched, asked, ended.
//!
//! Pools lie below `target/`, which is on a real disk (direct I/O); sockets below the system's folder for temporary files,
//! since a socket's path is short. Everything is removed again, also after a failure.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::shell::{self, TempDir};

/// Between two looks at something that should change.
const POLL: Duration = Duration::from_millis(10);

/// Where one daemon lives: it may be started and ended there many times.
#[derive(Debug)]
pub(crate) struct Site {
    binary: PathBuf,
    mutant: Option<&'static str>,
    kill_at: Option<u64>,
    state: Option<PathBuf>,
    disk: TempDir,
    runtime: TempDir,
    http: String,
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    http: String,
    log: PathBuf,
}

/// The daemon, built for tests.
pub(crate) fn build() -> Result<PathBuf> {
    built(&[], "volund")
}

/// The daemon as users build it: the one to measure.
pub(crate) fn build_release() -> Result<PathBuf> {
    shell::run(shell::cargo().args(["build", "--quiet", "--release", "--bin=volund"]))?;
    Ok(shell::root().join("target/release/volund"))
}

/// The daemon with the feature that plants bugs.
pub(crate) fn build_mutants() -> Result<PathBuf> {
    built(&["--features", "mutants"], "volund-mutants")
}

/// Builds and puts the program aside, where the next build with other features leaves it alone.
fn built(features: &[&str], name: &str) -> Result<PathBuf> {
    shell::run(
        shell::cargo()
            .args(["build", "--quiet", "--bin", "volund"])
            .args(features),
    )?;
    let into = shell::root().join("target/xtask");
    fs::create_dir_all(&into)?;
    let aside = into.join(name);
    // The name may be that of a running program, so the file is replaced and not written over.
    let fresh = into.join(format!("{name}.{}", std::process::id()));
    fs::copy(shell::root().join("target/debug/volund"), &fresh)?;
    fs::rename(&fresh, &aside)?;
    Ok(aside)
}

impl Site {
    pub(crate) fn new(binary: &Path) -> Result<Site> {
        let disk = TempDir::below(&shell::root().join("target"), "site")?;
        fs::create_dir_all(disk.path().join("conf.d"))?;
        Ok(Site {
            binary: binary.to_path_buf(),
            mutant: None,
            kill_at: None,
            state: None,
            disk,
            runtime: TempDir::new("run")?,
            http: format!("127.0.0.1:{}", free_port()?),
        })
    }

    /// Plants a bug in the daemon, which must be of [`build_mutants`].
    pub(crate) fn plant(&mut self, mutant: Option<&'static str>) {
        self.mutant = mutant;
    }

    /// Has the daemon killed at the step of this number, counted from its start; it must be of [`build_mutants`].
    pub(crate) fn kill_at(&mut self, step: Option<u64>) {
        self.kill_at = step;
    }

    /// Where the state folder is, if not below the site's own.
    pub(crate) fn keep_state_in(&mut self, folder: PathBuf) {
        self.state = Some(folder);
    }

    /// A path below the site's folder on disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// The folder of the configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.path("conf.d")
    }

    /// The address of `/metrics`.
    pub(crate) fn http(&self) -> &str {
        &self.http
    }

    /// The socket of a volume's vhost-user export.
    pub(crate) fn socket(&self, volume: &str) -> PathBuf {
        self.runtime.path().join(format!("{volume}.sock"))
    }

    /// Puts a configuration file in place the way one should: written beside, then renamed.
    pub(crate) fn configure(&self, text: &str) -> Result<()> {
        let file = self.config().join("node.toml");
        let beside = self.config().join(".node.toml.new");
        fs::write(&beside, text)?;
        fs::rename(&beside, &file)?;
        Ok(())
    }

    /// `volund COMMAND ...` with this site's folders.
    pub(crate) fn volund(&self, args: &[&str]) -> Command {
        let mut command = shell::command(&self.binary);
        command.args(args).arg("--config").arg(self.config());
        command
            .arg("--runtime-dir")
            .arg(self.runtime.path())
            .args(["--node", "n1"]);
        command
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&self) -> Result<Daemon> {
        let daemon = self.spawn(&[])?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts the daemon, with further arguments, and does not wait.
    pub(crate) fn spawn(&self, more: &[&str]) -> Result<Daemon> {
        let log = self.path("daemon.log");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)?;
        let threads: &[&str] = if more.contains(&"--io-threads") {
            &[]
        } else {
            &["--io-threads", "1"]
        };
        let child = self
            .volund(&["run"])
            .arg("--state-dir")
            .arg(self.state.clone().unwrap_or_else(|| self.path("state")))
            .args(["--http", &self.http])
            .args(threads)
            .args(more)
            .envs(self.mutant.map(|mutant| ("VOLUND_MUTANT", mutant)))
            .envs(
                self.kill_at
                    .map(|step| ("VOLUND_KILL_AT", step.to_string())),
            )
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        Ok(Daemon {
            child,
            http: self.http.clone(),
            log,
        })
    }
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended, in whatever way.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn wait_ready(&self) -> Result<()> {
        self.wait("ready", Duration::from_secs(60), || {
            Ok(self.get("/readyz").is_ok())
        })
    }

    /// Waits until `is_so`; an error names `what` and shows the end of the log.
    pub(crate) fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut is_so: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            if is_so()? {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!(
                    "the daemon is not {what} after {} s\n{}",
                    limit.as_secs(),
                    self.log_tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the status is as `is_so` wants it; an error shows the status.
    pub(crate) fn wait_status(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let waited = self.wait(what, Duration::from_secs(30), || {
            // Not answering yet is one way of not being so yet.
            last = self
                .status()
                .unwrap_or_else(|error| Value::String(format!("{error:#}")));
            Ok(is_so(&last))
        });
        waited.with_context(|| format!("{last:#}"))?;
        Ok(last)
    }

    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.get("/v1/status")?)?)
    }

    /// The value of one series of `/metrics`, as written there.
    pub(crate) fn metric(&self, series: &str) -> Result<Option<f64>> {
        let text = self.get("/metrics")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?)
    }

    /// The body of an HTTP page; anything but 200 is an error.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        get(&self.http, path)
    }

    /// SIGTERM; the daemon must end by itself, and well.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.terminate(Duration::from_secs(30))?;
        ensure!(
            status.success(),
            "the daemon stopped with {status}\n{}",
            self.log_tail()
        );
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        shell::signal("TERM", self.pid())?;
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!(
                    "the daemon does not stop within {} s\n{}",
                    limit.as_secs(),
                    self.log_tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = end_of(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("--- the daemon's log, last lines ---\n{tail}\n---")
    }
}

/// The body of a page of the daemon at this address; anything but 200 is an error.
pub(crate) fn get(http: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(http)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no body")?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{path}: {}\n{body}",
        head.lines().next().unwrap_or("")
    );
    ensure!(
        !head.to_ascii_lowercase().contains("transfer-encoding"),
        "chunks are not read here"
    );
    Ok(body.to_owned())
}

/// What a file ends with: enough for a few lines.
fn end_of(path: &Path) -> Result<String> {
    const ENOUGH: u64 = 64 << 10;
    let mut file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(ENOUGH)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _it_may_end_meanwhile = self.terminate(Duration::from_secs(5));
            let _or_now = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// The status of one volume, by name; `Null` when there is none.
pub(crate) fn volume<'a>(status: &'a Value, name: &str) -> &'a Value {
    let volumes = status["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    volumes
        .iter()
        .find(|volume| volume["name"] == name)
        .unwrap_or(&Value::Null)
}

/// Whether the volume's condition of this type is true.
pub(crate) fn is_true(volume: &Value, condition: &str) -> bool {
    let conditions = volume["conditions"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    conditions
        .iter()
        .any(|one| one["type"] == condition && one["status"] == "True")
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
