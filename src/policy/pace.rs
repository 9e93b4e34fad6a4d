//! Bandwidth of one direction of one connection: how many bytes may move now, and if none, when to
//! ask again. It delays and loses nothing, and it moves no bytes itself.

use std::time::Duration;

use super::bucket::Rate;
use crate::time::Instant;

/// A bucket of bytes that belongs to one direction; bytes are its tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pacer {
    /// Up to here what has come back is counted in.
    refilled: Instant,
    /// Bytes that a full bucket has more; those beyond the burst are debt.
    missing: u64,
    /// Billionths of a byte that have come back besides, so that no rounding adds up.
    part: u32,
}

impl Pacer {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            refilled: now,
            missing: 0,
            part: 0,
        }
    }

    /// Bytes that may move now. 0 = wait until [`Pacer::resume_at`]: also when there are some, but
    /// fewer than it is worth waking up for. Asking more often changes nothing.
    pub fn allowance(&mut self, rate: Rate, now: Instant) -> u32 {
        self.refill(rate, now);
        let held = rate.burst.get().saturating_sub(self.missing);
        if held < quantum(rate) {
            return 0;
        }
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// So many bytes have moved. It may be more than was allowed, as a receive ends with its buffer and
    /// not before; that is a debt, and nothing is allowed until it has been paid off. Over any
    /// interval, burst + rate × time + the largest such excess is never exceeded.
    pub fn take(&mut self, bytes: u32) {
        self.missing = self.missing.saturating_add(u64::from(bytes));
    }

    /// The first instant from `now` on at which the allowance is above 0: later than `now` if it is 0.
    pub fn resume_at(&self, rate: Rate, now: Instant) -> Instant {
        let enough = rate.burst.get() - quantum(rate);
        let lacking = self.missing.saturating_sub(enough);
        let parts = (u128::from(lacking) * u128::from(NANOS)).saturating_sub(self.part.into());
        let nanos = parts.div_ceil(rate.per_second.get().into());
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        now.max(self.refilled + wait)
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let nanos = now.since(self.refilled).as_nanos();
        let parts = nanos * u128::from(rate.per_second.get()) + u128::from(self.part);
        let whole = parts / u128::from(NANOS);
        self.refilled = self.refilled.max(now);
        match u64::try_from(whole) {
            Ok(whole) if whole < self.missing => {
                self.missing -= whole;
                self.part = (parts % u128::from(NANOS)) as u32;
            }
            // Full, and a full bucket doesn't gather parts either.
            _ => (self.missing, self.part) = (0, 0),
        }
    }
}

/// Bytes that are worth waking up for; above 0, and at most the burst.
///
/// Half the burst, and not all of it: while a wake-up is late the bucket goes on filling, and what
/// comes after it is full is lost to the connection.
fn quantum(rate: Rate) -> u64 {
    let burst = rate.burst.get().div_ceil(2);
    let soon = rate.per_second.get() / QUANTA_PER_SECOND;
    burst.min(soon).clamp(1, BUFFER)
}

const NANOS: u32 = 1_000_000_000;

/// A slow connection still moves something every 20 ms.
const QUANTA_PER_SECOND: u64 = 50;

