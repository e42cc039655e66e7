//! What can be asked about single volumes and pools, and the scrub.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use super::peer::Peer;
use super::problem::{Body, Code, Problem};
use super::{Api, Engine};
use crate::engine::EngineError;
use crate::model::scrub::ScrubOutcome;
use crate::model::status::{Condition, PoolStatus, Truth, VolumeStatus};
use crate::model::why::Why;
use crate::model::{PoolName, VolumeName};
use crate::reconcile::apply::Failure;
use crate::reconcile::{Named, Ticket};

/// Body of `POST /v1/volumes/NAME/scrub`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ScrubBody {
    /// The pool whose replica is believed where nothing else decides.
    pub repair_from: Option<PoolName>,
}

/// How a volume is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The volume.
    pub volume: VolumeName,
    /// `vhost-user` or `ublk`.
    pub kind: String,
    /// The socket, or the stable link to the device.
    pub path: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Virtqueues of a vhost-user export.
    pub queues: Option<u16>,
    /// Whether a client is there.
    pub client_connected: bool,
}

/// All volumes, by name
#[utoipa::path(get, path = "/v1/volumes", tag = "state",
    responses((status = 200, description = "The volumes", body = Vec<VolumeStatus>)))]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<VolumeStatus>> {
    Json(api.reconcile.snapshot().status.volumes.clone())
}

/// One volume
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "state",
    params(("volume" = VolumeName, Path, description = "The volume's name")),
    responses(
        (status = 200, description = "The volume", body = VolumeStatus),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn one(
    State(api): State<Api>,
    Path(volume): Path<String>,
) -> Result<Json<VolumeStatus>, Problem> {
    status(&api, &volume).map(Json)
}

/// All pools, by name
#[utoipa::path(get, path = "/v1/pools", tag = "state",
    responses((status = 200, description = "The pools", body = Vec<PoolStatus>)))]
pub(super) async fn pools(State(api): State<Api>) -> Json<Vec<PoolStatus>> {
    Json(api.reconcile.snapshot().status.pools.clone())
}

