//! Whether a client is let in: caps, then its address, then rates. What it is let in with are its places
//! under the caps, and what of its listener it goes by.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::listener::LocalListener;
use super::snapshot::ListenerPolicy;
use super::worker::WorkerState;
use crate::ring::{Ring, Socket};
use crate::telemetry::Reason;
use crate::telemetry::recorder::What;
use crate::time::Instant;
use crate::upstream::Upstream;

/// A session's places under the caps of its listener and of the process; they are free again when
/// it goes. If that is because the worker has panicked, it is counted as the session's end.
pub(super) struct Admission {
    pub(super) listener: Rc<LocalListener>,
    /// The session's number on its worker.
    pub(super) number: u32,
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
        let (admission, policy) = Self::enter(listener)?;
        let policy = Policy::new(ring, policy, client)?;
        let by = &policy.listener;
        if by.trusted.is_none() {
            by.screen(listener, policy.client, ring.now())?;
        }
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
        worker.begin();
        let admission = Self {
            listener: listener.clone(),
            number: worker.number_session(),
        };
        Ok((admission, policy))
    }

    /// Takes the places of a session that another process has let in.
    pub(super) fn adopt(listener: &Rc<LocalListener>) -> Self {
        let LocalListener { worker, state } = &**listener;
        worker.shared.active.enter(usize::MAX);
        state.active.enter(usize::MAX);
        worker.begin();
        Self {
            listener: listener.clone(),
            number: worker.number_session(),
        }
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
        if worker.is_falling() {
            // There won't be another end.
            self.listener.counters().close(Reason::WorkerPanicked);
        }
        state.active.leave();
        worker.shared.active.leave();
        worker.end();
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