/// What a relay moves at once.
const BUFFER: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::bucket::rate;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const MS: Duration = Duration::from_millis(1);

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    /// Bytes moved until `end` by one who moves whatever is allowed and comes back `late`.
    fn moved(rate: Rate, end: Duration, late: Duration) -> u64 {
        let mut now = at(77);
        let end = now + end;
        let (mut pacer, mut moved) = (Pacer::new(now), 0);
        while now <= end {
            let allowed = pacer.allowance(rate, now);
            pacer.take(allowed);
            moved += u64::from(allowed);
            now = pacer.resume_at(rate, now) + late;
        }
        moved
    }

    #[test]
    fn it_is_small() {
        assert!(size_of::<Pacer>() <= 24);
    }

    #[test]
    fn it_starts_full_and_goes_on_by_quanta() {
        let rate = rate(MIB, 100 * KIB);
        let mut pacer = Pacer::new(at(5));
        assert_eq!(pacer.allowance(rate, at(5)), 100 << 10);
        assert_eq!(pacer.resume_at(rate, at(5)), at(5));
        pacer.take(100 << 10);
        assert_eq!(pacer.allowance(rate, at(5)), 0);
        let next = at(5) + Duration::from_nanos(1_000_000_000 / 64);
        assert_eq!(pacer.resume_at(rate, at(5)), next, "16 KiB at 1 MiB/s");
        assert_eq!(pacer.allowance(rate, at(next.as_nanos() - 1)), 0);
        assert_eq!(pacer.resume_at(rate, at(next.as_nanos() - 1)), next);
        assert_eq!(pacer.allowance(rate, next), 16 << 10);
    }

    #[test]
    fn a_quantum_is_at_most_half_the_burst_or_20_ms_and_at_least_a_byte() {
        for (per_second, burst, bytes) in [
            (MIB, MIB, 16 * KIB),
            (MIB, 10 * KIB, 5 * KIB),
            (KIB, KIB, 20),
            (MIB, 1, 1),
            (MIB, 3, 2),
            (1, 1_000, 1),
            (u64::MAX, u64::MAX, 16 * KIB),
        ] {
            assert_eq!(quantum(rate(per_second, burst)), bytes);
        }
    }

    #[test]
    fn a_debt_is_paid_off_before_anything_moves() {
        let rate = rate(1_000_000, 50_000);
        let mut pacer = Pacer::new(at(0));
        pacer.take(50_000 + 65_536);
        let resume = pacer.resume_at(rate, at(0));
        assert_eq!(resume, at((65_536 + 16_384) * 1_000));
        assert_eq!(pacer.allowance(rate, at(resume.as_nanos() - 1)), 0);
        assert_eq!(pacer.allowance(rate, resume), 16_384);
    }

    #[test]
    fn a_late_wake_up_costs_nothing_while_it_is_shorter_than_half_the_burst_takes() {
        let rate = rate(10 * MIB, 64 * KIB);
        let moved = moved(rate, Duration::from_secs(10), 3 * MS);
        assert!(moved >= 100 * MIB * 99 / 100, "{moved}");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let rate = rate(1_000, 1_000);
        let mut pacer = Pacer::new(at(1_000_000_000));
        pacer.take(1_000);
        assert_eq!(pacer.allowance(rate, at(0)), 0);
        assert_eq!(pacer.allowance(rate, at(1_000_000_000)), 0);
        assert_eq!(pacer.allowance(rate, at(1_020_000_000)), 20);
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let rate = rate(u64::MAX, u64::MAX);
        let mut pacer = Pacer::new(at(0));
        pacer.missing = u64::MAX - 1;
        pacer.take(u32::MAX);
        assert_eq!(pacer.resume_at(rate, at(0)), at(1));
        assert_eq!(pacer.allowance(rate, at(u64::MAX)), u32::MAX);
        pacer.missing = u64::MAX;
        let slow = Rate {
            per_second: NonZeroU64::MIN,
            burst: NonZeroU64::MIN,
        };
        assert_eq!(pacer.resume_at(slow, at(9)), at(u64::MAX));
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        let magnitude = || (0u32..40, 1u64..1_000).prop_map(|(power, factor)| factor << power);
        (magnitude(), magnitude()).prop_map(|(per_second, burst)| rate(per_second, burst))
    }

    proptest! {
        #[test]
        fn no_interval_moves_more_than_burst_and_rate_times_time_and_the_excess(
            rate in any_rate(),
            // Later by eighths of the burst's time; of what is allowed, so many eighths; in excess.
            steps in prop::collection::vec((0u64..12, 0u64..9, prop_oneof![Just(0u32), 0u32..65_536]), 1..50),
        ) {
            let mut now = 1_000_000;
            let mut pacer = Pacer::new(at(now));
            let (mut moved, mut largest) = (Vec::new(), 0);
            for (later, eighths, excess) in steps {
                let eighth = u128::from(rate.burst.get()) * 125_000_000 / u128::from(rate.per_second.get());
                now += u64::try_from(eighth).unwrap_or(u64::MAX).min(1 << 53) * later + later;
                let allowed = pacer.allowance(rate, at(now));
                let bytes = (u64::from(allowed) * eighths / 8) as u32;
                if bytes > 0 {
                    let excess = if bytes == allowed { excess.min(u32::MAX - bytes) } else { 0 };
                    pacer.take(bytes + excess);
                    largest = largest.max(excess);
                    moved.push((now, u128::from(bytes + excess)));
                }
            }
            for first in 0..moved.len() {
                let mut sum = 0;
                for &(time, bytes) in &moved[first..] {
                    sum += bytes;
                    let most = (u128::from(rate.burst.get()) + u128::from(largest)) * u128::from(NANOS)
                        + u128::from(time - moved[first].0) * u128::from(rate.per_second.get());
                    prop_assert!(sum * u128::from(NANOS) <= most, "{:?}", moved);
                }
            }
        }

        #[test]
        fn asked_at_the_right_time_it_gives_the_rate(rate in any_rate()) {
            // Up to this rate a byte takes as long as the clock's nanosecond.
            let rate = Rate { per_second: rate.per_second.min(NonZeroU64::new(NANOS.into()).expect("above zero")), ..rate };
            let quanta = Duration::from_nanos((2_000 * quantum(rate)).saturating_mul(NANOS.into()) / rate.per_second);
            let moved = moved(rate, quanta, Duration::ZERO);
            let due = quanta.as_nanos() * u128::from(rate.per_second.get()) / u128::from(NANOS);
            let most = due + u128::from(rate.burst.get());
            let least = due * 99 / 100;
            prop_assert!(u128::from(moved) <= most);
            prop_assert!(u128::from(moved) >= least, "{} of {}", moved, due);
        }

        #[test]
        fn it_resumes_when_it_says_and_not_before(
            rate in any_rate(),
            taken: u32,
            times in 1u32..3,
            later in 0u64..1 << 40,
        ) {
            let mut pacer = Pacer::new(at(0));
            for _ in 0..times {
                pacer.take(taken);
            }
            let now = at(later);
            let allowed = pacer.allowance(rate, now);
            let resume = pacer.resume_at(rate, now);
            prop_assert_eq!(allowed > 0, resume == now);
            if allowed == 0 && resume < at(u64::MAX) {
                let mut early = pacer;
                prop_assert_eq!(early.allowance(rate, at(resume.as_nanos() - 1)), 0);
                prop_assert!(pacer.allowance(rate, resume) > 0);
            }
        }
    }
}
