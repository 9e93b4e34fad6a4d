//! Lengths of time as they are told, of what has counted them.

use std::time::Duration;

use super::socket::{LatencyStatus, Quantiles};
use crate::telemetry::latency::{BinCounts, BucketCounts};

/// What has counted them.
pub(super) trait Lengths {
    fn count(&self) -> u64;
    /// As [`BinCounts::quantile`].
    fn quantile(&self, share: f64) -> Option<Duration>;

    /// The same in whole microseconds.
    fn micros(&self, share: f64) -> Option<u64> {
        let micros = self.quantile(share)?.as_micros();
        Some(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

impl Lengths for BinCounts {
    fn count(&self) -> u64 {
        Self::count(self)
    }

    fn quantile(&self, share: f64) -> Option<Duration> {
        Self::quantile(self, share)
    }
}

impl Lengths for BucketCounts {
    fn count(&self) -> u64 {
        Self::count(self)
    }

    fn quantile(&self, share: f64) -> Option<Duration> {
        Self::quantile(self, share)
    }
}

/// Of a pulse.
pub(super) fn quantiles(lengths: &impl Lengths) -> Quantiles {
    Quantiles {
        count: lengths.count(),
        p50_us: lengths.micros(0.5),
        p90_us: lengths.micros(0.9),
        p99_us: lengths.micros(0.99),
        max_us: lengths.micros(1.0),
    }
}

/// Of a status.
pub(super) fn latency(lengths: &impl Lengths) -> LatencyStatus {
    LatencyStatus {
        count: lengths.count(),
        p50_us: lengths.micros(0.5).unwrap_or_default(),
        p99_us: lengths.micros(0.99).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::latency::Times;

    #[test]
    fn a_status_and_a_pulse_tell_the_same_of_both_forms() {
        let times = Times::default();
        (1..=100).for_each(|millis| times.record(Duration::from_millis(millis)));
        let bins = BinCounts::sum([&times.bins, &times.bins]);
        let buckets = BucketCounts::sum([&times.buckets, &times.buckets]);
        for (status, pulse) in [
            (latency(&bins), quantiles(&bins)),
            (latency(&buckets), quantiles(&buckets)),
        ] {
            assert_eq!((status.count, pulse.count), (200, 200));
            assert_eq!(Some(status.p50_us), pulse.p50_us);
            assert_eq!(Some(status.p99_us), pulse.p99_us);
            assert!(status.p50_us.abs_diff(50_000) <= 500, "{status:?}");
        }
        let none = BinCounts::default();
        assert_eq!(latency(&none), LatencyStatus::default());
        assert_eq!(quantiles(&none), Quantiles::default());
    }
}
