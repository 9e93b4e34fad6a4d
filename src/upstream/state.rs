//! What of an upstream and its backends outlives reloads. Identity is the upstream's name and the
//! backend's address.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::order::{self, Order};
use super::queue::{Bells, Line};
use crate::address::Address;
use crate::config;
use crate::policy::admission::Occupancy;
use crate::policy::balance::Load;
use crate::policy::breaker::Breaker;
use crate::policy::health::Health;
use crate::policy::outlier::Outlier;
use crate::policy::retry::Budget;
use crate::telemetry::tallies::{BackendTallies, UpstreamCounters};

/// What all workers know of an upstream as a whole.
#[derive(Debug)]
pub struct UpstreamState {
    /// Raised whenever something of a backend changes that decides whether it may be chosen.
    changes: AtomicU64,
    /// Backends that are ejected.
    pub(super) ejected: Occupancy,
    /// Of retries.
    pub(super) budget: Budget,
    /// Sessions that wait for a place.
    pub(super) line: Line,
    /// What sessions have met, by worker.
    counters: Box<[UpstreamCounters]>,
    /// Health is ignored at the moment.
    failing_open: AtomicBool,
    /// Its backends, for as long as anybody uses them: one that comes back while old sessions are still
    /// on it goes on counting them.
    backends: Kept<Address, BackendState>,
}

/// The upstreams of a process by name, for as long as anybody uses them. Only whoever makes a generation
/// asks.
pub type States = Kept<Arc<str>, UpstreamState>;

/// What is kept by name for as long as anybody uses it.
#[derive(Debug)]
pub struct Kept<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V> Kept<K, V> {
    /// What is known under this name, if anybody still uses it.
    pub fn find(&self, name: &K) -> Option<Arc<V>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).and_then(Weak::upgrade)
    }

    /// The same, or something new.
    pub fn find_or(&self, name: &K, new: impl FnOnce() -> V) -> Arc<V> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = known.get(name).and_then(Weak::upgrade) {
            return kept;
        }
        known.retain(|_, kept| kept.strong_count() > 0);
        let new = Arc::new(new());
        known.insert(name.clone(), Arc::downgrade(&new));
        new
    }
}

/// What all workers know of a backend.
#[derive(Debug)]
pub struct BackendState {
    /// Sessions that use it, and how fast it is.
    pub load: Arc<Load>,
    /// Connections to it, those included that are open ahead; what `max_connections` bounds.
    pub open: Occupancy,
    /// What the prober says.
    pub health: Health,
    /// Failures of live sessions.
    pub(super) outlier: Outlier,
    /// Closed unless the upstream has breakers.
    pub(super) breaker: Breaker,
    /// What was counted.
    pub tallies: BackendTallies,
    /// What the operator says.
    order: order::Current,
    /// And of its weight.
    weight: order::OrderedWeight,
    /// No upstream has it any more: late reports are of no interest.
    retired: AtomicBool,
}

impl UpstreamState {
    pub(super) fn new(workers: usize, bells: Arc<Bells>) -> Self {
        Self {
            changes: AtomicU64::new(0),
            ejected: Occupancy::default(),
            budget: Budget::default(),
            line: Line::new(workers, bells),
            counters: (0..workers).map(|_| UpstreamCounters::default()).collect(),
            failing_open: AtomicBool::new(false),
            backends: Kept::default(),
        }
    }

    /// The state of the backend of this address, ready for the settings of `model`.
    pub(super) fn backend(&self, address: &Address, model: &config::Upstream) -> Arc<BackendState> {
        let state = self
            .backends
            .find_or(address, || BackendState::new(self.counters.len()));
        state.adopt(model, &self.ejected);
        state
    }

    /// What a worker counts; it alone writes there.
    pub(super) fn counters(&self, worker: usize) -> &UpstreamCounters {
        &self.counters[worker]
    }

    /// Those of all workers.
    pub(super) fn all_counters(&self) -> &[UpstreamCounters] {
        &self.counters
    }

    /// The number of changes so far. Release and acquire: who sees the number sees the change.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// A backend's readiness may have changed.
    pub(super) fn change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Notes whether health is ignored; true when that is news.
    pub(super) fn note_failing_open(&self, now: bool) -> bool {
        self.failing_open.load(Ordering::Relaxed) != now
            && self.failing_open.swap(now, Ordering::Relaxed) != now
    }

    /// Health is ignored at the moment.
    pub(super) fn is_failing_open(&self) -> bool {
        self.failing_open.load(Ordering::Relaxed)
    }
}

impl BackendState {
    fn new(workers: usize) -> Self {
        Self {
            load: Arc::default(),
            open: Occupancy::default(),
            health: Health::default(),
            outlier: Outlier::default(),
            breaker: Breaker::default(),
            tallies: BackendTallies::new(workers),
            order: order::Current::default(),
            weight: order::OrderedWeight::default(),
            retired: AtomicBool::new(false),
        }
    }

    /// An upstream with these settings has it.
    fn adopt(&self, upstream: &config::Upstream, ejected: &Occupancy) {
        self.retired.store(false, Ordering::Relaxed);
        let check = upstream.health_check.as_ref();
        self.health.adopt(check.map(|check| check.settings.start));
        if upstream.outlier.is_none() {
            self.outlier.forgive(ejected);
        }
    }

    /// No upstream has it any more.
    pub(super) fn retire(&self, ejected: &Occupancy) {
        self.retired.store(true, Ordering::Relaxed);
        self.health.adopt(None);
        self.outlier.forgive(ejected);
        self.order.set(Order::Enabled);
        self.weight.set(None);
    }

    /// What the operator has ordered. One relaxed load: sessions may ask whenever they are woken.
    pub fn order(&self) -> Order {
        self.order.now()
    }

    /// Who goes by rosters has to hear of it, too: [`super::Upstream::order`].
    pub(super) fn set_order(&self, order: Order) {
        self.order.set(order);
    }

    /// The weight that the operator has ordered; `None` = the configured one holds.
    pub fn ordered_weight(&self) -> Option<u16> {
        self.weight.now()
    }

    /// Likewise: [`super::Upstream::order_weight`].
    pub(super) fn set_weight(&self, weight: Option<u16>) {
        self.weight.set(weight);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}
