//! What is declared in files is changed there: whoever tries to write it is told where.

use axum::extract::{RawPathParams, State};
use axum::http::{HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::problem::{Code, Problem};
use crate::config;

/// Answers every method but GET on a volume or pool.
pub(super) async fn refuse(
    State(api): State<Api>,
    method: Method,
    uri: Uri,
    parameters: RawPathParams,
) -> Response {
    let (kind, thing) = match uri.path().starts_with("/v1/pools") {
        true => ("pool", "pools"),
        false => ("volume", "volumes"),
    };
    let name = parameters.iter().next().map(|(_, name)| name.to_owned());
    let message =
        format!("{method} is not for {thing}: they are declared in files, and changed there only");
    let help = help(&api, kind, name).await;
    let mut response = Problem::new(Code::DeclaredInFiles, message)
        .help(help)
        .into_response();
    let allowed = HeaderValue::from_static("GET,HEAD");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

/// Which file to edit, and where.
async fn help(api: &Api, kind: &'static str, name: Option<String>) -> String {
    let then = "the daemon takes the change over by itself";
    let folder = api.config.display().to_string();
    let Some(name) = name else {
        return format!("edit \"{folder}\": each table [{kind}.NAME] is one; {then}");
    };
    let (source, wanted) = (api.config.clone(), name.clone());
    // Reading files can block.
    let found = tokio::task::spawn_blocking(move || config::place(&source, kind, &wanted)).await;
    match found.ok().flatten() {
        Some(place) => format!("edit [{kind}.{name}] at {place}; {then}"),
        None => format!("add [{kind}.{name}] to \"{folder}\"; {then}"),
    }
}
