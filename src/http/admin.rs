//! What administrators may do, over the unix socket.

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Api, Problem, fsck, read, volumes};
use crate::config::{self, Parsed, SourceFile};
use crate::model::fault::Fault;
use crate::model::{PoolName, VolumeName};
use crate::reconcile::report::PlanReport;
use crate::reconcile::{EventRecord, Refusal};

/// Largest question: a large installation's whole configuration, several times over.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Body of `POST /v1/plan`: the files to plan for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanRequest {
    /// As they would be read from disk.
    pub files: Vec<SourceFile>,
}

/// Body of `POST /v1/approve`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApproveRequest {
    /// The plan's id.
    pub id: String,
}

/// Body of `POST /v1/quarantine/restore`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The entry's id.
    pub id: String,
    /// The name that it gets; none for its own.
    pub name: Option<VolumeName>,
}

/// Body of `POST /v1/quarantine/purge`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PurgeRequest {
    /// The entry's id.
    pub id: String,
}

/// Body of `POST /v1/orphans/purge`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct OrphanRequest {
    /// The orphan's id.
    pub id: Uuid,
}

/// Body of `POST /v1/inject`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InjectRequest {
    /// The volume.
    pub volume: VolumeName,
    /// The pool of the copy that is to break.
    pub pool: PoolName,
    /// What is to go wrong from now on, each as the command line spells it; empty to end it.
    pub faults: Vec<String>,
}

/// Query of `GET /v1/events`.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Since {
    #[serde(default)]
    after: u64,
}

pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(read::status))
        .route("/metrics", get(read::metrics))
        .route("/v1/events", get(events))
        .route("/v1/volumes/{volume}/why", get(volumes::why))
        .route("/v1/volumes/{volume}/scrub", post(volumes::scrub))
        .route("/v1/plan", get(plan_disk).post(plan_files))
        .route("/v1/reconcile", post(reconcile))
        .route("/v1/approve", post(approve))
        .route("/v1/quarantine/restore", post(restore))
        .route("/v1/quarantine/purge", post(purge))
        .route("/v1/orphans/purge", post(purge_orphan))
        .route("/v1/fsck", get(fsck::look))
        .route("/v1/fsck/repair", post(fsck::repair))
        .route("/v1/inject", post(inject))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .fallback(read::nothing)
        .with_state(api)
}

async fn events(State(api): State<Api>, Query(since): Query<Since>) -> Json<Vec<EventRecord>> {
    Json(api.reconcile.events().since(since.after))
}

/// What the files on disk would change.
async fn plan_disk(State(api): State<Api>) -> Result<Json<PlanReport>, Problem> {
    let (path, node) = (api.config.clone(), api.node.clone());
    // Reading files can block.
    let loaded = tokio::task::spawn_blocking(move || config::load(&path, &node)).await;
    let loaded = loaded
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    plan(&api, &loaded.files, &loaded.result).await
}

/// What other files would change.
async fn plan_files(
    State(api): State<Api>,
    Json(request): Json<PlanRequest>,
) -> Result<Json<PlanReport>, Problem> {
    let parsed = config::parse(&request.files, &api.node);
    plan(&api, &request.files, &parsed).await
}

async fn plan(
    api: &Api,
    files: &[SourceFile],
    parsed: &Parsed,
) -> Result<Json<PlanReport>, Problem> {
    let desired = match parsed {
        Ok((desired, _)) => desired.clone(),
        Err(findings) => {
            let report = config::render::human(files, findings, false);
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, report));
        }
    };
    let report = api.reconcile.plan(Some(desired)).await.map_err(refused)?;
    Ok(Json(report))
}

async fn reconcile(State(api): State<Api>) -> Json<()> {
    api.reload.notify_one();
    api.reconcile.kick();
    Json(())
}

async fn approve(
    State(api): State<Api>,
    Json(request): Json<ApproveRequest>,
) -> Result<Json<Vec<VolumeName>>, Problem> {
    let names = api.reconcile.approve(request.id).await.map_err(refused)?;
    Ok(Json(names))
}

async fn restore(
    State(api): State<Api>,
    Json(request): Json<RestoreRequest>,
) -> Result<Json<VolumeName>, Problem> {
    let restored = api.reconcile.restore(request.id, request.name).await;
    Ok(Json(restored.map_err(refused)?))
}

async fn purge(
    State(api): State<Api>,
    Json(request): Json<PurgeRequest>,
) -> Result<Json<()>, Problem> {
    api.reconcile.purge(request.id).await.map_err(refused)?;
    Ok(Json(()))
}

async fn purge_orphan(
    State(api): State<Api>,
    Json(request): Json<OrphanRequest>,
) -> Result<Json<()>, Problem> {
    let purged = api.reconcile.purge_orphan(request.id).await;
    purged.map_err(refused)?;
    Ok(Json(()))
}

async fn inject(
    State(api): State<Api>,
    Json(request): Json<InjectRequest>,
) -> Result<Json<()>, Problem> {
    let faults: Result<Vec<Fault>, _> = request.faults.iter().map(|text| text.parse()).collect();
    let faults = faults
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    let injected = api.reconcile.inject(request.volume, request.pool, faults);
    injected.await.map_err(refused)?;
    Ok(Json(()))
}

fn refused(refusal: Refusal) -> Problem {
    let status = match refusal {
        Refusal::NotFound(_) => StatusCode::NOT_FOUND,
        Refusal::Conflict(_) => StatusCode::CONFLICT,
        Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        Refusal::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    };
    Problem::new(status, refusal.to_string())
}
