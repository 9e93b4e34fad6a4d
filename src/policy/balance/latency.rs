//! A latency averaged over the last seconds that believes bad news at once and good news slowly. What
//! is not measured again is forgotten, so that a backend that was slow is tried again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::Instant;

/// A peak-sensitive exponentially weighted moving average, shared by all workers without a lock.
///
/// One word: in the upper half the average in units of 128 ns, 0 = none yet; in the lower half the
/// time of the last observation in ticks of 2^25 ns, which go round in 4.5 years.
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

impl Latency {
    /// Takes in a measurement. One above the average takes its place, one below draws it down by as
    /// much as it is older. One of more than 9 minutes counts as 9 minutes.
    ///
    /// The word is everything there is to it, so that it needs no ordering.
    pub fn observe(&self, sample: Duration, now: Instant) {
        let sample = units(sample);
        let observed = |word| {
            let after = Average::of(word).map_or(
                Average {
                    units: sample,
                    tick: tick(now),
                },
                |average| average.observe(sample, tick(now)),
            );
            (after.word() != word).then_some(after.word())
        };
        // Refused when there is nothing to change, which spares the other workers the cache line.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, observed);
    }

    /// The average, less what has been forgotten since the last observation; `None` = there was none.
    pub fn at(&self, now: Instant) -> Option<Duration> {
        let average = Average::of(self.0.load(Ordering::Relaxed))?;
        let nanos = u64::from(average.units) << UNIT_BITS;
        Some(Duration::from_nanos(decayed(nanos, average.age(tick(now)))))
    }

    /// What is known.
    pub fn image(&self) -> Image {
        let average = Average::of(self.0.load(Ordering::Relaxed));
        average.map_or(Image::default(), |average| Image {
            average_nanos: u64::from(average.units) << UNIT_BITS,
            tick: average.tick,
        })
    }

    /// Goes on where `image` stands. An observation to come was made now: it would not be forgotten
    /// until then.
    pub fn restore(&self, image: Image, now: Instant) {
        let units = image.average_nanos >> UNIT_BITS;
        let average = Average {
            units: u32::try_from(units).unwrap_or(u32::MAX),
            tick: image.tick,
        };
        let tick = tick(now).wrapping_sub(average.age(tick(now)));
        let average = Average { tick, ..average };
        let known = average.units > 0;
        self.0
            .store(if known { average.word() } else { 0 }, Ordering::Relaxed);
    }
}

/// An average, to be handed to another process.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// In nanoseconds, a multiple of 128; 0 = none yet.
    pub average_nanos: u64,
    /// When the last observation was, in ticks of 2^25 ns that go round.
    pub tick: u32,
}

#[derive(Clone, Copy)]
struct Average {
    /// Above 0.
    units: u32,
    tick: u32,
}

impl Average {
    fn of(word: u64) -> Option<Self> {
        let units = (word >> u32::BITS) as u32;
        (units > 0).then_some(Self {
            units,
            tick: word as u32,
        })
    }

    fn word(self) -> u64 {
        u64::from(self.units) << u32::BITS | u64::from(self.tick)
    }

    /// Ticks since the last observation; none if another worker's clock was ahead.
    fn age(self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.tick);
        if age > u32::MAX / 2 { 0 } else { age }
    }

    /// Rounded towards the sample: otherwise an average a little above it would never come down.
    fn observe(self, sample: u32, now: u32) -> Self {
        let age = self.age(now);
        let above = u64::from(self.units.saturating_sub(sample));
        Self {
            units: sample + decayed(above, age) as u32,
            tick: self.tick.wrapping_add(age),
        }
    }
}

const UNIT_BITS: u32 = 7;
const TICK_BITS: u32 = 25;

fn units(latency: Duration) -> u32 {
    let units = latency.as_nanos() >> UNIT_BITS;
    u32::try_from(units).unwrap_or(u32::MAX).max(1)
}

fn tick(now: Instant) -> u32 {
    (now.as_nanos() >> TICK_BITS) as u32
}

/// What is left of `amount`, below 2^40, after so many ticks: e^(-age / 10 s) of it, as halvings and
/// for the rest of the way a parabola, 2^-x ≈ 1 - x (4 - x) / 6, which is right to 0.4 %.
fn decayed(amount: u64, ticks: u32) -> u64 {
    let age = u64::from(ticks) << TICK_BITS;
    let x = ((age % HALF_LIFE_NANOS) << X_BITS) / HALF_LIFE_NANOS;
    let lost = ((x * (4 * ONE - x)) >> X_BITS) / 6;
    let kept = (amount * (ONE - lost)) >> X_BITS;
    let halvings = u32::try_from(age / HALF_LIFE_NANOS).unwrap_or(u32::MAX);
    kept.checked_shr(halvings).unwrap_or(0)
}

const X_BITS: u32 = 24;
const ONE: u64 = 1 << X_BITS;

/// 10 s × ln 2.
const HALF_LIFE_NANOS: u64 = 6_931_471_806;

#[cfg(test)]
mod tests {
    use std::array;

    use proptest::prelude::*;

    use super::*;

    const START: Instant = Instant::from_nanos(1 << 40);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A latency after samples of so many ms, at so many ms.
    fn after(samples: &[(u64, u64)]) -> Latency {
        let latency = Latency::default();
        for &(sample, at) in samples {
            latency.observe(millis(sample), START + millis(at));
        }
        latency
    }

