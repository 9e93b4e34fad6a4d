//! Whether a client is let in: caps, then its address, then rates. What it is let in with are its places
//! under the caps, and what of its listener it goes by.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::listener::LocalListener;
use super::record::{End, Names, Record};
use super::relay::Outcome;
use super::snapshot::ListenerPolicy;
use super::worker::WorkerState;
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::recorder::What;
use crate::time::Instant;
use crate::upstream::Upstream;

/// A session's places under the caps of its listener and of the process, and what it is told by. The places
/// are free again when it goes. If that is because the worker has panicked, it is the session's end, and
/// booked as that.
pub(super) struct Admission {
    pub(super) listener: Rc<LocalListener>,
    /// The session's number on its worker.
    pub(super) number: u32,
    /// It was counted as accepted, and its end has not been booked.
    pub(super) is_open: bool,
    pub(super) began: Instant,
    /// Where its end is told.
    pub(super) record: Option<Box<Record>>,
}

/// What a session goes by.
pub(super) struct Policy {
    /// Of one generation, whole.
    pub(super) listener: Arc<ListenerPolicy>,
    /// Who the client is, where that matters.
    pub(super) client: Option<IpAddr>,
    /// Client and destination as another proxy has announced them.
    pub(super) announced: Option<Box<(SocketAddr, SocketAddr)>>,
    /// The route that it takes; `None` = to the default upstream.
    pub(super) route: Option<usize>,
}

impl Policy {
    /// Asks who the client is where that matters.
    pub(super) fn new(
        ring: &Ring,
        listener: Arc<ListenerPolicy>,
        client: &Socket,
    ) -> Result<Self, Reason> {
        // Behind another proxy that is known later.
        let address = match listener.needs_client() && listener.trusted.is_none() {
            // Who has left already needs no answer.
            true => ring.peer(client).map_err(|_| Reason::ClientReset)?,
            false => None,
        };
        Ok(Self {
            listener,
            client: address.map(|address| address.ip()),
            announced: None,
            route: None,
        })
    }

    /// Where the session goes.
    pub(super) fn upstream(&self) -> &Arc<Upstream> {
        self.listener.upstream(self.route)
    }
}

impl Admission {
    /// Lets the client in, or says why not.
    pub(super) fn new(
        ring: &Ring,
        listener: &Rc<LocalListener>,
        client: &Socket,
    ) -> Result<(Self, Policy), Reason> {
        let (mut admission, policy) = Self::enter(listener)?;
        let policy = Policy::new(ring, policy, client)?;
        let by = &policy.listener;
        if by.trusted.is_none() {
            by.screen(listener, policy.client, ring.now())?;
        }
        let sessions = &listener.worker.shared.around.events.sessions;
        admission.record = sessions.are_told().then(|| Record::of(ring, client));
        admission.is_open = true;
        Ok((admission, policy))
    }

    /// Takes the places of a session, or says which cap is in the way.
    pub(super) fn enter(
        listener: &Rc<LocalListener>,
    ) -> Result<(Self, Arc<ListenerPolicy>), Reason> {
        let LocalListener { worker, state } = &**listener;
        let shared = &worker.shared;
        let most = shared.max_connections.load(Ordering::Relaxed);
        if !shared.active.enter(most) {
            return Err(Reason::ProcessFull);
        }
        let policy = state.policy.load_full();
        if !state.active.enter(policy.max_connections) {
            shared.active.leave();
            return Err(Reason::ListenerFull);
        }
        Ok((Self::begin(listener), policy))
    }

    /// Takes the places of a session that another process has let in.
    pub(super) fn adopt(listener: &Rc<LocalListener>) -> Self {
        let LocalListener { worker, state } = &**listener;
        worker.shared.active.enter(usize::MAX);
        state.active.enter(usize::MAX);
        let mut admission = Self::begin(listener);
        admission.is_open = true;
        admission
    }

    fn begin(listener: &Rc<LocalListener>) -> Self {
        let worker = &listener.worker;
        worker.begin();
        Self {
            listener: listener.clone(),
            number: worker.number_session(),
            is_open: false,
            began: worker.ring.now(),
            record: None,
        }
    }

    /// Frees the places; the end is the caller's to book.
    pub(super) fn leave(mut self) -> (Rc<LocalListener>, Option<Box<Record>>) {
        self.is_open = false;
        (self.listener.clone(), self.record.take())
    }

    /// Notes in the flight recorder what has happened to the session.
    pub(super) fn note(&self, now: Instant, what: What, subject: u32, value: u64) {
        self.worker()
            .local
            .note((now, self.number), what, subject, value);
    }

    pub(super) fn worker(&self) -> &WorkerState {
        &self.listener.worker
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let LocalListener { worker, state } = &*self.listener;
        state.active.leave();
        worker.shared.active.leave();
        worker.end();
        if self.is_open && worker.is_falling() {
            let (now, record) = (worker.ring.now(), self.record.take());
            let lost = End {
                listener: &self.listener,
                session: self.number,
                at: now,
                lasted: Some(now - self.began),
                outcome: &Outcome::nothing(Reason::WorkerPanicked),
                backend: None,
                names: Names::default(),
            };
            lost.book(record);
        }
    }
}

impl ListenerPolicy {
    /// By its address and by rates. A client above its own rate takes nothing from the listener's.
    pub(super) fn screen(
        &self,
        listener: &LocalListener,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Reason> {
        let limits = &self.rate_limit;
        if !self.acl.is_open() && !client.is_some_and(|client| self.acl.admits(client)) {
            return Err(Reason::Denied);
        }
        let own = match (limits.connections_per_ip, &self.clients, client) {
            (Some(rate), Some(clients), Some(client)) => {
                clients.take(client, limits.ipv6_prefix, rate, now)
            }
            _ => true,
        };
        let reason = match own {
            false => Reason::ClientRateLimit,
            true if limits
                .connections
                .is_none_or(|rate| listener.state.bucket.take(rate, now)) =>
            {
                return Ok(());
            }
            true => Reason::RateLimit,
        };
        if limits.dry_run {
            listener.counters().rate_limit_dry_run.add(1);
            return Ok(());
        }
        Err(reason)
    }
}
