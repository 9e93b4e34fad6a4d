//! An upstream at run time: its backends' shared state, who of them may be chosen, and how a session
//! gets a connection to one.

mod backend;
mod connect;
pub mod datagrams;
mod gate;
mod handshake;
mod image;
mod lines;
mod local;
mod order;
mod outlook;
mod pool;
mod queue;
mod select;
mod state;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

pub use backend::{Backend, Lease};
pub use connect::{Caller, Connection, Failure, Story, connect, lacks_resources};
pub use gate::Gate;
pub use handshake::{Unsecured, absorb, handshake, records_to_take, take_records};
pub use image::{BackendImage, UpstreamImage};
pub use local::Local;
pub use order::Order;
pub use outlook::{Hindrance, Outlook, Prospect};
pub use queue::{Bell, Bells};
pub use state::{BackendState, Kept, States, UpstreamState};

use self::select::Known;
use crate::address::Address;
use crate::config;
use crate::policy::balance::{Algorithm, Balancer, Member, identity};
use crate::policy::retry;
use crate::policy::roster::Rules;
use crate::ring::SocketOptions;
use crate::telemetry::Names;
use crate::telemetry::events::Events;
use crate::telemetry::tallies::UpstreamCounters;
use crate::time::Instant;
use crate::tls;

/// A named set of backends with one policy, shared by all workers. One generation of it: what outlives
/// a reload is behind `state`.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    backends: Vec<Arc<Backend>>,
    state: Arc<UpstreamState>,
    algorithm: Algorithm,
    balancer: Box<dyn Balancer>,
    rules: Rules,
    known: ArcSwap<Known>,
    connect_timeout: Duration,
    retry: retry::Settings,
    queue: config::Queue,
    pool: config::Pool,
    options: SocketOptions,
    announce: config::Announce,
    tls: Option<ArcSwap<tls::Client>>,
    sources: Vec<IpAddr>,
    next_source: AtomicUsize,
    events: Arc<Events>,
    workers: usize,
}

/// What every upstream of a process is made with.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// How many workers there are.
    pub workers: usize,
    /// How they are signalled.
    pub bells: Arc<Bells>,
    /// Where news go.
    pub events: Arc<Events>,
    /// What outlives reloads.
    pub states: Arc<States>,
    /// Of listeners and backends, for flight recorders.
    pub names: Arc<Names>,
}

impl Upstream {
    /// Builds the run-time form of `model`. What is known of the same backends is kept; the balancer
    /// goes on where that of `before` stands.
    pub fn new(model: &config::Upstream, before: Option<&Self>, around: &Surroundings) -> Self {
        let state = around.states.find_or(&model.name, || {
            UpstreamState::new(around.workers, around.bells.clone())
        });
        let backends: Vec<_> = model
            .backends
            .iter()
            .enumerate()
            .map(|(index, backend)| {
                let own = state.backend(&backend.address, model);
                let of = (model, &state);
                let told = (&around.events, &*around.names);
                Arc::new(Backend::new(index, backend, own, of, told))
            })
            .collect();
        let memories = around.workers * backends.len();
        let members = members(model, &backends);
        let resume = before.map_or(0, |before| before.balancer.resume());
        state.change();
        Self {
            name: model.name.clone(),
            backends,
            state,
            algorithm: model.balance,
            balancer: (model.balance.build)(&members, resume),
            rules: Rules {
                slow_start: model.slow_start,
                fail_open_below: model.fail_open_below,
            },
            known: ArcSwap::from_pointee(Known::default()),
            connect_timeout: model.connect_timeout,
            retry: model.retry,
            queue: model.queue,
            pool: model.pool,
            options: SocketOptions {
                keepalive: model.tcp_keepalive,
                user_timeout: Some(model.tcp_user_timeout),
            },
            announce: model.announce,
            tls: model
                .tls
                .as_ref()
                .map(|settings| ArcSwap::from_pointee(tls::Client::new(settings, memories))),
            workers: around.workers,
            sources: model.source.clone(),
            next_source: AtomicUsize::new(0),
            events: around.events.clone(),
        }
    }

