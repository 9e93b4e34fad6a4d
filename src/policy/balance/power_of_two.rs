//! Two backends by lot, and of these the one with fewer sessions for its weight. Nearly as even as
//! least-connections, without looking at every backend's count.

use super::{Algorithm, Balancer, Candidates, Draw, Foresight, Member, lots};

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "power-of-two",
    needs_client: false,
    needs_latency: false,
    build: |members, _| Box::new(PowerOfTwo(members.to_vec())),
};

#[derive(Debug)]
struct PowerOfTwo(Vec<Member>);

impl Balancer for PowerOfTwo {
    /// Of two that are equal the first one drawn: then the shares are those of the lots, by weight.
    fn choose(&self, draw: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        let first = lots::draw(candidates, None, draw.number)?;
        let Some(second) = lots::draw(candidates, Some(first), draw.number) else {
            return Some(first);
        };
        let sessions = |backend: usize| {
            self.0[backend]
                .load
                .sessions_per(candidates.weights[backend])
        };
        Some(if sessions(second) < sessions(first) {
            second
        } else {
            first
        })
    }

    fn foresight(&self) -> Foresight {
        Foresight::Chance
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Stage, request};
    use super::*;

    #[test]
    fn the_fuller_one_of_two_is_never_chosen() {
        let stage = Stage::new(ALGORITHM, &[1, 9]);
        stage.members[1].load.active.enter(usize::MAX);
        assert_eq!(stage.counts(&[1, 9], &[], 1_000, false), [1_000, 0]);
    }

    #[test]
    fn the_fullest_one_of_all_is_never_chosen() {
        let stage = Stage::new(ALGORITHM, &[1, 1, 1]);
        stage.members[0].load.active.enter(usize::MAX);
        assert_eq!(stage.counts(&[1, 1, 1], &[], 1_000, false)[0], 0);
    }

    #[test]
    fn one_that_is_alone_is_chosen() {
        let stage = Stage::new(ALGORITHM, &[1, 0, 0]);
        assert_eq!(stage.choose(request(0), &[1, 0, 0]), Some(0));
    }
}
