//! The daemon's API and its journal, over real sockets and restarts.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use volund::http::Device;
use volund::model::journal::{Cause, EventRecord, Operation, OperationState};

use super::daemon_rig::Node;

const POOL: &str = "version = 1\n[pool.main]\npath = \"POOL/main\"\n";
const DB: &str = "[volume.db]\nsize = \"16MiB\"\npool = \"main\"\nexport = { vhost-user = {} }\n";
const WEB: &str = "[volume.web]\nsize = \"8MiB\"\npool = \"main\"\n";
/// More than the pool has.
const HUGE: &str = "[volume.huge]\nsize = \"16TiB\"\npool = \"main\"\nthin = false\n";

fn started(text: &str) -> Node {
    let mut node = Node::new();
    node.configure(text);
    node.start();
    node
}

fn operations(node: &Node) -> Vec<Operation> {
    serde_json::from_str(&node.get("/v1/operations").unwrap()).unwrap()
}

/// The newest operation of this kind.
fn newest(node: &Node, object: &str, action: &str) -> Option<Operation> {
    let mut operations = operations(node).into_iter().rev();
    operations.find(|op| op.object == object && op.action == action)
}

/// What a request on the admin socket is answered: status and body.
fn ask(node: &Node, method: &str, path: &str, body: &str) -> (u16, String) {
    let stream = UnixStream::connect(node.path("run/admin.sock")).unwrap();
    exchange(stream, method, path, &[], body)
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> (u16, String) {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[test]
fn operations_tell_their_cause_and_revision_and_survive_restarts() {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let mut node = Node::new();
    fs::create_dir(node.path(".git")).unwrap();
    fs::write(node.path(".git/HEAD"), COMMIT).unwrap();
    node.configure(&format!("{POOL}{DB}"));
    node.start();
    node.until_attached("db");
    let create = newest(&node, "volume.db", "Create").unwrap();
    assert_eq!(create.state, OperationState::Completed, "{create:?}");
    assert_eq!((create.cause, create.attempts), (Cause::Start, 1));
    assert!(create.duration_ms.is_some() && create.errors.is_empty());
    assert!(newest(&node, "pool.main", "Open").is_some());

    node.configure(&format!("{POOL}{DB}{WEB}"));
    node.until("web is there", |node| {
        newest(node, "volume.web", "Create").is_some_and(|op| op.state.has_ended())
    });
    let create = newest(&node, "volume.web", "Create").unwrap();
    assert_eq!(create.cause, Cause::Configuration);
    let revision = create.revision.clone().unwrap();
    let status = node.status().unwrap();
    assert_eq!(revision.hash, status.config_hash);
    assert_eq!(revision.generation, Some(2));
    assert_eq!(revision.commit.as_deref(), Some(COMMIT));
    let shown = node.said(&["operations", &create.id.to_string()]);
    assert!(shown.contains(&format!("commit {COMMIT}")), "{shown}");
    let info = format!(
        "volund_config_info{{revision=\"applied\",sha256=\"{}\",commit=\"{COMMIT}\"}}",
        status.config_hash
    );
    assert_eq!(node.metric(&info), Some(1.0));

    // The edit is committed, or a commit changes other files.
    let next = COMMIT.replace('0', "f");
    fs::write(node.path(".git/HEAD"), &next).unwrap();
    node.hang_up();
    node.until("the commit is followed", |node| {
        let revisions = node.status().unwrap().revisions;
        let commits = [revisions.applied, revisions.last_good];
        let mut commits = commits.into_iter().map(|revision| revision?.commit);
        commits.all(|commit| commit.as_deref() == Some(next.as_str()))
    });
    assert_eq!(node.status().unwrap().generation, 2);
    assert_eq!(newest(&node, "volume.web", "Create").unwrap(), create);

    node.stop();
    node.start();
    node.until_attached("db");
    let list = node.said(&["operations"]);
    assert!(list.contains("volume.web"), "{list}");
    let again = newest(&node, "volume.web", "Create").unwrap();
    assert_eq!(again, create);
    let assemble = newest(&node, "volume.db", "Assemble").unwrap();
    assert!(assemble.id > create.id, "{assemble:?}");
    node.kill();
    node.start();
    assert_eq!(newest(&node, "volume.web", "Create").unwrap(), create);
}

#[test]
fn drift_tells_what_differs_since_when_and_why_and_goes() {
    let mut node = started(&format!("{POOL}{HUGE}"));
    let drift = |node: &Node, object: &str| {
        let drift = node.status()?.drift.into_iter();
        drift.into_iter().find(|drift| drift.object == object)
    };
    node.until("huge has no space", |node| {
        drift(node, "volume.huge").is_some_and(|drift| drift.reason == "NoSpace")
    });
    let first = drift(&node, "volume.huge").unwrap();
    assert!(first.message.contains("16TiB"), "{first:?}");
    let series = "volund_drift{object=\"volume.huge\",reason=\"NoSpace\"}";
    assert_eq!(node.metric(series), Some(1.0));
    let since = "volund_drift_since_timestamp_seconds{object=\"volume.huge\"}";
    assert!(node.metric(since).unwrap() > 1.7e9);
    assert!(node.status().unwrap().revisions.last_good.is_none());
    let failed = newest(&node, "volume.huge", "Create").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("NoSpace"), "{failed:?}");
    assert!(!failed.errors.is_empty());
    node.until("the same operation is tried again", |node| {
        newest(node, "volume.huge", "Create")
            .is_some_and(|op| op.id == failed.id && op.attempts > 1)
    });
    let waited = node.volund(&["wait", "huge", "--for", "InPlace", "--timeout", "100ms"]);
    assert_eq!(waited.status.code(), Some(4));
    let said = String::from_utf8(waited.stdout).unwrap();
    assert!(said.contains("NoSpace"), "{said}");

    node.stop();
    node.start();
    node.until("known since before the restart", |node| {
        drift(node, "volume.huge").is_some_and(|drift| drift.since == first.since)
    });
    node.configure(POOL);
    node.said(&["wait", "huge", "--for", "Removed"]);
    node.until("nothing differs", |node| {
        node.status().is_some_and(|status| status.drift.is_empty())
    });
    assert_eq!(node.metric(series), None);
    let good = node.status().unwrap();
    assert_eq!(good.revisions.last_good, good.revisions.applied);

    node.configure("version = 1\n[pool.main]\nnonsense = 1\n");
    node.until("refused", |node| drift(node, "config").is_some());
    let refused = node.status().unwrap().revisions;
    assert_eq!(refused.applied, good.revisions.applied);
    assert_eq!(refused.last_good, good.revisions.last_good);
    let pending = refused.pending.unwrap();
    assert_ne!(pending.hash, good.config_hash);
    let info = format!(
        "volund_config_info{{revision=\"pending\",sha256=\"{}\",commit=\"\"}}",
        pending.hash
    );
    assert_eq!(node.metric(&info), Some(1.0));
    node.configure(POOL);
    node.until("taken back", |node| {
        node.status()
            .is_some_and(|status| status.revisions.pending.is_none())
    });
}

#[test]
fn events_are_followed_over_a_restart_and_none_is_told_twice() {
    let mut node = started(&format!("{POOL}{DB}"));
    node.until_attached("db");
    let mut follower = Command::new(env!("CARGO_BIN_EXE_volund"))
        .args(["events", "--follow", "--output", "json", "--runtime-dir"])
        .arg(node.path("run"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut numbers = Vec::new();
    let mut until = |object: &str, reason: &str| {
        for line in lines.by_ref() {
            let event: EventRecord = serde_json::from_str(&line.unwrap()).unwrap();
            numbers.push(event.number);
            if event.object == object && event.reason == reason {
                return;
            }
        }
        panic!("the stream has ended before {object} {reason}");
    };
    until("volume.db", "Attached");
    node.stop();
    node.start();
    node.configure(&format!("{POOL}{DB}{WEB}"));
    until("volume.web", "Available");
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(
        numbers.windows(2).all(|pair| pair[0] < pair[1]),
        "{numbers:?}"
    );
    let kept = node.said(&["events", "web"]);
    assert!(
        kept.contains("volume.web") && !kept.contains("volume.db"),
        "{kept}"
    );
}

/// No status knows of an edit that was made a moment ago.
#[test]
fn who_waits_after_an_edit_waits_for_that_edit() {
    let node = started(&format!("{POOL}{DB}"));
    node.said(&["wait", "--all"]);
    node.configure(&format!("{POOL}{DB}{WEB}"));
    node.said(&["wait", "--all"]);
    assert_eq!(node.volume("web").unwrap().state, "Available");
    node.configure(&format!("{POOL}{}{WEB}", DB.replace("16MiB", "24MiB")));
    node.said(&["wait", "--all", "--for", "InPlace"]);
    assert_eq!(node.volume("db").unwrap().size_bytes, 24 << 20);
}

/// A daemon that hangs, and a socket that is closed to whoever asks.
#[test]
fn who_waits_is_told_in_time() {
    let node = Node::new();
    let socket = node.path("run/admin.sock");
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let waited = node.volund(&["wait", "--all", "--timeout", "200ms"]);
    assert_eq!(waited.status.code(), Some(4), "{waited:?}");
    let said = String::from_utf8(waited.stdout).unwrap();
    assert!(said.contains("did not answer"), "{said}");
}

#[test]
fn a_volumes_device_is_told_and_scrubs_are_joined() {
    let node = started(&format!("{POOL}{DB}{WEB}"));
    node.said(&["wait", "--all"]);
    let (status, body) = ask(&node, "GET", "/v1/volumes/db/device", "");
    assert_eq!(status, 200, "{body}");
    let device: Device = serde_json::from_str(&body).unwrap();
    assert_eq!(device.kind, "vhost-user");
    assert_eq!(device.path, node.path("run/db.sock").to_str().unwrap());
    assert_eq!(device.size_bytes, 16 << 20);
    let (status, body) = ask(&node, "GET", "/v1/volumes/web/device", "");
    assert_eq!(status, 409, "{body}");
    assert!(body.contains("\"code\":\"NotExported\""), "{body}");

    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (status, body) = ask(&node, "POST", "/v1/volumes/db/scrub", "");
                assert_eq!(status, 200, "{body}");
                assert!(body.contains("\"scrubbedBytes\":16777216"), "{body}");
            });
        }
    });
    let scrub = newest(&node, "volume.db", "Scrub").unwrap();
    assert_eq!(scrub.state, OperationState::Completed);
    assert_eq!(scrub.cause, Cause::Request);
    let (status, body) = ask(&node, "POST", "/v1/volumes/nobody/scrub", "");
    assert_eq!(status, 404, "{body}");
}

