//! From an upstream to a connection: pick, wait where all are full, connect, and on failure try
//! another backend within the budget.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::Upstream;
use super::backend::{Backend, Lease};
use super::gate::Gate;
use super::handshake::{Unsecured, handshake};
use super::local::Local;
use super::queue::{self, Look, Waiter};
use super::select::Choice;
use crate::policy::balance::{Draw, Passed, Request};
use crate::policy::retry;
use crate::ring::{Ring, Socket};
use crate::telemetry::recorder::What;
use crate::telemetry::tallies::{ConnectFault, UpstreamCounters};
use crate::time::Instant;
use crate::tls::{Client, Session};

/// A connection to a backend.
pub struct Connection {
    /// The backend's side of the session.
    pub socket: Socket,
    /// What it speaks TLS by.
    pub tls: Option<Box<Session>>,
    /// Which one it is.
    pub lease: Lease,
    /// It was open before the session came: it may have been closed without anybody's having
    /// noticed yet.
    pub ahead: bool,
}

/// Why no backend could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// All that were tried refused, or there was none to try.
    Refused,
    /// The last one tried did not answer in time.
    TimedOut,
    /// TLS could not be begun with the last one tried.
    Unsecured,
    /// This machine had no descriptor, port or memory: another backend would not help.
    NoResources,
    /// All are full, and as many sessions wait as may.
    QueueFull,
    /// All stayed full for as long as a session may wait.
    QueueTimeout,
    /// The client went away while it waited.
    ClientGone,
}

impl Failure {
    /// What it counts as, where it came of a try to connect.
    pub(super) fn fault(self) -> ConnectFault {
        match self {
            Self::TimedOut => ConnectFault::Timeout,
            Self::Unsecured => ConnectFault::Tls,
            Self::NoResources => ConnectFault::NoResources,
            Self::Refused | Self::QueueFull | Self::QueueTimeout | Self::ClientGone => {
                ConnectFault::Refused
            }
        }
    }
}

/// On whose behalf a backend is looked for.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The client.
    pub socket: &'a Socket,
    /// Who that is, if it was asked for.
    pub address: Option<IpAddr>,
    /// A connection that was open ahead will do.
    pub takes_ahead: bool,
    /// What the connection begins with: a header of the PROXY protocol.
    pub header: Option<&'a Rc<[u8]>>,
    /// Told of each try that has failed.
    pub failed: &'a dyn Fn(&Backend, &io::Error),
    /// The session's number.
    pub session: u32,
    /// Learns how it went.
    pub story: &'a Story,
}

/// How the look for a backend went.
#[derive(Debug, Default)]
pub struct Story {
    /// Further tries after one that failed.
    pub retries: Cell<u32>,
    /// How long the session waited for a place.
    pub queued: Cell<Option<Duration>>,
    /// How long the connection took that it got, had it not been open ahead.
    pub connect: Cell<Option<Duration>>,
}

/// Gets a connection to the balancer's choice, or to the next candidates when it can't be had.
///
/// # Errors
/// The last failure, when the tries or the budget for them are used up or no candidate is left.
pub async fn connect(
    ring: &Ring,
    local: &Local,
    upstream: &Arc<Upstream>,
    caller: Caller<'_>,
) -> Result<Connection, Failure> {
    let counters = upstream.state.counters(local.worker());
    // Else it is a session that has asked before.
    if caller.takes_ahead {
        upstream.state.budget.request(ring.now());
        counters.requests.add(1);
    }
    let mut search = Search::new(ring, local, upstream, caller);
    let mut failure = Failure::Refused;
    for attempt in 0..=upstream.retry.attempts {
        let mut charge = None;
        if attempt > 0 {
            charge = Charge::begin(ring, upstream);
            if charge.is_none() {
                counters.retries_denied.add(1);
                break;
            }
            search.pause(attempt).await;
        }
        let Some(choice) = search.choose().await? else {
            break;
        };
        if attempt > 0 {
            counters.retries.add(1);
            caller.story.retries.set(attempt);
        }
        match search.open(choice).await {
            Ok(connection) => return Ok(connection),
            Err((index, lease, error)) => {
                search.tried.insert(index);
                failure = classify(&error);
                lease.counters(local.worker()).fail(failure.fault());
                (caller.failed)(lease.backend(), &error);
                if is_hopeless(&error) {
                    break;
                }
                if failure != Failure::NoResources {
                    lease.connect_failed(failure == Failure::TimedOut, ring.now());
                }
            }
        }
        charge.into_iter().for_each(Charge::stands);
    }
    Err(failure)
}

