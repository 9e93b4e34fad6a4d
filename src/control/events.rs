//! Writes down what the workers tell: a thread of its own, so that a slow terminal holds nobody up.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::telemetry::events::{BackendNews, Event, Events};

/// The thread that writes.
pub(super) struct Reporter {
    /// Disconnected when it has ended.
    ended: Receiver<()>,
}

/// Starts logging the events.
pub(super) fn report(told: Receiver<Event>, events: &Arc<Events>) -> io::Result<Reporter> {
    let events = Arc::downgrade(events);
    let (ends, ended) = mpsc::channel();
    thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            let _ends: mpsc::Sender<()> = ends;
            for event in told {
                write(&event);
                let dropped = events.upgrade().map_or(0, |events| events.take_dropped());
                if dropped > 0 {
                    tracing::warn!(dropped, "more events than could be logged");
                }
            }
        })?;
    Ok(Reporter { ended })
}

impl Reporter {
    /// Waits until all is written, once nobody has anything to tell any more: how the last sessions
    /// ended would be lost with the process.
    pub(super) fn finish(self) {
        /// A terminal may be stuck, and the process shall end all the same.
        const PATIENCE: Duration = Duration::from_secs(1);
        // Nothing is ever sent: it is over in time, or not.
        let _ = self.ended.recv_timeout(PATIENCE);
    }
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
