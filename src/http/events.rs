//! `/v1/events`: what happened, at once as JSON or for ever as server-sent events (HTML standard, section 9.2).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use utoipa::IntoParams;

use super::Api;
use super::problem::{Code, Problem};
use crate::reconcile::{EventRecord, Events};

/// How many clients may follow at a time.
const STREAMS_MAX: usize = 64;

/// Room for those who follow the events; clones share it.
#[derive(Clone, Debug)]
pub struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only events with a larger number; all that are kept when there never was such a number.
    #[serde(default)]
    after: u64,
    /// Only events of this object: `volume.db`.
    object: Option<String>,
}

/// What happened lately, oldest first
///
/// With `Accept: text/event-stream` the answer does not end: each event is sent as it happens, its number as the id. A
/// client that reconnects sends the last one as `Last-Event-ID` and misses nothing that is still kept.
#[utoipa::path(get, path = "/v1/events", tag = "journal",
    params(Wanted, ("Last-Event-ID" = Option<u64>, Header, description = "As `after`, and counts more.")),
    responses(
        (status = 200, description = "The events", content(
            (Vec<EventRecord> = "application/json"), (EventRecord = "text/event-stream"))),
        (status = "default", description = "What is wrong", body = Problem)))]
pub(super) async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(mut wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    if let Some(last) = text("last-event-id") {
        wanted.after = last.trim().parse().map_err(|_| {
            let message = format!("Last-Event-ID is the number of an event, not {last:?}");
            Problem::new(Code::BadRequest, message)
        })?;
    }
    let accepts = text(header::ACCEPT.as_str()).unwrap_or_default();
    if !accepts.contains("text/event-stream") {
        let mut events = api.reconcile.events().since(wanted.after);
        events.retain(|event| wanted.object.as_ref().is_none_or(|o| *o == event.object));
        return Ok(Json(events).into_response());
    }
    let permit = api.streams.0.try_acquire_owned().map_err(|_| {
        let message = format!("{STREAMS_MAX} clients follow the events already");
        Problem::new(Code::TooManyStreams, message)
    })?;
    let events = follow(api.reconcile.events().clone(), wanted, permit);
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response())
}

/// Where a client is.
struct Place {
    events: Events,
    changes: watch::Receiver<u64>,
    wanted: Wanted,
    ready: VecDeque<EventRecord>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// The next event that the client wants.
    async fn next(&mut self) -> Option<EventRecord> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.wanted.after = event.number;
                let object = self.wanted.object.as_ref();
                if object.is_none_or(|object| *object == event.object) {
                    return Some(event);
                }
                continue;
            }
            // Marked before the look, so that what comes meanwhile wakes it.
            self.changes.borrow_and_update();
            self.ready = self.events.since(self.wanted.after).into();
            if self.ready.is_empty() {
                self.changes.changed().await.ok()?;
            }
        }
    }
}

fn follow(
    events: Events,
    wanted: Wanted,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let place = Place {
        changes: events.changes(),
        events,
        wanted,
        ready: VecDeque::new(),
        _permit: permit,
    };
    stream::unfold(place, |mut place| async move {
        let event = place.next().await?;
        // These have only text fields and a number.
        let data = serde_json::to_string(&event).unwrap_or_default();
        let sent = Event::default().id(event.number.to_string()).data(data);
        Some((Ok(sent), place))
    })
}
