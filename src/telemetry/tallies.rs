//! Counters of one upstream, and of one backend, on one worker; and what is rare enough to be counted by
//! anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::Reason;
use super::counters::Counter;
use super::latency::{BucketCounts, Buckets, Times};

/// Why a backend could not be connected to: a closed set, in counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ConnectFault {
    /// It, or the way there, has refused.
    Refused,
    /// No answer within `connect_timeout`.
    Timeout,
    /// TLS could not be begun.
    Tls,
    /// This machine had no descriptor, port or memory.
    NoResources,
}

impl ConnectFault {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Refused, Self::Timeout, Self::Tls, Self::NoResources];

    /// As it stands in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::NoResources => "no-resources",
        }
    }
}

const REASONS: usize = Reason::ALL.len();
const FAULTS: usize = ConnectFault::ALL.len();

/// What sessions of one worker have met at a backend. Written by that worker only.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct BackendCounters {
    /// Connections that were opened, those ahead of sessions included; of datagrams, sockets.
    pub connections: Counter,
    /// Sessions that got one.
    pub sessions: Counter,
    /// Sessions that took one that was open ahead.
    pub pool_hits: Counter,
    /// Connections open ahead that the backend had closed when a session came or before.
    pub pool_stale: Counter,
    /// Bytes to the backend.
    pub bytes_received: Counter,
    /// Bytes from the backend.
    pub bytes_sent: Counter,
    failed: [Counter; FAULTS],
    closed: [Counter; REASONS],
    /// From the first packet to the connection, TLS and all; of those that were opened for a session.
    pub connect: Buckets,
    /// From the first byte to the backend, or the connection if it speaks first, to its first byte.
    pub first_byte: Buckets,
    /// From accept to end.
    pub duration: Buckets,
}

/// [`BackendCounters`] of all workers at one time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BackendTotals {
    /// [`BackendCounters::connections`]
    pub connections: u64,
    /// [`BackendCounters::sessions`]
    pub sessions: u64,
    /// [`BackendCounters::pool_hits`]
    pub pool_hits: u64,
    /// [`BackendCounters::pool_stale`]
    pub pool_stale: u64,
    /// [`BackendCounters::bytes_received`]
    pub bytes_received: u64,
    /// [`BackendCounters::bytes_sent`]
    pub bytes_sent: u64,
    /// Failed tries, in the order of [`ConnectFault::ALL`].
    pub failed: [u64; FAULTS],
    /// Sessions that ended, in the order of [`Reason::ALL`].
    pub closed: [u64; REASONS],
    /// [`BackendCounters::connect`]
    pub connect: BucketCounts,
    /// [`BackendCounters::first_byte`]
    pub first_byte: BucketCounts,
    /// [`BackendCounters::duration`]
    pub duration: BucketCounts,
}

impl BackendCounters {
    /// A try to connect has failed.
    pub fn fail(&self, fault: ConnectFault) {
        self.failed[fault as usize].add(1);
    }

    /// A session with it has ended.
    pub fn close(&self, reason: Reason) {
        self.closed[reason as usize].add(1);
    }

    fn add_to(&self, sum: &mut BackendTotals) {
        sum.connections += self.connections.value();
        sum.sessions += self.sessions.value();
        sum.pool_hits += self.pool_hits.value();
        sum.pool_stale += self.pool_stale.value();
        sum.bytes_received += self.bytes_received.value();
        sum.bytes_sent += self.bytes_sent.value();
        for (sum, counter) in sum.failed.iter_mut().zip(&self.failed) {
            *sum += counter.value();
        }
        for (sum, counter) in sum.closed.iter_mut().zip(&self.closed) {
            *sum += counter.value();
        }
        self.connect.add_to(&mut sum.connect);
        self.first_byte.add_to(&mut sum.first_byte);
        self.duration.add_to(&mut sum.duration);
    }
}

/// A backend's counters by worker, each made when its worker first needs it.
#[derive(Debug, Default)]
pub struct BackendTallies {
    workers: Box<[OnceLock<Box<BackendCounters>>]>,
    /// Times it was ejected.
    pub ejections: Tally,
    /// Times its breaker opened, became half-open and closed.
    pub breaker: [Tally; 3],
    /// Probes by what came of them, in the order of [`Probed::ALL`].
    pub probes: [Tally; 3],
    /// How long they took; the prober's.
    pub probe_duration: Buckets,
    last_failure: Mutex<Option<String>>,
}

/// What has come of a probe: a closed set, in counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Probed {
    /// The backend has answered as it should.
    Success,
    /// It has not.
    Failure,
    /// This machine had no descriptor, port or memory: it says nothing of the backend.
    NoResources,
}

impl Probed {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::NoResources];

    /// As it stands in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::NoResources => "no-resources",
        }
    }
}

impl BackendTallies {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| OnceLock::new()).collect(),
            ..Self::default()
        }
    }

    /// Those of a worker, which alone may write to them.
    pub fn of(&self, worker: usize) -> &BackendCounters {
        self.workers[worker].get_or_init(Box::default)
    }

    /// A probe is over. `why` it failed, if it did. One that this machine could not make says nothing of the
    /// backend. Only the prober calls this.
    pub fn probed(&self, what: Probed, why: Option<String>, took: Duration) {
        self.probes[what as usize].add();
        if what == Probed::NoResources {
            return;
        }
        self.probe_duration.record(took);
        *self
            .last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why the last probe failed; `None` = it did not. Not for workers, who never wait.
    pub fn last_failure(&self) -> Option<String> {
        let why = self.last_failure.lock();
        why.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was counted so far, by all workers.
    pub fn totals(&self) -> BackendTotals {
        let mut sum = BackendTotals::default();
        let made = self.workers.iter().filter_map(OnceLock::get);
        made.for_each(|counters| counters.add_to(&mut sum));
        sum
    }
}

/// What sessions of one worker have met at an upstream, whichever backend it was.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct UpstreamCounters {
    /// Sessions that asked for a backend.
    pub requests: Counter,
    /// Further tries after one that failed.
    pub retries: Counter,
    /// Further tries that the budget has not allowed.
    pub retries_denied: Counter,
    /// Sessions that had to wait for a place.
    pub queued: Counter,
    /// How long they waited, whatever came of it.
    pub queue: Times,
    /// As [`BackendCounters::connect`].
    pub connect: Times,
    /// As [`BackendCounters::first_byte`].
    pub first_byte: Times,
    /// As [`BackendCounters::duration`].
    pub duration: Times,
}

/// A number that any thread raises, now and then.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backends_totals_are_those_of_all_workers() {
        let tallies = BackendTallies::new(3);
        assert_eq!(tallies.totals(), BackendTotals::default());
        for worker in [0, 2] {
            let counters = tallies.of(worker);
            counters.connections.add(1);
            counters.bytes_sent.add(10);
            counters.fail(ConnectFault::Timeout);
            counters.close(Reason::Idle);
            counters.connect.record(Duration::from_millis(3));
        }
        let totals = tallies.totals();
        assert_eq!((totals.connections, totals.bytes_sent), (2, 20));
        assert_eq!(totals.failed[ConnectFault::Timeout as usize], 2);
        assert_eq!(totals.closed[Reason::Idle as usize], 2);
        assert_eq!(totals.connect.count(), 2);
    }

    #[test]
    fn numbers_are_places() {
        for (place, fault) in ConnectFault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, place);
        }
        for (place, probed) in Probed::ALL.into_iter().enumerate() {
            assert_eq!(probed as usize, place);
        }
    }
}
