//! A TCP session, from admission to its one reason.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::relay::{Ending, Relay, Relayed};
use super::worker::{Busy, WorkerState};
use crate::config::Timeouts;
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::events::{Event, SessionRecord};
use crate::time::Instant;
use crate::upstream::{self, Connection, Failure, Upstream};

/// A session's places under the caps of its listener and of the process; they are free again when
/// it goes.
pub(super) struct Admission {
    worker: Rc<WorkerState>,
    listener: u32,
    _busy: Busy,
}

impl Admission {
    /// Takes the places, or says which cap is reached.
    pub(super) fn new(worker: &Rc<WorkerState>, listener: usize) -> Result<Self, Reason> {
        let shared = &worker.shared;
        if !shared.active.enter(shared.max_connections()) {
            return Err(Reason::ProcessFull);
        }
        let cap = shared.snapshot.load().listeners[listener].max_connections;
        if !shared.listeners[listener].active.enter(cap) {
            shared.active.leave();
            return Err(Reason::ListenerFull);
        }
        Ok(Self {
            worker: worker.clone(),
            listener: listener as u32,
            _busy: Busy::new(worker),
        })
    }

    fn listener(&self) -> usize {
        self.listener as usize
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.worker.listener(self.listener()).active.leave();
        self.worker.shared.active.leave();
    }
}

/// Serves one client: connects a backend, relays, and books the reason.
pub(super) async fn session(ring: Ring, admission: Admission, client: Socket) {
    client.belongs_to_this_task();
    let record = Record::begin(&ring, &admission.worker, &client);
    let (upstream, timeouts) = policy(&admission);
    // Connecting needs far more state than relaying; on the heap it is gone by then.
    let connected = Box::pin(establish(&ring, &admission, &upstream)).await;
    drop(upstream);
    let (relayed, backend) = match connected {
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
            (Relayed::nothing(reason), None)
        }
    };
    let backend = backend.map(|backend| backend.name.clone());
    let (worker, listener) = (admission.worker.clone(), admission.listener());
    // Whoever hears that it ended shall find its places free.
    drop(admission);
    book(&ring, (&worker, listener), record, &relayed, backend);
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
        &Relayed::nothing(reason),
        None,
    );
}

/// Counts the end of a session, and tells it where that is wanted.
fn book(
    ring: &Ring,
    place: (&WorkerState, usize),
    record: Option<Box<Record>>,
    relayed: &Relayed,
    backend: Option<Arc<str>>,
) {
    let counters = place.0.counters(place.1);
    counters.close(relayed.reason);
    counters.bytes_received.add(relayed.bytes_received);
    counters.bytes_sent.add(relayed.bytes_sent);
    if let Some(record) = record {
        record.end(ring.now(), place, relayed, backend);
    }
}

fn policy(admission: &Admission) -> (Arc<Upstream>, Timeouts) {
    let snapshot = admission.worker.shared.snapshot.load();
    let policy = &snapshot.listeners[admission.listener()];
    (policy.upstream.clone(), policy.timeouts)
}

/// Connects to a backend, unless the worker ends its sessions first.
async fn establish(
    ring: &Ring,
    admission: &Admission,
    upstream: &Upstream,
) -> Result<Connection, Reason> {
    let counters = admission.worker.counters(admission.listener());
    let mut connecting = pin!(upstream::connect(ring, upstream, || counters
        .connect_failures
        .add(1)));
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
        relayed: &Relayed,
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
                reason: relayed.reason,
                bytes_received: relayed.bytes_received,
                bytes_sent: relayed.bytes_sent,
                duration: now - self.began,
            })));
    }
}
