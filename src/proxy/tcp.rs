//! A TCP session, from admission to its one reason.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use super::admission::{Admission, Policy};
use super::listener::{self, LocalListener};
use super::opening::{self, Refusal};
use super::record::{End, Names, Record};
use super::relay::{Ending, Outcome, Relay};
use super::tls::Tls;
use crate::config::Announce;
use crate::proto::proxy_header;
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::recorder::What;
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
    let session = Session {
        admission,
        policy,
        client,
        tls: None,
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
        let record = &mut self.admission.record;
        if let (Some(record), Some(announced)) = (record, &self.policy.announced) {
            record.announced(announced.0);
        }
        match opened {
            Ok(opened) => {
                self.tls = opened.tls;
                if let Some(record) = &mut self.admission.record {
                    record.opened(opened.how, opened.name);
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
        let told = self.admission.record.is_some();
        let upstream = told.then(|| self.policy.upstream().name().clone());
        finish(ring, self.admission, &outcome, None, (upstream, None));
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
                answer: Answer::unasked(ring.now()),
                again: ahead.then(|| Box::new(self.policy)),
            }),
        });
    }

    /// What is known of where the session goes, for its record.
    fn tell_story(&mut self) {
        if let Some(record) = &mut self.admission.record {
            record.went(self.policy.route, &self.story);
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
}

/// What a session has of the world.
struct Live {
    relay: Relay,
    admission: Admission,
    lease: Lease,
    answer: Answer,
    /// What a session with another backend would go by, as long as there may be one.
    again: Option<Box<Policy>>,
}

/// The backend's first byte: nanoseconds, and by the lowest bit what they mean; 0 = it has come.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Answer(u64);

impl Answer {
    const COME: Self = Self(0);
    const ASKED: u64 = 1;

    /// The backend has been sent nothing; it was connected to at this time.
    fn unasked(at: Instant) -> Self {
        // The clock has been running for a while, and not for 292 years.
        Self(at.as_nanos() << 1)
    }

    /// It was sent something at this time.
    fn asked(at: Instant) -> Self {
        Self(at.as_nanos() << 1 | Self::ASKED)
    }

    fn is_asked(self) -> bool {
        self.0 & Self::ASKED != 0
    }

    fn since(self) -> Instant {
        Instant::from_nanos(self.0 >> 1)
    }
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
        if live.answer != Answer::COME {
            live.await_answer();
        }
        if live.relay.is_worth_counting() {
            live.count_bytes();
        }
        let ending = std::task::ready!(ending);
        if let Some(live) = this.live.take() {
            live.end(ending);
        }
        Poll::Ready(())
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        if let Some(live) = self.live.take()
            && live.admission.worker().is_falling()
        {
            live.end(Ending::LOST);
        }
    }
}

impl Live {
    /// Looks whether the backend was asked, and whether it has answered.
    fn await_answer(&mut self) {
        let now = self.relay.ring().now();
        let (received, sent) = self.relay.bytes();
        if sent > 0 {
            let after = now - self.answer.since();
            self.answer = Answer::COME;
            self.lease.answered(self.admission.worker().index, after);
            let (backend, micros) = (self.lease.backend().number, after.as_micros() as u64);
            self.admission.note(now, What::FirstByte, backend, micros);
            if let Some(record) = &mut self.admission.record {
                record.answered(after);
            }
        } else if received > 0 && !self.answer.is_asked() {
            self.answer = Answer::asked(now);
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

    fn end(mut self, ending: Ending) {
        let ring = self.relay.ring().clone();
        let worker = self.admission.worker().index;
        if ending == Ending::STALE {
            self.lease.counters(worker).pool_stale.add(1);
            return self.begin_again(&ring);
        }
        self.count_bytes();
        let mut lease = self.lease;
        let outcome = self.relay.close(ending);
        lease.ended(outcome.reason, ring.now());
        let lasted = ring.now() - self.admission.began;
        lease.count_end(worker, outcome.reason, lasted);
        let backend = lease.backend();
        let told = self.admission.record.is_some();
        let names = (
            told.then(|| backend.upstream_name().clone()),
            told.then(|| backend.name.clone()),
        );
        let number = backend.number;
        drop(lease);
        finish(&ring, self.admission, &outcome, Some(number), names);
    }

    /// The connection that was open ahead had been closed: the client gets a fresh one.
    fn begin_again(self, ring: &Ring) {
        let admission = self.admission;
        let (client, tls) = self.relay.into_client();
        let Some(policy) = self.again else {
            client.abort();
            let outcome = Outcome::nothing(Reason::BackendClosed);
            return finish(ring, admission, &outcome, None, Names::default());
        };
        let session = Session {
            admission,
            policy: *policy,
            client,
            tls,
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

/// Books the end of a session that was let in, with the number of its backend.
fn finish(
    ring: &Ring,
    admission: Admission,
    outcome: &Outcome,
    backend: Option<u32>,
    names: Names,
) {
    let (session, lasted) = (admission.number, ring.now() - admission.began);
    let (listener, record) = admission.leave();
    let sessions = &listener.worker.shared.around.events.sessions;
    let record = record.filter(|_| backend.is_some() || sessions.tells_refusal(ring.now()));
    let end = End {
        listener: &listener,
        session,
        at: ring.now(),
        lasted: Some(lasted),
        outcome,
        backend,
        names,
    };
    end.book(record);
}

/// Refuses a client with RST.
pub(super) fn refuse(ring: &Ring, listener: &LocalListener, client: Socket, reason: Reason) {
    let sessions = &listener.worker.shared.around.events.sessions;
    let told = sessions.tells_refusal(ring.now());
    let record = told.then(|| Record::of(ring, &client));
    client.abort();
    let end = End {
        listener,
        session: listener.worker.number_session(),
        at: ring.now(),
        lasted: None,
        outcome: &Outcome::nothing(reason),
        backend: None,
        names: Names::default(),
    };
    end.book(record);
}
