//! A TCP session, from admission to its one reason.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::listener;
use super::relay::{Ending, Outcome, Relay};
use super::worker::WorkerState;
use crate::config::Timeouts;
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::events::{Event, SessionRecord};
use crate::time::Instant;
use crate::upstream::{self, Backend, Connection, Failure, Leased, Upstream};

/// A session's places under the caps of its listener and of the process; they are free again when
/// it goes.
pub(super) struct Admission {
    worker: Rc<WorkerState>,
    listener: u32,
}

impl Admission {
    /// Takes the places, or says which cap is reached. The session sees the generation that is
    /// returned with it, whole.
    pub(super) fn new(worker: &Rc<WorkerState>, listener: usize) -> Result<(Self, Policy), Reason> {
        let shared = &worker.shared;
        if !shared.active.enter(shared.max_connections) {
            return Err(Reason::ProcessFull);
        }
        let snapshot = shared.snapshot.load();
        let policy = &snapshot.listeners[listener];
        if !shared.listeners[listener]
            .active
            .enter(policy.max_connections)
        {
            shared.active.leave();
            return Err(Reason::ListenerFull);
        }
        worker.begin();
        let admission = Self {
            worker: worker.clone(),
            listener: listener as u32,
        };
        let policy = Policy {
            upstream: policy.upstream.clone(),
            timeouts: policy.timeouts,
        };
        Ok((admission, policy))
    }

    fn listener(&self) -> usize {
        self.listener as usize
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.worker.listener(self.listener()).active.leave();
        self.worker.shared.active.leave();
        self.worker.end();
    }
}

/// What of its listener a session goes by.
pub(super) struct Policy {
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
}

/// Serves one client: connects a backend, then goes on as [`Relaying`].
pub(super) async fn session(ring: Ring, admission: Admission, policy: Policy, client: Socket) {
    client.belongs_to_this_task();
    let record = Record::begin(&ring, &admission.worker, &client);
    match establish(&ring, &admission, &policy.upstream).await {
        Ok(Connection { socket, backend }) => {
            let relay = Some(Relay::new(&ring, client, socket, policy.timeouts));
            ring.spawn(Relaying {
                relay,
                admission: Some(admission),
                backend,
                record,
            });
        }
        Err(reason) => {
            client.abort();
            finish(&ring, admission, record, &Outcome::nothing(reason), None);
        }
    }
}

/// A session with both its connections: the form in which most sessions spend their lives. A task
/// of its own, written by hand, because it is a third of what connecting needs.
struct Relaying {
    relay: Option<Relay>,
    admission: Option<Admission>,
    backend: Leased,
    record: Option<Box<Record>>,
}

impl Future for Relaying {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let (Some(relay), Some(admission)) = (&mut this.relay, &this.admission) else {
            return Poll::Ready(());
        };
        let ending = match admission.worker.aborting.get() {
            true => Ending::DRAINED,
            false => std::task::ready!(relay.poll()),
        };
        if let (Some(relay), Some(admission)) = (this.relay.take(), this.admission.take()) {
            let ring = relay.ring().clone();
            let backend = this.backend.name.clone();
            finish(
                &ring,
                admission,
                this.record.take(),
                &relay.close(ending),
                Some(backend),
            );
        }
        Poll::Ready(())
    }
}

/// Books the end of a session. Whoever hears of it shall find the session's places free.
fn finish(
    ring: &Ring,
    admission: Admission,
    record: Option<Box<Record>>,
    outcome: &Outcome,
    backend: Option<Arc<str>>,
) {
    let (worker, listener) = (admission.worker.clone(), admission.listener());
    drop(admission);
    book(ring, (&worker, listener), record, outcome, backend);
}

/// Refuses a client with RST.
pub(super) fn refuse(
    ring: &Ring,
    worker: &WorkerState,
    listener: usize,
    client: Socket,
    reason: Reason,
) {
    let record = Record::begin(ring, worker, &client);
    client.abort();
    book(
        ring,
        (worker, listener),
        record,
        &Outcome::nothing(reason),
        None,
    );
}

/// Counts the end of a session, and tells it where that is wanted.
fn book(
    ring: &Ring,
    place: (&WorkerState, usize),
    record: Option<Box<Record>>,
    outcome: &Outcome,
    backend: Option<Arc<str>>,
) {
    let counters = place.0.counters(place.1);
    counters.close(outcome.reason);
    counters.bytes_received.add(outcome.bytes_received);
    counters.bytes_sent.add(outcome.bytes_sent);
    if let Some(record) = record {
        record.end(ring.now(), place, outcome, backend);
    }
}

/// Connects to a backend, unless the worker ends its sessions first.
async fn establish(
    ring: &Ring,
    admission: &Admission,
    upstream: &Upstream,
) -> Result<Connection, Reason> {
    let counters = admission.worker.counters(admission.listener());
    let failed = |backend: &Backend, error: &io::Error| {
        counters.connect_failures.add(1);
        let events = &admission.worker.shared.events;
        events.connect_failed(ring.now(), upstream.name(), &backend.name, error);
    };
    let mut connecting = pin!(upstream::connect(ring, upstream, failed));
    poll_fn(|context| {
        if admission.worker.aborting.get() {
            return Poll::Ready(Err(Reason::Drained));
        }
        connecting
            .as_mut()
            .poll(context)
            .map_err(|failure| match failure {
                Failure::Refused => Reason::NoBackend,
                Failure::TimedOut => Reason::ConnectTimeout,
                Failure::NoResources => {
                    listener::rest_all(ring, &admission.worker);
                    Reason::NoResources
                }
            })
    })
    .await
}

/// What is only needed when the end of sessions is told.
struct Record {
    began: Instant,
    client: Option<SocketAddr>,
}

impl Record {
    fn begin(ring: &Ring, worker: &WorkerState, client: &Socket) -> Option<Box<Self>> {
        let told = worker.shared.events.sessions();
        told.then(|| {
            Box::new(Self {
                began: ring.now(),
                client: ring.peer(client).ok().flatten(),
            })
        })
    }

    fn end(
        &self,
        now: Instant,
        place: (&WorkerState, usize),
        outcome: &Outcome,
        backend: Option<Arc<str>>,
    ) {
        let (worker, listener) = place;
        worker
            .shared
            .events
            .send(Event::SessionClosed(Box::new(SessionRecord {
                listener: worker.listener(listener).name.clone(),
                client: self.client,
                backend,
                reason: outcome.reason,
                bytes_received: outcome.bytes_received,
                bytes_sent: outcome.bytes_sent,
                duration: now - self.began,
            })));
    }
}