/// One session's look for a backend.
struct Search<'a> {
    ring: &'a Ring,
    local: &'a Local,
    upstream: &'a Arc<Upstream>,
    caller: Caller<'a>,
    draw: Draw,
    tried: Passed,
}

impl<'a> Search<'a> {
    fn new(
        ring: &'a Ring,
        local: &'a Local,
        upstream: &'a Arc<Upstream>,
        caller: Caller<'a>,
    ) -> Self {
        Self {
            ring,
            local,
            upstream,
            caller,
            draw: upstream.balancer.draw(Request {
                client: caller.address,
                random: local.random(),
                now: ring.now(),
            }),
            tried: Passed::default(),
        }
    }

    /// Before a retry.
    async fn pause(&self, retry: u32) {
        let pause = retry::backoff(&self.upstream.retry, retry, self.local.random());
        if !pause.is_zero() {
            self.ring.sleep_until(self.ring.now() + pause).await;
        }
    }

    /// The next backend; `None` when none is left. Waits while all are full; behind those that wait
    /// already.
    async fn choose(&self) -> Result<Option<Choice>, Failure> {
        let state = &self.upstream.state;
        if state.line.is_empty()
            && let Look::Found(found) = self.look()
        {
            return Ok(found);
        }
        if self.upstream.pool.preconnect > 0 {
            // Connections that are held ahead take up places.
            state.line.ring_all();
        }
        let waiter = Waiter {
            local: self.local,
            ring: self.ring,
            state,
            queue: self.upstream.queue,
            generation: Arc::as_ptr(self.upstream) as usize,
            choosy: !self.tried.is_empty(),
        };
        let waiting = Waiting {
            search: self,
            since: self.ring.now(),
        };
        let waited = queue::wait(waiter, || self.look()).await;
        match waited {
            // It did not.
            Err(queue::Refusal::QueueFull) => std::mem::forget(waiting),
            _ => drop(waiting),
        }
        if self.caller.socket.is_gone() {
            return Err(Failure::ClientGone);
        }
        match waited {
            Ok(found) => Ok(found),
            Err(queue::Refusal::QueueFull) => Err(Failure::QueueFull),
            Err(queue::Refusal::TimedOut) => Err(Failure::QueueTimeout),
        }
    }

    fn note_wait(&self, time: Duration) {
        let counters = self.counters();
        counters.queued.add(1);
        counters.queue.record(time);
        let queued = &self.caller.story.queued;
        queued.set(Some(queued.get().unwrap_or_default() + time));
    }

    fn counters(&self) -> &'a UpstreamCounters {
        self.upstream.state.counters(self.local.worker())
    }

    fn look(&self) -> Look<Option<Choice>> {
        let takes_ahead = self.upstream.pool.preconnect > 0 && self.caller.takes_ahead;
        let pools = takes_ahead.then_some(&self.local.pools);
        let now = self.ring.now();
        self.upstream.pick(&self.draw, &self.tried, pools, now)
    }

    async fn open(&self, choice: Choice) -> Result<Connection, (usize, Lease, io::Error)> {
        let mut lease = choice.lease;
        let begun = self.ring.now();
        let subject = lease.backend().number;
        let note = |what, value: Duration| {
            let who = (self.ring.now(), self.caller.session);
            self.local
                .note(who, what, subject, value.as_micros() as u64);
        };
        note(What::Pick, Duration::ZERO);
        let opener = Opener::new(self.ring, self.upstream, lease.backend());
        let gate = &self.local.gate;
        let worker = (self.local.worker(), &**gate);
        let header = self.caller.header;
        match opener.for_client(choice.ahead, header, worker).await {
            Ok((Opened { socket, tls, .. }, ahead)) => {
                lease.connected(self.ring.now());
                let took = self.ring.now() - begun;
                note(What::Connect, took);
                let counters = lease.counters(self.local.worker());
                counters.sessions.add(1);
                if ahead {
                    counters.pool_hits.add(1);
                } else {
                    counters.connect.record(took);
                    self.counters().connect.record(took);
                    self.caller.story.connect.set(Some(took));
                }
                Ok(Connection {
                    socket,
                    tls,
                    lease,
                    ahead,
                })
            }
            Err(error) => {
                note(What::ConnectFailed, self.ring.now() - begun);
                Err((choice.index, lease, error))
            }
        }
    }
}

