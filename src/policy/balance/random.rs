//! Any backend, with the chance that its weight gives it. Nothing is shared, not even a cursor.

use super::{Algorithm, Balancer, Candidates, Draw, Foresight, lots};

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "random",
    needs_client: false,
    needs_latency: false,
    build: |_, _| Box::new(Random),
};

#[derive(Debug)]
struct Random;

impl Balancer for Random {
    fn choose(&self, draw: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        lots::draw(candidates, None, draw.number)
    }

    fn foresight(&self) -> Foresight {
        Foresight::Chance
    }
}
