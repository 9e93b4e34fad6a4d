//! Smooth weighted round robin, exact over all workers: one atomic cursor runs through a schedule
//! in which each backend stands as often as its weight says, spread as evenly as possible. So any
//! N × (sum of weights) selections in a row give each backend exactly N × its weight.

use std::sync::atomic::{AtomicU64, Ordering};

use super::turns::{self, Turns};
use super::{Algorithm, Balancer, Candidates, Draw, Foresight, Request};

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "round-robin",
    needs_client: false,
    needs_latency: false,
    build: |_, resume| Box::new(RoundRobin::resume(resume)),
};

#[derive(Debug)]
struct RoundRobin {
    /// Runs through the arrangement of the weights of the moment, so that the promise holds over the
    /// backends that are ready.
    cursor: AtomicU64,
    /// Turns of those that come in where the one whose turn it is was passed over.
    substitutes: Turns,
}

impl RoundRobin {
    fn resume(cursor: u64) -> Self {
        Self {
            cursor: AtomicU64::new(cursor),
            substitutes: Turns::resume(cursor),
        }
    }
}

impl Balancer for RoundRobin {
    fn draw(&self, request: Request) -> Draw {
        Draw {
            number: self.cursor.fetch_add(1, Ordering::Relaxed),
            request,
        }
    }

    /// The share of one that is passed over goes to all others by weight: would the next one in the
    /// schedule always come in, the whole share would go to its neighbour.
    fn choose(&self, draw: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        let schedule = candidates.arrangement;
        let place = draw.number.checked_rem(schedule.len() as u64)?;
        let first = usize::from(schedule[place as usize]);
        if candidates.fits(first) {
            return Some(first);
        }
        self.substitutes.lowest(candidates, |_, _| ())
    }

    fn arrange(&self, weights: &[u16]) -> Vec<u16> {
        schedule(weights)
    }

    fn resume(&self) -> u64 {
        self.cursor.load(Ordering::Relaxed)
    }

    fn rehearsal(&self) -> Option<Box<dyn Balancer>> {
        Some(Box::new(Self {
            cursor: AtomicU64::new(self.resume()),
            substitutes: self.substitutes.copy(),
        }))
    }

    fn foresight(&self) -> Foresight {
        Foresight::Next
    }
}

/// The shortest lap that has the proportions of `weights`.
fn schedule(weights: &[u16]) -> Vec<u16> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor);
    let lowest_terms = weights.iter().map(|weight| weight / divisor.max(1));
    turns::lap(&lowest_terms.collect::<Vec<_>>())
}

fn greatest_common_divisor(a: u16, b: u16) -> u16 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Passed;
    use super::*;
    use crate::time::Instant;

    const REQUEST: Request = Request {
        client: None,
        random: 0,
        now: Instant::from_nanos(0),
    };

    fn choices(
        balancer: &RoundRobin,
        weights: &[u16],
        passed: &Passed,
        count: usize,
    ) -> Vec<usize> {
        let arrangement = balancer.arrange(weights);
        let candidates = Candidates {
            weights,
            arrangement: &arrangement,
            passed,
        };
        (0..count)
            .filter_map(|_| balancer.choose(&balancer.draw(REQUEST), &candidates))
            .collect()
    }

    fn first_choices(weights: &[u16], count: usize) -> Vec<usize> {
        choices(&RoundRobin::resume(0), weights, &Passed::default(), count)
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(first_choices(&[7, 7, 7], 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn weights_are_spread_and_not_bunched() {
        assert_eq!(first_choices(&[4, 1, 1], 6), [0, 0, 1, 0, 0, 2]);
    }

    #[test]
    fn weight_zero_is_never_chosen() {
        assert_eq!(first_choices(&[0, 3], 4), [1; 4]);
        assert_eq!(first_choices(&[0], 4), [0; 0]);
    }

    #[test]
    fn the_share_of_one_that_is_passed_over_is_spread_over_all_others() {
        let mut passed = Passed::default();
        passed.insert(0);
        let chosen = choices(&RoundRobin::resume(0), &[1, 1, 1], &passed, 600);
        let count = |backend| chosen.iter().filter(|&&chosen| chosen == backend).count();
        assert_eq!((count(0), count(1), count(2)), (0, 300, 300));
    }

    #[test]
    fn exact_over_threads() {
        let balancer = RoundRobin::resume(0);
        let counts: Vec<_> = (0..3).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for backend in choices(&balancer, &[1, 2, 3], &Passed::default(), 3_000) {
                        counts[backend].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let counts: Vec<u64> = counts.into_iter().map(AtomicU64::into_inner).collect();
        assert_eq!(counts, [2_000, 4_000, 6_000]);
    }

    proptest! {
        #[test]
        fn any_lap_from_any_start_is_exact(weights in prop::collection::vec(0u16..20, 1..12), start in 0u64..1000) {
            let sum: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
            let mut counts = vec![0u16; weights.len()];
            for backend in choices(&RoundRobin::resume(start), &weights, &Passed::default(), sum) {
                counts[backend] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn every_usable_backend_is_reached(weights in prop::collection::vec(0u16..9, 1..9), number: u64) {
            let balancer = RoundRobin::resume(0);
            let arrangement = balancer.arrange(&weights);
            let mut passed = Passed::default();
            let draw = Draw { number, request: REQUEST };
            let mut reached = 0;
            while let Some(backend) = balancer.choose(&draw, &Candidates { weights: &weights, arrangement: &arrangement, passed: &passed }) {
                prop_assert!(weights[backend] > 0 && !passed.contains(backend));
                passed.insert(backend);
                reached += 1;
            }
            prop_assert_eq!(reached, weights.iter().filter(|&&weight| weight > 0).count());
        }
    }
}
