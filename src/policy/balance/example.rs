//! The first backend that fits, in the order of the configuration: the others stand by.

use super::{Algorithm, Balancer, Candidates, Draw};

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "first",
    needs_client: false,
    needs_latency: false,
    build: |_members, _resume| Box::new(First),
};

#[derive(Debug)]
struct First;

impl Balancer for First {
    fn choose(&self, _: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        candidates.fitting().map(|(backend, _)| backend).next()
    }
}
