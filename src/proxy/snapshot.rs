//! What all workers share: the configuration of the moment, swapped as a whole, and the counts
//! that are promised to be exact.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::state::ListenerState;
use crate::config::{self, Config, RateLimit, Timeouts, Udp};
use crate::policy::admission::Occupancy;
use crate::policy::bucket::Rate;
use crate::policy::cidr::{Acl, Networks};
use crate::policy::clients::Clients;
use crate::policy::routes::Routes;
use crate::ring::Meter;
use crate::telemetry::events::Events;
use crate::telemetry::recorder::Recorder;
use crate::tls::{Server, ServerSettings, Tickets};
use crate::upstream::{Kept, Surroundings, Upstream};

/// One generation of the configuration.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up with every reload.
    pub generation: u64,
    /// In the order of the configuration.
    pub listeners: Vec<Arc<ListenerState>>,
    /// In the order of the configuration.
    pub upstreams: Vec<Arc<Upstream>>,
}

/// What of a listener may change with a reload.
#[derive(Clone, Debug)]
pub struct ListenerPolicy {
    /// The table's name.
    pub name: Arc<str>,
    /// Where its connections go that take no route.
    pub upstream: Arc<Upstream>,
    /// Where others go, by name.
    pub(super) routes: Option<Arc<RoutedUpstreams>>,
    /// Connections begin with a header of the PROXY protocol, which is believed of these.
    pub(super) trusted: Option<Arc<Networks>>,
    /// TLS is terminated.
    pub tls: Option<Arc<Server>>,
    /// By which sessions of TLS are resumed.
    pub(super) tickets: Arc<Tickets>,
    /// Of its sessions.
    pub timeouts: Timeouts,
    /// Sessions at once; `usize::MAX` = no cap of its own.
    pub max_connections: usize,
    /// Who may connect.
    pub acl: Arc<Acl>,
    /// How often, and how fast.
    pub rate_limit: RateLimit,
    /// The buckets of clients, if each has one.
    pub clients: Option<Arc<Clients>>,
    /// The buckets of clients for datagrams, likewise.
    pub datagram_clients: Option<Arc<Clients>>,
    /// It takes datagrams, and how.
    pub udp: Option<Udp>,
}

/// Names, and the upstreams that they lead to.
#[derive(Debug)]
pub(super) struct RoutedUpstreams {
    names: Routes,
    upstreams: Vec<Arc<Upstream>>,
}

/// The process, as its workers see it.
#[derive(Debug)]
pub struct Shared {
    /// The configuration of the moment.
    pub snapshot: ArcSwap<Snapshot>,
    /// Every listener that anybody uses: one that was removed and comes back while old sessions are
    /// still on it goes on counting them.
    listeners: Kept<Arc<str>, ListenerState>,
    /// Sessions at once.
    pub active: Occupancy,
    /// Sessions at once at most; a reload that needs descriptors may lower it.
    pub max_connections: AtomicUsize,
    /// Where news go, how workers are signalled, and what outlives reloads.
    pub around: Surroundings,
    /// What all randomness comes from.
    pub seed: u64,
    /// What the workers did last, each.
    pub recorders: Vec<Arc<Recorder>>,
    /// What their rings tell, each.
    pub meters: Vec<Arc<Meter>>,
}

impl Snapshot {
    /// The listener of this name.
    pub fn listener(&self, name: &str) -> Option<&Arc<ListenerState>> {
        let mut listeners = self.listeners.iter();
        listeners.find(|listener| *listener.name == *name)
    }

    /// The upstream of this name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        let mut upstreams = self.upstreams.iter();
        upstreams.find(|upstream| **upstream.name() == *name)
    }
}

fn upstreams(config: &Config, before: &Snapshot, around: &Surroundings) -> Vec<Arc<Upstream>> {
    let upstreams: Vec<_> = config
        .upstreams
        .iter()
        .map(|model| {
            let before = before.upstream(&model.name);
            Arc::new(Upstream::new(model, before.map(Arc::as_ref), around))
        })
        .collect();
    for old in &before.upstreams {
        let after = upstreams.iter().find(|new| new.name() == old.name());
        old.retire(after.map(Arc::as_ref));
    }
    upstreams
}

impl ListenerPolicy {
    fn new(
        model: &config::Listener,
        upstreams: &[Arc<Upstream>],
        before: Option<&Self>,
        seed: u64,
    ) -> Self {
        let trusted = model.trusted_proxies.as_deref();
        let tls = model.tls.as_ref();
        let tickets = before.map_or_else(Arc::default, |before| before.tickets.clone());
        let rate_limit = model.rate_limit;
        let networks = |networks: &[config::IpNet]| {
            let pairs = networks.iter();
            pairs
                .map(|network| (network.network(), network.prefix_len()))
                .collect::<Vec<_>>()
        };
        let same = before.filter(|before| {
            let old = before.rate_limit;
            (old.max_clients, old.ipv6_prefix) == (rate_limit.max_clients, rate_limit.ipv6_prefix)
        });
        let clients = |wanted: Option<Rate>, kept: fn(&Self) -> &Option<Arc<Clients>>| {
            let new = || Arc::new(Clients::new(rate_limit.max_clients, seed));
            let kept = same.and_then(|before| kept(before).clone());
            wanted.map(|_| kept.unwrap_or_else(new))
        };
        let udp = model.protocol.udp().copied();
        let most_sessions = udp.and_then(|udp| udp.max_sessions);
        let most = model.max_connections.into_iter().chain(most_sessions);
        Self {
            name: model.name.clone(),
            upstream: upstreams[model.upstream].clone(),
            routes: RoutedUpstreams::new(&model.routes, upstreams),
            trusted: trusted.map(|trusted| Arc::new(Networks::new(networks(trusted)))),
            tls: tls.map(|settings| Arc::new(Server::new(settings, &model.name, &tickets))),
            tickets,
            timeouts: model.timeouts,
            max_connections: most.min().map_or(usize::MAX, usize::from),
            acl: Arc::new(Acl::new(networks(&model.allow), networks(&model.deny))),
            clients: clients(rate_limit.connections_per_ip, |it| &it.clients),
            datagram_clients: clients(rate_limit.datagrams_per_ip, |it| &it.datagram_clients),
            rate_limit,
            udp,
        }
    }

