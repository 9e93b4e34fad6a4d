//! A TCP session, from admission to its one reason.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::relay::{Ending, Outcome, Relay};
use super::worker::WorkerState;
use crate::config::Timeouts;
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::events::{Event, SessionRecord};
use crate::time::Instant;
use crate::upstream::{self, Backend, Connection, Failure, Upstream};

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

/// Serves one client: connects a backend, relays, and books the reason.
pub(super) async fn session(ring: Ring, admission: Admission, policy: Policy, client: Socket) {
    client.belongs_to_this_task();
    let record = Record::begin(&ring, &admission.worker, &client);
    let Policy { upstream, timeouts } = policy;
    // Connecting needs far more state than relaying; on the heap it is gone by then.
    let connected = Box::pin(establish(&ring, &admission, &upstream)).await;
    drop(upstream);
    let (outcome, backend) = match connected {
        Ok(Connection { socket, backend }) => {
            socket.belongs_to_this_task();
            let mut relay = Relay::new(&ring, client, socket, timeouts);
            let ending = poll_fn(|_| match admission.worker.aborting.get() {
                true => Poll::Ready(Ending::DRAINED),
                false => relay.poll(),
            })
            .await;
            (relay.close(ending), Some(backend))
        }
        Err(reason) => {
            client.abort();
            (Outcome::nothing(reason), None)
        }
    };
    let backend = backend.map(|backend| backend.name.clone());
    let (worker, listener) = (admission.worker.clone(), admission.listener());
    // Whoever hears that it ended shall find its places free.
    drop(admission);
    book(&ring, (&worker, listener), record, &outcome, backend);
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
                Failure::NoResources => Reason::NoResources,
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
