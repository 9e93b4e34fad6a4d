//! How long a worker that has panicked rests before it begins again: not at all the first time, and longer each
//! time that it panics soon after it has begun. It is never given up.

use std::time::Duration;

/// The first rest, which doubles up to the most.
const FIRST_REST: Duration = Duration::from_millis(100);
const MOST_REST: Duration = Duration::from_secs(5);
/// A worker that lasts for so long has recovered.
const PROVEN: Duration = Duration::from_secs(10);

/// The rests of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rests {
    /// Times in a row that it did not last.
    failures: u32,
}

impl Rests {
    /// It has ended after `lasted`, zero if it could not even begin: how long to rest.
    pub fn next(&mut self, lasted: Duration) -> Duration {
        if lasted >= PROVEN {
            self.failures = 0;
        }
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        match failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_REST
                .saturating_mul(1 << doublings.min(16))
                .min(MOST_REST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rest_is_none_and_the_others_double_up_to_the_most() {
        let mut rests = Rests::default();
        let soon = Duration::from_millis(10);
        let millis: Vec<_> = (0..9).map(|_| rests.next(soon).as_millis()).collect();
        assert_eq!(millis, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        let latest = (0..100).map(|_| rests.next(soon)).last();
        assert_eq!(latest, Some(MOST_REST));
    }

    #[test]
    fn a_worker_that_has_lasted_begins_again_at_once() {
        let mut rests = Rests::default();
        let rested = (0..5).map(|_| rests.next(Duration::ZERO)).last();
        assert_eq!(rested, Some(FIRST_REST * 8));
        assert_eq!(rests.next(PROVEN), Duration::ZERO);
        assert_eq!(rests.next(PROVEN - Duration::from_nanos(1)), FIRST_REST);
    }
}
