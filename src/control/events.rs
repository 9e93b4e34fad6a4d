//! Writes down what the workers tell: a thread of its own, so that a slow terminal holds nobody up.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::writing::{self, Writing};
use crate::telemetry::events::{BackendNews, Event, Events};

/// Starts logging the events.
pub(super) fn report(told: Receiver<Event>, events: &Arc<Events>) -> io::Result<Writing> {
    let events = Arc::downgrade(events);
    writing::begin("events", move || {
        for event in told {
            write(&event);
            let dropped = events.upgrade().map_or(0, |events| events.take_dropped());
            if dropped > 0 {
                tracing::warn!(dropped, "more events than could be logged");
            }
        }
    })
}

fn write(event: &Event) {
    match event {
        Event::ConnectFailed {
            upstream,
            backend,
            error,
        } => {
            tracing::warn!(%upstream, %backend, %error, "a backend can't be connected to");
        }
        Event::AcceptPaused { listener, errno } => {
            let error = io::Error::from_raw_os_error(*errno);
            tracing::warn!(%listener, %error, "accepting pauses");
        }
        Event::Backend {
            upstream,
            backend,
            news,
        } => write_news(upstream, backend, *news),
        Event::FailingOpen {
            upstream,
            began: true,
        } => {
            tracing::warn!(%upstream, "too few backends are healthy: health is ignored");
        }
        Event::FailingOpen {
            upstream,
            began: false,
        } => tracing::info!(%upstream, "enough backends are healthy again"),
    }
}

fn write_news(upstream: &str, backend: &str, news: BackendNews) {
    match news {
        BackendNews::Ejected(time) => {
            tracing::warn!(
                upstream,
                backend,
                ?time,
                "backend is ejected: failures in a row"
            );
        }
        BackendNews::BreakerOpened(time) => {
            tracing::warn!(
                upstream,
                backend,
                ?time,
                "breaker is open: too many failures"
            );
        }
        BackendNews::BreakerHalfOpened => {
            tracing::info!(
                upstream,
                backend,
                "breaker is half-open: a few sessions try"
            );
        }
        BackendNews::BreakerClosed => {
            tracing::info!(
                upstream,
                backend,
                "breaker is closed: the backend works again"
            );
        }
    }
}
