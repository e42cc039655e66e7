//! `/v1/fsck`: the integrity check beside the running daemon.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, Problem};
use crate::config;
use crate::engine::Engine;
use crate::fsck::{self, Report, Site};
use crate::model::NodeName;
use crate::model::spec::{DesiredState, PoolBacking};

/// What is wrong.
pub(super) async fn look(State(api): State<Api>) -> Result<Json<Report>, Problem> {
    Ok(Json(examine(&api, false).await?))
}

/// What is wrong, with the safe part of it mended.
pub(super) async fn repair(State(api): State<Api>) -> Result<Json<Report>, Problem> {
    Ok(Json(examine(&api, true).await?))
}

async fn examine(api: &Api, repairs: bool) -> Result<Report, Problem> {
    let engine = api.engine.clone();
    let engine =
        engine.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there are no volumes here"))?;
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
    let failed = |error: tokio::task::JoinError| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    };
    examined.await.map_err(failed)
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
