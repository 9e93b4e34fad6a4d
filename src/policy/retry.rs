//! Trying again: how often, after which pause, and within which budget. It owns the budget that all
//! sessions of an upstream share; which failures are worth a retry is its users' matter.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::atomic::AtomicU64;
use super::share::Share;
use super::window::{self, Counts, Slice, Window};
use crate::time::Instant;

/// `[upstreams.NAME.retry]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Further tries after the first, each on another backend.
    pub attempts: u32,
    /// Longest pause before the second retry; doubles with each.
    pub backoff: Duration,
    /// No pause is longer.
    pub max_backoff: Duration,
    /// Failed retries per request, over the last 10 s.
    pub budget: Share,
}

/// The pause before the `retry`-th retry, counted from 1; `random` is drawn for it. The first has
/// none, as it goes to another backend. From the second on it lies anywhere between none at all and a
/// bound that doubles (full jitter), so that sessions that failed together don't come back together.
pub fn backoff(settings: &Settings, retry: u32, random: u64) -> Duration {
    let Some(doublings) = retry.checked_sub(2) else {
        return Duration::ZERO;
    };
    let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let bound = settings
        .backoff
        .saturating_mul(factor)
        .min(settings.max_backoff);
    let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    let share = u128::from(random) * (u128::from(bound) + 1);
    Duration::from_nanos((share >> u64::BITS) as u64)
}

/// How many retries an upstream allows: a share of its requests, so that when every backend fails the
/// load on them grows by that share and not by the number of attempts. A retry that succeeds is given
/// back. Shared by all workers and kept over reloads.
///
/// It is kept by slices of a second, so that requests and retries count for 10 to 11 s. Of retries that
/// all fail there are so never more in 10 s than the share allows of the requests of the 11 s before
/// the last of them.
#[derive(Debug, Default)]
pub struct Budget {
    /// Requests, and as their part the retries that are charged.
    window: Window,
    /// All of those parts, old ones included until they are swept. Raised before a part is counted and
    /// lowered after it is gone, so that it is never too low.
    charged: AtomicU64,
}

/// What a budget has counted, to be handed to another process.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// The slices of the last 10 s, packed.
    pub window: window::Image,
}

/// What the budget looks back on.
const PERIOD: Duration = Duration::from_secs(10);
/// Retries that are allowed however few requests there are.
const LEAST: u64 = 3;

impl Budget {
    /// A session begins its first try.
    pub fn request(&self, now: Instant) {
        self.count(now, Counts { whole: 1, part: 0 });
    }

    /// Charges a retry, if fewer than the budget allows stand charged. Exact over all workers.
    #[must_use]
    pub fn begin(&self, settings: &Settings, now: Instant) -> bool {
        let slice = slice(now);
        self.discharge(self.window.sweep(slice));
        let requests = self.window.sum(slice).whole;
        let bound = settings.budget.of(requests).max(LEAST);
        let more = |charged: u64| (charged < bound).then_some(charged + 1);
        // Release and acquire, here and in `discharge`: who finds a part in the window finds it in
        // `charged`, too.
        let charge = self
            .charged
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        if charge.is_ok() {
            self.count(now, Counts { whole: 0, part: 1 });
        }
        charge.is_ok()
    }

    /// The retry that was charged at `begun` has succeeded: it costs nothing. (A later instant will do:
    /// it takes back the latest charge that was made before.)
    pub fn refund(&self, begun: Instant) {
        if self.window.take_part(slice(begun)) {
            self.discharge(1);
        }
    }

    /// What was counted. A retry that is under way stands charged.
    pub fn image(&self) -> Image {
        Image {
            window: self.window.image(),
        }
    }

    /// Goes on with what `image` has counted, before anybody asks. What stands charged is what is in the
    /// window, whatever that may be.
    pub fn restore(&self, image: Image) {
        let charged = self.window.restore(image.window);
        self.charged.swap(charged, Ordering::AcqRel);
    }

    fn count(&self, now: Instant, more: Counts) {
        let lost = self.window.add(slice(now), more);
        self.discharge(lost.part);
    }

    fn discharge(&self, retries: u64) {
        if retries > 0 {
            let before = self.charged.fetch_sub(retries, Ordering::AcqRel);
            debug_assert!(before >= retries, "discharged what was never charged");
        }
    }
}

