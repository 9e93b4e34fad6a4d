//! What all workers share: the configuration of the moment, swapped as a whole, and the counts
//! that are promised to be exact.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::{self, Config, Timeouts};
use crate::policy::admission::Occupancy;
use crate::telemetry::Reason;
use crate::telemetry::counters::ListenerCounters;
use crate::telemetry::events::Events;
use crate::upstream::Upstream;

/// One generation of the configuration, read once per connection.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up with every reload.
    pub generation: u64,
    /// In the order of the first generation, whatever the file's order is by now: a listener's
    /// place is its index everywhere.
    pub listeners: Vec<ListenerPolicy>,
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
}

/// What of a listener outlives every reload.
#[derive(Debug)]
pub struct ListenerState {
    /// The table's name.
    pub name: Arc<str>,
    /// Sessions at once, over all workers.
    pub active: Occupancy,
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
    /// Sessions at once at most.
    pub max_connections: usize,
    /// What is to be told.
    pub events: Arc<Events>,
}

impl Snapshot {
    /// Builds the run-time form of `config`; what `before` knows of upstreams of the same name is
    /// kept.
    pub fn new(config: &Config, before: Option<&Self>) -> Self {
        let kept = |model: &config::Upstream| {
            let same = before?
                .upstreams
                .iter()
                .find(|kept| *kept.name() == model.name);
            same.map(Arc::as_ref)
        };
        let upstreams: Vec<_> = config
            .upstreams
            .iter()
            .map(|model| Arc::new(Upstream::new(model, kept(model))))
            .collect();
        let mut listeners: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| ListenerPolicy {
                name: listener.name.clone(),
                upstream: upstreams[listener.upstream].clone(),
                timeouts: listener.timeouts,
                max_connections: listener.max_connections.map_or(usize::MAX, usize::from),
            })
            .collect();
        if let Some(before) = before {
            let place = |policy: &ListenerPolicy| {
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
}

impl Shared {
    /// The shared state of a process that runs `config` on `workers` workers.
    pub fn new(
        config: &Config,
        workers: usize,
        max_connections: usize,
        events: Arc<Events>,
    ) -> Arc<Self> {
        let listeners = config.listeners.iter().map(|listener| ListenerState {
            name: listener.name.clone(),
            active: Occupancy::default(),
            counters: (0..workers).map(|_| ListenerCounters::default()).collect(),
        });
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(Snapshot::new(config, None)),
            listeners: listeners.collect(),
            active: Occupancy::default(),
            max_connections,
            events,
        })
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
