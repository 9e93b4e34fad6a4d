//! Equals take turns. The cursor remembers who of them was last, so that the turns of one set of
//! equals are not upset by those of another; a number that counts selections would be, whenever the
//! sets alternate.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Candidates;

/// Whose turn it was: a point of the lap, in the upper 48 bits, and the backend that stands there.
///
/// In a lap the i-th of n backends, of weight w, stands at the points (k + (i + 1/2) / n) / w for k
/// below w. Among equals the one with the next point has its turn: so as long as they are equals, any
/// (sum of their weights) turns in a row give each exactly its weight.
#[derive(Debug)]
pub(super) struct Turns(AtomicU64);

/// The candidate that is best so far.
struct Best<C> {
    backend: usize,
    cost: C,
    /// Its next point.
    point: u64,
}

impl Turns {
    /// Goes on where [`Turns::now`] was; any number is good.
    pub(super) fn resume(cursor: u64) -> Self {
        Self(AtomicU64::new(cursor))
    }

    /// Where the turns are.
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Turns of its own, that stand where these do.
    pub(super) fn copy(&self) -> Self {
        Self::resume(self.now())
    }

    /// The backend of lowest cost, by turns where there are several. One scan.
    pub(super) fn lowest<C: Ord>(
        &self,
        candidates: &Candidates<'_>,
        cost: impl Fn(usize, u16) -> C,
    ) -> Option<usize> {
        let cursor = self.now();
        let count = candidates.weights.len();
        let mut best: Option<Best<C>> = None;
        let mut is_tie = false;
        for (backend, weight) in candidates.fitting() {
            let cost = cost(backend, weight);
            let order = best.as_ref().map_or(Less, |best| cost.cmp(&best.cost));
            if order == Greater {
                continue;
            }
            is_tie = order == Equal;
            let point = next_point(cursor, backend, count, weight);
            if order == Less || best.as_ref().is_some_and(|best| point < best.point) {
                best = Some(Best {
                    backend,
                    cost,
                    point,
                });
            }
        }
        let best = best?;
        if is_tie {
            self.advance(&best);
        }
        Some(best.backend)
    }

    /// The cursor guards nothing else, so that it needs no ordering. Two workers that choose at the
    /// same time may give the same backend its turn: its cost tells the next ones.
    fn advance<C>(&self, to: &Best<C>) {
        let place = (to.point % LAP) << PLACE_BITS | place(to.backend);
        self.0.store(place, Ordering::Relaxed);
    }
}

/// Every turn of a lap, in its order: each backend as often as its weight says, spread as evenly as
/// possible.
pub(super) fn lap(weights: &[u16]) -> Vec<u16> {
    let mut turns = Vec::with_capacity(weights.iter().map(|&weight| usize::from(weight)).sum());
    for (backend, &weight) in weights.iter().enumerate() {
        let beginning = beginning(backend, weights.len());
        let points = (0..u64::from(weight)).map(|turn| point(turn, beginning, weight.into()));
        turns.extend(points.map(|point| point << PLACE_BITS | place(backend)));
    }
    turns.sort_unstable();
    // What is cut off is the point.
    turns.into_iter().map(|turn| turn as u16).collect()
}

const PLACE_BITS: u32 = u16::BITS;
const LAP_BITS: u32 = 48;
const LAP: u64 = 1 << LAP_BITS;

fn place(backend: usize) -> u64 {
    u64::from(u16::try_from(backend).expect("at most 65,536 backends"))
}

/// Where the first turn of a backend of weight 1 would be. The different beginnings keep light backends
/// from standing side by side.
fn beginning(backend: usize, count: usize) -> u64 {
    let step = LAP / count as u64;
    backend as u64 * step + step / 2
}

/// Of a backend's `weight` turns, numbered from 0.
fn point(turn: u64, beginning: u64, weight: u64) -> u64 {
    (turn * LAP + beginning) / weight
}

/// The first point of `backend` behind the cursor; those of the next lap are a lap further. Of
/// backends at the same point the one with the lower index is the first.
fn next_point(cursor: u64, backend: usize, count: usize, weight: u16) -> u64 {
    let weight = u64::from(weight);
    let beginning = beginning(backend, count);
    let is_behind_its_point = place(backend) > cursor % (1 << PLACE_BITS);
    let first_free = (cursor >> PLACE_BITS) + u64::from(!is_behind_its_point);
    // Below 2^48 × 2^16.
    let passed = (first_free * weight)
        .saturating_sub(beginning)
        .div_ceil(LAP);
    if passed < weight {
        point(passed, beginning, weight)
    } else {
        point(0, beginning, weight) + LAP
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Passed;
    use super::*;

    fn turns(turns: &Turns, weights: &[u16], count: usize) -> Vec<usize> {
        let candidates = Candidates {
            weights,
            arrangement: &[],
            passed: &Passed::default(),
        };
        (0..count)
            .filter_map(|_| turns.lowest(&candidates, |_, _| 0))
            .collect()
    }

    fn among(turns: &Turns, equals: &[usize]) -> usize {
        let candidates = Candidates {
            weights: &[1; 4],
            arrangement: &[],
            passed: &Passed::default(),
        };
        let chosen = turns.lowest(&candidates, |backend, _| !equals.contains(&backend));
        chosen.unwrap()
    }

    #[test]
    fn equals_of_one_weight_go_round() {
        let three = Turns::resume(0);
        assert_eq!(turns(&three, &[1, 1, 1], 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(turns(&three, &[30, 30, 30], 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn weights_are_spread_and_not_bunched() {
        let three = Turns::resume(0);
        assert_eq!(turns(&three, &[4, 1, 1], 6), [0, 0, 1, 0, 0, 2]);
    }

    #[test]
    fn turns_are_taken_in_the_order_of_the_lap() {
        let weights = [7, 0, 3, 1, 12];
        let taken = turns(&Turns::resume(0), &weights, 23);
        let lap: Vec<_> = lap(&weights).into_iter().map(usize::from).collect();
        assert_eq!(taken, lap);
    }

    #[test]
    fn one_that_is_alone_in_its_cost_takes_no_turn() {
        let four = Turns::resume(0);
        let chosen = [&[0, 1][..], &[3], &[0, 1], &[3], &[0, 1]].map(|set| among(&four, set));
        assert_eq!(chosen, [0, 3, 1, 3, 0]);
    }

    #[test]
    fn sets_that_alternate_leave_nobody_out() {
        let four = Turns::resume(0);
        let mut counts = [0; 4];
        for _ in 0..100 {
            let first = among(&four, &[0, 1, 2, 3]);
            let others: Vec<_> = (0..4).filter(|&backend| backend != first).collect();
            counts[first] += 1;
            counts[among(&four, &others)] += 1;
        }
        assert_eq!(counts, [50; 4]);
    }

    proptest! {
        #[test]
        fn any_lap_from_any_cursor_is_exact(weights in prop::collection::vec(0u16..300, 1..9), cursor: u64) {
            let sum: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
            let mut counts = vec![0u16; weights.len()];
            for backend in turns(&Turns::resume(cursor), &weights, sum) {
                counts[backend] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn no_weight_and_no_cursor_overflows(weights in prop::collection::vec(any::<u16>(), 1..9), cursor: u64) {
            turns(&Turns::resume(cursor), &weights, 9);
        }
    }
}
