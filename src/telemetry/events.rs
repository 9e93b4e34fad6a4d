//! What the data plane has to say to people. A worker never logs: it leaves an event in a bounded
//! queue, and when the queue is full the event is counted and forgotten.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::sessions::{SessionRecord, Sessions};
use crate::time::Instant;

/// Something worth a log line.
#[derive(Debug)]
pub enum Event {
    /// Accepting pauses: the system has no descriptor or memory.
    AcceptPaused {
        /// The listener's name.
        listener: Arc<str>,
        /// What accept4(2) said.
        errno: i32,
    },
    /// A try to connect to a backend failed.
    ConnectFailed {
        /// The upstream's name.
        upstream: Arc<str>,
        /// The backend's name.
        backend: Arc<str>,
        /// Why.
        error: String,
    },
    /// Live sessions have changed what is thought of a backend.
    Backend {
        /// The upstream's name.
        upstream: Arc<str>,
        /// The backend's name.
        backend: Arc<str>,
        /// What has happened.
        news: BackendNews,
    },
    /// Too few backends are healthy, so that health is ignored; or enough are again.
    FailingOpen {
        /// The upstream's name.
        upstream: Arc<str>,
        /// It has begun.
        began: bool,
    },
}

/// What has happened to a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendNews {
    /// It gets no sessions for so long, because too many failed in a row.
    Ejected(Duration),
    /// It gets no sessions for so long, because too large a part of them failed.
    BreakerOpened(Duration),
    /// A few sessions try whether it works.
    BreakerHalfOpened,
    /// It has shown that it works.
    BreakerClosed,
}

/// The senders' side of the queue, shared by all workers.
#[derive(Debug)]
pub struct Events {
    queue: SyncSender<Event>,
    /// What is told of sessions, by a queue of its own.
    pub sessions: Sessions,
    dropped: AtomicU64,
    pauses: Throttle,
    connect_failures: Throttle,
}

/// The reading ends.
#[derive(Debug)]
pub struct Told {
    /// What is for the log.
    pub events: Receiver<Event>,
    /// Sessions that have ended.
    pub records: Receiver<Box<SessionRecord>>,
}

/// Events that may wait for the log.
const QUEUE: usize = 4096;

impl Events {
    /// The queues and their reading ends.
    pub fn new() -> (Arc<Self>, Told) {
        let (queue, events) = sync_channel(QUEUE);
        let (sessions, records) = Sessions::new();
        let this = Self {
            queue,
            sessions,
            dropped: AtomicU64::new(0),
            pauses: Throttle::default(),
            connect_failures: Throttle::default(),
        };
        (Arc::new(this), Told { events, records })
    }

    /// Leaves an event, or counts it when the queue is full.
    pub fn send(&self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(event) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells that accepting pauses, once a second for the whole process.
    pub fn accept_paused(&self, now: Instant, listener: &Arc<str>, errno: i32) {
        if self.pauses.admits(now) {
            self.send(Event::AcceptPaused {
                listener: listener.clone(),
                errno,
            });
        }
    }

    /// Tells that a backend can't be connected to, once a second for the whole process.
    pub fn connect_failed(
        &self,
        now: Instant,
        upstream: &Arc<str>,
        backend: &Arc<str>,
        error: &io::Error,
    ) {
        if self.connect_failures.admits(now) {
            self.send(Event::ConnectFailed {
                upstream: upstream.clone(),
                backend: backend.clone(),
                error: error.to_string(),
            });
        }
    }

    /// Tells news of a backend.
    pub fn backend(&self, upstream: Arc<str>, backend: Arc<str>, news: BackendNews) {
        self.send(Event::Backend {
            upstream,
            backend,
            news,
        });
    }

    /// Tells that health is ignored from now on (`began`), or no longer.
    pub fn failing_open(&self, upstream: Arc<str>, began: bool) {
        self.send(Event::FailingOpen { upstream, began });
    }

    /// Takes the number of events that found the queue full since the last time.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

/// Lets one event through a second, whoever asks.
#[derive(Debug, Default)]
struct Throttle {
    last_nanos: AtomicU64,
}

impl Throttle {
    fn admits(&self, now: Instant) -> bool {
        const SECOND: u64 = 1_000_000_000;
        // The first second counts from one second before the start, so that it is told, too.
        let now = now.as_nanos() + SECOND;
        let last = self.last_nanos.load(Ordering::Relaxed);
        now.saturating_sub(last) >= SECOND
            && self
                .last_nanos
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_lets_one_through_a_second() {
        let throttle = Throttle::default();
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        assert!(throttle.admits(at(0)));
        assert!(!throttle.admits(at(999)));
        assert!(throttle.admits(at(1_000)));
        assert!(!throttle.admits(at(1_500)));
        assert!(throttle.admits(at(9_000)));
        let years = 100 * 365 * 86_400_000;
        assert!(throttle.admits(at(years)));
        assert!(!throttle.admits(at(years + 999)));
    }
}
