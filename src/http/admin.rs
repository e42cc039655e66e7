//! What administrators may ask and do, over the unix socket. Every command may be repeated: what is done already is a
//! success.

use std::future::Future;

use axum::Json;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State};
use axum::http::header;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::peer::Peer;
use super::problem::{self, Body, Code, Problem};
use crate::config::{self, Level, Parsed, SourceFile};
use crate::model::fault::Fault;
use crate::model::{PoolName, VolumeName};
use crate::reconcile::apply::Failure;
use crate::reconcile::report::PlanReport;
use crate::reconcile::{Named, Refusal};

/// Body of `POST /v1/plan`: the files to plan for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlanRequest {
    /// As they would be read from disk.
    pub files: Vec<SourceFile>,
}

/// What is found in a configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Validation {
    /// Whether the daemon would put it in force.
    pub valid: bool,
    /// Number of errors.
    pub errors: usize,
    /// Number of warnings.
    pub warnings: usize,
    /// SHA-256 over names and contents of the files, hexadecimal.
    pub hash: String,
    /// All findings as `volund check` prints them.
    pub report: String,
    /// All findings for programs, as `volund check --format json` has them.
    pub findings: serde_json::Value,
}

/// Body of `POST /v1/approve`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApproveRequest {
    /// The plan's id.
    pub id: String,
}

/// Body of `POST /v1/quarantine/restore`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RestoreRequest {
    /// The entry's id.
    pub id: String,
    /// The name that it gets; none for its own.
    pub name: Option<VolumeName>,
}

/// Body of `POST /v1/quarantine/purge`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PurgeRequest {
    /// The entry's id.
    pub id: String,
}

/// Body of `POST /v1/orphans/purge`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct OrphanRequest {
    /// The orphan's id.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
}

/// Body of `POST /v1/inject`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InjectRequest {
    /// The volume.
    pub volume: VolumeName,
    /// The pool of the copy that is to break.
    pub pool: PoolName,
    /// What is to go wrong from now on, each as the command line spells it; empty to end it.
    pub faults: Vec<String>,
}

