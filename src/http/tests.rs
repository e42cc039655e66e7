//! Both listeners, over real sockets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tokio::sync::{Notify, watch};

use super::*;
use crate::metrics::Reading;
use crate::metrics::reading::{ConfigReading, ReconcileReading};
use crate::model::observed::Observed;
use crate::model::time::Times;
use crate::reconcile::apply::{Failure, Job, Work};

struct Served {
    tcp: SocketAddr,
    unix: PathBuf,
    api: Api,
    _folder: tempfile::TempDir,
    _stop: watch::Sender<bool>,
}

const TOKEN: &str = "0123456789abcdef";

async fn served() -> Served {
    served_with(false).await
}

/// `token`: the TCP port wants [`TOKEN`].
async fn served_with(token: bool) -> Served {
    let work = Work {
        observe: Arc::new(|| -> Job<Observed> { Box::pin(async { Observed::default() }) }),
        execute: Arc::new(|_| -> Job<Result<(), Failure>> { Box::pin(async { Ok(()) }) }),
        changes: watch::channel(0).1,
    };
    let times = Times {
        monotonic: || tokio::time::Instant::now().into_std(),
        wall: || UNIX_EPOCH,
    };
    let node: NodeName = "n1".parse().unwrap();
    let handle = crate::reconcile::start(&node, work, times);
    let reading = handle.clone();
    let metrics = Metrics::new(move || Reading {
        status: reading.snapshot().status.clone(),
        volume_states: Vec::new(),
        volumes: Vec::new(),
        config: ConfigReading::default(),
        reconcile: ReconcileReading::default(),
        started_unix_seconds: 0,
    });
    let folder = tempfile::tempdir().unwrap();
    let api = Api {
        reconcile: handle,
        metrics,
        node,
        config: folder.path().join("volund.toml"),
        reload: Arc::new(Notify::new()),
        times,
        engine: None,
        admin_socket: folder.path().join("admin.sock"),
        token: token.then(|| {
            let path = folder.path().join("token");
            std::fs::write(&path, TOKEN).unwrap();
            Arc::new(Token::read(&path).unwrap())
        }),
        scrubs: Scrubs::default(),
        streams: Streams::default(),
    };
    let unix = api.admin_socket.clone();
    let tcp = listen_tcp("127.0.0.1:0".parse().unwrap(), token)
        .await
        .unwrap();
    let address = tcp.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    serve(&api, tcp, listen_unix(&unix).unwrap(), &stopped);
    Served {
        tcp: address,
        unix,
        api,
        _folder: folder,
        _stop: stop,
    }
}

