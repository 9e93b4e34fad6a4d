//! What of a listener outlives reloads. Its identity is its name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use super::snapshot::ListenerPolicy;
use crate::policy::admission::Occupancy;
use crate::policy::bucket::Bucket;
use crate::telemetry::Reason;
use crate::telemetry::counters::{ListenerCounters, Totals};

/// What all workers know of a listener.
#[derive(Debug)]
pub struct ListenerState {
    /// The table's name.
    pub name: Arc<str>,
    /// The number of its name in the flight recorder.
    pub number: u32,
    /// Of the newest generation that has the listener; read once per connection.
    pub policy: ArcSwap<ListenerPolicy>,
    /// Sessions at once, over all workers.
    pub active: Occupancy,
    /// Of `rate_limit.connections`.
    pub bucket: Bucket,
    /// One per worker.
    pub counters: Vec<ListenerCounters>,
    /// What processes before this one have counted; the control thread's.
    pub(super) elsewhere: ListenerCounters,
    /// The operator has set its sessions a deadline, and it is over.
    aborting: AtomicBool,
}

impl ListenerState {
    pub(super) fn new(workers: usize, number: u32, policy: Arc<ListenerPolicy>) -> Self {
        Self {
            name: policy.name.clone(),
            number,
            policy: ArcSwap::new(policy),
            active: Occupancy::default(),
            bucket: Bucket::default(),
            counters: (0..workers).map(|_| ListenerCounters::default()).collect(),
            elsewhere: ListenerCounters::default(),
            aborting: AtomicBool::new(false),
        }
    }

    /// Its sessions are to end. The workers are to be told, too:
    /// [`Message::AbortParts`](super::Message::AbortParts).
    pub fn abort(&self, now: bool) {
        self.aborting.store(now, Ordering::Relaxed);
    }

    /// Its sessions are to end. Whoever asks was told by a message after it was ordered.
    pub fn is_aborting(&self) -> bool {
        self.aborting.load(Ordering::Relaxed)
    }

    /// What was counted so far, by all workers and by the processes before this one.
    pub fn totals(&self) -> Totals {
        let mut sum = self.elsewhere.totals();
        for counters in &self.counters {
            sum.add(&counters.totals());
        }
        sum
    }

    /// It takes datagrams, or has until a reload. `totals`: its own.
    pub fn takes_datagrams(&self, totals: &Totals) -> bool {
        self.policy.load().udp.is_some() || totals.datagrams_received > 0
    }

    /// Connections that were accepted.
    pub fn accepted(&self) -> u64 {
        self.totals().accepted
    }

    /// Sessions that ended for `reason`.
    pub fn closed(&self, reason: Reason) -> u64 {
        self.totals().closed(reason)
    }
}
