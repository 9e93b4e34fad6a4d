//! The backend with the fewest sessions for its weight. The counts are those of all workers.
//!
//! Sessions are counted before the new one comes to them: counted with it, a light backend would get
//! nothing at all while the upstream is idle, since it would be the fuller one with its first session.

use super::turns::Turns;
use super::{Algorithm, Balancer, Candidates, Draw, Foresight, Member};

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "least-connections",
    needs_client: false,
    needs_latency: false,
    build: |members, resume| {
        Box::new(LeastConnections {
            members: members.to_vec(),
            turns: Turns::resume(resume),
        })
    },
};

#[derive(Debug)]
struct LeastConnections {
    members: Vec<Member>,
    turns: Turns,
}

impl Balancer for LeastConnections {
    fn choose(&self, _: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        self.turns.lowest(candidates, |backend, weight| {
            self.members[backend].load.sessions_per(weight)
        })
    }

    fn resume(&self) -> u64 {
        self.turns.now()
    }

    fn rehearsal(&self) -> Option<Box<dyn Balancer>> {
        Some(Box::new(Self {
            members: self.members.clone(),
            turns: self.turns.copy(),
        }))
    }

    fn foresight(&self) -> Foresight {
        Foresight::Next
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Stage, request};
    use super::*;

    #[test]
    fn the_shares_are_exact_while_sessions_last() {
        let weights = [1, 2, 3];
        let stage = Stage::new(ALGORITHM, &weights);
        for round in 1..=100 {
            stage.counts(&weights, &[], 6, true);
            let active: Vec<_> = stage
                .members
                .iter()
                .map(|it| it.load.active.now())
                .collect();
            assert_eq!(active, [round, 2 * round, 3 * round]);
        }
    }

    #[test]
    fn while_idle_they_take_turns_by_weight() {
        let stage = Stage::new(ALGORITHM, &[1, 1, 1]);
        assert_eq!(stage.counts(&[1, 1, 1], &[], 300, false), [100; 3]);
        assert_eq!(stage.counts(&[1, 2, 3], &[], 600, false), [100, 200, 300]);
    }

    #[test]
    fn workers_see_each_others_sessions() {
        let stage = Stage::new(ALGORITHM, &[1; 4]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for session in 0..3_000 {
                        let chosen = stage.choose(request(session), &[1; 4]).unwrap();
                        stage.members[chosen].load.active.enter(usize::MAX);
                    }
                });
            }
        });
        // Each worker may have been about to add one to the same backend.
        for member in &stage.members {
            assert!((2_990..=3_010).contains(&member.load.active.now()));
        }
    }
}
