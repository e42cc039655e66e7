//! Every route, once: the routers and the OpenAPI document are made from the same list.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::MethodRouter;
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Api, admin, declared, events, fsck, operations, peer, problem, read, token, volumes};

/// Largest question: a large installation's whole configuration, several times over.
const BODY_BYTES_MAX: usize = 64 << 20;

/// What anyone may read, on both listeners.
fn readable() -> OpenApiRouter<Api> {
    let written = |routes: (_, _, MethodRouter<Api>)| {
        let (schemas, paths, methods) = routes;
        (schemas, paths, methods.fallback(declared::refuse))
    };
    OpenApiRouter::new()
        .routes(routes!(read::show))
        .routes(routes!(read::metrics))
        .routes(routes!(read::health))
        .routes(routes!(read::ready))
        .routes(routes!(read::openapi))
        .routes(routes!(read::status))
        .routes(written(routes!(volumes::list)))
        .routes(written(routes!(volumes::one)))
        .routes(routes!(volumes::device))
        .routes(routes!(volumes::why))
        .routes(written(routes!(volumes::pools)))
        .routes(written(routes!(volumes::pool)))
        .routes(routes!(operations::list))
        .routes(routes!(operations::one))
        .routes(routes!(events::events))
}

/// Questions with a body. They change nothing, but are work: for those who can reach the admin socket.
fn questions() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(admin::plan_disk, admin::plan_files))
        .routes(routes!(admin::validate))
        .routes(routes!(fsck::look))
}

/// What changes something: for those who may, on the admin socket.
fn commands() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(admin::reconcile))
        .routes(routes!(admin::approve))
        .routes(routes!(admin::restore))
        .routes(routes!(admin::purge))
        .routes(routes!(admin::purge_orphan))
        .routes(routes!(fsck::repair))
        .routes(routes!(admin::inject))
        .routes(routes!(volumes::scrub))
}

/// The TCP port's router.
pub(super) fn tcp(api: Api) -> Router {
    let plan = OpenApiRouter::new().routes(routes!(admin::plan_disk));
    let (router, _) = readable().merge(plan).split_for_parts();
    let checked = router.fallback(read::nothing);
    let checked = checked.layer(from_fn_with_state(api.clone(), token::check));
    finish(checked, api)
}

/// The admin socket's router; its requests come with a [`peer::Peer`].
pub(super) fn admin(api: Api) -> Router {
    let (commands, _) = commands().split_for_parts();
    let commands = commands.route_layer(from_fn_with_state(api.clone(), peer::check));
    let (router, _) = readable().merge(questions()).split_for_parts();
    finish(router.merge(commands).fallback(read::nothing), api)
}

fn finish(router: Router<Api>, api: Api) -> Router {
    router
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(map_response(problem::in_json))
        .with_state(api)
}

/// The OpenAPI document of all routes.
pub(super) fn document() -> OpenApi {
    let info = InfoBuilder::new()
        .title("volund")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The daemon's state and commands. Reading works on the TCP port and on the admin socket; questions with a \
             body and commands work on the admin socket. Fields and codes are only ever added within v1.",
        ));
    let base = OpenApiBuilder::new().info(info.build()).build();
    let routers = readable().merge(questions()).merge(commands());
    OpenApiRouter::with_openapi(base)
        .merge(routers)
        .into_openapi()
}

#[cfg(test)]
mod tests;
