//! Token buckets. A bucket is one word: the instant at which it will be full again. A token moves
//! that instant on by what the token takes to come back, and there is one to take as long as the
//! instant lies less than the burst ahead. (Known as GCRA, the instant as theoretical arrival time.)
//!
//! It counts and does not wait: what becomes of somebody who got no token is for others to say.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Instant;

/// A rate and how much of it may come at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: NonZeroU64,
    /// Tokens that a full bucket holds.
    pub burst: NonZeroU64,
}

/// A bucket that all workers take from. A new one is full.
#[derive(Default, Debug)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// Takes a token; false when there is none. Over any interval it gives at most
    /// burst + rate × time of them, whoever takes, and withholds at most a ten thousandth of the rate.
    ///
    /// The clocks of the callers may differ by up to 10 s. When a reload changes the rate, the bucket
    /// keeps the instant at which it is full. It is empty while that lies further ahead than the new
    /// rate and burst can bring it, and has one token as soon as that is by more than 10 s. Above
    /// 100,000/s each rate has ticks of its own, counted since boot, so that the instant means another
    /// one after the change: mostly the bucket is full then or has one token.
    pub fn take(&self, rate: Rate, now: Instant) -> bool {
        let meter = Meter::new(rate, now);
        // Relaxed: the changes of a single word have one order that all workers agree on, and no
        // other memory goes with it.
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                meter.take(full_at)
            })
            .is_ok()
    }

    /// How many tokens could be taken at `now`, one after the other. Takes none.
    pub fn tokens(&self, rate: Rate, now: Instant) -> u64 {
        Meter::new(rate, now).tokens(self.0.load(Ordering::Relaxed))
    }

    /// What another process needs to go on with it: when it is full, in ticks of its rate.
    pub fn image(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on where `image` stands. Any number will do: see [`Bucket::take`] for one that this rate
    /// can't have come to.
    pub fn restore(&self, image: u64) {
        self.0.store(image, Ordering::Relaxed);
    }
}

/// What a rate means at an instant, for words that say when a bucket is full again.
///
/// The unit is the tick, and a token takes a whole number of ticks to come back.
///
/// Up to 100,000/s a tick is a nanosecond and the token's time is rounded up, so that rounding can
/// only ever withhold tokens: less than 1 ns on at least 10,000 ns, less than a ten thousandth of
/// the rate (3/s: 333,333,334 ns, two billionths).
///
/// Above, that share would grow up to one half, so the tick is chosen to fit: a second has
/// rate × ⌈10⁹ / rate⌉ of them, one to two per nanosecond, and the token's time is exact. Then it is the
/// present that lies between two ticks. What a token moves on starts from the tick after, whether
/// there is one is decided by the tick before; that again withholds only, and no more than a tick
/// once whenever the bucket is full: of a burst at a single instant the last token comes 1 ns later.
///
/// The bound, with T the token's ticks: the first of n tokens in a row, taken at `a`, leaves the word
/// at ⌈a⌉ + T or beyond, each of the others moves it by T, and the last one, taken at `b`, found it at
/// ⌊b⌋ + (burst - 1) × T or before. So n - 1 ≤ (⌊b⌋ - ⌈a⌉) / T + burst - 1, which is at most
/// rate × (b - a) + burst - 1. Nowhere was it used that clocks go forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    /// The last tick at or before the present.
    before: u64,
    /// The first tick at or after the present.
    after: u64,
    /// Ticks that a token takes to come back.
    token: u64,
    /// A bucket that is full later than this has no token.
    latest: u64,
}

impl Meter {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let per_second = rate.per_second.get().min(NANOS);
        let token = NANOS.div_ceil(per_second);
        let (before, after) = match per_second {
            ..=COARSE_MOST => (now.as_nanos(), now.as_nanos()),
            _ => ticks(now, per_second * token),
        };
        let rest_of_burst = (rate.burst.get() - 1).saturating_mul(token);
        Self {
            before,
            after,
            token,
            latest: before.saturating_add(rest_of_burst),
        }
    }

    /// What a token makes of a bucket that is full at `full_at`; `None` when it has none.
    pub(super) fn take(&self, full_at: u64) -> Option<u64> {
        let full_at = self.own(full_at);
        if full_at > self.latest {
            return None;
        }
        // At the end of time there are no tokens, rather than any number of them.
        full_at.max(self.after).checked_add(self.token)
    }

    /// How often in a row a bucket that is full at `full_at` gives a token now.
    pub(super) fn tokens(&self, full_at: u64) -> u64 {
        let full_at = self.own(full_at);
        if full_at > self.latest {
            return 0;
        }
        // What the first one makes of it, and whoever comes after it.
        let left = self.latest.saturating_sub(full_at.max(self.after));
        1 + left / self.token
    }

    /// What `full_at` means at this rate.
    fn own(&self, full_at: u64) -> u64 {
        let empty = self.latest.saturating_add(self.token);
        // No take at this rate goes so far ahead of any worker's clock: it was another rate's.
        let foreign = full_at > empty.saturating_add(CLOCKS_APART);
        if foreign { self.latest } else { full_at }
    }

    /// A bucket that is full at `full_at` is full now.
    pub(super) fn is_full(&self, full_at: u64) -> bool {
        full_at <= self.before
    }
}

