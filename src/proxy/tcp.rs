//! A TCP session, from admission to its one reason.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::admission::{Admission, Policy};
use super::listener::{self, LocalListener};
use super::opening::{self, Refusal};
use super::relay::{Ending, Outcome, Relay};
use super::tls::Tls;
use crate::config::Announce;
use crate::proto::proxy_header;
use crate::ring::{Ring, Socket};
use crate::telemetry::recorder::What;
use crate::telemetry::sessions::SessionRecord;
use crate::telemetry::{Opening, Reason};
use crate::time::Instant;
use crate::tls;
use crate::upstream::{self, Backend, Caller, Connection, Failure, Lease, Story};

/// Serves one client: connects a backend, then goes on as [`Relaying`].
pub(super) fn session(
    ring: Ring,
    admission: Admission,
    policy: Policy,
    client: Socket,
) -> impl Future<Output = ()> {
    // Before it is polled for the first time: it may be lost before.
    let record = Record::begin(&ring, &admission, &client);
    let session = Session {
        admission,
        policy,
        client,
        tls: None,
        began: ring.now(),
        record,
        story: Story::default(),
        takes_ahead: true,
    };
    async move {
        match session.policy.listener.has_opening() {
            true => Box::pin(session.open(ring)).await,
            false => session.serve(ring).await,
        }
    }
}

/// A session without a backend.
struct Session {
    admission: Admission,
    policy: Policy,
    client: Socket,
    /// The client's TLS.
    tls: Option<Box<tls::Session>>,
    began: Instant,
    record: Option<Box<Record>>,
    /// How the look for a backend goes.
    story: Story,
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
            Ok(opened) => {
                self.tls = opened.tls;
                if let Some(record) = &mut self.record {
                    record.opening = opened.how;
                    record.sni = opened.name;
                }
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

    fn refuse(mut self, ring: &Ring, refusal: Refusal) {
        self.tell_story();
        self.client.abort();
        let outcome = Outcome {
            detail: refusal.detail,
            ..Outcome::nothing(refusal.reason)
        };
        finish(
            ring,
            self.admission,
            self.record,
            (&outcome, self.began),
            None,
        );
    }

    fn relay(mut self, ring: &Ring, connection: Connection) {
        self.tell_story();
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
                began: self.began,
                answer: Answer::Unasked(ring.now()),
                again: ahead.then(|| Box::new(self.policy)),
            }),
            record: self.record,
        });
    }

    /// What is known of where the session goes, for its record.
    fn tell_story(&mut self) {
        if let Some(record) = &mut self.record {
            record.story = std::mem::take(&mut self.story);
            record.upstream = Some(self.policy.upstream().name().clone());
            record.route = self.policy.route;
        }
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
            session: self.admission.number,
            story: &self.story,
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
    began: Instant,
    answer: Answer,
    /// What a session with another backend would go by, as long as there may be one.
    again: Option<Box<Policy>>,
}

/// The backend's first byte.
#[derive(Clone, Copy)]
enum Answer {
    /// The backend has been sent nothing; it was connected to at this time.
    Unasked(Instant),
    /// It was sent something at this time.
    Asked(Instant),
    /// It has come.
    Come,
}

impl Future for Relaying {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(live) = &mut this.live else {
            return Poll::Ready(());
        };
        #[cfg(debug_assertions)]
        assert!(
            !live.admission.worker().trapped.take(),
            "asked to, in a session"
        );
        let ending = match live.admission.listener.is_aborting(Some(&live.lease)) {
            true => Poll::Ready(Ending::DRAINED),
            false => live.relay.poll(),
        };
        if live.lease.is_watched() {
            let (received, sent) = live.relay.bytes();
            live.lease.look(live.relay.ring(), received, sent);
        }
        if !matches!(live.answer, Answer::Come) {
            live.await_answer(this.record.as_deref_mut());
        }
        if live.relay.is_worth_counting() {
            live.count_bytes();
        }
        let ending = std::task::ready!(ending);
        if let Some(live) = this.live.take() {
            live.end(this.record.take(), ending);
        }
        Poll::Ready(())
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        if let Some(live) = self.live.take()
            && live.admission.worker().is_falling()
        {
            live.lose(self.record.take());
        }
    }
}

