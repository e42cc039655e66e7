//! Asks the daemon: HTTP/1.1 with JSON over its admin socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::http::problem::Code;
use crate::model::journal::EventRecord;

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
    #[error("the daemon did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// What is wrong; none when the answer has no code that this version knows.
        code: Option<Code>,
        /// What the daemon says, with its help.
        message: String,
    },
    /// The daemon's answer is not what this version expects.
    #[error("the daemon's answer can't be read: {0}; is it of another version?")]
    Body(#[from] serde_json::Error),
    /// What came could not be passed on.
    #[error("can't write output: {0}")]
    Output(std::io::Error),
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
        let answer = self.ask(Method::GET, path, Vec::new(), DEADLINE)?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// GETs `path` as it is, and waits no longer than `patience`.
    pub(super) fn get_within(&self, path: &str, patience: Duration) -> Result<Bytes, ClientError> {
        self.ask(Method::GET, path, Vec::new(), patience.min(DEADLINE))
    }

    /// POSTs `question` to `path`.
    pub(super) fn post<Q: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<T, ClientError> {
        let answer = self.ask(Method::POST, path, serde_json::to_vec(question)?, DEADLINE)?;
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

    /// Hands on each event of the stream at `path`, until it ends.
    pub(super) fn follow(
        &self,
        path: &str,
        mut on_event: impl FnMut(EventRecord) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let (mut sender, connection) = connect(&self.socket).await?;
            let request = request(Method::GET, path, Vec::new(), "text/event-stream");
            let driven = tokio::spawn(connection);
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let mut body = answer.into_body();
            if !status.is_success() {
                return Err(refusal(&body.collect().await?.to_bytes(), status));
            }
            let mut lines = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame?.into_data();
                lines.extend_from_slice(&frame.unwrap_or_default());
                while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = lines.drain(..=end).collect();
                    // Of the fields only `data` is needed: the event has its own number in it.
                    if let Some(data) = line.strip_prefix(b"data: ") {
                        on_event(serde_json::from_slice(data)?).map_err(ClientError::Output)?;
                    }
                }
            }
            driven.abort();
            Ok(())
        })
    }

    /// Waits between two questions.
    pub(super) fn wait(&self, duration: Duration) {
        self.runtime
            .block_on(async { tokio::time::sleep(duration).await });
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Bytes, ClientError> {
        let answer = async {
            tokio::time::timeout(patience, exchange(&self.socket, method, path, body))
                .await
                .map_err(|_| ClientError::Deadline(patience))?
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
    let (mut sender, connection) = connect(socket).await?;
    let request = request(method, path, body, "application/json");
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
    Err(refusal(&body, status))
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;
type Connection = hyper::client::conn::http1::Connection<TokioIo<UnixStream>, Full<Bytes>>;

async fn connect(socket: &Path) -> Result<(Sender, Connection), ClientError> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|source| ClientError::Connect {
        socket: socket.to_owned(),
        source,
    })?;
    Ok(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
}

fn request(method: Method, path: &str, body: Vec<u8>, accept: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "volund")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .header(hyper::header::ACCEPT, accept)
        .body(Full::new(Bytes::from(body)))
        .expect("method, path and headers are well formed")
}

/// A [`Problem`], also of a later release that has other codes.
///
/// [`Problem`]: crate::http::Problem
#[derive(Debug, Deserialize)]
struct Answer {
    code: serde_json::Value,
    message: String,
    help: Option<String>,
}

/// The daemon's own words if there are any.
fn refusal(body: &[u8], status: StatusCode) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(Answer {
            code,
            message,
            help,
        }) => ClientError::Refused {
            code: serde_json::from_value(code).ok(),
            message: match help {
                Some(help) => format!("{message}\n  help: {help}"),
                None => message,
            },
        },
        Err(_) => ClientError::Refused {
            code: None,
            message: format!("the daemon answered with status {status}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_daemons_words_are_passed_on_though_its_code_is_not_known() {
        let check = |code: &str, expected: Option<Code>| {
            let body = format!(r#"{{"code":"{code}","message":"no","help":null,"more":1}}"#);
            let refused = refusal(body.as_bytes(), StatusCode::CONFLICT);
            let ClientError::Refused { code, message } = refused else {
                panic!("{refused:?}");
            };
            assert_eq!((code, message.as_str()), (expected, "no"));
        };
        check("Busy", Some(Code::Busy));
        check("OfALaterRelease", None);
    }
}
