//! `/v1/fsck`: the integrity check beside the running daemon.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::extract::connect_info::ConnectInfo;

use super::Api;
use super::peer::Peer;
use super::problem::{Code, Problem};
use crate::config;
use crate::engine::Engine;
use crate::fsck::{self, Report, Site};
use crate::model::NodeName;
use crate::model::spec::{DesiredState, PoolBacking};
use crate::reconcile::Named;
use crate::reconcile::apply::Failure;

/// What does not fit together on this node
///
/// Reads every label. Changes nothing.
#[utoipa::path(get, path = "/v1/fsck", tag = "questions",
    responses(
        (status = 200, description = "What was looked at and found", body = Report),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn look(State(api): State<Api>) -> Result<Json<Report>, Problem> {
    Ok(Json(examine(&api, false).await?))
}

/// The same, with the safe part of it mended
#[utoipa::path(post, path = "/v1/fsck/repair", tag = "commands",
    responses(
        (status = 200, description = "What was looked at and found, and what was mended", body = Report),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn repair(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
) -> Result<Json<Report>, Problem> {
    let named = Named::new("node", "Repair", "remove what is dead and holds no data");
    let operations = api.reconcile.operations();
    let ticket = operations.request(named, Some(peer.to_string()));
    let examined = examine(&api, true).await;
    let failure = examined.as_ref().err();
    let failure = failure.map(|problem| Failure::new("Failed", problem.message.clone()));
    ticket.end(failure.as_ref().map_or(Ok(()), Err));
    Ok(Json(examined?))
}

async fn examine(api: &Api, repairs: bool) -> Result<Report, Problem> {
    let engine = api.engine.clone();
    let engine =
        engine.ok_or_else(|| Problem::new(Code::Starting, "there is no engine here to look at"))?;
    let (path, node) = (api.config.clone(), api.node.clone());
    let pools = engine.observe().await.pools;
    // It reads all labels there are, and that can block.
    let examined = tokio::task::spawn_blocking(move || {
        let loaded = config::load(&path, &node);
        let desired = loaded.result.as_ref().ok().map(|(desired, _)| desired);
        let mut site = site(&engine, desired);
        // Those that it has open, whatever the files on disk say by now.
        let directories = pools
            .into_iter()
            .filter_map(|(name, pool)| match pool.spec.backing {
                PoolBacking::Directory(path) => Some((name, path)),
                PoolBacking::Memory(_) => None,
            });
        site.pools = directories.collect();
        let mut report = fsck::examine(site, Ok(engine.database()));
        if repairs {
            fsck::repair(&mut report);
        }
        report
    });
    examined.await.map_err(Problem::lost)
}

fn site(engine: &Engine, desired: Option<&DesiredState>) -> Site {
    let (state_dir, runtime_dir) = engine.folders();
    Site {
        live: Some(engine.served()),
        ..site_of(desired, state_dir, runtime_dir)
    }
}

/// The part of the files that concerns this node; of files that can't be read, nothing.
#[must_use]
pub fn site_of(desired: Option<&DesiredState>, state_dir: PathBuf, runtime_dir: PathBuf) -> Site {
    let mut site = Site {
        pools: Vec::new(),
        declared: None,
        state_dir,
        runtime_dir,
        links: PathBuf::from("/dev/volund"),
        devices: PathBuf::from("/dev"),
        live: None,
    };
    let Some(desired) = desired else { return site };
    let is_here = |node: &NodeName| *node == desired.this_node;
    for (name, spec) in desired.pools.iter().filter(|(_, spec)| is_here(&spec.node)) {
        // Memory leaves nothing that could be looked at.
        if let PoolBacking::Directory(path) = &spec.backing {
            site.pools.push((name.clone(), path.clone()));
        }
    }
    let volumes = desired
        .volumes
        .iter()
        .filter(|(_, spec)| is_here(&spec.node));
    site.declared = Some(volumes.map(|(name, _)| name.clone()).collect());
    site
}