/// A session that waits for a place. However that ends, it is counted.
struct Waiting<'a, 'b> {
    search: &'a Search<'b>,
    since: Instant,
}

impl Drop for Waiting<'_, '_> {
    fn drop(&mut self) {
        let search = self.search;
        search.note_wait(search.ring.now() - self.since);
    }
}

/// A connection to a backend, as far as it has come.
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) tls: Option<Box<Session>>,
    /// What it was secured by.
    by: Option<Arc<Client>>,
}

impl Opened {
    fn plain(socket: Socket) -> Self {
        Self {
            socket,
            tls: None,
            by: None,
        }
    }
}

/// The number of a worker, and its gate.
pub(super) type AtWork<'a> = (usize, &'a Gate);

/// One attempt to connect to a backend, within `connect_timeout`: TCP, then the header, then TLS.
pub(super) struct Opener<'a> {
    ring: &'a Ring,
    upstream: &'a Upstream,
    backend: &'a Backend,
    deadline: Instant,
}

impl<'a> Opener<'a> {
    pub(super) fn new(ring: &'a Ring, upstream: &'a Upstream, backend: &'a Backend) -> Self {
        Self {
            ring,
            upstream,
            backend,
            deadline: ring.now() + upstream.connect_timeout,
        }
    }

    /// As far as it goes for any client: where a header has to come first, that is TCP alone.
    pub(super) async fn ahead(&self, worker: AtWork<'_>) -> io::Result<Opened> {
        let socket = self.dial(worker.0).await?;
        match &self.upstream.tls {
            Some(tls) if !self.upstream.announces() => {
                Box::pin(self.secure(socket, &tls.load_full(), worker)).await
            }
            _ => Ok(Opened::plain(socket)),
        }
    }

    /// All of it, or what is left of it where a connection is open already; true = that one was used. One that
    /// turns out to be no good is nobody's fault: another is opened.
    async fn for_client(
        &self,
        ahead: Option<Opened>,
        header: Option<&Rc<[u8]>>,
        worker: AtWork<'_>,
    ) -> io::Result<(Opened, bool)> {
        if let Some(ahead) = ahead.filter(|ahead| self.suits(ahead))
            && let Ok(opened) = self.complete(ahead, header, worker).await
        {
            return Ok((opened, true));
        }
        // With a timeout of its own.
        let fresh = Self::new(self.ring, self.upstream, self.backend);
        let socket = fresh.dial(worker.0).await?;
        let opened = Opened::plain(socket);
        let completed = fresh.complete(opened, header, worker).await;
        completed.map(|opened| (opened, false))
    }

    /// A connection that was secured by what the upstream demands at this moment, or is still to be.
    fn suits(&self, ahead: &Opened) -> bool {
        let Some(by) = &ahead.by else {
            return true;
        };
        let tls = self.upstream.tls.as_ref().map(ArcSwap::load_full);
        !self.upstream.announces() && tls.is_some_and(|tls| Arc::ptr_eq(&tls, by))
    }

