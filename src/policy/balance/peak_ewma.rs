//! The backend that promises the shortest wait: its latency, which believes bad news at once, times
//! the sessions that it would have, for its weight.
//!
//! ```text
//!   idle and unmeasured  →  measured, by cost  →  busy and unmeasured, by sessions
//! ```
//!
//! One that was never measured is tried first, but only by one session at a time: until the answer is
//! there the others wait with backends that are known.

use std::time::Duration;

use super::per_weight::PerWeight;
use super::turns::Turns;
use super::{Algorithm, Balancer, Candidates, Draw, Foresight, Load, Member};
use crate::time::Instant;

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "peak-ewma",
    needs_client: false,
    needs_latency: true,
    build: |members, resume| {
        Box::new(PeakEwma {
            members: members.to_vec(),
            turns: Turns::resume(resume),
        })
    },
};

#[derive(Debug)]
struct PeakEwma {
    members: Vec<Member>,
    turns: Turns,
}

/// What a session would have to expect; the lesser is the better one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    Unmeasured,
    Measured(PerWeight),
    BeingMeasured(PerWeight),
}

impl Balancer for PeakEwma {
    fn choose(&self, draw: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        self.turns.lowest(candidates, |backend, weight| {
            cost(&self.members[backend].load, weight, draw.request.now)
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

fn cost(load: &Load, weight: u16, now: Instant) -> Cost {
    let sessions = load.active.now() as u128;
    match load.latency.at(now).as_ref().map(Duration::as_nanos) {
        Some(latency) => Cost::Measured(PerWeight::new(latency * (sessions + 1), weight)),
        None if sessions == 0 => Cost::Unmeasured,
        None => Cost::BeingMeasured(PerWeight::new(sessions, weight)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::super::tests::{Stage, request};
    use super::*;

    const WEIGHTS: [u16; 3] = [1; 3];

    /// Backends of these latencies, `None` = not measured, that have so many sessions.
    fn stage(states: [(Option<u64>, usize); 3]) -> Stage {
        let stage = Stage::new(ALGORITHM, &WEIGHTS);
        for (member, (latency, sessions)) in stage.members.iter().zip(states) {
            for _ in 0..sessions {
                member.load.active.enter(usize::MAX);
            }
            if let Some(millis) = latency {
                let latency = Duration::from_millis(millis);
                member.load.latency.observe(latency, request(0).now);
            }
        }
        stage
    }

    fn choice(states: [(Option<u64>, usize); 3]) -> usize {
        stage(states).choose(request(0), &WEIGHTS).unwrap()
    }

    #[test]
    fn the_lowest_latency_wins_and_sessions_multiply_it() {
        assert_eq!(choice([(Some(9), 0), (Some(5), 0), (Some(8), 0)]), 1);
        assert_eq!(choice([(Some(9), 0), (Some(5), 1), (Some(8), 0)]), 2);
    }

    #[test]
    fn half_the_weight_is_twice_the_cost() {
        let stage = stage([(Some(9), 0), (Some(5), 0), (Some(9), 5)]);
        assert_eq!(stage.choose(request(0), &[20, 10, 10]), Some(0));
        assert_eq!(stage.choose(request(0), &[10, 10, 10]), Some(1));
    }

    #[test]
    fn one_that_was_never_measured_is_tried_by_one_session_at_a_time() {
        assert_eq!(choice([(Some(1), 0), (Some(1), 0), (None, 0)]), 2);
        assert_eq!(choice([(Some(500), 90), (Some(500), 90), (None, 1)]), 0);
    }

    #[test]
    fn the_first_sessions_of_all_are_spread() {
        let counts = Stage::new(ALGORITHM, &WEIGHTS).counts(&WEIGHTS, &[], 30, true);
        assert_eq!(counts, [10; 3]);
    }

    #[test]
    fn a_slow_one_is_tried_again_when_its_latency_is_forgotten() {
        let stage = stage([(Some(10), 0), (Some(10), 0), (Some(100), 0)]);
        let chosen_after = |seconds| {
            let now = request(0).now + Duration::from_secs(seconds);
            for fast in &stage.members[..2] {
                fast.load.latency.observe(Duration::from_millis(10), now);
            }
            stage.choose(Request { now, ..request(0) }, &WEIGHTS)
        };
        assert_ne!(chosen_after(20), Some(2));
        assert_eq!(chosen_after(25), Some(2));
    }

    #[test]
    fn equals_take_turns() {
        let stage = stage([(Some(10), 0), (Some(10), 0), (Some(10), 0)]);
        assert_eq!(stage.counts(&WEIGHTS, &[], 30, false), [10; 3]);
    }
}