fn slice(now: Instant) -> Slice {
    Slice::at(now, PERIOD, 0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::super::atomic::{cuts, interleave};
    use super::*;

    const SETTINGS: Settings = Settings {
        attempts: 3,
        backoff: Duration::from_millis(25),
        max_backoff: Duration::from_millis(250),
        budget: Share::from_ppm(200_000),
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn requests(budget: &Budget, count: usize, millis: u64) {
        for _ in 0..count {
            budget.request(at(millis));
        }
    }

    /// As many retries as there is budget for.
    fn retries(budget: &Budget, millis: u64) -> usize {
        let granted = std::iter::from_fn(|| budget.begin(&SETTINGS, at(millis)).then_some(()));
        granted.count()
    }

    #[test]
    fn the_first_retry_waits_for_nothing_and_the_bound_doubles_from_the_second_on() {
        let longest = |retry| backoff(&SETTINGS, retry, u64::MAX).as_millis();
        let bounds = [0, 1, 2, 3, 4, 5, 6, 7, 33, 34, 35, 99, u32::MAX].map(longest);
        let most = 250;
        assert_eq!(
            bounds,
            [
                0, 0, 25, 50, 100, 200, most, most, most, most, most, most, most
            ]
        );
    }

    #[test]
    fn the_pause_is_spread_evenly_from_none_to_the_bound() {
        let nanos = Settings {
            backoff: Duration::from_nanos(3),
            ..SETTINGS
        };
        let quarter = 1 << 62;
        for pause in 0..4u64 {
            let ends = [quarter * pause, quarter * pause + (quarter - 1)];
            for random in ends {
                assert_eq!(backoff(&nanos, 2, random), Duration::from_nanos(pause));
            }
        }
    }

    #[test]
    fn no_pause_overflows() {
        let longest = Settings {
            backoff: Duration::MAX,
            max_backoff: Duration::MAX,
            ..SETTINGS
        };
        let pause = backoff(&longest, u32::MAX, u64::MAX);
        assert_eq!(pause, Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn there_are_at_least_three_and_then_a_share_of_the_requests() {
        let budget = Budget::default();
        assert_eq!(retries(&budget, 0), 3);
        requests(&budget, 19, 0);
        assert_eq!(retries(&budget, 0), 0);
        requests(&budget, 10, 0);
        assert_eq!(retries(&budget, 0), 2);
    }

    #[test]
    fn charges_and_requests_end_after_their_time() {
        let budget = Budget::default();
        requests(&budget, 100, 900);
        assert_eq!(retries(&budget, 1_000), 20);
        assert_eq!(retries(&budget, 11_000), 0);
        assert_eq!(retries(&budget, 12_000), 3);
    }

    #[test]
    fn a_retry_that_succeeds_costs_nothing() {
        let budget = Budget::default();
        for millis in 0..1_000 {
            assert!(budget.begin(&SETTINGS, at(millis * 10)));
            budget.refund(at(millis * 10 + 2_000));
        }
        assert_eq!(retries(&budget, 10_000), 3);
    }

    #[test]
    fn a_refund_takes_back_the_charge_of_its_own_time() {
        let budget = Budget::default();
        assert!(budget.begin(&SETTINGS, at(0)));
        assert!(budget.begin(&SETTINGS, at(5_000)));
        assert!(budget.begin(&SETTINGS, at(9_000)));
        budget.refund(at(5_000));
        assert_eq!(retries(&budget, 10_999), 1);
        assert_eq!(retries(&budget, 11_000), 1);
        assert_eq!(retries(&budget, 16_000), 0);
    }

    #[test]
    fn a_refund_after_the_charge_has_ended_changes_nothing() {
        let budget = Budget::default();
        assert_eq!(retries(&budget, 0), 3);
        assert_eq!(retries(&budget, 12_000), 3);
        budget.refund(at(0));
        assert_eq!(retries(&budget, 12_000), 0);
    }

    #[test]
    fn nothing_stays_charged_after_threads_have_begun_and_refunded() {
        let budget = Budget::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let budget = &budget;
                scope.spawn(move || {
                    for step in 0..20_000u64 {
                        let now = at(step * 7 + thread);
                        budget.request(now);
                        if budget.begin(&SETTINGS, now) && step % 3 > 0 {
                            budget.refund(now);
                        }
                    }
                });
            }
        });
        assert_eq!(retries(&budget, 1_000_000), 3);
        assert_eq!(budget.charged.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn another_process_goes_on_with_the_same_budget() {
        for millis in (0..14_000).step_by(500) {
            let (budget, other) = (Budget::default(), Budget::default());
            requests(&budget, 100, 0);
            assert_eq!(retries(&budget, 0), 20);
            requests(&budget, 50, 5_000);
            assert_eq!(retries(&budget, 5_500), 10);
            other.restore(budget.image());
            assert_eq!(other.image(), budget.image());
            assert_eq!(
                retries(&other, millis),
                retries(&budget, millis),
                "{millis}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_words_make_a_budget_that_recovers(
            words in prop::array::uniform11(prop_oneof![any::<u64>(), (0u64..1 << 42)]),
            now in prop_oneof![0u64..60_000_000_000, 0u64..1 << 60],
            refunds in 1usize..5,
        ) {
            let budget = Budget::default();
            budget.restore(Image { window: words });
            prop_assert_eq!(budget.image().window, words);
            let now = Instant::from_nanos(now);
            for _ in 0..refunds {
                budget.request(now);
                let _ = budget.begin(&SETTINGS, now);
                budget.refund(now);
            }
            // A slot of the lap to come lasts as long as two windows.
            let later = now + Duration::from_secs(30);
            let granted = (0..5).filter(|_| budget.begin(&SETTINGS, later));
            prop_assert_eq!(granted.count(), 3);
        }

        #[test]
        fn whoever_cuts_in_exactly_what_there_is_is_granted(
            // Some are in the next slice already.
            steps in prop::collection::vec(1_998u64..2_002, 1..30),
            cuts in cuts(30, 60),
        ) {
            let budget = Budget::default();
            requests(&budget, 30, 0);
            let (tries, shared) = (steps.len(), Rc::new((budget, Cell::new(0))));
            let world = shared.clone();
            interleave(cuts, steps, move |now| {
                let begun = world.0.begin(&SETTINGS, at(now));
                world.1.set(world.1.get() + usize::from(begun));
            });
            prop_assert_eq!(shared.1.get(), tries.min(6));
        }

        #[test]
        fn whoever_cuts_in_what_stands_charged_stays_within_the_bound(
            steps in prop::collection::vec(any::<bool>(), 1..100),
            cuts in cuts(100, 60),
        ) {
            let shared = Rc::new((Budget::default(), Cell::new(0)));
            let world = shared.clone();
            interleave(cuts, steps, move |begins| {
                let (budget, standing) = &*world;
                if begins && budget.begin(&SETTINGS, at(0)) {
                    standing.set(standing.get() + 1);
                } else if !begins && standing.get() > 0 {
                    standing.set(standing.get() - 1);
                    budget.refund(at(0));
                }
                assert!(standing.get() <= 3);
            });
            let (budget, standing) = &*shared;
            prop_assert_eq!(retries(budget, 0), 3 - standing.get());
        }

        /// A slice is a second: what counts are the requests of the 11 s before the last retry.
        #[test]
        fn retries_in_any_period_stay_within_the_share_of_its_requests(
            ppm in 0u32..1_500_000,
            steps in prop::collection::vec((0u64..400, 0usize..8), 1..300),
        ) {
            let settings = Settings { budget: Share::from_ppm(ppm), ..SETTINGS };
            let budget = Budget::default();
            let (mut now, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (step, tries) in steps {
                now += step;
                budget.request(at(now));
                requests.push(now);
                let before = retries.len();
                let granted = (0..tries).filter(|_| budget.begin(&settings, at(now)));
                retries.extend(granted.map(|_| now));
                if retries.len() == before {
                    continue;
                }
                let within = |times: &[u64], length| {
                    times.iter().filter(|&&time| time + length > now).count() as u64
                };
                let bound = settings.budget.of(within(&requests, 11_000)).max(LEAST);
                prop_assert!(within(&retries, 10_000) <= bound);
            }
        }
    }
}