impl Live {
    /// Looks whether the backend was asked, and whether it has answered.
    fn await_answer(&mut self, record: Option<&mut Record>) {
        let now = self.relay.ring().now();
        let (received, sent) = self.relay.bytes();
        match self.answer {
            Answer::Unasked(since) | Answer::Asked(since) if sent > 0 => {
                let after = now - since;
                self.answer = Answer::Come;
                self.lease.answered(self.admission.worker().index, after);
                let (backend, micros) = (self.lease.backend().number, after.as_micros() as u64);
                self.admission.note(now, What::FirstByte, backend, micros);
                if let Some(record) = record {
                    record.first_byte = Some(after);
                }
            }
            Answer::Unasked(_) if received > 0 => self.answer = Answer::Asked(now),
            Answer::Unasked(_) | Answer::Asked(_) | Answer::Come => {}
        }
    }

    fn count_bytes(&mut self) {
        let (received, sent) = self.relay.take_bytes();
        let listener = self.admission.listener.counters();
        listener.bytes_received.add(received);
        listener.bytes_sent.add(sent);
        let backend = self.lease.counters(self.admission.worker().index);
        backend.bytes_received.add(received);
        backend.bytes_sent.add(sent);
    }

    /// The worker has panicked. The end is counted with the admission's, and the backend is not to blame.
    fn lose(mut self, record: Option<Box<Record>>) {
        self.count_bytes();
        let duration = self.relay.ring().now() - self.began;
        let worker = self.admission.worker().index;
        let reason = Reason::WorkerPanicked;
        self.lease.count_end(worker, reason, duration);
        let backend = self.lease.backend().name.clone();
        let outcome = self.relay.close(Ending::LOST);
        if let Some(mut record) = record {
            record.tell(duration, &outcome, Some(backend));
        }
    }

    fn end(mut self, record: Option<Box<Record>>, ending: Ending) {
        let ring = self.relay.ring().clone();
        let worker = self.admission.worker().index;
        if ending == Ending::STALE {
            self.lease.counters(worker).pool_stale.add(1);
            return self.begin_again(&ring, record);
        }
        self.count_bytes();
        let mut lease = self.lease;
        let (backend, number) = (lease.backend().name.clone(), lease.backend().number);
        let outcome = self.relay.close(ending);
        lease.ended(outcome.reason, ring.now());
        lease.count_end(worker, outcome.reason, ring.now() - self.began);
        drop(lease);
        let of = Some((backend, number));
        finish(&ring, self.admission, record, (&outcome, self.began), of);
    }

