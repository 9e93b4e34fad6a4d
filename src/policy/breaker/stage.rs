//! The states of a breaker as values: what follows from what, and how it fits into a word.

use super::{Permit, Transition, Verdict};

/// ```text
///            results ≥ min_requests, failures ≥ failure_ratio × results
///   Closed ─────────────────────────────────────────────────────────▶ Open ◀───┐
///     ▲                                                                 │      │
///     │                                        the first admit after    │      │ one failure
///     │                                        open_for                 ▼      │
///     └───────────────────────────────────────────────────────────── HalfOpen ─┘
///            half_open_requests have succeeded                         │   ▲
///                                                                      └───┘
///                                        admit: one more; abandoned: one less
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Closed,
    Open,
    /// `admitted` hold a permit or have succeeded with it.
    HalfOpen {
        admitted: u32,
        succeeded: u32,
    },
}

impl State {
    pub(super) fn half_open(admitted: u32, succeeded: u32) -> Self {
        Self::HalfOpen {
            admitted,
            succeeded,
        }
    }
}

/// A state and how many there were before it: a permit of another generation means nothing to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stage {
    pub(super) generation: u32,
    pub(super) state: State,
}

const GENERATION_BITS: u32 = 22;
/// Those that are told apart.
pub(super) const GENERATIONS: u32 = 1 << GENERATION_BITS;
/// Bits of `admitted` and of `succeeded`.
const PLACE_BITS: u32 = 20;
/// More `half_open_requests` than these count as these.
pub(super) const PLACES_MOST: u32 = (1 << PLACE_BITS) - 1;

impl Stage {
    pub(super) fn unpack(word: u64) -> Self {
        let bits = |shift: u32, count: u32| (word >> shift) as u32 & ((1 << count) - 1);
        Self {
            generation: bits(2, GENERATION_BITS),
            state: match word & 3 {
                0 => State::Closed,
                1 => State::Open,
                _ => State::HalfOpen {
                    admitted: bits(2 + GENERATION_BITS, PLACE_BITS),
                    succeeded: bits(2 + GENERATION_BITS + PLACE_BITS, PLACE_BITS),
                },
            },
        }
    }

    pub(super) fn pack(self) -> u64 {
        let (kind, admitted, succeeded) = match self.state {
            State::Closed => (0, 0, 0),
            State::Open => (1, 0, 0),
            State::HalfOpen {
                admitted,
                succeeded,
            } => (2, admitted, succeeded),
        };
        kind | u64::from(self.generation) << 2
            | u64::from(admitted) << (2 + GENERATION_BITS)
            | u64::from(succeeded) << (2 + GENERATION_BITS + PLACE_BITS)
    }

    pub(super) fn next(self, state: State) -> Self {
        Self {
            generation: (self.generation + 1) % GENERATIONS,
            state,
        }
    }

    /// After giving a permit, if there is one to give.
    pub(super) fn admitting(
        self,
        places: u32,
        is_over: bool,
    ) -> Option<(Self, Option<Transition>)> {
        match self.state {
            State::Closed => Some((self, None)),
            State::Open => {
                let first = self.next(State::half_open(1, 0));
                is_over.then_some((first, Some(Transition::HalfOpened)))
            }
            // A reload asks for fewer than have succeeded already.
            State::HalfOpen { succeeded, .. } if succeeded >= places => {
                Some((self.next(State::Closed), Some(Transition::Closed)))
            }
            State::HalfOpen {
                admitted,
                succeeded,
            } => {
                let state = State::half_open(admitted + 1, succeeded);
                (admitted < places).then_some((Self { state, ..self }, None))
            }
        }
    }

    /// After a verdict on one of the admitted of a half-open state.
    pub(super) fn judged(self, places: u32, verdict: Verdict) -> (Self, Option<Transition>) {
        let State::HalfOpen {
            admitted,
            succeeded,
        } = self.state
        else {
            return (self, None);
        };
        let state = match verdict {
            Verdict::Failure => return (self.next(State::Open), Some(Transition::Opened)),
            Verdict::Success if succeeded + 1 >= places => {
                return (self.next(State::Closed), Some(Transition::Closed));
            }
            Verdict::Success => State::half_open(admitted, succeeded + 1),
            Verdict::Abandoned => State::half_open(admitted.saturating_sub(1), succeeded),
        };
        (Self { state, ..self }, None)
    }

    pub(super) fn permit(self, transition: Option<Transition>) -> Permit {
        Permit {
            generation: self.generation,
            transition,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_comes_round_without_a_panic() {
        let last = Stage {
            generation: GENERATIONS - 1,
            state: State::half_open(PLACES_MOST, PLACES_MOST - 1),
        };
        assert_eq!(Stage::unpack(last.pack()), last);
        assert_eq!(last.next(State::Closed).pack(), 0);
    }
}
