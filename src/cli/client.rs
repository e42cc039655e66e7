//! Asks the daemon: HTTP/1.1 with JSON over its admin socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// How long the daemon may take to answer: longer than any of its own deadlines.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why the daemon gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or we may not ask.
    #[error(
        "can't reach the daemon at \"{}\": {source}; is it running, and may you use its socket (--socket, --runtime-dir)?",
        socket.display()
    )]
    Connect {
        /// The admin socket.
        socket: PathBuf,
        /// What `connect` said.
        source: std::io::Error,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("the daemon's answer broke off: {0}")]
    Http(#[from] hyper::Error),
    /// The daemon is there but silent.
    #[error("the daemon did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// What the daemon says.
        message: String,
    },
    /// The daemon's answer is not what this version expects.
    #[error("the daemon's answer can't be read: {0}; is it of another version?")]
    Body(#[from] serde_json::Error),
    /// No runtime for the client.
    #[error("can't start the client: {0}")]
    Runtime(std::io::Error),
}

/// A way to ask the daemon; each question is a connection of its own.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        Ok(Self {
            socket: socket.to_owned(),
            runtime,
        })
    }

    /// GETs `path`.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.ask(Method::GET, path, Vec::new())?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// POSTs `question` to `path`.
    pub(super) fn post<Q: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<T, ClientError> {
        let answer = self.ask(Method::POST, path, serde_json::to_vec(question)?)?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// As [`Client::post`], for what may take hours.
    pub(super) fn post_patiently<Q: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(question)?;
        let answer = exchange(&self.socket, Method::POST, path, body);
        Ok(serde_json::from_slice(&self.runtime.block_on(answer)?)?)
    }

    /// Waits between two questions.
    pub(super) fn wait(&self, duration: Duration) {
        self.runtime
            .block_on(async { tokio::time::sleep(duration).await });
    }

    fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let answer = async {
            tokio::time::timeout(DEADLINE, exchange(&self.socket, method, path, body))
                .await
                .map_err(|_| ClientError::Deadline)?
        };
        self.runtime.block_on(answer)
    }
}

/// One request and its answer's body.
async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Bytes, ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "volund")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("method, path and headers are well formed");
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, body))
    };
    // The connection future drives the exchange; it ends by itself once the answer is complete.
    let (driven, answer) = tokio::join!(connection, answer);
    let (status, body) = answer?;
    driven?;
    if status.is_success() {
        return Ok(body);
    }
    Err(ClientError::Refused {
        status,
        message: refusal(&body, status),
    })
}

/// The daemon's own words if there are any: `{"error": "..."}`.
fn refusal(body: &[u8], status: StatusCode) -> String {
    serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| value.get("error")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("the daemon answered with status {status}"))
}