    fn is_near(latency: &Latency, at: u64, expected: f64) {
        let found = latency.at(START + millis(at)).unwrap().as_secs_f64() * 1000.0;
        let difference = (found - expected).abs() / expected;
        assert!(difference < 0.02, "{found} instead of {expected}");
    }

    #[test]
    fn nothing_is_known_before_the_first_sample() {
        assert_eq!(Latency::default().at(START), None);
        is_near(&after(&[(20, 0)]), 0, 20.0);
    }

    #[test]
    fn a_latency_too_short_to_measure_is_known_nevertheless() {
        assert!(after(&[(0, 0)]).at(START).is_some());
    }

    #[test]
    fn a_peak_counts_at_once_and_better_news_by_and_by() {
        let peak = [(20, 0), (90, 1)];
        is_near(&after(&peak), 1, 90.0);
        let better = |at| after(&[peak[0], peak[1], (20, at)]);
        is_near(&better(1), 1, 90.0);
        is_near(&better(10_001), 10_001, 20.0 + 70.0 * (-1.0_f64).exp());
        is_near(&better(50_001), 50_001, 20.0 + 70.0 * (-5.0_f64).exp());
    }

    #[test]
    fn many_samples_draw_it_down_as_fast_as_one() {
        let samples: [(u64, u64); 1001] = array::from_fn(|i| (10, 10 * i as u64));
        let latency = after(&[&[(90, 0)][..], &samples].concat());
        // The parabola is flatter than e at its beginning, so that it takes 4 % longer.
        let found = latency.at(START + millis(10_000)).unwrap();
        assert!((millis(39)..millis(42)).contains(&found), "{found:?}");
    }

    #[test]
    fn it_comes_down_to_the_smallest_difference() {
        let latency = Latency::default();
        latency.observe(Duration::from_nanos(40_000), START);
        for second in 1..300 {
            latency.observe(Duration::from_nanos(20_000), START + millis(1000 * second));
        }
        let found = latency.at(START + millis(299_000)).unwrap().as_nanos();
        assert!((19_900..20_100).contains(&found), "{found}");
    }

    #[test]
    fn what_is_not_measured_again_is_forgotten() {
        let latency = after(&[(80, 0)]);
        is_near(&latency, 10_000, 80.0 * (-1.0_f64).exp());
        is_near(&latency, 33_000, 80.0 * (-3.3_f64).exp());
        let long_after = START + Duration::from_hours(1);
        assert_eq!(latency.at(long_after), Some(Duration::ZERO));
    }

    #[test]
    fn a_clock_that_is_behind_takes_nothing_back() {
        let latency = after(&[(80, 60_000), (20, 0)]);
        is_near(&latency, 0, 80.0);
        is_near(&latency, 60_000, 80.0);
        is_near(&latency, 70_000, 80.0 * (-1.0_f64).exp());
    }

    #[test]
    fn another_process_goes_on_with_the_average() {
        for samples in [&[][..], &[(20, 0)], &[(20, 0), (90, 1), (30, 4_000)]] {
            let (latency, other) = (after(samples), Latency::default());
            let now = START + millis(5_000);
            other.restore(latency.image(), now);
            assert_eq!(other.image(), latency.image());
            assert_eq!(other.at(now), latency.at(now));
        }
    }

    #[test]
    fn an_observation_to_come_is_forgotten_like_any_other() {
        let latency = Latency::default();
        let image = Image {
            average_nanos: 80_000_000,
            tick: tick(START) + 1_000_000,
        };
        latency.restore(image, START);
        is_near(&latency, 0, 80.0);
        is_near(&latency, 10_000, 80.0 * (-1.0_f64).exp());
        latency.restore(
            Image {
                average_nanos: u64::MAX,
                ..image
            },
            START,
        );
        assert!(latency.at(START).is_some());
    }

    #[test]
    fn no_peak_is_lost_between_threads() {
        let latency = Latency::default();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let latency = &latency;
                scope.spawn(move || {
                    for i in 0..10_000 {
                        latency.observe(millis((i * 4 + thread) % 9_973), START);
                    }
                });
            }
        });
        is_near(&latency, 0, 9_972.0);
    }

    #[test]
    fn it_is_the_same_when_ticks_go_round_and_at_any_uptime() {
        let forgotten = |start: u64| {
            let start = Instant::from_nanos(start);
            let latency = Latency::default();
            latency.observe(millis(80), start);
            latency.observe(millis(20), start + millis(3_000));
            latency.at(start + millis(6_000))
        };
        let round = 1u64 << (u32::BITS + TICK_BITS);
        let expected = forgotten(0);
        for start in [
            round - (100 << TICK_BITS),
            round,
            9 * round - (1 << TICK_BITS),
        ] {
            assert_eq!(forgotten(start), expected, "{start}");
        }
    }

    proptest! {
        #[test]
        fn it_stays_between_the_samples_and_never_overflows(
            samples in prop::collection::vec((any::<u64>(), any::<u64>()), 1..20),
            at: u64,
        ) {
            let latency = Latency::default();
            for &(sample, now) in &samples {
                latency.observe(Duration::from_nanos(sample), Instant::from_nanos(now));
            }
            let highest = samples.iter().map(|(sample, _)| *sample).max().unwrap();
            let found = latency.at(Instant::from_nanos(at)).unwrap();
            prop_assert!(found <= Duration::from_nanos(highest.max(128)));
        }
    }
}