/// What the files on disk would change
#[utoipa::path(get, path = "/v1/plan", tag = "state",
    responses(
        (status = 200, description = "The plan", body = PlanReport),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn plan_disk(State(api): State<Api>) -> Result<Json<PlanReport>, Problem> {
    let (path, node) = (api.config.clone(), api.node.clone());
    // Reading files can block.
    let loaded = tokio::task::spawn_blocking(move || config::load(&path, &node)).await;
    let loaded = loaded.map_err(Problem::lost)?;
    plan(&api, &loaded.files, loaded.result).await
}

/// What other files would change
#[utoipa::path(post, path = "/v1/plan", tag = "questions", request_body = PlanRequest,
    responses(
        (status = 200, description = "The plan", body = PlanReport),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn plan_files(
    State(api): State<Api>,
    Body(request): Body<PlanRequest>,
) -> Result<Json<PlanReport>, Problem> {
    let (files, parsed) = parse(&api, request.files).await?;
    plan(&api, &files, parsed).await
}

/// Check a configuration
///
/// The body is JSON with files, or one file's TOML with any other content type. Wrong files are answered with 200 too.
#[utoipa::path(post, path = "/v1/validate", tag = "questions",
    request_body(content(
        (PlanRequest = "application/json"), (String = "application/toml"))),
    responses(
        (status = 200, description = "What is found", body = Validation),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn validate(
    State(api): State<Api>,
    request: Request,
) -> Result<Json<Validation>, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let files = if kind.starts_with("application/json") {
        let bytes = problem::read(request).await?;
        problem::parse::<PlanRequest>(&bytes)?.files
    } else {
        let bytes = problem::read(request).await?;
        vec![SourceFile::new("posted.toml", bytes.as_ref())]
    };
    let (files, parsed) = parse(&api, files).await?;
    let findings = match &parsed {
        Ok((_, warnings)) => warnings,
        Err(findings) => findings,
    };
    let count = |level| findings.iter().filter(|found| found.level == level).count();
    Ok(Json(Validation {
        valid: parsed.is_ok(),
        errors: count(Level::Error),
        warnings: count(Level::Warning),
        hash: config::source::hash(&files),
        report: config::render::human(&files, findings, false),
        findings: config::render::json(&files, findings),
    }))
}

async fn parse(api: &Api, files: Vec<SourceFile>) -> Result<(Vec<SourceFile>, Parsed), Problem> {
    let node = api.node.clone();
    // Thousands of tables take a while; the control thread has others to serve.
    let parsed = tokio::task::spawn_blocking(move || {
        let parsed = config::parse(&files, &node);
        (files, parsed)
    });
    parsed.await.map_err(Problem::lost)
}

async fn plan(
    api: &Api,
    files: &[SourceFile],
    parsed: Parsed,
) -> Result<Json<PlanReport>, Problem> {
    let desired = match parsed {
        Ok((desired, _)) => desired,
        Err(findings) => {
            let report = config::render::human(files, &findings, false);
            return Err(Problem::new(Code::ConfigInvalid, report));
        }
    };
    let planned = api.reconcile.plan(Some(desired)).await;
    let report = planned.map_err(|refusal| Problem::refused(refusal, Code::NotFound))?;
    Ok(Json(report))
}

/// Read the files again and try everything at once
///
/// Answers before anything is done.
#[utoipa::path(post, path = "/v1/reconcile", tag = "commands",
    responses(
        (status = 200, description = "It is begun"),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn reconcile(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
) -> Json<()> {
    let named = Named::new(
        "config",
        "Reconcile",
        "read the files and try everything again",
    );
    let ticket = api
        .reconcile
        .operations()
        .request(named, Some(peer.to_string()));
    api.reload.notify_one();
    api.reconcile.kick();
    ticket.end(Ok(()));
    Json(())
}

/// Let removals go that wait for approval
#[utoipa::path(post, path = "/v1/approve", tag = "commands", request_body = ApproveRequest,
    responses(
        (status = 200, description = "The volumes that go", body = Vec<VolumeName>),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn approve(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(ApproveRequest { id }): Body<ApproveRequest>,
) -> Result<Json<Vec<VolumeName>>, Problem> {
    let named = Named::new(format!("plan.{id}"), "Approve", "let its removals go");
    let handle = api.reconcile.clone();
    let approve = async move { handle.approve(id).await };
    let approved = command(&api, peer, named, None, approve).await;
    Ok(Json(approved.map_err(|refusal| {
        Problem::refused(refusal, Code::NoSuchPlan).help("`volund plan` shows the plan and its id")
    })?))
}

/// Bring quarantined data back
#[utoipa::path(post, path = "/v1/quarantine/restore", tag = "commands", request_body = RestoreRequest,
    responses(
        (status = 200, description = "The volume's name", body = VolumeName),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn restore(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(RestoreRequest { id, name }): Body<RestoreRequest>,
) -> Result<Json<VolumeName>, Problem> {
    // An entry's id starts with the name that the volume had.
    let own = id.split('@').next().and_then(|own| own.parse().ok());
    let wanted: Option<VolumeName> = name.clone().or(own);
    let named = Named::restore(&id, wanted.as_ref().map_or("", VolumeName::as_str));
    let handle = api.reconcile.clone();
    let restore = async move { handle.restore(id, name).await };
    let restored = command(&api, peer, named, wanted, restore).await;
    Ok(Json(restored.map_err(|refusal| {
        Problem::refused(refusal, Code::NoSuchEntry)
    })?))
}

/// Delete quarantined data for ever
#[utoipa::path(post, path = "/v1/quarantine/purge", tag = "commands", request_body = PurgeRequest,
    responses(
        (status = 200, description = "It is gone"),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn purge(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(PurgeRequest { id }): Body<PurgeRequest>,
) -> Result<Json<()>, Problem> {
    let named = Named::purge(&id);
    let handle = api.reconcile.clone();
    let purge = async move { handle.purge(id).await };
    let purged = command(&api, peer, named, Some(()), purge).await;
    Ok(Json(purged.map_err(|refusal| {
        Problem::refused(refusal, Code::NoSuchEntry)
    })?))
}

/// Delete data for ever that nobody declares
#[utoipa::path(post, path = "/v1/orphans/purge", tag = "commands", request_body = OrphanRequest,
    responses(
        (status = 200, description = "It is gone"),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn purge_orphan(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(OrphanRequest { id }): Body<OrphanRequest>,
) -> Result<Json<()>, Problem> {
    let named = Named::purge_orphan(id);
    let handle = api.reconcile.clone();
    let purge = async move { handle.purge_orphan(id).await };
    let purged = command(&api, peer, named, Some(()), purge).await;
    Ok(Json(purged.map_err(|refusal| {
        Problem::refused(refusal, Code::NoSuchOrphan).help("`volund orphans` lists what there is")
    })?))
}

/// Break a replica on purpose
#[utoipa::path(post, path = "/v1/inject", tag = "commands", request_body = InjectRequest,
    responses(
        (status = 200, description = "It is broken, or whole again"),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn inject(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<InjectRequest>,
) -> Result<Json<()>, Problem> {
    let InjectRequest {
        volume,
        pool,
        faults,
    } = request;
    let parsed: Result<Vec<Fault>, _> = faults.iter().map(|text| text.parse()).collect();
    let parsed = parsed.map_err(|error| Problem::new(Code::Invalid, error.to_string()))?;
    let summary = if faults.is_empty() {
        format!("end the faults in {pool}")
    } else {
        format!("break the replica in {pool}: {}", faults.join(" "))
    };
    let named = Named::new(format!("volume.{volume}"), "Inject", summary);
    let handle = api.reconcile.clone();
    let inject = async move { handle.inject(volume, pool, parsed).await };
    let injected = command(&api, peer, named, None, inject).await;
    Ok(Json(injected.map_err(|refusal| {
        Problem::refused(refusal, Code::NoSuchVolume)
    })?))
}

/// Does what someone has asked for, also when they do not wait for the end, and keeps the journal. `done` is the answer
/// for what is not known any more because the journal says that just this was done to it.
async fn command<T: Send + 'static>(
    api: &Api,
    peer: Peer,
    named: Named,
    done: Option<T>,
    job: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let operations = api.reconcile.operations().clone();
    let was_done = operations.was_done(&named.object, &named.summary);
    let ticket = operations.request(named, Some(peer.to_string()));
    let work = tokio::spawn(async move {
        let result = match (job.await, done) {
            (Err(Refusal::NotFound(_)), Some(done)) if was_done => Ok(done),
            (result, _) => result,
        };
        let failure = result.as_ref().err();
        let failure = failure.map(|refusal| Failure::new(refusal.reason(), refusal.to_string()));
        ticket.end(failure.as_ref().map_or(Ok(()), Err));
        result
    });
    work.await.map_err(|_| Refusal::Stopping)?
}