/// One request on a connection of its own; the whole answer.
fn ask(mut stream: impl Read + Write, request: &str, body: &str) -> String {
    let text = format!(
        "{request} HTTP/1.1\r\nHost: volund\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

impl Served {
    async fn get(&self, path: &str) -> String {
        self.tcp(&format!("GET {path}"), "").await
    }

    async fn tcp(&self, request: &str, body: &str) -> String {
        let (address, request, body) = (self.tcp, request.to_owned(), body.to_owned());
        let asking = move || ask(TcpStream::connect(address).unwrap(), &request, &body);
        tokio::task::spawn_blocking(asking).await.unwrap()
    }

    async fn admin(&self, request: &str, body: &str) -> String {
        let (path, request, body) = (self.unix.clone(), request.to_owned(), body.to_owned());
        let asking = move || ask(UnixStream::connect(path).unwrap(), &request, &body);
        tokio::task::spawn_blocking(asking).await.unwrap()
    }
}

#[tokio::test]
async fn everyone_may_read_and_nobody_may_change_anything_over_tcp() {
    let served = served().await;
    let check = async |path: &str, expected: &str, contained: &str| {
        let answer = served.get(path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{path}: {answer}"
        );
        assert!(answer.contains(contained), "{path}: {answer}");
    };
    check("/healthz", "200", "ok").await;
    check("/readyz", "503", "first pass").await;
    check("/v1/status", "200", "\"node\":\"n1\"").await;
    check("/metrics", "200", "volund_build_info").await;
    check("/", "200", "<h1>volund <small>on n1").await;
    check("/", "200", "content-security-policy: default-src 'none'").await;
    check("/v1/events", "200", "[]").await;
    check("/v1/events?after=x", "400", "\"code\":\"BadRequest\"").await;
    check("/v1/operations", "200", "[]").await;
    check("/v1/operations/7", "404", "\"code\":\"NoSuchOperation\"").await;
    check("/v1/volumes/db", "404", "\"code\":\"NoSuchVolume\"").await;
    check("/v1/volumes/db/device", "404", "\"code\":\"NoSuchVolume\"").await;
    check("/v1/openapi.json", "200", "\"/v1/reconcile\"").await;
    check("/v1/reconcile", "404", "\"code\":\"NotFound\"").await;
    for command in [
        "reconcile",
        "approve",
        "quarantine/purge",
        "volumes/db/scrub",
    ] {
        let answer = served.tcp(&format!("POST /v1/{command}"), "").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    }
}

#[tokio::test]
async fn the_admin_socket_plans_files_and_shows_what_is_wrong_with_them() {
    let served = served().await;
    let files = |text: &str| {
        let files = vec![crate::config::SourceFile::new("volund.toml", text)];
        serde_json::to_string(&PlanRequest { files }).unwrap()
    };
    let good = "version = 1\n[pool.main]\nmemory = \"64MiB\"\n";
    let answer = served.admin("POST /v1/plan", &files(good)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"object\":\"pool.main\""), "{answer}");
    let bad = "version = 1\n[pool.main]\nmemory = 7\n";
    let answer = served.admin("POST /v1/plan", &files(bad)).await;
    assert!(answer.starts_with("HTTP/1.1 422"), "{answer}");
    assert!(answer.contains("volund.toml:3:10"), "{answer}");
    let answer = served.admin("POST /v1/plan", "{").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn commands_about_nothing_are_refused_with_a_reason() {
    let served = served().await;
    let answer = served.admin("POST /v1/approve", "{\"id\":\"x\"}").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let answer = served
        .admin("POST /v1/quarantine/purge", "{\"id\":\"db@1\"}")
        .await;
    assert!(answer.contains("volund quarantine list"), "{answer}");
    let reload = served.api.reload.clone();
    let answer = served.admin("POST /v1/reconcile", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    reload.notified().await;
}

#[tokio::test]
async fn a_taken_place_is_a_clear_error_and_a_dead_socket_is_replaced() {
    let served = served().await;
    let error = listen_tcp(served.tcp, false).await.unwrap_err().to_string();
    assert!(
        error.contains("is another daemon running there?"),
        "{error}"
    );
    let error = listen_unix(&served.unix).unwrap_err().to_string();
    assert!(error.contains("another daemon answers"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let dead = folder.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let listener = listen_unix(&dead).unwrap();
    let mode = std::fs::metadata(&dead).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(listener);

    let precious = folder.path().join("file");
    std::fs::write(&precious, "data").unwrap();
    assert!(listen_unix(&precious).is_err(), "a file is not replaced");
    let long = folder.path().join("x".repeat(120));
    let error = listen_unix(&long).unwrap_err().to_string();
    assert!(error.contains("at most 107 bytes"), "{error}");
}

#[tokio::test]
async fn what_is_declared_in_files_is_changed_there() {
    let served = served().await;
    let file = served.api.config.clone();
    std::fs::write(&file, "version = 1\n\n[volume.db]\nsize = \"1GiB\"\n").unwrap();
    let check = async |request: &str, help: &str| {
        for answer in [
            served.admin(request, "{}").await,
            served.tcp(request, "{}").await,
        ] {
            assert!(answer.starts_with("HTTP/1.1 405"), "{request}: {answer}");
            assert!(
                answer.contains("\"code\":\"DeclaredInFiles\""),
                "{request}: {answer}"
            );
            assert!(
                answer.to_lowercase().contains("allow: get,head"),
                "{request}: {answer}"
            );
            assert!(answer.contains(help), "{request}: {answer}");
        }
    };
    check("PUT /v1/volumes/db", "volund.toml:3").await;
    check("DELETE /v1/volumes/db", "edit [volume.db] at").await;
    check("PATCH /v1/pools/main", "add [pool.main] to").await;
    check("POST /v1/volumes", "[volume.NAME]").await;
    let answer = served.admin("DELETE /v1/status", "").await;
    assert!(answer.contains("\"code\":\"MethodNotAllowed\""), "{answer}");
}

#[tokio::test]
async fn a_posted_configuration_is_checked_as_json_and_as_toml() {
    let served = served().await;
    let good = "version = 1\n[pool.main]\nmemory = \"64MiB\"\n";
    let files = vec![crate::config::SourceFile::new("a.toml", good)];
    let files = serde_json::to_string(&PlanRequest { files }).unwrap();
    let check = |answer: &str, valid: bool, contained: &str| {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let found: Validation = serde_json::from_str(body).unwrap();
        assert_eq!(found.valid, valid, "{answer}");
        assert_eq!(found.errors > 0, !valid, "{answer}");
        assert!(found.report.contains(contained), "{answer}");
    };
    check(&served.admin("POST /v1/validate", &files).await, true, "");
    let toml = async |text: &str| {
        let request =
            "POST /v1/validate HTTP/1.1\r\nHost: volund\r\nContent-Type: application/toml\r\nX: y";
        served.admin(request, text).await
    };
    check(&toml(good).await, true, "");
    check(
        &toml("version = 1\n[pool.x]\nmemory = 7\n").await,
        false,
        "posted.toml:3:10",
    );
}

#[tokio::test]
async fn with_a_token_only_health_is_free() {
    let served = served_with(true).await;
    let with =
        |token: &str| format!("GET /v1/status HTTP/1.1\r\nAuthorization: Bearer {token}\r\nX: y");
    let answer = served.get("/v1/status").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("\"code\":\"Unauthorized\""), "{answer}");
    assert!(
        answer.to_lowercase().contains("www-authenticate: bearer"),
        "{answer}"
    );
    assert!(served.get("/nothing").await.starts_with("HTTP/1.1 401"));
    assert!(
        served
            .tcp(&with("wrong"), "")
            .await
            .starts_with("HTTP/1.1 401")
    );
    assert!(
        served
            .tcp(&with(TOKEN), "")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(served.get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(served.get("/readyz").await.starts_with("HTTP/1.1 503"));
    let answer = served.admin("GET /v1/status", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "the socket wants none: {answer}"
    );
}

#[tokio::test]
async fn events_are_followed_from_where_a_client_was() {
    let served = served().await;
    let events = served.api.reconcile.events().clone();
    let tell = |object: &str| events.push("t".into(), object.into(), "Test", "message");
    tell("volume.db");
    tell("pool.main");
    let (sender, receiver) = std::sync::mpsc::channel();
    let address = served.tcp;
    std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = "GET /v1/events?object=volume.db HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\
                       Last-Event-ID: 1\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(stream));
        for line in lines.map_while(Result::ok) {
            if line.starts_with("id: ") || line.starts_with("content-type") {
                sender.send(line).unwrap();
            }
        }
    });
    // The runtime has one thread, which must not be blocked.
    let wait = async || loop {
        match receiver.try_recv() {
            Ok(line) => return line,
            Err(std::sync::mpsc::TryRecvError::Empty) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(wait().await, "content-type: text/event-stream");
    tell("volume.db");
    assert_eq!(
        wait().await,
        "id: 3",
        "not what it has seen, and not other objects"
    );
    tell("pool.main");
    tell("volume.db");
    assert_eq!(wait().await, "id: 5");
}

#[tokio::test]
async fn commands_are_in_the_journal_with_who_asked() {
    let served = served().await;
    served.admin("POST /v1/approve", "{\"id\":\"x\"}").await;
    served.admin("POST /v1/reconcile", "").await;
    let operations = served.api.reconcile.operations().list();
    let shown = |index: usize| {
        let operation: &crate::model::journal::Operation = &operations[index];
        let by = operation.requested_by.clone().unwrap();
        assert!(by.starts_with("uid ") && by.contains(", pid "), "{by}");
        (
            operation.action.as_str(),
            operation.state.label(),
            operation.reason.as_deref(),
        )
    };
    assert_eq!(shown(0), ("Approve", "failed", Some("NotFound")));
    assert_eq!(shown(1), ("Reconcile", "completed", None));
    let answer = served.admin("GET /v1/operations?state=failed", "").await;
    assert!(
        answer.contains("Approve") && !answer.contains("Reconcile"),
        "{answer}"
    );
}
