//! Weighted rendezvous hashing: of every backend a client has a number of its own, and goes where it is
//! lowest. A backend that leaves moves only its own clients, by weight to all others; one whose
//! weight changes moves clients only to or from itself.
//!
//! The number is a random variable of exponential distribution, divided by the weight: the lowest of
//! several is then each one's with the chance that its weight gives it. The usual way to make one is
//! the logarithm of a hash, but that is rounded differently by different machines.
//! Von Neumann's way (1951) only compares hashes.

use super::per_weight::PerWeight;
use super::{Candidates, Member, hash};

/// What is known of each backend: a hash of its identity.
#[derive(Debug)]
pub(super) struct Rendezvous(Vec<u64>);

impl Rendezvous {
    /// By the identities of `members` and nothing else.
    pub(super) fn new(members: &[Member]) -> Self {
        let hashes = members.iter().map(|member| hash::mix(member.identity));
        Self(hashes.collect())
    }

    /// A hash of the client's hash and a backend.
    pub(super) fn pair(&self, client: u64, backend: usize) -> u64 {
        hash::mix(client ^ self.0[backend])
    }

    /// Where the client of this hash goes. One scan; equals in the order of their identities' hashes,
    /// which doesn't depend on that of the configuration.
    pub(super) fn choose(&self, client: u64, candidates: &Candidates<'_>) -> Option<usize> {
        let mut best: Option<(PerWeight, u64, usize)> = None;
        for (backend, weight) in candidates.fitting() {
            let seed = self.pair(client, backend);
            let least = PerWeight::new(at_least(seed), weight);
            if best.is_some_and(|(lowest, ..)| least > lowest) {
                continue;
            }
            let number = PerWeight::new(exponential(seed), weight);
            let standing = (number, self.0[backend]);
            if best.is_none_or(|(lowest, identity, _)| standing < (lowest, identity)) {
                best = Some((number, standing.1, backend));
            }
        }
        best.map(|(.., backend)| backend)
    }
}

/// Bits of a number behind its point.
const FRACTION_BITS: u32 = 56;

/// The `index`-th of the uniformly distributed numbers below 1 that belong to `seed`.
fn uniform(seed: u64, index: u64) -> u64 {
    hash::nth(seed, index) >> (u64::BITS - FRACTION_BITS)
}

/// The exponentially distributed number of `seed`, of mean 1.
///
/// A uniform number stands if the run of ever smaller ones that it begins is of odd length. The
/// chance of that is e^-x for the number x. Each one that falls makes the result greater by 1.
fn exponential(seed: u64) -> u64 {
    let mut index = 0;
    for whole in 0..WHOLE_END {
        let start = uniform(seed, index);
        let mut last = start;
        let mut run = 0_u64;
        loop {
            index += 1;
            run += 1;
            let next = uniform(seed, index);
            if next >= last {
                break;
            }
            last = next;
        }
        index += 1;
        if run % 2 == 1 {
            return (whole << FRACTION_BITS) + start;
        }
    }
    u64::MAX
}

/// A number that [`exponential`] of the same seed is never below, for a fraction of its work.
fn at_least(seed: u64) -> u64 {
    uniform(seed, 0)
}

/// e^-256 is the chance that a number is not below this.
const WHOLE_END: u64 = 1 << (u64::BITS - FRACTION_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_have_their_golden_values() {
        let expected = [
            63_649_251_627_572_685,
            40_825_063_981_253_212,
            42_599_709_866_235_734,
        ];
        assert_eq!([0, 1, 2].map(exponential), expected);
    }

    #[test]
    fn the_numbers_are_exponentially_distributed() {
        let count = 200_000;
        let above = |bound: f64| {
            let bound = (bound * (1_u64 << FRACTION_BITS) as f64) as u64;
            (0..count).filter(|&seed| exponential(seed) > bound).count() as f64 / count as f64
        };
        for bound in [0.01_f64, 0.1, 0.5, 1.0, 1.5, 3.0, 5.0] {
            let expected = (-bound).exp();
            assert!(
                (above(bound) - expected).abs() < 0.003,
                "{bound}: {}",
                above(bound)
            );
        }
    }

    #[test]
    fn no_number_is_below_what_is_said_to_be_its_least() {
        assert!((0..100_000).all(|seed| exponential(seed) >= at_least(seed)));
    }
}