/// The present in ticks of `per_second`: the last one before it and the first one after, the same if
/// it falls on one.
fn ticks(now: Instant, per_second: u64) -> (u64, u64) {
    let exact = u128::from(now.as_nanos()) * u128::from(per_second);
    let whole = |ticks| u64::try_from(ticks).unwrap_or(u64::MAX);
    let nanos = u128::from(NANOS);
    (whole(exact / nanos), whole(exact.div_ceil(nanos)))
}

/// A second. Also the highest rate that is told apart: a token per nanosecond.
const NANOS: u64 = 1_000_000_000;

/// The highest rate at which a token's time in whole nanoseconds is as good as exact.
const COARSE_MOST: u64 = 100_000;

/// Ticks by which the clock of one worker may be behind another's: 10 s at a nanosecond each. A
/// worker reads its clock once a turn, so that milliseconds are usual; the rest is for machines that
/// stand still in the middle of one. It is also how much longer a bucket may stay empty when a reload
/// raises its rate.
const CLOCKS_APART: u64 = 10 * NANOS;

#[cfg(test)]
pub(super) fn rate(per_second: u64, burst: u64) -> Rate {
    let above_zero = |number| NonZeroU64::new(number).expect("above zero");
    Rate {
        per_second: above_zero(per_second),
        burst: above_zero(burst),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    /// Takes until there is nothing left.
    fn drain(bucket: &Bucket, rate: Rate, now: Instant) -> u64 {
        (0..).take_while(|_| bucket.take(rate, now)).count() as u64
    }

    /// There is an interval in which more than burst + rate × time were taken.
    fn is_exceeded(rate: Rate, taken: &[u64]) -> bool {
        let mut taken = taken.to_vec();
        taken.sort_unstable();
        let nanos = u128::from(NANOS);
        let most = |time: u64| {
            u128::from(rate.burst.get()) * nanos
                + u128::from(rate.per_second.get()) * u128::from(time)
        };
        (0..taken.len()).any(|first| {
            (first..taken.len()).any(|last| {
                let count = (last - first + 1) as u128;
                count * nanos > most(taken[last] - taken[first])
            })
        })
    }

    #[test]
    fn a_full_bucket_gives_its_burst_at_once_and_then_a_token_at_a_time() {
        let rate = rate(20, 40);
        let bucket = Bucket::default();
        assert_eq!(drain(&bucket, rate, at(0)), 40);
        assert!(!bucket.take(rate, at(49_999_999)));
        assert!(bucket.take(rate, at(50_000_000)));
        assert!(!bucket.take(rate, at(50_000_000)));
        assert_eq!(drain(&bucket, rate, at(150_000_000)), 2);
        assert_eq!(drain(&bucket, rate, at(NANOS * 3_600)), 40);
    }

    #[test]
    fn as_many_tokens_as_are_told_can_be_taken() {
        for (per_second, burst) in [(20, 40), (1, 1), (300_000, 7), (NANOS, 3)] {
            let rate = rate(per_second, burst);
            let bucket = Bucket::default();
            for nanos in [0, 1, 49_999_999, 50_000_000, 700_000_001, 5 * NANOS] {
                let told = bucket.tokens(rate, at(nanos));
                assert_eq!(bucket.tokens(rate, at(nanos)), told, "none was taken");
                // One stays, so that it is not always empty before.
                for _ in 1..told {
                    assert!(bucket.take(rate, at(nanos)));
                }
                assert_eq!(bucket.tokens(rate, at(nanos)), told.min(1));
                let foreign = Bucket::default();
                foreign.restore(u64::MAX);
                assert_eq!(
                    foreign.tokens(rate, at(nanos)),
                    drain(&foreign, rate, at(nanos))
                );
            }
            assert_eq!(
                bucket.tokens(rate, at(90 * NANOS)),
                drain(&bucket, rate, at(90 * NANOS))
            );
        }
    }

    #[test]
    fn years_of_uptime_change_nothing() {
        const YEAR: u64 = 365 * 86_400 * NANOS;
        for (per_second, uptime) in [(20, 500 * YEAR), (300_000, 250 * YEAR), (NANOS, 250 * YEAR)] {
            let rate = rate(per_second, 40);
            let bucket = Bucket::default();
            // Above 100,000/s the last of a burst may come a tick later.
            let burst = drain(&bucket, rate, at(uptime));
            assert!((39..=40).contains(&burst), "{burst} at {per_second}/s");
            let back = drain(&bucket, rate, at(uptime + NANOS));
            assert_eq!(back, burst.min(per_second), "{per_second}/s");
        }
    }

    #[test]
    fn a_change_of_rate_after_years_neither_blocks_nor_opens_the_bucket() {
        let now = 3 * 365 * 86_400 * NANOS;
        for (before, after) in [(700_000, 20), (20, 700_000), (700_000, 600_000)] {
            let bucket = Bucket::default();
            drain(&bucket, rate(before, 40), at(now));
            let after = rate(after, 40);
            let taken = drain(&bucket, after, at(now + NANOS));
            assert!((1..=40).contains(&taken), "{taken}");
            assert!(drain(&bucket, after, at(now + NANOS)) == 0);
        }
    }

    #[test]
    fn the_largest_settings_are_counted_out() {
        let slowest = rate(1, NANOS);
        let bucket = Bucket(AtomicU64::new((NANOS - 1) * NANOS));
        assert_eq!(drain(&bucket, slowest, at(0)), 1, "the last of the burst");
        assert_eq!(drain(&bucket, slowest, at(3 * NANOS)), 3);
        let fastest = rate(NANOS, 5);
        let bucket = Bucket::default();
        assert_eq!(drain(&bucket, fastest, at(0)), 5);
        assert_eq!(drain(&bucket, fastest, at(3)), 3);
        let beyond = rate(u64::MAX, 5);
        assert_eq!(drain(&Bucket::default(), beyond, at(0)), 5);
    }

    #[test]
    fn the_end_of_time_gives_no_tokens_away() {
        for rate in [
            rate(1, u64::MAX),
            rate(u64::MAX, u64::MAX),
            rate(999_999_999, 9),
        ] {
            let bucket = Bucket(AtomicU64::new(u64::MAX - 5));
            assert!(drain(&bucket, rate, at(u64::MAX)) <= 9, "{rate:?}");
        }
    }

    #[test]
    fn in_the_long_run_it_gives_the_rate() {
        for per_second in [
            1,
            3,
            7,
            1_000,
            99_999,
            100_000,
            100_001,
            999_999,
            3_000_000,
            333_333_333,
            666_666_667,
            999_999_999,
            NANOS,
        ] {
            let rate = rate(per_second, 1_000);
            let (bucket, start) = (Bucket::default(), 12_345_678_901);
            let step = 300 * NANOS / per_second;
            let rounds = 2_000;
            let taken: u64 = (0..=rounds)
                .map(|round| drain(&bucket, rate, at(start + round * step)))
                .sum();
            let due = u128::from(per_second) * u128::from(step * rounds) / u128::from(NANOS);
            let due = due as u64;
            let most = due + 1_000;
            let least = most - due.div_ceil(10_000) - 1;
            assert!(
                (least..=most).contains(&taken),
                "{per_second}: {taken} of {most}"
            );
        }
    }

    #[test]
    fn a_bucket_that_is_always_empty_loses_no_more_than_the_clock_is_coarse() {
        for per_second in [3, 99_999, 100_001, 7_777_777] {
            let rate = rate(per_second, 1);
            let bucket = Bucket::default();
            let mut now = 987_654_321_987;
            for _ in 0..1_000 {
                assert!(bucket.take(rate, at(now)), "{per_second} at {now}");
                assert!(!bucket.take(rate, at(now)));
                now += NANOS.div_ceil(per_second) + 1;
            }
        }
    }

    #[test]
    fn exact_over_threads() {
        let rate = rate(1_000_000, 1_000);
        let (bucket, taken) = (Bucket::default(), AtomicUsize::new(0));
        let until = 20_000_000;
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (bucket, taken) = (&bucket, &taken);
                scope.spawn(move || {
                    // Each has a clock of its own, 0 to 300 ns behind.
                    for now in (0..=until - 300).step_by(250) {
                        let got = bucket.take(rate, at(now + 300 - worker * 100));
                        taken.fetch_add(usize::from(got), Ordering::Relaxed);
                    }
                });
            }
        });
        let rest = drain(&bucket, rate, at(until)) as usize;
        // The first one to take may have done so a little after the beginning.
        let taken = taken.into_inner() + rest;
        assert!((20_999..=21_000).contains(&taken), "{taken}");
    }

    #[test]
    fn a_raised_rate_does_not_wait_for_the_old_one() {
        let (slow, fast) = (rate(1, 100), rate(100, 10));
        let bucket = Bucket::default();
        assert_eq!(drain(&bucket, slow, at(0)), 100);
        assert_eq!(drain(&bucket, fast, at(0)), 1);
        assert_eq!(drain(&bucket, fast, at(NANOS / 50)), 2);
    }

    #[test]
    fn a_lowered_rate_holds_at_once() {
        let (slow, fast) = (rate(1, 2), rate(100, 1_000));
        let bucket = Bucket::default();
        assert_eq!(drain(&bucket, fast, at(0)), 1_000);
        assert_eq!(drain(&bucket, slow, at(8 * NANOS)), 0);
        assert_eq!(drain(&bucket, slow, at(9 * NANOS)), 1);
        assert_eq!(drain(&bucket, slow, at(99 * NANOS)), 2);
    }

    /// Spread evenly over the orders of magnitude, where the bugs are.
    fn magnitude() -> impl Strategy<Value = u64> {
        (0u32..=9, 1u64..=10).prop_map(|(power, factor)| (10u64.pow(power) * factor).min(NANOS))
    }

    fn any_rate() -> impl Strategy<Value = u64> {
        (magnitude(), 0u64..10).prop_map(|(most, less)| most - less.min(most - 1))
    }

    /// The clocks by which one takes: steps forward, some of them seen by a worker whose clock is
    /// behind, several takes each; in sixteenths of what a token takes.
    fn clocks(per_second: u64, start: u64, steps: &[(u64, u64, usize)]) -> Vec<u64> {
        let sixteenths = |count: u64| count * NANOS / per_second / 16;
        let mut now = 0;
        steps
            .iter()
            .flat_map(|&(forward, behind, takes)| {
                now += forward;
                let clock = start + sixteenths(now) - sixteenths(behind.min(now)).min(NANOS);
                std::iter::repeat_n(clock, takes)
            })
            .collect()
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, u64, usize)>> {
        prop::collection::vec((0u64..40, 0u64..40, 1usize..4), 1..60)
    }

    #[test]
    fn another_process_gives_what_is_left() {
        for per_second in [20, 3_000_000] {
            let rate = rate(per_second, 40);
            let (bucket, other) = (Bucket::default(), Bucket::default());
            assert!((0..15).all(|_| bucket.take(rate, at(NANOS))));
            other.restore(bucket.image());
            assert_eq!(other.image(), bucket.image());
            assert_eq!(
                drain(&other, rate, at(NANOS)),
                drain(&bucket, rate, at(NANOS))
            );
        }
    }

    proptest! {
        #[test]
        fn any_number_makes_a_bucket_that_recovers(
            per_second in any_rate(),
            image: u64,
            start in 0..1u64 << 58,
        ) {
            let rate = rate(per_second, 3);
            let bucket = Bucket::default();
            bucket.restore(image);
            prop_assert!(drain(&bucket, rate, at(start)) <= 3);
            let longest = CLOCKS_APART + 5 * NANOS.div_ceil(per_second);
            prop_assert!(drain(&bucket, rate, at(start + longest)) > 0);
        }

        #[test]
        fn no_interval_gives_more_than_burst_and_rate_times_time(
            per_second in any_rate(),
            burst in 1u64..9,
            start in prop_oneof![Just(0), 0..1u64 << 58],
            steps in steps(),
        ) {
            let rate = rate(per_second, burst);
            let bucket = Bucket::default();
            let mut taken = clocks(per_second, start, &steps);
            taken.retain(|&clock| bucket.take(rate, at(clock)));
            prop_assert!(!is_exceeded(rate, &taken), "{:?}", taken);
        }

        #[test]
        fn a_large_bucket_that_is_nearly_empty_holds_the_bound_too(
            per_second in any_rate(),
            burst in magnitude(),
            left in 1u64..9,
            start in prop_oneof![Just(0), 0..1u64 << 58],
            steps in steps(),
        ) {
            let burst = burst.max(left);
            let rate = rate(per_second, burst);
            let meter = Meter::new(rate, at(start));
            let bucket = Bucket(AtomicU64::new(meter.after + (burst - left) * meter.token));
            let mut taken = clocks(per_second, start, &steps);
            taken.retain(|&clock| bucket.take(rate, at(clock)));
            for (count, &last) in taken.iter().enumerate() {
                let time = u128::from(last - start);
                let most = u128::from(left) * u128::from(NANOS) + u128::from(per_second) * time;
                prop_assert!((count as u128 + 1) * u128::from(NANOS) <= most, "{:?}", taken);
            }
        }
    }
}
