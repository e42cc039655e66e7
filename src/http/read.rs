//! What anyone may read about the node as a whole.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use super::problem::{Code, Problem};
use super::{Api, page};
use crate::metrics::CONTENT_TYPE;
use crate::model::status::NodeStatus;

pub(super) async fn nothing() -> Problem {
    Problem::new(Code::NotFound, "there is nothing here")
        .help("GET /v1/openapi.json lists what there is")
}

/// Metrics in Prometheus's text format
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "All series", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let text = api.metrics.text();
    let text = text.map_err(|error| Problem::new(Code::Failed, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// Whether the daemon answers
#[utoipa::path(get, path = "/healthz", tag = "health",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// Whether the first pass has ended: everything that can be there is there
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses(
        (status = 200, description = "It has", body = String, content_type = "text/plain"),
        (status = "default", description = "It has not", body = Problem)))]
pub(super) async fn ready(State(api): State<Api>) -> Result<&'static str, Problem> {
    if api.reconcile.snapshot().settled {
        return Ok("ready\n");
    }
    let message = "the first pass of the reconciler has not ended";
    Err(Problem::new(Code::Starting, message))
}

/// Everything that the daemon knows about its node
#[utoipa::path(get, path = "/v1/status", tag = "state",
    responses((status = 200, description = "The node's status", body = NodeStatus)))]
pub(super) async fn status(State(api): State<Api>) -> Response {
    Json(&*api.reconcile.snapshot().status).into_response()
}

/// A page for a browser
#[utoipa::path(get, path = "/", tag = "health",
    responses((status = 200, description = "The page", body = String, content_type = "text/html")))]
pub(super) async fn show(State(api): State<Api>) -> Response {
    let events = api.reconcile.events().since(0);
    let snapshot = api.reconcile.snapshot();
    let page = page::render(&snapshot.status, &events, (api.times.wall)());
    let headers = [(header::CONTENT_SECURITY_POLICY, page::POLICY)];
    (headers, Html(page.into_string())).into_response()
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", tag = "health",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value)))]
pub(super) async fn openapi() -> Response {
    Json(super::routes::document()).into_response()
}