    async fn complete(
        &self,
        opened: Opened,
        header: Option<&Rc<[u8]>>,
        worker: AtWork<'_>,
    ) -> io::Result<Opened> {
        let tls = self.upstream.tls.as_ref();
        match tls.filter(|_| opened.tls.is_none()) {
            None if header.is_none() => Ok(opened),
            missing => {
                let tls = missing.map(ArcSwap::load_full);
                Box::pin(self.begin(opened, header, tls, worker)).await
            }
        }
    }

    async fn begin(
        &self,
        opened: Opened,
        header: Option<&Rc<[u8]>>,
        tls: Option<Arc<Client>>,
        worker: AtWork<'_>,
    ) -> io::Result<Opened> {
        if tls.is_some() && opened.socket.held() > 0 {
            // What it says now would pass for something that was protected.
            return Err(io::Error::other(Unsecured::Early));
        }
        if let Some(header) = header {
            self.introduce(&opened.socket, header).await?;
        }
        match tls {
            Some(tls) => self.secure(opened.socket, &tls, worker).await,
            None => Ok(opened),
        }
    }

    async fn dial(&self, worker: usize) -> io::Result<Socket> {
        let upstream = self.upstream;
        let address = &self.backend.address;
        let source = upstream.source(address);
        let connecting = self
            .ring
            .connect(address, source, &upstream.options, self.deadline);
        let socket = connecting.await?;
        self.backend.state.tallies.of(worker).connections.add(1);
        Ok(socket)
    }

    /// Sends the header and waits until the kernel has it: nothing may get before it.
    async fn introduce(&self, socket: &Socket, header: &Rc<[u8]>) -> io::Result<()> {
        socket.belongs_to_this_task();
        socket.send(header.clone());
        let timer = self.ring.timer();
        timer.set(self.deadline);
        poll_fn(|_| match socket.send_error() {
            Some(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            None if !socket.is_sending() => Poll::Ready(Ok(())),
            None if self.ring.now() >= self.deadline => {
                Poll::Ready(Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)))
            }
            None => {
                socket.wake_when_sent();
                Poll::Pending
            }
        })
        .await
    }

    async fn secure(
        &self,
        socket: Socket,
        tls: &Arc<Client>,
        (worker, gate): AtWork<'_>,
    ) -> io::Result<Opened> {
        let backend = self.backend;
        let ip = backend.address.as_ip().map(|address| address.ip());
        let memory = worker * self.upstream.backends.len() + backend.index;
        let mut session = Box::new(tls.connect(memory, backend.host.as_deref(), ip));
        handshake(self.ring, gate, &socket, &mut session, self.deadline)
            .await
            .map_err(io::Error::other)?;
        Ok(Opened {
            socket,
            tls: Some(session),
            by: Some(tls.clone()),
        })
    }
}

/// A retry's charge on the budget: taken back when it goes, unless it stands.
struct Charge<'a> {
    upstream: &'a Upstream,
    begun: Instant,
}

impl<'a> Charge<'a> {
    /// None when the budget is used up.
    fn begin(ring: &Ring, upstream: &'a Upstream) -> Option<Self> {
        let begun = ring.now();
        let granted = upstream.state.budget.begin(&upstream.retry, begun);
        // Not `then_some`: what it would make for nothing would refund what it never charged.
        granted.then(|| Self { upstream, begun })
    }

    /// The retry has failed.
    fn stands(self) {
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.upstream.state.budget.refund(self.begun);
    }
}

pub(super) fn classify(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT) => Failure::TimedOut,
        None => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(Unsecured::TimedOut) => Failure::TimedOut,
            Some(_) => Failure::Unsecured,
            None => Failure::Refused,
        },
        _ if lacks_resources(error) => Failure::NoResources,
        _ => Failure::Refused,
    }
}

/// It is this machine that lacks something for the connection, which says nothing of the backend: a
/// descriptor, memory, a local port, or the source address.
pub fn lacks_resources(error: &io::Error) -> bool {
    let of_an_address = [libc::EADDRNOTAVAIL, libc::EADDRINUSE].map(Some);
    is_hopeless(error) || of_an_address.contains(&error.raw_os_error())
}

/// Trying another backend would fail in the same way.
fn is_hopeless(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(
        errno,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}
