//! What can be asked about one volume: `/v1/volumes/NAME/...`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Api, Problem};
use crate::engine::{Engine, EngineError};
use crate::model::scrub::ScrubOutcome;
use crate::model::why::Why;
use crate::model::{PoolName, VolumeName};

/// Body of `POST /v1/volumes/NAME/scrub`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScrubBody {
    /// The pool whose replica is believed where nothing else decides.
    pub repair_from: Option<PoolName>,
}

/// Everything that bears on why a volume is as it is.
pub(super) async fn why(
    State(api): State<Api>,
    Path(volume): Path<String>,
) -> Result<Json<Why>, Problem> {
    let (engine, volume) = find(&api, &volume)?;
    Ok(Json(engine.why(&volume).await.map_err(refused)?))
}

/// Compares a volume's replicas; answers when that has ended, and goes on when nobody waits.
pub(super) async fn scrub(
    State(api): State<Api>,
    Path(volume): Path<String>,
    Json(body): Json<ScrubBody>,
) -> Result<Json<ScrubOutcome>, Problem> {
    let (engine, volume) = find(&api, &volume)?;
    let scrubbed = engine.scrub_volume(&volume, body.repair_from.as_ref());
    Ok(Json(scrubbed.await.map_err(refused)?))
}

fn find<'a>(api: &'a Api, volume: &str) -> Result<(&'a Engine, VolumeName), Problem> {
    let name = volume.parse::<VolumeName>();
    let name = name.map_err(|error| Problem::new(StatusCode::NOT_FOUND, error.to_string()))?;
    let engine = api.engine.as_ref();
    let gone = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is starting");
    Ok((engine.ok_or_else(gone)?, name))
}

fn refused(error: EngineError) -> Problem {
    let status = match error.reason() {
        "NotFound" => StatusCode::NOT_FOUND,
        "Busy" | "NotInSync" => StatusCode::CONFLICT,
        "Stopping" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Problem::new(status, error.to_string())
}
