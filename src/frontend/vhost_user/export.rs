//! An export: the listening socket, its one client at a time, and the client's protocol thread.
//!
//! The listener is a task of the control thread. A client that connects gets a session on the volume's reactor and a
//! thread for its messages; both end with the connection, and the export is free again once the session is drained.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::Device;
use super::handler::{Handler, SURVIVED};
use super::session::{self, Letter, SessionOptions};
use super::socket::{Socket, SocketError};
use super::status::{Connection, ExportStatus, Shared};
use crate::io::BlockDevice;
use crate::io::reactor::{Local, ReactorHandle};
use crate::model::VolumeName;
use crate::volume::{Geometry, Volume};

/// How long a new client waits for the answers of one that has gone.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the listener rests when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How a volume is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportConfig {
    /// Absolute path of the socket.
    pub socket: PathBuf,
    /// Number of virtqueues offered, at least 1. A guest needs as many as it has CPUs.
    pub queues: u16,
    /// The most requests of a virtqueue that are served at a time, at least 1; more wait in the ring, whose
    /// size the guest chooses.
    pub depth: u16,
    /// Whether the guest's memory is pinned, for cheaper requests.
    pub pin_guest_memory: bool,
}

/// A volume that lives on a reactor, seen from elsewhere: where it is and how it is found there.
#[derive(Clone)]
pub struct VolumeOnReactor {
    name: VolumeName,
    reactor: ReactorHandle,
    attach: Arc<Attach>,
}

/// Starts a session on the reactor's thread.
type Attach = dyn Fn(Local, Arrival) -> Option<Pin<Box<dyn Future<Output = ()>>>> + Send + Sync;

/// What a session needs from a client.
struct Arrival {
    connection: Arc<Connection>,
    options: SessionOptions,
    letters: mpsc::UnboundedReceiver<Letter>,
    /// Told what the volume looks like.
    geometry: SyncSender<Geometry>,
    /// Frees the export when the session ends, however it does.
    occupied: Occupied,
}

impl VolumeOnReactor {
    /// Names a volume that `find` gets hold of on the reactor's thread; `None` when it is not there (any more).
    pub fn new<D, F>(name: VolumeName, reactor: ReactorHandle, find: F) -> Self
    where
        D: BlockDevice,
        F: Fn(&Local) -> Option<Rc<Volume<D, Local>>> + Send + Sync + 'static,
    {
        let attach = move |local: Local, arrival: Arrival| {
            let volume = find(&local)?;
            let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                // Taken apart by name: what the block does not mention, it would not keep.
                let Arrival {
                    connection,
                    options,
                    letters,
                    geometry,
                    occupied,
                } = arrival;
                let _ = geometry.send(volume.geometry());
                session::serve(local, volume, connection, options, letters).await;
                drop(occupied);
            });
            Some(task)
        };
        Self {
            name,
            reactor,
            attach: Arc::new(attach),
        }
    }
}

impl fmt::Debug for VolumeOnReactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeOnReactor({}, {:?})", self.name, self.reactor)
    }
}

/// A volume that is exported. Dropping it withdraws the export without waiting for the client's last requests.
#[derive(Debug)]
pub struct VhostUserExport {
    desk: Arc<Desk>,
    listener: JoinHandle<()>,
    socket: Socket,
}