    /// The connection that was open ahead had been closed: the client gets a fresh one.
    fn begin_again(self, ring: &Ring, record: Option<Box<Record>>) {
        let admission = self.admission;
        let (client, tls) = self.relay.into_client();
        let Some(policy) = self.again else {
            client.abort();
            let outcome = Outcome::nothing(Reason::BackendClosed);
            return finish(ring, admission, record, (&outcome, self.began), None);
        };
        let session = Session {
            admission,
            policy: *policy,
            client,
            tls,
            began: self.began,
            record,
            story: Story::default(),
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

/// The name of a session's backend, and its number.
type Served = (Arc<str>, u32);

/// Books the end of a session. Whoever hears of it shall find the session's places free.
fn finish(
    ring: &Ring,
    admission: Admission,
    record: Option<Box<Record>>,
    (outcome, began): (&Outcome, Instant),
    backend: Option<Served>,
) {
    let (listener, number) = (admission.listener.clone(), admission.number);
    drop(admission);
    let duration = ring.now() - began;
    listener.counters().duration.record(duration);
    let sessions = &listener.worker.shared.around.events.sessions;
    let record = record.filter(|_| backend.is_some() || sessions.tells_refusal(ring.now()));
    let told = (record, outcome);
    book(ring, &listener, (number, duration), told, backend);
}

/// Refuses a client with RST.
pub(super) fn refuse(ring: &Ring, listener: &Rc<LocalListener>, client: Socket, reason: Reason) {
    let sessions = &listener.worker.shared.around.events.sessions;
    let told = sessions.tells_refusal(ring.now());
    let session = listener.worker.number_session();
    let record = told.then(|| Record::new(ring, listener, session, &client));
    client.abort();
    let session = (session, Duration::ZERO);
    let told = (record, &Outcome::nothing(reason));
    book(ring, listener, session, told, None);
}

/// Counts the end of a session, and tells it where that is wanted.
fn book(
    ring: &Ring,
    listener: &LocalListener,
    session: (u32, Duration),
    (record, outcome): (Option<Box<Record>>, &Outcome),
    backend: Option<Served>,
) {
    listener.counters().close(outcome.reason);
    let subject = backend.as_ref().map_or(listener.state.number, |it| it.1);
    let bytes = outcome.bytes_received + outcome.bytes_sent;
    let local = &listener.worker.local;
    local.note_end((ring.now(), session.0), outcome.reason, subject, bytes);
    if let Some(mut record) = record {
        let backend = backend.map(|backend| backend.0);
        record.tell(session.1, outcome, backend);
    }
}

/// What is only needed when the end of sessions is told.
struct Record {
    ring: Ring,
    listener: Rc<LocalListener>,
    /// The session's number on its worker.
    session: u32,
    began: Instant,
    client: Option<SocketAddr>,
    opening: Option<Opening>,
    sni: Option<Box<str>>,
    upstream: Option<Arc<str>>,
    route: Option<usize>,
    first_byte: Option<Duration>,
    story: Story,
    told: bool,
}

impl Record {
    fn begin(ring: &Ring, admission: &Admission, client: &Socket) -> Option<Box<Self>> {
        let listener = &admission.listener;
        let sessions = &listener.worker.shared.around.events.sessions;
        sessions
            .are_told()
            .then(|| Self::new(ring, listener, admission.number, client))
    }

    fn new(ring: &Ring, listener: &Rc<LocalListener>, session: u32, client: &Socket) -> Box<Self> {
        Box::new(Self {
            ring: ring.clone(),
            listener: listener.clone(),
            session,
            began: ring.now(),
            client: ring.peer(client).ok().flatten(),
            opening: None,
            sni: None,
            upstream: None,
            route: None,
            first_byte: None,
            story: Story::default(),
            told: false,
        })
    }

    fn tell(&mut self, duration: Duration, outcome: &Outcome, backend: Option<Arc<str>>) {
        self.told = true;
        let listener = &self.listener;
        let worker = &listener.worker;
        worker
            .shared
            .around
            .events
            .sessions
            .send(Box::new(SessionRecord {
                at: self.ring.now(),
                worker: worker.index,
                session: self.session,
                listener: listener.state.name.clone(),
                client: self.client,
                upstream: self.upstream.take(),
                route: self.route,
                backend,
                retries: self.story.retries.get(),
                tls: self.opening,
                sni: self.sni.take(),
                queued: self.story.queued.get(),
                connect: self.story.connect.get(),
                first_byte: self.first_byte,
                duration,
                bytes_received: outcome.bytes_received,
                bytes_sent: outcome.bytes_sent,
                reason: outcome.reason,
                detail: outcome.detail.clone(),
            }));
    }
}

impl Drop for Record {
    /// A session that had no backend yet when its worker panicked.
    fn drop(&mut self) {
        if !self.told && self.listener.worker.is_falling() {
            let duration = self.ring.now() - self.began;
            self.tell(duration, &Outcome::nothing(Reason::WorkerPanicked), None);
        }
    }
}
