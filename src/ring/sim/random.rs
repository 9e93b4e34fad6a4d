//! The world's only source of chance: splitmix64, so that a seed replays a run exactly.

/// A small generator; its quality is enough for choosing faults, not for secrets.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        // The modulo's bias is of no consequence for the small ends used here.
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// True in `per_ten_thousand` of 10,000 cases. Draws nothing when it is 0, so that a fault
    /// that is off does not change the run.
    pub(super) fn chance(&mut self, per_ten_thousand: u16) -> bool {
        per_ten_thousand > 0 && self.below(10_000) < u64::from(per_ten_thousand)
    }

    /// One of `choices`, which is not empty.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// The finalizer of splitmix64: a good hash of one word.
pub(super) const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
