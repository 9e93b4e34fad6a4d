//! Bandwidth: a direction receives no more than its bucket holds, and rests until it holds enough
//! again. What rests is not received, so that the sender slows down and nothing piles up here.

use super::bulk::WINDOW;
use crate::policy::bucket::Rate;
use crate::policy::pace::Pacer;
use crate::ring::Relayed;
use crate::time::Instant;

/// Both directions of one connection.
pub(super) struct Pacing {
    rate: Rate,
    /// By the side that a direction begins at.
    pacers: [Pacer; 2],
    resume: [Option<Instant>; 2],
}

impl Pacing {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            pacers: [Pacer::new(now), Pacer::new(now)],
            resume: [None, None],
        }
    }

    /// Moves by `relay`, which gets the window, as far as the bucket of `direction` allows. Apart from its
    /// caller, which is small enough to be inlined without it.
    #[inline(never)]
    pub(super) fn relay(
        &mut self,
        direction: usize,
        now: Instant,
        relay: impl FnOnce(u32) -> Relayed,
    ) -> Relayed {
        let pacer = &mut self.pacers[direction];
        let allowed = pacer.allowance(self.rate, now).min(WINDOW);
        let mut relayed = relay(allowed);
        // A direction that rests is not received from either.
        relayed.blocked |= relayed.quiet;
        pacer.take(relayed.moved);
        let rests = allowed == 0 || pacer.allowance(self.rate, now) == 0;
        self.resume[direction] = rests.then(|| pacer.resume_at(self.rate, now));
        relayed
    }

    /// When a direction that rests goes on.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.resume.iter().flatten().min().copied()
    }

    /// When no direction rests any more.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.resume.iter().flatten().max().copied()
    }
}
