//! Smooth weighted round robin, exact over all workers: one atomic cursor runs through a schedule
//! in which each backend stands as often as its weight says, spread as evenly as possible. So any
//! N × (sum of weights) selections in a row give each backend exactly N × its weight.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Balancer, Draw};

/// The cursor and its schedule.
#[derive(Debug)]
pub struct RoundRobin {
    cursor: AtomicU64,
    schedule: Vec<u16>,
}

impl RoundRobin {
    /// Over backends with these weights; 0 = not used. More than 65,536 backends are not possible.
    pub fn new(weights: &[u16]) -> Self {
        Self {
            cursor: AtomicU64::new(0),
            schedule: schedule(weights),
        }
    }

    /// The same weights, going on where `before` stands, so that a reload doesn't start over.
    pub fn continued(weights: &[u16], before: u64) -> Self {
        Self {
            cursor: AtomicU64::new(before),
            schedule: schedule(weights),
        }
    }

    /// Where the cursor stands.
    pub fn cursor(&self) -> u64 {
        self.cursor.load(Ordering::Relaxed)
    }
}

impl Balancer for RoundRobin {
    fn draw(&self) -> Draw {
        Draw(self.cursor.fetch_add(1, Ordering::Relaxed))
    }

    /// The second choice starts one place further with every lap of the cursor: would it always be
    /// the next one in the schedule, a dead backend's whole share would go to its neighbour.
    fn candidate(&self, draw: Draw, position: usize) -> Option<usize> {
        let len = self.schedule.len();
        if position >= len {
            return None;
        }
        let first = (draw.0 % len as u64) as usize;
        if position == 0 {
            return Some(usize::from(self.schedule[first]));
        }
        let others = len as u64 - 1;
        let lap = draw.0 / len as u64;
        let further = 1 + (lap % others + position as u64 - 1) % others;
        let place = (first as u64 + further) % len as u64;
        Some(usize::from(self.schedule[place as usize]))
    }
}

/// The i-th of n backends, of weight w, stands at the points (k + (i + 1/2) / n) / w of a lap; the
/// schedule is the order of all those points. The different beginnings keep light backends from
/// standing side by side.
fn schedule(weights: &[u16]) -> Vec<u16> {
    let divisor = weights
        .iter()
        .fold(0, |divisor, &weight| {
            greatest_common_divisor(divisor, weight)
        })
        .max(1);
    let twice_count = 2 * weights.len() as u64;
    let mut points = Vec::new();
    for (backend, &weight) in weights.iter().enumerate() {
        let place = u16::try_from(backend).expect("at most 65,536 backends");
        let weight = u64::from(weight / divisor);
        let beginning = 2 * backend as u64 + 1;
        points.extend((0..weight).map(|k| (k * twice_count + beginning, weight, place)));
    }
    points.sort_by(|a, b| (a.0 * b.1, a.2).cmp(&(b.0 * a.1, b.2)));
    points.into_iter().map(|(_, _, backend)| backend).collect()
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

    use super::*;

    fn first_choices(balancer: &RoundRobin, count: usize) -> Vec<usize> {
        (0..count)
            .filter_map(|_| balancer.candidate(balancer.draw(), 0))
            .collect()
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(
            first_choices(&RoundRobin::new(&[7, 7, 7]), 6),
            [0, 1, 2, 0, 1, 2]
        );
    }

    #[test]
    fn weights_are_spread_and_not_bunched() {
        assert_eq!(
            first_choices(&RoundRobin::new(&[5, 1, 1]), 7),
            [0, 0, 0, 1, 0, 0, 2]
        );
    }

    #[test]
    fn weight_zero_is_never_chosen() {
        let balancer = RoundRobin::new(&[0, 3]);
        assert_eq!(first_choices(&balancer, 4), [1; 4]);
        assert_eq!(RoundRobin::new(&[0]).candidate(Draw(0), 0), None);
    }

    #[test]
    fn a_dead_backends_share_is_spread_over_all_others() {
        let balancer = RoundRobin::new(&[1, 1, 1]);
        let mut counts = [0; 3];
        for _ in 0..600 {
            let draw = balancer.draw();
            let chosen = (0..)
                .map_while(|n| balancer.candidate(draw, n))
                .find(|&backend| backend != 0);
            counts[chosen.expect("two are left")] += 1;
        }
        assert_eq!(counts, [0, 300, 300]);
    }

    #[test]
    fn exact_over_threads() {
        let balancer = RoundRobin::new(&[1, 2, 3]);
        let counts: Vec<_> = (0..3).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for backend in first_choices(&balancer, 3_000) {
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
            let balancer = RoundRobin::continued(&weights, start);
            let mut counts = vec![0u16; weights.len()];
            for backend in first_choices(&balancer, sum) {
                counts[backend] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn every_usable_backend_is_a_candidate(weights in prop::collection::vec(0u16..9, 1..9), draw: u64) {
            let balancer = RoundRobin::new(&weights);
            let named: std::collections::BTreeSet<usize> =
                (0..).map_while(|n| balancer.candidate(Draw(draw), n)).collect();
            let usable = (0..weights.len()).filter(|&backend| weights[backend] > 0).collect();
            prop_assert_eq!(named, usable);
        }
    }
}
