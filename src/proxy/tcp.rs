//! A TCP session, from admission to its one reason.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::admission::{Admission, Policy};
use super::listener::{self, LocalListener};
use super::opening::{self, Refusal};
use super::relay::{Ending, Outcome, Relay};
use super::tls::Tls;
use crate::config::Announce;
use crate::proto::proxy_header;
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::events::{Event, SessionRecord};
use crate::time::Instant;
use crate::tls;
use crate::upstream::{self, Backend, Caller, Connection, Failure, Lease};

/// Serves one client: connects a backend, then goes on as [`Relaying`].
pub(super) async fn session(ring: Ring, admission: Admission, policy: Policy, client: Socket) {
    let record = Record::begin(&ring, &admission.listener, &client);
    let session = Session {
        admission,
        policy,
        client,
        tls: None,
        record,
        takes_ahead: true,
    };
    match session.policy.listener.has_opening() {
        true => Box::pin(session.open(ring)).await,
        false => session.serve(ring).await,
    }
}

/// A session without a backend.
struct Session {
    admission: Admission,
    policy: Policy,
    client: Socket,
    /// The client's TLS.
    tls: Option<Box<tls::Session>>,
    record: Option<Box<Record>>,
    /// A connection that was open ahead will do.
    takes_ahead: bool,
}

impl Session {
    /// Hears what comes before everything else, then serves.
    async fn open(mut self, ring: Ring) {
        let opened = {
            let (admission, client) = (&self.admission, &self.client);
            let opening = pin!(opening::open(&ring, admission, &mut self.policy, client));
            unless_aborted(admission, opening).await
        };
        if let (Some(record), Some(announced)) = (&mut self.record, &self.policy.announced) {
            record.client = Some(announced.0);
        }
        match opened {
            Ok(tls) => {
                self.tls = tls;
                self.serve(ring).await;
            }
            Err(refusal) => self.refuse(&ring, refusal),
        }
    }

    async fn serve(self, ring: Ring) {
        self.client.belongs_to_this_task();
        match self.establish(&ring).await {
            Ok(connection) => self.relay(&ring, connection),
            Err(reason) => self.refuse(&ring, reason.into()),
        }
    }

    fn refuse(self, ring: &Ring, refusal: Refusal) {
        self.client.abort();
        let outcome = Outcome {
            detail: refusal.detail,
            ..Outcome::nothing(refusal.reason)
        };
        finish(ring, self.admission, self.record, &outcome, None);
    }

    fn relay(self, ring: &Ring, connection: Connection) {
        let Connection {
            socket,
            tls,
            lease,
            ahead,
        } = connection;
        let tls = Tls::new(self.tls, tls);
        let listener = self.policy.listener.clone();
        let relay = Relay::new(self.client, socket, tls, listener, ahead);
        ring.spawn(Relaying {
            live: Some(Live {
                relay,
                admission: self.admission,
                lease,
                again: ahead.then(|| Box::new(self.policy)),
            }),
            record: self.record,
        });
    }

    /// Connects to a backend, unless the worker ends its sessions first.
    async fn establish(&self, ring: &Ring) -> Result<Connection, Reason> {
        let listener = &self.admission.listener;
        let worker = &listener.worker;
        let upstream = self.policy.upstream();
        let failed = |backend: &Backend, error: &io::Error| {
            listener.counters().connect_failures.add(1);
            let events = &worker.shared.around.events;
            events.connect_failed(ring.now(), upstream.name(), &backend.name, error);
        };
        let header = self.header(ring);
        let caller = Caller {
            socket: &self.client,
            address: self.policy.client,
            takes_ahead: self.takes_ahead,
            header: header.as_ref(),
            failed: &failed,
        };
        let connecting = pin!(upstream::connect(ring, &worker.local, upstream, caller));
        let connecting = async {
            let connected = connecting.await;
            connected.map_err(|failure| self.reason_of(ring, failure))
        };
        unless_aborted(&self.admission, pin!(connecting)).await
    }

    /// What backends are told of the client, where they want to hear it.
    fn header(&self, ring: &Ring) -> Option<Rc<[u8]>> {
        let version = match self.policy.upstream().announce() {
            Announce::Never => return None,
            Announce::V1 => proxy_header::v1,
            Announce::V2First | Announce::V2Every => proxy_header::v2,
        };
        let addresses = opening::addresses(ring, &self.policy, &self.client);
        Some(version(addresses).into())
    }

    fn reason_of(&self, ring: &Ring, failure: Failure) -> Reason {
        match failure {
            Failure::Refused => Reason::NoBackend,
            Failure::TimedOut => Reason::ConnectTimeout,
            Failure::Unsecured => Reason::BackendTls,
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
    /// What a session with another backend would go by, as long as there may be one.
    again: Option<Box<Policy>>,
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
        let (client, tls) = self.relay.into_client();
        let Some(policy) = self.again else {
            client.abort();
            let outcome = Outcome::nothing(Reason::BackendClosed);
            return finish(ring, admission, record, &outcome, None);
        };
        let session = Session {
            admission,
            policy: *policy,
            client,
            tls,
            record,
            takes_ahead: false,
        };
        ring.spawn(session.serve(ring.clone()));
    }
}

/// Does `work`, unless the worker ends its sessions first.
async fn unless_aborted<T, E: From<Reason>>(
    admission: &Admission,
    mut work: Pin<&mut impl Future<Output = Result<T, E>>>,
) -> Result<T, E> {
    poll_fn(|context| {
        if admission.listener.is_aborting(None) {
            return Poll::Ready(Err(Reason::Drained.into()));
        }
        work.as_mut().poll(context)
    })
    .await
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
                detail: outcome.detail.clone(),
                duration: now - self.began,
            })));
    }
}
