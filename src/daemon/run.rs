//! The order of things: lock, listen, read the files, reactors, first pass, ready; and back.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch as channel};

use super::journal;
use super::logging::{self, LogFormat};
use super::reload::{Left, Refused, Reload};
use super::watch::{Rest, Told, Watch};
use super::wiring;
use crate::engine::{Engine, EngineConfig};
use crate::http::{self, Api, Token};
use crate::model::time::Times;
use crate::model::{NodeName, Polling};
use crate::reconcile::apply::Work;
use crate::reconcile::{self, Handle, Snapshot};
use crate::state::{StateDir, Store};

/// How long the first pass may take before systemd is told that the daemon is up all the same: one dead disk must not
/// make it restart the daemon for ever.
const FIRST_PASS_MAX: Duration = Duration::from_secs(45);
/// How long steps that are under way may take at the end.
const LAST_STEPS_MAX: Duration = Duration::from_secs(20);

/// What the daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration: a file or a directory.
    pub config: PathBuf,
    /// This node.
    pub node: NodeName,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
    /// The status port.
    pub http: SocketAddr,
    /// The file with the token that the status port wants; none when it wants none.
    pub http_token: Option<PathBuf>,
    /// Reactors.
    pub io_threads: usize,
    /// How long reactors look around before they sleep.
    pub poll: Polling,
    /// The log.
    pub log_format: LogFormat,
    /// The clocks.
    pub times: Times,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it can't start, or when a part that everything depends on has ended.
