//! HTTP: what anyone on this machine may read (a loopback TCP port), and what administrators may do (a unix socket).
//!
//! Everything is answered from the reconciler's last snapshot and from counters; nothing here waits for a pool but
//! the commands, which the reconciler runs beside its loop. Must never change anything by itself. Start with [`Api`].

mod admin;
mod declared;
mod events;
mod fsck;
mod operations;
mod page;
mod peer;
pub mod problem;
mod read;
mod routes;
pub mod token;
mod volumes;

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};

pub use admin::{
    ApproveRequest, InjectRequest, OrphanRequest, PlanRequest, PurgeRequest, RestoreRequest,
    Validation,
};
pub use events::Streams;
pub use fsck::site_of;
pub use problem::Problem;
pub use token::Token;
pub use volumes::{Device, ScrubBody, Scrubs};

use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::model::NodeName;
use crate::model::time::Times;
use crate::reconcile::Handle;

/// What the handlers need; clones share it.
#[derive(Clone, Debug)]
pub struct Api {
    /// The reconciler.
    pub reconcile: Handle,
    /// The registry.
    pub metrics: Metrics,
    /// This node.
    pub node: NodeName,
    /// Where the files are, for a plan against what is on disk.
    pub config: PathBuf,
    /// Told to read the files again and to try everything at once.
    pub reload: Arc<Notify>,
    /// For what a page says of time.
    pub times: Times,
    /// For questions about single volumes; none when there are no volumes to ask about.
    pub engine: Option<Engine>,
    /// Where the admin socket is: its group and mode say who may change things.
    pub admin_socket: PathBuf,
    /// What requests on the TCP port have to bring; none when they need nothing.
    pub token: Option<Arc<Token>>,
    /// Scrubs that were asked for.
    pub scrubs: Scrubs,
    /// Room for those who follow the events.
    pub streams: Streams,
}

/// Why a listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The TCP port.
    #[error(
        "can't serve HTTP on {address}: {source}; is another daemon running there? --http takes another address"
    )]
    Tcp {
        /// The address that was asked for.
        address: SocketAddr,
        /// What `bind` said.
        source: io::Error,
    },
    /// The unix socket's path is longer than the kernel allows.
    #[error(
        "can't listen on \"{}\": a socket's path has at most 107 bytes, this one has {len}; --runtime-dir takes a \
         shorter folder",
        path.display()
    )]
    PathTooLong {
        /// The socket.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Someone answers on the unix socket.
    #[error("another daemon answers on \"{}\": stop it, or give this one a --runtime-dir of its own", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Anything else about the unix socket.
    #[error("can't listen on \"{}\": {source}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Longest path of a unix socket: `sun_path` in unix(7), less its end.
const SOCKET_PATH_MAX: usize = 107;

/// Takes the TCP port. `has_token`: who asks there has to bring a token.
///
/// # Errors
/// [`ListenError::Tcp`].
pub async fn listen_tcp(address: SocketAddr, has_token: bool) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() && !has_token {
        tracing::warn!(
            %address,
            "the status port is not on the loopback interface and asks nobody who they are: --http-token-file makes it"
        );
    }
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Tcp { address, source })
}

/// Takes the admin socket's place, mode 0660. A socket that nobody answers on any more is replaced.
///
/// # Errors
/// [`ListenError`] but for `Tcp`.
pub fn listen_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(ListenError::PathTooLong {
            path: path.to_owned(),
            len,
        });
    }
    let failed = |source| ListenError::Unix {
        path: path.to_owned(),
        source,
    };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(ListenError::InUse {
                path: path.to_owned(),
            });
        }
        // What a daemon that was killed leaves behind. Anything that is not a socket stays, and bind fails.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Serves both until `stop` becomes true. Open connections may finish their request.
pub fn serve(api: &Api, tcp: TcpListener, unix: UnixListener, stop: &watch::Receiver<bool>) {
    let ended = |mut stop: watch::Receiver<bool>| async move {
        // A sender that is gone means the same.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let read =
        axum::serve(tcp, routes::tcp(api.clone())).with_graceful_shutdown(ended(stop.clone()));
    let admin = routes::admin(api.clone()).into_make_service_with_connect_info::<peer::Peer>();
    let admin = axum::serve(unix, admin).with_graceful_shutdown(ended(stop.clone()));
    tokio::spawn(async move { report("status port", read.await) });
    tokio::spawn(async move { report("admin socket", admin.await) });
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "the {what} is no longer served");
    }
}

#[cfg(test)]
mod tests;
