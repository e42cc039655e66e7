//! What is answered when something is wrong: one table of codes with their HTTP statuses, and the body.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, RequestExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reconcile::Refusal;

/// Declares the codes: name, HTTP status, meaning.
macro_rules! codes {
    ($($code:ident = $status:ident, $meaning:literal;)*) => {
        /// What is wrong, for programs. A code keeps its meaning for ever.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        pub enum Code {
            $(#[doc = $meaning] $code,)*
        }

        impl Code {
            /// Every code, its HTTP status and its meaning. `docs/api.md` has the same table; a test compares.
            pub const TABLE: &[(Self, StatusCode, &str)] =
                &[$((Self::$code, StatusCode::$status, $meaning)),*];

            /// The HTTP status that it is answered with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$code => StatusCode::$status,)*
                }
            }

            const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$code => $meaning,)*
                }
            }
        }
    };
}

codes! {
    BadRequest = BAD_REQUEST, "The request's path, query or body can't be read.";
    Unauthorized = UNAUTHORIZED, "The TCP port wants a bearer token, and this one is missing or wrong.";
    Forbidden = FORBIDDEN, "Who asks may read and may not change anything.";
    NotFound = NOT_FOUND, "There is nothing at this path.";
    NoSuchVolume = NOT_FOUND, "No volume of that name is declared or there.";
    NoSuchPool = NOT_FOUND, "No pool of that name is declared, or the volume has no replica there.";
    NoSuchOperation = NOT_FOUND, "The journal has no operation of that number, or not any more.";
    NoSuchPlan = NOT_FOUND, "No plan of that id waits for approval.";
    NoSuchEntry = NOT_FOUND, "The quarantine has no entry of that id.";
    NoSuchOrphan = NOT_FOUND, "No data of that id is without a declaration.";
    MethodNotAllowed = METHOD_NOT_ALLOWED, "The path exists, and not for this method.";
    DeclaredInFiles = METHOD_NOT_ALLOWED, "Volumes and pools are declared in files, and changed there only.";
    Conflict = CONFLICT, "It can't be done as things are.";
    Busy = CONFLICT, "The same is under way with other arguments.";
    NotInSync = CONFLICT, "The replica that was named is not in sync.";
    NotExported = CONFLICT, "The volume has no export.";
    TooLarge = PAYLOAD_TOO_LARGE, "The body is larger than any configuration may be.";
    Invalid = UNPROCESSABLE_ENTITY, "The body says something that has no meaning.";
    ConfigInvalid = UNPROCESSABLE_ENTITY, "The configuration is wrong; the message is the report.";
    Failed = INTERNAL_SERVER_ERROR, "It was tried and has failed; the message says why.";
    Starting = SERVICE_UNAVAILABLE, "The daemon is starting; ask again.";
    NotReady = SERVICE_UNAVAILABLE, "The volume is not reachable yet; ask again.";
    TooManyStreams = SERVICE_UNAVAILABLE, "Too many clients follow the events; ask again.";
    Stopping = SERVICE_UNAVAILABLE, "The daemon is stopping.";
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What is wrong, for programs.
    pub code: Code,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do about it; none when the message says it or nothing can be done.
    pub help: Option<String>,
}

impl Problem {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    #[must_use]
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What the reconciler says; `missing` is the code for what it does not know.
    pub(super) fn refused(refusal: Refusal, missing: Code) -> Self {
        let code = match refusal {
            Refusal::NotFound(_) => missing,
            Refusal::Conflict(_) => Code::Conflict,
            Refusal::Failed(_) => Code::Failed,
            Refusal::Stopping => Code::Stopping,
        };
        Self::new(code, refusal.to_string())
    }

    /// A task of the daemon's own has died.
    pub(super) fn lost(error: tokio::task::JoinError) -> Self {
        Self::new(Code::Failed, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self)).into_response()
    }
}

/// Largest message of axum's own that is taken over.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Turns axum's own complaints, which are plain text, into problems as well.
pub(super) async fn in_json(response: Response) -> Response {
    let code = match response.status() {
        StatusCode::BAD_REQUEST => Code::BadRequest,
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => Code::TooLarge,
        _ => return response,
    };
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind == "application/json") {
        return response;
    }
    let allow = response.headers().get(header::ALLOW).cloned();
    let body = axum::body::to_bytes(response.into_body(), MESSAGE_BYTES_MAX).await;
    let text = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
    let problem = if text.is_empty() {
        Problem::new(code, code.meaning())
    } else {
        Problem::new(code, text)
    };
    let mut response = problem.into_response();
    if let Some(allow) = allow {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// A JSON body; an empty one counts as `{}`. The content type does not matter.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let bytes = read(request).await?;
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

/// JSON from a body.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let code = match error.is_data() {
            true => Code::Invalid,
            false => Code::BadRequest,
        };
        Problem::new(code, format!("the body can't be read as JSON: {error}"))
            .help("GET /v1/openapi.json describes the bodies")
    })
}

/// The whole body.
pub(super) async fn read(request: Request) -> Result<Bytes, Problem> {
    let bytes = request.extract::<Bytes, _>().await;
    bytes.map_err(|rejection| {
        let code = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Code::TooLarge,
            _ => Code::BadRequest,
        };
        Problem::new(code, rejection.body_text())
    })
}