pub fn run(options: Options) -> Result<()> {
    logging::start(options.log_format, options.times)?;
    raise_file_limit();
    make_runtime_dir(&options.runtime_dir)?;
    let state = StateDir::open(&options.state_dir)?;
    let store = Store::open(&state.database())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the control thread can't be set up")?;
    runtime.block_on(async {
        // Taken first: a signal during the start must not kill half of a creation.
        let signals = Signals::new()?;
        let daemon = Daemon::start(options, state, store).await?;
        daemon.serve(signals).await
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let take = |kind| signal(kind).context("signals can't be taken");
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hang_up: take(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}

/// What a signal asks for.
enum Asked {
    Stop(&'static str),
    Reload,
}

struct Daemon {
    options: Options,
    store: Store,
    engine: Engine,
    handle: Handle,
    reload: Reload,
    /// Told by `POST /v1/reconcile` and SIGHUP.
    files: Arc<Notify>,
    /// Tells when the files may have changed.
    changes: mpsc::Receiver<Told>,
    /// Ends the listeners.
    stop: channel::Sender<bool>,
    /// What systemd shows.
    shown: String,
    token: Option<Arc<Token>>,
}

impl Daemon {
    async fn start(options: Options, state: StateDir, store: Store) -> Result<Self> {
        let token = options.http_token.as_deref().map(Token::read).transpose()?;
        let tcp = http::listen_tcp(options.http, token.is_some()).await?;
        let unix = http::listen_unix(&admin_socket(&options))?;
        let place = (options.config.clone(), options.node.clone());
        let (reload, config, wrong) = Reload::boot(place, store.clone(), options.times).await?;
        let files = Arc::new(Notify::new());
        let (watch, changes) = mpsc::channel(1);
        tokio::spawn(Watch::new(&options.config).run(watch));
        let engine_config = EngineConfig {
            runtime_dir: options.runtime_dir.clone(),
            io_threads: options.io_threads,
            poll: options.poll,
            fault_injection: config.desired.danger_zone.fault_injection,
        };
        let engine = Engine::start(engine_config, state, store.clone()).await?;
        let work = Work::of(&engine);
        let handle = reconcile::start(&options.node, work, options.times);
        tokio::spawn(journal::Keeper::start(&handle, &store).run());
        let mut daemon = Self {
            store,
            engine,
            handle,
            reload,
            files,
            changes,
            stop: channel::Sender::new(false),
            shown: String::new(),
            token: token.map(Arc::new),
            options,
        };
        daemon.listen(tcp, unix);
        match wrong {
            None => daemon.handle.apply(config),
            Some(Refused { report, revision }) => {
                daemon.handle.apply_last_good(config, report, revision);
            }
        }
        Ok(daemon)
    }

    fn listen(&mut self, tcp: TcpListener, unix: UnixListener) {
        let started = self.options.times.unix_seconds();
        let metrics = wiring::metrics(
            self.handle.clone(),
            self.engine.clone(),
            self.reload.reading(),
            started,
        );
        let api = Api {
            reconcile: self.handle.clone(),
            metrics,
            node: self.options.node.clone(),
            config: self.options.config.clone(),
            reload: self.files.clone(),
            times: self.options.times,
            engine: Some(self.engine.clone()),
            admin_socket: admin_socket(&self.options),
            token: self.token.clone(),
            scrubs: http::Scrubs::default(),
            streams: http::Streams::default(),
        };
        if let Ok(address) = tcp.local_addr() {
            tracing::info!(%address, node = %self.options.node, "listening");
        }
        http::serve(&api, tcp, unix, &self.stop.subscribe());
    }

    /// Until a signal says otherwise.
    async fn serve(mut self, mut signals: Signals) -> Result<()> {
        let mut snapshots = self.handle.snapshots();
        let mut ready = false;
        let first_pass = tokio::time::sleep(FIRST_PASS_MAX);
        tokio::pin!(first_pass);
        let result = loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop(signal) => {
                        tracing::info!(signal, "stopping");
                        break Ok(());
                    }
                    Asked::Reload => {
                        tracing::info!("SIGHUP: everything is tried again");
                        self.reload_token();
                        self.handle.kick();
                        self.files.notify_one();
                    }
                },
                () = self.files.notified() => {
                    if let Err(error) = self.look(Rest::Unsure).await {
                        break Err(error);
                    }
                }
                Some(told) = self.changes.recv() => {
                    if let Err(error) = self.look(told.rest()).await {
                        break Err(error);
                    }
                }
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        break Err(anyhow::anyhow!("the reconciler has ended unexpectedly"));
                    }
                    let snapshot = snapshots.borrow_and_update().clone();
                    self.notify(&snapshot);
                    if snapshot.settled && !ready {
                        ready = true;
                        announce();
                    }
                }
                () = &mut first_pass, if !ready => {
                    ready = true;
                    tracing::warn!("the first pass has not ended yet");
                    announce();
                }
            }
        };
        self.shutdown().await;
        result
    }

    /// Looks at the files, and sees to another look if this one was not enough.
    async fn look(&mut self, rest: Rest) -> Result<()> {
        if self.reload.reload(&self.handle, rest).await? == Left::Look {
            self.files.notify_one();
        }
        Ok(())
    }

    fn reload_token(&self) {
        if let Some(Err(error)) = self.token.as_ref().map(|token| token.reload()) {
            tracing::error!(%error, "the token stays as it was");
        }
    }

    /// Feeds the watchdog, and shows a line in `systemctl status`.
    fn notify(&mut self, snapshot: &Snapshot) {
        notify(&[NotifyState::Watchdog]);
        let status = &snapshot.status;
        let wrong = match (&status.config_error, snapshot.plan.blocked) {
            (Some(_), _) => ", configuration refused",
            (None, 0) => "",
            (None, _) => ", changes blocked",
        };
        let line = format!(
            "generation {}, {} pools, {} volumes{wrong}",
            status.generation,
            status.pools.len(),
            status.volumes.len()
        );
        if line != self.shown {
            notify(&[NotifyState::Status(&line)]);
            self.shown = line;
        }
    }

    /// No new steps, then exports, volumes and pools, then the listeners: they can tell until the end what goes on.
    async fn shutdown(self) {
        notify(&[NotifyState::Stopping]);
        if tokio::time::timeout(LAST_STEPS_MAX, self.handle.stop())
            .await
            .is_err()
        {
            tracing::warn!("a step is still under way and is left behind");
        }
        self.engine.shutdown().await;
        journal::flush(&self.handle, &self.store).await;
        self.stop.send_replace(true);
        let socket = admin_socket(&self.options);
        if let Err(error) = std::fs::remove_file(&socket) {
            tracing::debug!(%error, "the admin socket's file stays");
        }
        tracing::info!("stopped");
    }
}

fn admin_socket(options: &Options) -> PathBuf {
    options.runtime_dir.join("admin.sock")
}

/// Each volume takes a few descriptors, and the soft limit is 1024 almost everywhere for programs that use `select(2)`.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn announce() {
    tracing::info!("ready");
    notify(&[NotifyState::Ready]);
}

/// Tells systemd, if it is there.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// Sockets are in it, so it is not for everyone.
fn make_runtime_dir(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.with_context(|| format!("can't make the runtime folder \"{}\"", path.display()))?;
    if !path.is_dir() {
        bail!("the runtime folder \"{}\" is not a folder", path.display());
    }
    Ok(())
}