#[test]
fn commands_that_are_repeated_succeed_and_others_do_not() {
    let mut node = started(&format!("{POOL}{DB}"));
    node.until_attached("db");
    node.configure(POOL);
    node.said(&["wait", "db", "--for", "Removed"]);
    node.until("in quarantine", |node| {
        node.status()
            .is_some_and(|status| status.quarantine.len() == 1)
    });
    let id = node.status().unwrap().quarantine[0].id.clone();
    let purge = |node: &Node, id: &str| {
        let body = format!("{{\"id\":\"{id}\"}}");
        ask(node, "POST", "/v1/quarantine/purge", &body)
    };
    let (status, body) = purge(&node, "db@never");
    assert_eq!(status, 404, "{body}");
    assert!(body.contains("\"code\":\"NoSuchEntry\""), "{body}");
    assert_eq!(purge(&node, &id).0, 200);
    assert_eq!(purge(&node, &id).0, 200, "again");
    node.kill();
    node.start();
    assert_eq!(purge(&node, &id).0, 200, "after a restart");
    assert_eq!(purge(&node, "db@never").0, 404);
    assert_eq!(ask(&node, "POST", "/v1/reconcile", "").0, 200);
    assert_eq!(ask(&node, "POST", "/v1/reconcile", "").0, 200);
}

