//! What was counted up to the last pulse, and so what has been since. A mark is for the very thing that counts,
//! whichever generations have it: one that goes and comes back is known as long as it lives, and a new one of
//! the same name begins at nothing.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::super::lengths::quantiles;
use super::super::socket::Quantiles;
use crate::proxy::ListenerState;
use crate::telemetry::counters::Totals;
use crate::telemetry::latency::{BinCounts, BucketCounts, Times};
use crate::telemetry::tallies::UpstreamCounters;
use crate::upstream;

/// Marks of things of one kind.
pub(super) struct Marks<T, M> {
    /// By address, which nothing else can have while the mark is there.
    list: HashMap<usize, (Weak<T>, M)>,
    begun: bool,
}

impl<T, M> Default for Marks<T, M> {
    fn default() -> Self {
        Self {
            list: HashMap::new(),
            begun: false,
        }
    }
}

impl<T, M: Default> Marks<T, M> {
    /// A round begins. False if it is the first one: what was counted before is nobody's news.
    pub(super) fn begin(&mut self) -> bool {
        self.list.retain(|_, (of, _)| of.strong_count() > 0);
        std::mem::replace(&mut self.begun, true)
    }

    /// The mark of this one.
    pub(super) fn of(&mut self, of: &Arc<T>) -> &mut M {
        let new = || (Arc::downgrade(of), M::default());
        &mut self
            .list
            .entry(Arc::as_ptr(of).addr())
            .or_insert_with(new)
            .1
    }

    /// All are let go of; the next round is the first one.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Up to where lengths of time were told. It takes as much memory as those of one more worker.
#[derive(Default)]
pub(super) struct TimesMark {
    count: u64,
    bins: BinCounts,
}

impl TimesMark {
    /// Those since the last time, over all workers.
    pub(super) fn advance<'a>(
        &mut self,
        workers: impl Iterator<Item = &'a Times> + Clone,
    ) -> Quantiles {
        // Most have nothing new, which the few buckets tell. What is there before its bucket is is told
        // now or with the next, and not twice.
        let count = workers.clone().map(|times| times.buckets.count()).sum();
        if count == self.count {
            return Quantiles::default();
        }
        let bins = BinCounts::sum(workers.map(|times| &times.bins));
        let since = bins.since(&self.bins);
        *self = Self { count, bins };
        quantiles(&since)
    }
}

/// Up to where a listener was told of.
#[derive(Default)]
pub(super) struct ListenerMark {
    totals: Totals,
    duration: TimesMark,
}

impl ListenerMark {
    pub(super) fn advance(&mut self, listener: &ListenerState) -> (Totals, Quantiles) {
        let totals = listener.totals();
        let since = totals.since(&self.totals);
        self.totals = totals;
        let durations = listener.counters.iter().map(|worker| &worker.duration);
        (since, self.duration.advance(durations))
    }
}

/// Up to where an upstream was told of.
#[derive(Default)]
pub(super) struct UpstreamMark {
    requests: u64,
    retries: u64,
    connect: TimesMark,
    first_byte: TimesMark,
    duration: TimesMark,
}

/// What sessions have met at an upstream since the last time.
#[derive(Default)]
pub(super) struct UpstreamSince {
    pub(super) requests: u64,
    pub(super) retries: u64,
    pub(super) connect: Quantiles,
    pub(super) first_byte: Quantiles,
    pub(super) duration: Quantiles,
}

impl UpstreamMark {
    pub(super) fn advance(&mut self, workers: &[UpstreamCounters]) -> UpstreamSince {
        let all = workers.iter();
        let requests = all.clone().map(|it| it.requests.value()).sum();
        let retries = all.clone().map(|it| it.retries.value()).sum();
        UpstreamSince {
            requests: advance(&mut self.requests, requests),
            retries: advance(&mut self.retries, retries),
            connect: self.connect.advance(all.clone().map(|it| &it.connect)),
            first_byte: self
                .first_byte
                .advance(all.clone().map(|it| &it.first_byte)),
            duration: self.duration.advance(all.map(|it| &it.duration)),
        }
    }
}

