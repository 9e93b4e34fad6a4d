//! Counters of one listener on one worker. Only that worker writes them; readers add the workers
//! up. Nothing is contended.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Reason;

/// A number that one thread raises and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the owner calls this: a plain store is enough.
    pub fn add(&self, amount: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// The sum so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened on a listener.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ListenerCounters {
    /// Connections that were accepted, refused ones included.
    pub accepted: Counter,
    /// Bytes from clients towards backends.
    pub bytes_received: Counter,
    /// Bytes from backends towards clients.
    pub bytes_sent: Counter,
    /// Failed tries to connect to a backend, of sessions that may have found another.
    pub connect_failures: Counter,
    /// Times accepting had to pause because the system had no descriptor or memory.
    pub accept_pauses: Counter,
    /// Connections that `rate_limit` would have refused, had it not been a dry run.
    pub rate_limit_dry_run: Counter,
    closed: [Counter; Reason::ALL.len()],
}

impl ListenerCounters {
    /// A session ended.
    pub fn close(&self, reason: Reason) {
        self.closed[reason as usize].add(1);
    }

    /// Sessions that ended for `reason`.
    pub fn closed(&self, reason: Reason) -> u64 {
        self.closed[reason as usize].value()
    }
}