#[test]
fn the_port_wants_its_token_and_a_stranger_on_the_socket_changes_nothing() {
    let mut node = Node::new();
    node.configure(POOL);
    fs::write(node.path("token"), "0123456789abcdef\n").unwrap();
    node.extra = vec!["--http-token-file".into(), node.path("token").into()];
    node.start();
    let log = node.log();
    let (_, address) = log.split_once("address=").unwrap();
    let address = address.split_whitespace().next().unwrap();
    let get = |headers: &[&str]| {
        let stream = TcpStream::connect(address).unwrap();
        exchange(stream, "GET", "/v1/status", headers, "").0
    };
    assert_eq!(get(&[]), 401);
    assert_eq!(get(&["Authorization: Bearer 0123456789abcdef"]), 200);
    fs::write(node.path("token"), "fedcba9876543210\n").unwrap();
    node.hang_up();
    node.until("the new token counts", |_| {
        get(&["Authorization: Bearer fedcba9876543210"]) == 200
    });
    assert_eq!(get(&["Authorization: Bearer 0123456789abcdef"]), 401);

    if !rustix::process::geteuid().is_root() {
        // Nobody else can be played without root; the rules have a test of their own.
        return;
    }
    for (name, mode) in [("", 0o755), ("run", 0o755), ("run/admin.sock", 0o666)] {
        fs::set_permissions(node.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let copy = node.path("volund");
    fs::copy(env!("CARGO_BIN_EXE_volund"), &copy).unwrap();
    let stranger = |arguments: &[&str]| {
        let mut command = Command::new(&copy);
        command
            .args(arguments)
            .arg("--runtime-dir")
            .arg(node.path("run"));
        command.uid(65534).gid(65534).output().unwrap()
    };
    assert!(stranger(&["status"]).status.success());
    let refused = stranger(&["approve", "x"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("may not change anything"), "{error}");
    assert!(error.contains("help: ask as root"), "{error}");
    let (status, body) = ask(&node, "POST", "/v1/approve", "{\"id\":\"x\"}");
    assert_eq!(status, 404, "root may ask: {body}");
}
