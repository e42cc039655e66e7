//! `/v1/operations`: what was done, or asked for.

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::problem::{Code, Problem};
use crate::model::journal::{Operation, OperationState};

/// Query of `GET /v1/operations`.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only those of this object: `volume.db`.
    object: Option<String>,
    /// Only those in this state.
    state: Option<OperationState>,
}

/// The operations journal, oldest first
///
/// The newest 1000 are kept, over restarts.
#[utoipa::path(get, path = "/v1/operations", tag = "journal", params(Wanted),
    responses(
        (status = 200, description = "The operations", body = Vec<Operation>),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(wanted): Query<Wanted>,
) -> Json<Vec<Operation>> {
    let mut operations = api.reconcile.operations().list();
    operations.retain(|operation| {
        wanted
            .object
            .as_ref()
            .is_none_or(|object| *object == operation.object)
            && wanted.state.is_none_or(|state| state == operation.state)
    });
    Json(operations)
}

/// One operation
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "journal",
    params(("id" = u64, Path, description = "The operation's number")),
    responses(
        (status = 200, description = "The operation", body = Operation),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn one(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Operation>, Problem> {
    let number = id.parse().ok();
    let found = number.and_then(|id| api.reconcile.operations().get(id));
    let missing = || {
        let message = format!("the journal has no operation {id:?}");
        Problem::new(Code::NoSuchOperation, message)
            .help("`volund operations` and GET /v1/operations show those that are kept")
    };
    found.map(Json).ok_or_else(missing)
}