    /// The name it has in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its backends, in the order of the configuration.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// A backend is chosen by the client's address.
    pub fn needs_client(&self) -> bool {
        self.algorithm.needs_client
    }

    /// Connections begin with a header of the PROXY protocol.
    pub fn announces(&self) -> bool {
        self.announce != config::Announce::Never
    }

    /// What its certificates and authorities are from now on. Nothing happens to connections that there are.
    pub fn renew_tls(&self, settings: &tls::ClientSettings) {
        if let Some(tls) = &self.tls {
            let memories = self.workers * self.backends.len();
            tls.store(Arc::new(tls::Client::new(settings, memories)));
        }
    }

    /// Who hears by the PROXY protocol who the client is.
    pub fn announce(&self) -> config::Announce {
        self.announce
    }

    /// What outlives reloads of it.
    pub fn state(&self) -> &Arc<UpstreamState> {
        &self.state
    }

    /// What was counted, by worker.
    pub fn counters(&self) -> &[UpstreamCounters] {
        self.state.all_counters()
    }

    /// Sessions that wait for a place, over all workers.
    pub fn waiting(&self) -> usize {
        self.state.line.len()
    }

    /// Health is ignored at the moment, because too few backends are healthy.
    pub fn is_failing_open(&self) -> bool {
        self.state.is_failing_open()
    }

    /// Something that decides whether a backend may be chosen has changed: selections go by it from
    /// now on.
    pub fn changed(&self, now: Instant) {
        self.state.change();
        self.renew(now);
    }

    /// The operator orders something of the backend of this name in the configuration; `None` = there is
    /// none. Sessions that begin from now on go by it, and workers look after those that wait and after
    /// the connections they have open ahead.
    pub fn order(&self, backend: &str, order: Order, now: Instant) -> Option<&Backend> {
        let mut backends = self.backends.iter();
        let found = backends.find(|found| *found.name == *backend)?;
        found.state.set_order(order);
        self.changed(now);
        self.state.line.ring_all();
        Some(found)
    }

    /// The operator orders a weight of the backend of this name in the configuration, or with `None` goes back
    /// to the configured one; `None` = there is no such backend. Sessions that begin from now on go by it.
    pub fn order_weight(
        &self,
        backend: &str,
        weight: Option<u16>,
        now: Instant,
    ) -> Option<&Backend> {
        let mut backends = self.backends.iter();
        let found = backends.find(|found| *found.name == *backend)?;
        found.state.set_weight(weight);
        self.changed(now);
        self.state.line.ring_all();
        Some(found)
    }

    /// `after` takes the place of this one, or nothing does: the state of backends that are gone is
    /// let go of.
    pub fn retire(&self, after: Option<&Self>) {
        for backend in &self.backends {
            if after.is_none_or(|after| !after.has(&backend.address)) {
                backend.state.retire(&self.state.ejected);
            }
        }
    }

    fn has(&self, address: &Address) -> bool {
        let mut backends = self.backends.iter();
        backends.any(|backend| backend.address == *address)
    }

    /// The next local address of the family of `to`.
    fn source(&self, to: &Address) -> Option<IpAddr> {
        let ip = to.as_ip()?.ip();
        let fitting = || {
            self.sources
                .iter()
                .filter(|source| source.is_ipv4() == ip.is_ipv4())
        };
        let count = fitting().count();
        if count == 0 {
            return None;
        }
        let turn = self.next_source.fetch_add(1, Ordering::Relaxed) % count;
        fitting().nth(turn).copied()
    }
}

/// The backends as the balancer sees them.
fn members(model: &config::Upstream, backends: &[Arc<Backend>]) -> Vec<Member> {
    let pairs = backends.iter().zip(&model.backends);
    pairs
        .map(|(backend, model)| Member {
            identity: identity(&backend.address.to_string()),
            weight: model.weight,
            load: backend.state.load.clone(),
        })
        .collect()
}