impl VhostUserExport {
    /// Listens on the socket. To be called inside a tokio runtime, which the listener runs on.
    ///
    /// # Errors
    /// [`SocketError`]: the path is in use, too long, something else, or not accessible.
    pub fn start(config: &ExportConfig, volume: VolumeOnReactor) -> Result<Self, SocketError> {
        let (socket, listener) = Socket::bind(&config.socket)?;
        let listener = UnixListener::from_std(listener).map_err(|source| SocketError::Io {
            what: "watch",
            path: config.socket.clone(),
            source,
        })?;
        let desk = Desk::new(config, volume);
        let task = Arc::clone(&desk).accept(listener);
        Ok(Self {
            desk,
            listener: tokio::spawn(task),
            socket,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> ExportStatus {
        self.desk.shared.read()
    }

    /// Whether no client is there, as it changes. Ends with the export.
    #[must_use]
    pub fn vacancy(&self) -> watch::Receiver<bool> {
        self.desk.vacant.subscribe()
    }

    /// Shows that the volume has grown to `bytes` to whoever reads the configuration space from now on.
    pub fn resize(&self, bytes: u64) {
        self.desk.shared.on_resize(bytes);
    }

    /// Withdraws the export: no more clients, the present one is disconnected, its requests are waited for (which
    /// takes as long as the disk does), the socket is removed.
    pub async fn stop(mut self) {
        self.listener.abort();
        // Wait, so that a client being admitted right now is either served or not.
        let _ = (&mut self.listener).await;
        self.desk.disconnect();
        self.desk.vacated().await;
    }
}

impl Drop for VhostUserExport {
    fn drop(&mut self) {
        self.listener.abort();
        self.desk.disconnect();
    }
}

/// Admits one client at a time.
#[derive(Debug)]
pub(super) struct Desk {
    volume: VolumeOnReactor,
    options: SessionOptions,
    shared: Arc<Shared>,
    client: Mutex<Option<Arc<UnixStream>>>,
    vacant: watch::Sender<bool>,
}

/// Held by whatever still works for the client that is there.
struct Occupied {
    desk: Arc<Desk>,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        *self.desk.client() = None;
        self.desk.shared.on_vacated();
        self.desk.vacant.send_replace(true);
    }
}

impl Desk {
    pub(super) fn new(config: &ExportConfig, volume: VolumeOnReactor) -> Arc<Self> {
        let shared = Shared::new(volume.name.to_string(), config.queues);
        Arc::new(Self {
            volume,
            options: SessionOptions {
                queues: config.queues,
                depth: config.depth,
                pin: config.pin_guest_memory,
            },
            shared: Arc::new(shared),
            client: Mutex::default(),
            vacant: watch::Sender::new(true),
        })
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream).await,
                Err(error) => {
                    self.shared
                        .on_error(format!("can't accept clients: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn admit(self: &Arc<Self>, stream: tokio::net::UnixStream) {
        if !*self.vacant.borrow() && !self.hand_over().await {
            self.shared.on_refused();
            return;
        }
        let served = stream.into_std().and_then(|stream| {
            stream.set_nonblocking(false)?;
            self.serve(stream)
        });
        if let Err(error) = served {
            self.shared
                .on_error(format!("can't serve a client: {error}"));
        }
    }

    /// If the client before has gone and only its requests are still there, waits for them a while. Returns whether the
    /// place is free.
    async fn hand_over(&self) -> bool {
        let before = self.client().clone();
        if before.is_some_and(|stream| !has_gone(&stream)) {
            return false;
        }
        tokio::time::timeout(HANDOVER_TIMEOUT, self.vacated())
            .await
            .is_ok()
    }

    /// Completes when no client is there and none of its requests is.
    pub(super) async fn vacated(&self) {
        // The sender is ours, so it is there.
        let _ = self.vacant.subscribe().wait_for(|vacant| *vacant).await;
    }

    /// Ends the present client's connection, if there is one.
    fn disconnect(&self) {
        if let Some(stream) = &*self.client() {
            // Fails only if the client has gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Serves a client on a thread of its own, the place being free.
    ///
    /// # Errors
    /// When there is no file descriptor or no thread left. The client is disconnected then.
    fn serve(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let client = self.admit_now(stream)?;
        // Linux cuts a thread's name after 15 bytes.
        std::thread::Builder::new()
            .name(format!("vu-{}", self.volume.name))
            .spawn(move || client.serve())?;
        Ok(())
    }

    /// Gives a client the place, which is free, and a session on the reactor.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub(super) fn admit_now(self: &Arc<Self>, stream: UnixStream) -> io::Result<Client> {
        let connection = Connection::new(Arc::clone(&self.shared), stream.try_clone()?);
        *self.client() = Some(Arc::new(stream.try_clone()?));
        self.vacant.send_replace(false);
        self.shared.on_connect();
        let occupied = Occupied {
            desk: Arc::clone(self),
        };
        let (letters, mailbox) = mpsc::unbounded_channel();
        let (geometry, seen) = sync_channel(1);
        let arrival = Arrival {
            connection: Arc::new(connection),
            options: self.options,
            letters: mailbox,
            geometry,
            occupied,
        };
        let attach = Arc::clone(&self.volume.attach);
        // The answer is nothing to wait for: the arrival says it all by being dropped.
        drop(self.volume.reactor.run(move |local| async move {
            if let Some(session) = attach(local, arrival) {
                session.await;
            }
        }));
        Ok(Client {
            desk: Arc::clone(self),
            stream,
            geometry: seen,
            letters,
        })
    }
}

/// A client that has a session, as its protocol thread sees it.
pub(super) struct Client {
    desk: Arc<Desk>,
    stream: UnixStream,
    geometry: Receiver<Geometry>,
    letters: mpsc::UnboundedSender<Letter>,
}

impl Client {
    /// One message after the other, until the client goes or makes no sense.
    pub(super) fn serve(self) {
        let shared = Arc::clone(&self.desk.shared);
        let ending = self.stream.try_clone();
        self.speak(&shared);
        // The session keeps the socket open while it drains, but the client is to know now.
        if let Ok(stream) = ending {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn speak(self, shared: &Arc<Shared>) {
        let Ok(geometry) = self.geometry.recv_timeout(HANDOVER_TIMEOUT) else {
            return shared.on_error("the volume is not being served".to_owned());
        };
        let device = Device {
            geometry,
            queues: self.desk.options.queues,
            pin_guest_memory: self.desk.options.pin,
        };
        let handler = Handler::new(device, Arc::clone(shared), self.letters);
        let handler = Arc::new(Mutex::new(handler));
        // The session ends when the handler is dropped, so what went wrong is noted before.
        let mut requests = BackendReqHandler::from_stream(self.stream, handler);
        loop {
            match requests.handle_request() {
                Ok(()) | Err(Error::SocketRetry(_)) => {}
                // Also what our own disconnecting looks like.
                Err(Error::Disconnected | Error::SocketBroken(_)) => return,
                Err(Error::ReqHandlerError(error)) => {
                    shared.on_error(error.to_string());
                    if error.kind() != SURVIVED {
                        return;
                    }
                }
                Err(error) => return shared.on_error(format!("vhost-user protocol: {error}")),
            }
        }
    }
}

/// Whether the other end of a connection has been closed, or ours has been shut down.
fn has_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok()
        && fds[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::RDHUP)
}