/// Up to where a backend was told of. Some 400 bytes.
#[derive(Default)]
pub(super) struct BackendMark {
    connections: u64,
    failed: u64,
    bytes_received: u64,
    bytes_sent: u64,
    first_byte: BucketCounts,
    connect: BucketCounts,
}

/// What sessions have met at a backend since the last time.
#[derive(Default)]
pub(super) struct BackendSince {
    pub(super) connections: u64,
    pub(super) failed: u64,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) first_byte: Quantiles,
    pub(super) connect: Quantiles,
}

impl BackendMark {
    pub(super) fn advance(&mut self, state: &upstream::BackendState) -> BackendSince {
        let totals = state.tallies.totals();
        BackendSince {
            connections: advance(&mut self.connections, totals.connections),
            failed: advance(&mut self.failed, totals.failed.iter().sum()),
            bytes_received: advance(&mut self.bytes_received, totals.bytes_received),
            bytes_sent: advance(&mut self.bytes_sent, totals.bytes_sent),
            first_byte: advance_buckets(&mut self.first_byte, totals.first_byte),
            connect: advance_buckets(&mut self.connect, totals.connect),
        }
    }
}

/// The mark goes to `now`; by how much.
fn advance(mark: &mut u64, now: u64) -> u64 {
    now.saturating_sub(std::mem::replace(mark, now))
}

fn advance_buckets(mark: &mut BucketCounts, now: BucketCounts) -> Quantiles {
    let since = now.since(&std::mem::replace(mark, now));
    quantiles(&since)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn quantiles_are_those_of_the_period_and_not_of_all_times() {
        let workers = [Times::default(), Times::default()];
        let mut mark = TimesMark::default();
        (0..1000).for_each(|_| workers[0].record(Duration::from_secs(5)));
        assert_eq!(mark.advance(workers.iter()).count, 1000);
        for millis in 1..=99 {
            workers[millis % 2].record(Duration::from_millis(millis as u64));
        }
        let told = mark.advance(workers.iter());
        assert_eq!(told.count, 99);
        let near = |micros: Option<u64>, expected: u64| {
            let micros = micros.expect("there are some");
            assert!(micros.abs_diff(expected) <= expected / 100, "{told:?}");
        };
        near(told.p50_us, 50_000);
        near(told.p90_us, 90_000);
        near(told.p99_us, 99_000);
        near(told.max_us, 99_000);
        assert_eq!(mark.advance(workers.iter()), Quantiles::default());
    }

    #[test]
    fn quantiles_of_buckets_are_those_of_the_period() {
        let state = crate::telemetry::latency::Buckets::default();
        let reading = || BucketCounts::sum([&state]);
        let mut mark = BucketCounts::default();
        state.record(Duration::from_secs(7));
        advance_buckets(&mut mark, reading());
        state.record(Duration::from_micros(200));
        let told = advance_buckets(&mut mark, reading());
        assert_eq!(told.count, 1);
        assert!(told.max_us.is_some_and(|it| (100..=250).contains(&it)));
        assert_eq!(advance_buckets(&mut mark, BucketCounts::default()).count, 0);
    }

    #[test]
    fn what_goes_and_comes_back_is_known_as_long_as_it_lives() {
        let mut marks = Marks::<u8, u64>::default();
        let old = Arc::new(1);
        assert!(!marks.begin());
        *marks.of(&old) = 7;
        assert!(marks.begin(), "a round without it");
        assert!(marks.begin());
        assert_eq!(*marks.of(&old), 7);
        drop(old);
        assert!(marks.begin());
        assert_eq!(*marks.of(&Arc::new(1)), 0);
        marks.clear();
        assert!(!marks.begin());
    }
}
