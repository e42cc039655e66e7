//! Who is at the other end of the admin socket, and whether they may change anything.
//!
//! The socket's mode decides who can connect at all: its owner and its group, unless an administrator opens it further.
//! Root, the daemon's own user and the socket's group may change things then; everybody else may read.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::Api;
use super::problem::{Code, Problem};

/// A process that has connected (`SO_PEERCRED` in unix(7)); none where the kernel does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(Option<Credentials>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    gid: u32,
    /// None when the process is of a namespace that the daemon does not see into.
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self(credentials.map(|credentials| Credentials {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid().filter(|pid| *pid > 0),
        }))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unknown"),
            Some(Credentials { uid, pid: None, .. }) => write!(f, "uid {uid}"),
            Some(Credentials {
                uid,
                pid: Some(pid),
                ..
            }) => write!(f, "uid {uid}, pid {pid}"),
        }
    }
}

/// Who may change things.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// The daemon's own user.
    daemon: u32,
    /// The socket's group.
    group: u32,
    /// Whether others than its owner and its group can connect.
    is_open: bool,
}

impl Rules {
    fn of(socket: &Path) -> std::io::Result<Self> {
        let metadata = fs::metadata(socket)?;
        Ok(Self {
            daemon: rustix::process::geteuid().as_raw(),
            group: metadata.gid(),
            is_open: metadata.mode() & 0o002 != 0,
        })
    }

    /// `groups` are those of the peer beside its main one; none when they can't be known. Then the socket's mode has
    /// the say: a socket that is closed to others lets in only those who may.
    fn allow(&self, peer: Credentials, groups: Option<&[u32]>) -> bool {
        let is_member = peer.gid == self.group
            || groups.map_or(!self.is_open, |groups| groups.contains(&self.group));
        peer.uid == 0 || peer.uid == self.daemon || is_member
    }
}

/// The groups of a process beside its main one. Only if it is still one of the same user: its number may have been
/// given to another meanwhile.
fn groups(peer: Credentials) -> Option<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid?)).ok()?;
    parse_groups(&status, peer.uid)
}

/// From proc(5) status: `Uid:` has the effective one second, `Groups:` all others.
fn parse_groups(status: &str, uid: u32) -> Option<Vec<u32>> {
    let field = |name: &str| {
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix(name))?;
        let numbers = line.split_whitespace().map(str::parse);
        numbers.collect::<Result<Vec<u32>, _>>().ok()
    };
    let effective = field("Uid:")?.get(1).copied();
    if effective == Some(uid) {
        field("Groups:")
    } else {
        None
    }
}

/// Lets a request through that may change something, if who asks may.
pub(super) async fn check(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let rules = Rules::of(&api.admin_socket).map_err(|error| {
        let message = format!("the admin socket can't be looked at: {error}");
        Problem::new(Code::Failed, message)
    })?;
    let allowed = peer
        .0
        .is_some_and(|peer| rules.allow(peer, groups(peer).as_deref()));
    if allowed {
        return Ok(next.run(request).await);
    }
    tracing::warn!(%peer, method = %request.method(), path = request.uri().path(), "refused");
    let message = format!("{peer} may read here and may not change anything");
    let help = format!(
        "ask as root, as the daemon's user or as a member of group {}, the group of \"{}\"",
        rules.group,
        api.admin_socket.display()
    );
    Err(Problem::new(Code::Forbidden, message).help(help))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: u32 = 500;

    fn allows(uid: u32, gid: u32, groups: Option<&[u32]>, is_open: bool) -> bool {
        let rules = Rules {
            daemon: 77,
            group: GROUP,
            is_open,
        };
        let peer = Credentials {
            uid,
            gid,
            pid: None,
        };
        rules.allow(peer, groups)
    }

    #[test]
    fn root_the_daemon_and_the_sockets_group_may_change_things() {
        for is_open in [false, true] {
            assert!(allows(0, 1, Some(&[]), is_open), "root");
            assert!(allows(77, 1, Some(&[]), is_open), "the daemon's user");
            assert!(allows(1000, GROUP, None, is_open), "main group");
            assert!(allows(1000, 1, Some(&[4, GROUP]), is_open), "other group");
            assert!(!allows(1000, 1, Some(&[4]), is_open), "anybody else");
        }
        assert!(allows(1000, 1, None, false), "the kernel has let them in");
        assert!(!allows(1000, 1, None, true), "the kernel lets everybody in");
    }

    #[test]
    fn groups_are_those_of_the_same_user_only() {
        let status = "Name:\tx\nUid:\t1000\t1001\t1000\t1000\nGid:\t1\t1\t1\t1\nGroups:\t4 500 \n";
        assert_eq!(parse_groups(status, 1001), Some(vec![4, 500]));
        assert_eq!(parse_groups(status, 1000), None);
        assert_eq!(parse_groups("", 1000), None);
        let own = Credentials {
            uid: rustix::process::geteuid().as_raw(),
            gid: 0,
            pid: Some(rustix::process::getpid().as_raw_nonzero().get()),
        };
        assert!(groups(own).is_some());
    }
}
