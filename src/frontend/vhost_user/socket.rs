//! The listening socket of an export: made with the right mode, never in place of something that is not ours.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// What `sun_path` has room for.
const PATH_LEN_MAX: usize = 107;
const SOCKET_MODE: u32 = 0o660;
const FOLDER_MODE: u32 = 0o750;
const BACKLOG: i32 = 16;

/// Why a socket can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel has no room for the path.
    #[error(
        "socket path {path:?} has {len} bytes, at most {PATH_LEN_MAX} are possible: choose a shorter one"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length, bytes.
        len: usize,
    },
    /// Somebody listens there.
    #[error("socket path {0:?} is in use by another process")]
    InUse(PathBuf),
    /// Not ours to remove.
    #[error("socket path {0:?} exists and is not a socket: remove it or choose another path")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("can't {what} socket {path:?}")]
    Io {
        /// The step that failed.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A listening socket in the filesystem, removed when dropped (if it is still the one that was made).
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Listens on `path`, in place of a socket that nobody listens on any more. A missing folder is made, accessible to
    /// owner and group. The listener does not block.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub(super) fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let len = path.as_os_str().len();
        if len > PATH_LEN_MAX {
            let path = path.to_owned();
            return Err(SocketError::TooLong { path, len });
        }
        let failed = |what| {
            move |source: io::Error| SocketError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            let mut builder = std::fs::DirBuilder::new();
            let builder = builder.recursive(true).mode(FOLDER_MODE);
            builder
                .create(folder)
                .map_err(failed("make the folder of"))?;
        }
        remove_stale(path)?;
        let fd = listening(path).map_err(failed("bind"))?;
        let permissions = Permissions::from_mode(SOCKET_MODE);
        std::fs::set_permissions(path, permissions).map_err(failed("set the mode of"))?;
        let made = std::fs::symlink_metadata(path).map_err(failed("look at"))?;
        let socket = Self {
            path: path.to_owned(),
            identity: (made.dev(), made.ino()),
        };
        Ok((socket, UnixListener::from(fd)))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path);
        if now.is_ok_and(|now| (now.dev(), now.ino()) == self.identity) {
            // A socket that stays behind is stale, and is removed by the next one to bind here.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn open_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn listening(path: &Path) -> io::Result<OwnedFd> {
    let fd = open_socket()?;
    // The file gets the socket's mode less the umask, so that there is no moment at which others may connect.
    fchmod(&fd, Mode::from_raw_mode(SOCKET_MODE))?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// Removes what is at `path` if it is a socket that refuses connections.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |what| {
        move |source: io::Error| SocketError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let errno = |what| move |errno: Errno| failed(what)(errno.into());
    let probe = open_socket().map_err(errno("probe"))?;
    let address = SocketAddrUnix::new(path).map_err(errno("probe"))?;
    match connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed("remove stale")),
        Err(Errno::NOENT) => Ok(()),
        // EAGAIN: the backlog is full, so somebody listens, and so on: whatever it is, it is not dead.
        Ok(()) | Err(_) => Err(SocketError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/db.sock");
        std::fs::create_dir(folder.path().join("run")).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let first = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_a_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let refused = Socket::bind(&path).unwrap_err();
        assert!(matches!(refused, SocketError::NotASocket(_)));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_path_of_more_than_107_bytes_is_refused() {
        let refused = Socket::bind(Path::new(&format!("/tmp/{}", "x".repeat(103)))).unwrap_err();
        assert!(matches!(refused, SocketError::TooLong { len: 108, .. }));
    }

    #[test]
    fn the_socket_is_for_owner_and_group_as_is_a_folder_made_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/db.sock");
        let _socket = Socket::bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
    }

    #[test]
    fn a_socket_put_there_by_someone_else_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sock");
        let ours = Socket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }
}
