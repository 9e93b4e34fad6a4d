//! Caps: how many at once, exact over all workers.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A count that never passes its cap, whoever counts.
#[derive(Debug, Default)]
pub struct Occupancy(AtomicUsize);

impl Occupancy {
    /// One more, unless that would be more than `cap`; false when it is full.
    pub fn enter(&self, cap: usize) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now < cap).then_some(now + 1)
            })
            .is_ok()
    }

    /// One less. Every successful [`Occupancy::enter`] is answered by one of these.
    pub fn leave(&self) {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "somebody left who had not entered");
    }

    /// How many there are.
    pub fn now(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_holds_over_all_threads() {
        let occupancy = Occupancy::default();
        let most = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if occupancy.enter(3) {
                            most.fetch_max(occupancy.now(), Ordering::Relaxed);
                            occupancy.leave();
                        }
                    }
                });
            }
        });
        assert_eq!(occupancy.now(), 0);
        assert!((1..=3).contains(&most.into_inner()));
    }
}
