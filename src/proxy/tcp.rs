//! A TCP session, from admission to its one reason.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::admission::{Admission, Policy};
use super::listener::{self, LocalListener};
use super::relay::{Ending, Outcome, Relay};
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::events::{Event, SessionRecord};
use crate::time::Instant;
use crate::upstream::{self, Backend, Caller, Connection, Failure, Lease};

/// Serves one client: connects a backend, then goes on as [`Relaying`].
pub(super) async fn session(ring: Ring, admission: Admission, policy: Policy, client: Socket) {
    let record = Record::begin(&ring, &admission.listener, &client);
    let session = Session {
        admission,
        policy,
        client,
        record,
        takes_ahead: true,
    };
    session.serve(ring).await;
}

/// A session without a backend.
struct Session {
    admission: Admission,
    policy: Policy,
    client: Socket,
    record: Option<Box<Record>>,
    /// A connection that was open ahead will do.
    takes_ahead: bool,
}

impl Session {
    async fn serve(self, ring: Ring) {
        self.client.belongs_to_this_task();
        match self.establish(&ring).await {
            Ok(connection) => self.relay(&ring, connection),
            Err(reason) => {
                self.client.abort();
                let outcome = Outcome::nothing(reason);
                finish(&ring, self.admission, self.record, &outcome, None);
            }
        }
    }

    fn relay(self, ring: &Ring, connection: Connection) {
        let Connection {
            socket,
            lease,
            ahead,
        } = connection;
        let relay = Relay::new(self.client, socket, self.policy.listener, ahead);
        ring.spawn(Relaying {
            live: Some(Live {
                relay,
                admission: self.admission,
                lease,
            }),
            record: self.record,
        });
    }

    /// Connects to a backend, unless the worker ends its sessions first.
    async fn establish(&self, ring: &Ring) -> Result<Connection, Reason> {
        let listener = &self.admission.listener;
        let worker = &listener.worker;
        let upstream = &self.policy.listener.upstream;
        let failed = |backend: &Backend, error: &io::Error| {
            listener.counters().connect_failures.add(1);
            let events = &worker.shared.around.events;
            events.connect_failed(ring.now(), upstream.name(), &backend.name, error);
        };
        let caller = Caller {
            socket: &self.client,
            address: self.policy.client,
            takes_ahead: self.takes_ahead,
            failed: &failed,
        };
        let mut connecting = pin!(upstream::connect(ring, &worker.local, upstream, caller));
        poll_fn(|context| {
            if listener.is_aborting(None) {
                return Poll::Ready(Err(Reason::Drained));
            }
            connecting
                .as_mut()
                .poll(context)
                .map_err(|failure| self.reason_of(ring, failure))
        })
        .await
    }

    fn reason_of(&self, ring: &Ring, failure: Failure) -> Reason {
        match failure {
            Failure::Refused => Reason::NoBackend,
            Failure::TimedOut => Reason::ConnectTimeout,
            Failure::NoResources => {
                listener::rest_all(ring, self.admission.worker());
                Reason::NoResources
            }
            Failure::QueueFull => Reason::QueueFull,
            Failure::QueueTimeout => Reason::QueueTimeout,
            Failure::ClientGone => Reason::ClientReset,
        }
    }
}

/// A session with both its connections: the form in which most sessions spend their lives. A task
/// of its own, written by hand, because it is a third of what connecting needs.
struct Relaying {
    /// Until it ends.
    live: Option<Live>,
    record: Option<Box<Record>>,
}

/// What a session has of the world.
struct Live {
    relay: Relay,
    admission: Admission,
    lease: Lease,
}

impl Future for Relaying {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(live) = &mut this.live else {
            return Poll::Ready(());
        };
        let ending = match live.admission.listener.is_aborting(Some(&live.lease)) {
            true => Poll::Ready(Ending::DRAINED),
            false => live.relay.poll(),
        };
        if live.lease.is_watched() {
            let (received, sent) = live.relay.bytes();
            live.lease.look(live.relay.ring(), received, sent);
        }
        let ending = std::task::ready!(ending);
        if let Some(live) = this.live.take() {
            live.end(this.record.take(), ending);
        }
        Poll::Ready(())
    }
}

impl Live {
    fn end(self, record: Option<Box<Record>>, ending: Ending) {
        let ring = self.relay.ring().clone();
        if ending == Ending::STALE {
            return self.begin_again(&ring, record);
        }
        let mut lease = self.lease;
        let backend = lease.backend().name.clone();
        let outcome = self.relay.close(ending);
        lease.ended(outcome.reason, ring.now());
        drop(lease);
        finish(&ring, self.admission, record, &outcome, Some(backend));
    }

    /// The connection that was open ahead had been closed: the client gets a fresh one.
    fn begin_again(self, ring: &Ring, record: Option<Box<Record>>) {
        let admission = self.admission;
        let (client, listener) = self.relay.into_client();
        match Policy::new(ring, listener, &client) {
            Ok(policy) => {
                let session = Session {
                    admission,
                    policy,
                    client,
                    record,
                    takes_ahead: false,
                };
                ring.spawn(session.serve(ring.clone()));
            }
            Err(reason) => {
                client.abort();
                finish(ring, admission, record, &Outcome::nothing(reason), None);
            }
        }
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
    let listener = admission.listener.clone();
    drop(admission);
    book(ring, &listener, record, outcome, backend);
}

/// Refuses a client with RST.
pub(super) fn refuse(ring: &Ring, listener: &LocalListener, client: Socket, reason: Reason) {
    let record = Record::begin(ring, listener, &client);
    client.abort();
    book(ring, listener, record, &Outcome::nothing(reason), None);
}

/// Counts the end of a session, and tells it where that is wanted.
fn book(
    ring: &Ring,
    listener: &LocalListener,
    record: Option<Box<Record>>,
    outcome: &Outcome,
    backend: Option<Arc<str>>,
) {
    let counters = listener.counters();
    counters.close(outcome.reason);
    counters.bytes_received.add(outcome.bytes_received);
    counters.bytes_sent.add(outcome.bytes_sent);
    if let Some(record) = record {
        record.end(ring.now(), listener, outcome, backend);
    }
}

/// What is only needed when the end of sessions is told.
struct Record {
    began: Instant,
    client: Option<SocketAddr>,
}

impl Record {
    fn begin(ring: &Ring, listener: &LocalListener, client: &Socket) -> Option<Box<Self>> {
        let told = listener.worker.shared.around.events.sessions();
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
        listener: &LocalListener,
        outcome: &Outcome,
        backend: Option<Arc<str>>,
    ) {
        listener
            .worker
            .shared
            .around
            .events
            .send(Event::SessionClosed(Box::new(SessionRecord {
                listener: listener.state.name.clone(),
                client: self.client,
                backend,
                reason: outcome.reason,
                bytes_received: outcome.bytes_received,
                bytes_sent: outcome.bytes_sent,
                duration: now - self.began,
            })));
    }
}
