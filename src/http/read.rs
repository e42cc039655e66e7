//! What anyone may read.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::{Api, Problem, page, volumes};
use crate::metrics::CONTENT_TYPE;

/// `/metrics`, `/healthz`, `/readyz`, `/v1/status`, `/v1/volumes/NAME/why` and the page.
pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(show))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/volumes/{volume}/why", get(volumes::why))
        .fallback(nothing)
        .with_state(api)
}

pub(super) async fn nothing() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing here")
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    match api.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

/// Ready once the first pass has ended: everything that can be there is there.
async fn ready(State(api): State<Api>) -> Response {
    if api.reconcile.snapshot().settled {
        return "ready\n".into_response();
    }
    let message = "the first pass of the reconciler has not ended";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).into_response()
}

pub(super) async fn status(State(api): State<Api>) -> Response {
    Json(&*api.reconcile.snapshot().status).into_response()
}

async fn show(State(api): State<Api>) -> Response {
    let events = api.reconcile.events().since(0);
    let snapshot = api.reconcile.snapshot();
    let page = page::render(&snapshot.status, &events, (api.times.wall)());
    let headers = [(header::CONTENT_SECURITY_POLICY, page::POLICY)];
    (headers, Html(page.into_string())).into_response()
}
