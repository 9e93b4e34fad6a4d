//! The same client to the same backend, by weighted rendezvous hashing. Every process that has the
//! same backends chooses alike, in whatever order they stand.

use super::rendezvous::Rendezvous;
use super::{Algorithm, Balancer, Candidates, Draw, Request, hash};

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "ip-hash",
    needs_client: true,
    needs_latency: false,
    build: |members, _| Box::new(IpHash(Rendezvous::new(members))),
};

#[derive(Debug)]
struct IpHash(Rendezvous);

impl Balancer for IpHash {
    fn draw(&self, request: Request) -> Draw {
        hash::draw(request)
    }

    fn choose(&self, draw: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        self.0.choose(draw.number, candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Stage, first_choices, request};
    use super::*;

    #[test]
    fn choices_have_their_golden_values() {
        let expected = [
            2, 2, 1, 2, 2, 1, 1, 1, 1, 2, 1, 1, 1, 0, 1, 2, 1, 1, 2, 1, 2, 1, 1, 1,
        ];
        assert_eq!(first_choices(ALGORITHM), expected);
    }

    #[test]
    fn a_backend_that_leaves_the_configuration_moves_only_its_own_clients() {
        let stage = Stage::new(ALGORITHM, &[2; 20]);
        let fewer = Stage::over(ALGORITHM, stage.members[..19].to_vec());
        for client in 0..5_000 {
            let before = stage.choose(request(client), &[2; 20]);
            let after = fewer.choose(request(client), &[2; 19]);
            assert!(before == after || before == Some(19));
        }
    }
}
