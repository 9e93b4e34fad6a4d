//! Lots: a backend by weight and chance.

use super::{Candidates, hash};

/// A fitting backend other than `without`, each with the chance that its weight gives it.
///
/// The sum of the weights goes into the lot, so that a selection that draws again after passing one
/// over doesn't give the whole share of that one to its neighbours.
pub(super) fn draw(
    candidates: &Candidates<'_>,
    without: Option<usize>,
    random: u64,
) -> Option<usize> {
    let others = || {
        let fitting = candidates.fitting();
        fitting.filter(move |(backend, _)| Some(*backend) != without)
    };
    let sum = others().map(|(_, weight)| u64::from(weight)).sum();
    let mut left = hash::below(sum, hash::mix(random ^ sum));
    for (backend, weight) in others() {
        match left.checked_sub(u64::from(weight)) {
            None => return Some(backend),
            Some(rest) => left = rest,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::Passed;
    use super::*;

    fn drawn(passed: &Passed, without: Option<usize>, random: u64) -> Option<usize> {
        let candidates = Candidates {
            weights: &[3, 1, 0, 2],
            arrangement: &[],
            passed,
        };
        draw(&candidates, without, random)
    }

    #[test]
    fn the_share_of_one_that_is_passed_over_is_spread_by_weight() {
        let mut passed = Passed::default();
        passed.insert(0);
        let mut counts = [0_usize; 4];
        let selections =
            (0..60_000).filter(|&random| drawn(&Passed::default(), None, random) == Some(0));
        for random in selections {
            counts[drawn(&passed, None, random).unwrap()] += 1;
        }
        assert!(counts[3].abs_diff(2 * counts[1]) < 600, "{counts:?}");
        assert_eq!((counts[0], counts[2]), (0, 0));
    }

    #[test]
    fn the_one_to_leave_out_is_left_out() {
        for random in 0..1_000 {
            assert_ne!(drawn(&Passed::default(), Some(3), random), Some(3));
        }
    }
}
