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

async fn served() -> Served {
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
    };
    let unix = folder.path().join("admin.sock");
    let tcp = listen_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
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
        let (address, request) = (self.tcp, format!("GET {path}"));
        let asking = move || ask(TcpStream::connect(address).unwrap(), &request, "");
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
    check("/v1/plan", "404", "error").await;
    check("/v1/events", "404", "error").await;
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
    let error = listen_tcp(served.tcp).await.unwrap_err().to_string();
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
