//! From an upstream to a connection: pick, wait where all are full, connect, and on failure try
//! another backend within the budget.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::Upstream;
use super::backend::{Backend, Lease};
use super::local::Local;
use super::queue::{self, Look, Waiter};
use super::select::Choice;
use crate::policy::balance::{Draw, Passed, Request};
use crate::policy::retry;
use crate::ring::{Ring, Socket};
use crate::time::Instant;

/// A connection to a backend.
pub struct Connection {
    /// The backend's side of the session.
    pub socket: Socket,
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
    /// This machine had no descriptor, port or memory: another backend would not help.
    NoResources,
    /// All are full, and as many sessions wait as may.
    QueueFull,
    /// All stayed full for as long as a session may wait.
    QueueTimeout,
    /// The client went away while it waited.
    ClientGone,
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
    /// Told of each try that has failed.
    pub failed: &'a dyn Fn(&Backend, &io::Error),
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
    upstream.state.budget.request(ring.now());
    let mut search = Search::new(ring, local, upstream, caller);
    let mut failure = Failure::Refused;
    for attempt in 0..=upstream.retry.attempts {
        let mut charge = None;
        if attempt > 0 {
            charge = Charge::begin(ring, upstream);
            if charge.is_none() {
                break;
            }
            search.pause(attempt).await;
        }
        let Some(choice) = search.choose().await? else {
            break;
        };
        match search.open(choice).await {
            Ok(connection) => return Ok(connection),
            Err((index, lease, error)) => {
                search.tried.insert(index);
                failure = classify(&error);
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
        let waited = queue::wait(waiter, || self.look()).await;
        if self.caller.socket.is_gone() {
            return Err(Failure::ClientGone);
        }
        match waited {
            Ok(found) => Ok(found),
            Err(queue::Refusal::QueueFull) => Err(Failure::QueueFull),
            Err(queue::Refusal::TimedOut) => Err(Failure::QueueTimeout),
        }
    }

    fn look(&self) -> Look<Option<Choice>> {
        let takes_ahead = self.upstream.pool.preconnect > 0 && self.caller.takes_ahead;
        let pools = takes_ahead.then_some(&self.local.pools);
        let now = self.ring.now();
        self.upstream.pick(&self.draw, &self.tried, pools, now)
    }

    async fn open(&self, choice: Choice) -> Result<Connection, (usize, Lease, io::Error)> {
        let (mut lease, ahead) = (choice.lease, choice.ahead.is_some());
        let opened = match choice.ahead {
            Some(socket) => Ok(socket),
            None => self.upstream.open(self.ring, lease.backend()).await,
        };
        match opened {
            Ok(socket) => {
                lease.connected(self.ring.now());
                Ok(Connection {
                    socket,
                    lease,
                    ahead,
                })
            }
            Err(error) => Err((choice.index, lease, error)),
        }
    }
}

impl Upstream {
    /// Connects to one of its backends.
    pub(super) async fn open(&self, ring: &Ring, backend: &Backend) -> io::Result<Socket> {
        let deadline = ring.now() + self.connect_timeout;
        let source = self.source(&backend.address);
        ring.connect(&backend.address, source, &self.options, deadline)
            .await
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