/// One pool
#[utoipa::path(get, path = "/v1/pools/{pool}", tag = "state",
    params(("pool" = PoolName, Path, description = "The pool's name")),
    responses(
        (status = 200, description = "The pool", body = PoolStatus),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn pool(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<PoolStatus>, Problem> {
    let snapshot = api.reconcile.snapshot();
    let mut pools = snapshot.status.pools.iter();
    let found = pools.find(|pool| pool.name.as_str() == name);
    let missing = || {
        Problem::new(Code::NoSuchPool, format!("there is no pool {name:?}"))
            .help("GET /v1/pools lists those there are")
    };
    Ok(Json(found.ok_or_else(missing)?.clone()))
}

/// How a volume is reached
///
/// For programs that attach it to something: the socket or the device.
#[utoipa::path(get, path = "/v1/volumes/{volume}/device", tag = "state",
    params(("volume" = VolumeName, Path, description = "The volume's name")),
    responses(
        (status = 200, description = "Socket or device", body = Device),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn device(
    State(api): State<Api>,
    Path(volume): Path<String>,
) -> Result<Json<Device>, Problem> {
    let status = status(&api, &volume)?;
    if let Some((kind, path)) = status.export.split_once(' ') {
        return Ok(Json(Device {
            kind: kind.to_owned(),
            path: path.to_owned(),
            volume: status.name,
            size_bytes: status.size_bytes,
            queues: status.export_queues,
            client_connected: status.client_connected,
        }));
    }
    let wrong =
        |condition: &&Condition| condition.kind == "Ready" && condition.status != Truth::True;
    Err(match status.conditions.iter().find(wrong) {
        Some(condition) => {
            let message = format!(
                "volume \"{volume}\" is not reachable: {}",
                condition.message
            );
            Problem::new(Code::NotReady, message)
        }
        None => Problem::new(
            Code::NotExported,
            format!("volume \"{volume}\" has no export"),
        )
        .help(format!(
            "add `export = {{ vhost-user = {{}} }}` to [volume.{volume}]"
        )),
    })
}

/// Why a volume is as it is
///
/// Its labels and members, what happened to it, and what to do next.
#[utoipa::path(get, path = "/v1/volumes/{volume}/why", tag = "state",
    params(("volume" = VolumeName, Path, description = "The volume's name")),
    responses(
        (status = 200, description = "Everything that bears on it", body = Why),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn why(
    State(api): State<Api>,
    Path(volume): Path<String>,
) -> Result<Json<Why>, Problem> {
    let (engine, volume) = find(&api, &volume)?;
    Ok(Json(engine.why(&volume).await.map_err(refused)?))
}

/// Compare all replicas of a volume
///
/// Answers when that has ended; it goes on when nobody waits. Asked again meanwhile with the same body, it joins the one
/// that is under way.
#[utoipa::path(post, path = "/v1/volumes/{volume}/scrub", tag = "commands",
    params(("volume" = VolumeName, Path, description = "The volume's name")),
    request_body = ScrubBody,
    responses(
        (status = 200, description = "What was found", body = ScrubOutcome),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn scrub(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(volume): Path<String>,
    Body(body): Body<ScrubBody>,
) -> Result<Json<ScrubOutcome>, Problem> {
    let (engine, volume) = find(&api, &volume)?;
    let begin = || {
        let summary = match &body.repair_from {
            None => "compare all replicas".to_owned(),
            Some(pool) => format!("compare all replicas and believe the one in {pool}"),
        };
        let named = Named::new(format!("volume.{volume}"), "Scrub", summary);
        api.reconcile
            .operations()
            .request(named, Some(peer.to_string()))
    };
    let key = (volume.clone(), body.repair_from.clone());
    let mut outcome = api.scrubs.join(engine, key, begin);
    let ended = outcome.wait_for(Option::is_some).await;
    let ended = ended.map_err(|_| Problem::new(Code::Stopping, "the daemon is stopping"))?;
    match &*ended {
        Some(Ok(outcome)) => Ok(Json(outcome.clone())),
        Some(Err(error)) => Err(refused(error.clone())),
        None => Err(Problem::new(Code::Stopping, "the daemon is stopping")),
    }
}

/// How a scrub ended; none while it has not.
type Outcome = Option<Result<ScrubOutcome, EngineError>>;
/// Which scrub: of a volume, believing a pool.
type Key = (VolumeName, Option<PoolName>);

/// The scrubs that were asked for and are under way; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Scrubs(Arc<Mutex<BTreeMap<Key, watch::Receiver<Outcome>>>>);

impl Scrubs {
    /// The outcome of the scrub under way, or of one that begins now.
    fn join(
        &self,
        engine: &Engine,
        key: Key,
        begin: impl FnOnce() -> Ticket,
    ) -> watch::Receiver<Outcome> {
        let mut running = self.lock();
        if let Some(outcome) = running.get(&key) {
            return outcome.clone();
        }
        let (ended, outcome) = watch::channel(None);
        running.insert(key.clone(), outcome.clone());
        let (ticket, engine, scrubs) = (begin(), engine.clone(), self.clone());
        tokio::spawn(async move {
            let result = engine.scrub_volume(&key.0, key.1.as_ref()).await;
            let failure = result.as_ref().err().cloned().map(Failure::from);
            ticket.end(failure.as_ref().map_or(Ok(()), Err));
            scrubs.lock().remove(&key);
            ended.send_replace(Some(result));
        });
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, watch::Receiver<Outcome>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_such_volume(volume: &str) -> Problem {
    Problem::new(Code::NoSuchVolume, format!("there is no volume {volume:?}"))
        .help("GET /v1/volumes lists those there are")
}

fn status(api: &Api, volume: &str) -> Result<VolumeStatus, Problem> {
    let snapshot = api.reconcile.snapshot();
    let mut volumes = snapshot.status.volumes.iter();
    let found = volumes.find(|known| known.name.as_str() == volume);
    found.cloned().ok_or_else(|| no_such_volume(volume))
}

fn find<'a>(api: &'a Api, volume: &str) -> Result<(&'a Engine, VolumeName), Problem> {
    let name = volume.parse().map_err(|_| no_such_volume(volume))?;
    let gone = || Problem::new(Code::Starting, "the daemon is starting");
    Ok((api.engine.as_ref().ok_or_else(gone)?, name))
}

fn refused(error: EngineError) -> Problem {
    let code = match error.reason() {
        "NotFound" => Code::NoSuchVolume,
        "Busy" => Code::Busy,
        "NotInSync" => Code::NotInSync,
        "Stopping" => Code::Stopping,
        _ => Code::Failed,
    };
    Problem::new(code, error.to_string())
}