    /// It matters who the client is.
    pub(super) fn needs_client(&self) -> bool {
        let routed = self.routes.as_ref();
        !self.acl.is_open()
            || self.clients.is_some()
            || self.upstream.needs_client()
            || routed.is_some_and(|it| it.upstreams.iter().any(|it| it.needs_client()))
    }

    /// Something is to be heard from the client before a backend is looked for.
    pub(super) fn has_opening(&self) -> bool {
        self.trusted.is_some() || self.tls.is_some() || self.routes.is_some()
    }

    /// What is heard first is a hello of TLS, which decides on the route.
    pub fn looks_at_hellos(&self) -> bool {
        self.routes.is_some()
    }

    /// The route of this name, which is in lower case.
    pub fn route(&self, name: &str) -> Option<usize> {
        self.routes.as_ref()?.names.find(name)
    }

    /// Where a route leads.
    pub fn upstream(&self, route: Option<usize>) -> &Arc<Upstream> {
        let routed = self.routes.as_ref().zip(route);
        routed.map_or(&self.upstream, |(routed, route)| &routed.upstreams[route])
    }

    /// The same with other certificates.
    fn with_tls(&self, settings: &ServerSettings) -> Self {
        let server = Server::new(settings, &self.name, &self.tickets);
        Self {
            tls: Some(Arc::new(server)),
            ..self.clone()
        }
    }
}

impl RoutedUpstreams {
    fn new(routes: &[config::Route], upstreams: &[Arc<Upstream>]) -> Option<Arc<Self>> {
        if routes.is_empty() {
            return None;
        }
        let names = routes
            .iter()
            .map(|route| route.sni.iter().map(|name| &**name));
        let led_to = routes.iter().map(|route| upstreams[route.upstream].clone());
        Some(Arc::new(Self {
            names: Routes::new(names),
            upstreams: led_to.collect(),
        }))
    }
}

impl Shared {
    /// The shared state of a process that runs `config` on `workers` workers.
    pub fn new(
        config: &Config,
        workers: usize,
        max_connections: usize,
        events: Arc<Events>,
        seed: u64,
    ) -> Arc<Self> {
        let shared = Self {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            listeners: Kept::default(),
            active: Occupancy::default(),
            max_connections: AtomicUsize::new(max_connections),
            around: Surroundings {
                workers,
                bells: Arc::default(),
                events,
                states: Arc::default(),
                names: Arc::default(),
            },
            recorders: (0..workers).map(|_| Arc::default()).collect(),
            meters: (0..workers).map(|_| Arc::default()).collect(),
            seed,
        };
        shared.reload(config);
        Arc::new(shared)
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.around.workers
    }

    /// Sessions at once at most.
    pub fn most_connections(&self) -> usize {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Another generation takes effect for new sessions. What is known of upstreams and listeners of
    /// the same name is kept. The workers are to be told of it, too:
    /// [`Message::Reloaded`](super::Message::Reloaded).
    pub fn reload(&self, config: &Config) -> Arc<Snapshot> {
        let before = self.snapshot.load();
        let upstreams = upstreams(config, &before, &self.around);
        let policies: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| self.policy(listener, &upstreams))
            .collect();
        // Everything has been made: from here on it is only put in place.
        let listeners = policies.into_iter().map(|policy| {
            let is_new = before.listener(&policy.name).is_none();
            let state = self.listener(policy);
            if is_new {
                // An order for the one that had this name before is not for this one.
                state.abort(false);
            }
            state
        });
        let snapshot = Arc::new(Snapshot {
            generation: before.generation + 1,
            listeners: listeners.collect(),
            upstreams,
        });
        self.snapshot.store(snapshot.clone());
        snapshot
    }

    /// Certificates, keys and authorities are those of `config` from now on, for new sessions. Everything
    /// else of `config` is what it was.
    pub fn renew_tls(&self, config: &Config) {
        let snapshot = self.snapshot.load();
        for model in &config.listeners {
            let listener = snapshot.listener(&model.name);
            if let (Some(listener), Some(settings)) = (listener, &model.tls) {
                let renewed = listener.policy.load().with_tls(settings);
                listener.policy.store(Arc::new(renewed));
            }
        }
        for model in &config.upstreams {
            let upstream = snapshot.upstream(&model.name);
            if let (Some(upstream), Some(settings)) = (upstream, &model.tls) {
                upstream.renew_tls(settings);
            }
        }
    }

    fn policy(
        &self,
        listener: &config::Listener,
        upstreams: &[Arc<Upstream>],
    ) -> Arc<ListenerPolicy> {
        let known = self.listeners.find(&listener.name);
        let before = known.map(|state| state.policy.load_full());
        let policy = ListenerPolicy::new(listener, upstreams, before.as_deref(), self.seed);
        Arc::new(policy)
    }

    /// The state of the listener, which goes by `policy` from now on.
    fn listener(&self, policy: Arc<ListenerPolicy>) -> Arc<ListenerState> {
        let name = policy.name.clone();
        let number = self.around.names.number(&name);
        let new = || ListenerState::new(self.around.workers, number, policy.clone());
        let state = self.listeners.find_or(&name, new);
        state.policy.store(policy.clone());
        state
    }
}
