//! What a run counted.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::loss::Losses;

/// A histogram of latencies in nanoseconds: three significant digits, up to 100 s.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        // Below 100 ns nothing is told apart, which keeps the table small enough for a cache.
        Self(Histogram::new_with_bounds(100, 100_000_000_000, 3).expect("the bounds are in order"))
    }
}

impl Latency {
    /// Counts one; what is longer than 100 s counts as 100 s.
    pub fn record(&mut self, latency: Duration) {
        self.0
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of the requests (0 to 1) stayed within, in microseconds.
    pub fn quantile_us(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1e3
    }

    /// The longest, in microseconds.
    pub fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    /// How many took longer than `least`.
    pub fn count_above(&self, least: Duration) -> u64 {
        let least = u64::try_from(least.as_nanos()).unwrap_or(u64::MAX);
        self.pairs()
            .filter(|(nanos, _)| *nanos > least)
            .map(|(_, count)| count)
            .sum()
    }

    /// The whole histogram: nanoseconds and how many.
    pub fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        let recorded = self.0.iter_recorded();
        recorded.map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
    }
}

/// What was counted between the two edges.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests answered between the edges.
    pub completed: u64,
    /// Connections that failed and answers that were wrong.
    pub errors: u64,
    /// The same by kind.
    pub losses: Losses,
    /// Requests that were due between the edges and had no answer when the generator gave up
    /// waiting. They are in `latency` with the time they had waited.
    pub unanswered: u64,
    /// Bytes of answers that came between the edges.
    pub bytes: u64,
    /// Between the edges.
    pub elapsed: Duration,
    /// CPU time of this thread between the edges.
    pub own_cpu: Duration,
    /// Of the requests that were begun (closed loop: answered) between the edges.
    pub latency: Latency,
    /// How long after a request was due the generator got round to it. Empty in a closed loop. It is
    /// part of `latency`; where it is large, the generator is what is slow.
    pub lateness: Latency,
}

impl Outcome {
    /// Requests per second.
    pub fn throughput(&self) -> f64 {
        self.completed as f64 / self.elapsed.as_secs_f64()
    }

    /// Share of its core that this thread was busy, 0 to 1.
    pub fn busy(&self) -> f64 {
        self.own_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// As numbers to be written down.
    pub fn summary(&self) -> Summary {
        Summary {
            requests: self.completed,
            due: self.lateness.count(),
            errors: self.errors,
            losses: self.losses,
            unanswered: self.unanswered,
            bytes: self.bytes,
            seconds: self.elapsed.as_secs_f64(),
            requests_per_second: self.throughput(),
            generator_busy: self.busy(),
            p50_us: self.latency.quantile_us(0.5),
            p90_us: self.latency.quantile_us(0.9),
            p99_us: self.latency.quantile_us(0.99),
            p999_us: self.latency.quantile_us(0.999),
            max_us: self.latency.max_us(),
            late_p99_us: self.lateness.quantile_us(0.99),
            histogram_ns: self.latency.pairs().collect(),
        }
    }
}

/// [`Outcome`] as it stands in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub(crate) requests: u64,
    /// Requests that were due between the edges; 0 in a closed loop.
    pub(crate) due: u64,
    pub(crate) errors: u64,
    pub(crate) losses: Losses,
    pub(crate) unanswered: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) generator_busy: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// How late the generator itself was, in an open loop.
    pub(crate) late_p99_us: f64,
    /// Nanoseconds and how many requests took that long.
    histogram_ns: Vec<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_keeps_three_digits_and_forgets_nothing() {
        let mut latency = Latency::default();
        for micros in 1..=1000 {
            latency.record(Duration::from_micros(micros * 37));
        }
        latency.record(Duration::from_secs(1_000_000));
        assert_eq!(latency.count(), 1001);
        assert_eq!(latency.pairs().map(|(_, count)| count).sum::<u64>(), 1001);
        let p50 = latency.quantile_us(0.5);
        assert!((p50 / (501.0 * 37.0) - 1.0).abs() < 0.002, "{p50}");
        assert_eq!(latency.count_above(Duration::from_secs(1)), 1);
        assert!(latency.max_us() >= 99e6);
    }
}
