//! When requests are due at a fixed rate. The times are fixed before the first request goes out:
//! nothing that the other side does moves them.

use std::time::Duration;

use ringress::time::Instant;

/// Requests 0, 1, 2, … at a fixed rate from a start on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    per_second: u64,
}

impl Schedule {
    /// `per_second` requests a second, 0 counts as 1.
    pub(crate) fn new(start: Instant, per_second: u64) -> Self {
        Self {
            start,
            per_second: per_second.max(1),
        }
    }

    /// When request `number` is due. Computed from the start each time, so that rounding does not
    /// add up.
    pub(crate) fn due(&self, number: u64) -> Instant {
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.per_second);
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_are_even_and_do_not_drift() {
        let start = Instant::from_nanos(7);
        let schedule = Schedule::new(start, 3);
        assert_eq!(schedule.due(0), start);
        assert_eq!(schedule.due(1) - start, Duration::from_nanos(333_333_333));
        assert_eq!(schedule.due(3) - start, Duration::from_secs(1));
        let year = 365 * 24 * 3600;
        assert_eq!(schedule.due(3 * year) - start, Duration::from_secs(year));
    }

    #[test]
    fn a_second_holds_as_many_requests_as_the_rate_says() {
        for rate in [1, 7, 40_000, 1_000_003] {
            let schedule = Schedule::new(Instant::from_nanos(0), rate);
            let second = Instant::from_nanos(1_000_000_000);
            assert!(schedule.due(rate - 1) < second);
            assert_eq!(schedule.due(rate), second);
        }
    }

    #[test]
    fn no_rate_is_one_a_second_and_the_end_of_time_is_not_passed() {
        let schedule = Schedule::new(Instant::from_nanos(0), 0);
        assert_eq!(schedule.due(2), Instant::from_nanos(2_000_000_000));
        assert_eq!(schedule.due(u64::MAX), Instant::from_nanos(u64::MAX));
    }
}
