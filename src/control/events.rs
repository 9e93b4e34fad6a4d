//! Writes down what the workers tell: a thread of its own, so that a slow terminal holds nobody up.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;

use crate::config::LogLevel;
use crate::telemetry::events::{Event, Events, SessionRecord};

/// Starts logging the events. The thread ends with the process.
pub(super) fn report(
    receiver: Receiver<Event>,
    events: &Arc<Events>,
    level: LogLevel,
) -> io::Result<()> {
    set_level(events, level);
    let events = Arc::downgrade(events);
    thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            for event in receiver {
                write(&event);
                let dropped = events.upgrade().map_or(0, |events| events.take_dropped());
                if dropped > 0 {
                    tracing::warn!(dropped, "more events than could be logged");
                }
            }
        })?;
    Ok(())
}

/// Sessions are told at level debug.
pub(super) fn set_level(events: &Events, level: LogLevel) {
    events.set_sessions(level >= LogLevel::Debug);
}

fn write(event: &Event) {
    match event {
        Event::SessionClosed(session) => write_session(session),
        Event::AcceptPaused { listener, errno } => {
            let error = io::Error::from_raw_os_error(*errno);
            tracing::warn!(%listener, %error, "accepting pauses");
        }
    }
}

fn write_session(session: &SessionRecord) {
    let client = session
        .client
        .map_or_else(|| "unix".to_owned(), |client| client.to_string());
    tracing::debug!(
        listener = %session.listener,
        client,
        backend = session.backend.as_deref().unwrap_or("-"),
        reason = session.reason.as_str(),
        bytes_received = session.bytes_received,
        bytes_sent = session.bytes_sent,
        duration_ms = session.duration.as_millis() as u64,
        "session closed"
    );
}
