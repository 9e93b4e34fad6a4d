//! What all workers share: the configuration of the moment, swapped as a whole, and the counts
//! that are promised to be exact.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;

use crate::config::{self, Config, RateLimit, Timeouts};
use crate::policy::admission::Occupancy;
use crate::policy::bucket::Bucket;
use crate::policy::cidr::Acl;
use crate::policy::clients::Clients;
use crate::telemetry::Reason;
use crate::telemetry::counters::ListenerCounters;
use crate::telemetry::events::Events;
use crate::upstream::{Surroundings, Upstream};

/// One generation of the configuration, read once per connection.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up with every reload.
    pub generation: u64,
    /// In the order of the first generation, whatever the file's order is by now: a listener's
    /// place is its index everywhere.
    pub listeners: Vec<Arc<ListenerPolicy>>,
    /// In the order of the configuration.
    pub upstreams: Vec<Arc<Upstream>>,
}

/// What of a listener may change with a reload.
#[derive(Clone, Debug)]
pub struct ListenerPolicy {
    /// The table's name.
    pub name: Arc<str>,
    /// Where its connections go.
    pub upstream: Arc<Upstream>,
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
}

/// What of a listener outlives every reload.
#[derive(Debug)]
pub struct ListenerState {
    /// The table's name.
    pub name: Arc<str>,
    /// Sessions at once, over all workers.
    pub active: Occupancy,
    /// Of `rate_limit.connections`.
    pub bucket: Bucket,
    /// One per worker.
    pub counters: Vec<ListenerCounters>,
}

/// The process, as its workers see it.
#[derive(Debug)]
pub struct Shared {
    /// The configuration of the moment.
    pub snapshot: ArcSwap<Snapshot>,
    /// In the order of the configuration.
    pub listeners: Vec<ListenerState>,
    /// Sessions at once.
    pub active: Occupancy,
    /// Sessions at once at most; a reload that needs descriptors may lower it.
    pub max_connections: AtomicUsize,
    /// Where news go, how workers are signalled, and what outlives reloads.
    pub around: Surroundings,
    /// What all randomness comes from.
    pub seed: u64,
}

impl Snapshot {
    /// Builds the run-time form of `config`; what `before` knows of upstreams and listeners of the
    /// same name is kept. `seed`: nobody outside may know it.
    pub fn new(config: &Config, before: Option<&Self>, around: &Surroundings, seed: u64) -> Self {
        let upstreams = upstreams(config, before, around);
        let mut listeners: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| {
                let before = before.and_then(|before| before.listener(&listener.name));
                Arc::new(ListenerPolicy::new(listener, &upstreams, before, seed))
            })
            .collect();
        if let Some(before) = before {
            let place = |policy: &Arc<ListenerPolicy>| {
                before
                    .listeners
                    .iter()
                    .position(|kept| kept.name == policy.name)
            };
            listeners.sort_by_key(place);
        }
        Self {
            generation: before.map_or(1, |before| before.generation + 1),
            listeners,
            upstreams,
        }
    }

    fn listener(&self, name: &str) -> Option<&ListenerPolicy> {
        let same = |listener: &&Arc<ListenerPolicy>| *listener.name == *name;
        self.listeners.iter().find(same).map(Arc::as_ref)
    }

    fn upstream(&self, name: &str) -> Option<&Upstream> {
        let same = |upstream: &&Arc<Upstream>| **upstream.name() == *name;
        self.upstreams.iter().find(same).map(Arc::as_ref)
    }
}

fn upstreams(
    config: &Config,
    before: Option<&Snapshot>,
    around: &Surroundings,
) -> Vec<Arc<Upstream>> {
    let upstreams: Vec<_> = config
        .upstreams
        .iter()
        .map(|model| {
            let before = before.and_then(|before| before.upstream(&model.name));
            Arc::new(Upstream::new(model, before, around))
        })
        .collect();
    for old in before.into_iter().flat_map(|before| &before.upstreams) {
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
        let rate_limit = model.rate_limit;
        let networks = |networks: &[config::IpNet]| {
            let pairs = networks.iter();
            pairs
                .map(|network| (network.network(), network.prefix_len()))
                .collect::<Vec<_>>()
        };
        let clients = rate_limit.connections_per_ip.map(|_| {
            let kept = before.filter(|before| {
                let old = before.rate_limit;
                (old.max_clients, old.ipv6_prefix)
                    == (rate_limit.max_clients, rate_limit.ipv6_prefix)
            });
            let kept = kept.and_then(|before| before.clients.clone());
            kept.unwrap_or_else(|| Arc::new(Clients::new(rate_limit.max_clients, seed)))
        });
        Self {
            name: model.name.clone(),
            upstream: upstreams[model.upstream].clone(),
            timeouts: model.timeouts,
            max_connections: model.max_connections.map_or(usize::MAX, usize::from),
            acl: Arc::new(Acl::new(networks(&model.allow), networks(&model.deny))),
            rate_limit,
            clients,
        }
    }

    /// It matters who the client is.
    pub(super) fn needs_client(&self) -> bool {
        !self.acl.is_open() || self.clients.is_some() || self.upstream.needs_client()
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
        let around = Surroundings {
            workers,
            bells: Arc::default(),
            events,
            states: Arc::default(),
        };
        let listeners = config.listeners.iter().map(|listener| ListenerState {
            name: listener.name.clone(),
            active: Occupancy::default(),
            bucket: Bucket::default(),
            counters: (0..workers).map(|_| ListenerCounters::default()).collect(),
        });
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(Snapshot::new(config, None, &around, seed)),
            listeners: listeners.collect(),
            active: Occupancy::default(),
            max_connections: AtomicUsize::new(max_connections),
            around,
            seed,
        })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.around.workers
    }

    /// Another generation takes effect for new sessions. The workers are to be told of it, too:
    /// [`Message::Reloaded`](super::Message::Reloaded).
    pub fn reload(&self, config: &Config) -> Arc<Snapshot> {
        let before = self.snapshot.load();
        let snapshot = Arc::new(Snapshot::new(
            config,
            Some(&before),
            &self.around,
            self.seed,
        ));
        self.snapshot.store(snapshot.clone());
        snapshot
    }

    /// Sessions of the listener that ended for `reason`, over all workers.
    pub fn closed(&self, listener: usize, reason: Reason) -> u64 {
        self.listeners[listener]
            .counters
            .iter()
            .map(|counters| counters.closed(reason))
            .sum()
    }

    /// Connections of the listener that were accepted, over all workers.
    pub fn accepted(&self, listener: usize) -> u64 {
        self.listeners[listener]
            .counters
            .iter()
            .map(|counters| counters.accepted.value())
            .sum()
    }
}
