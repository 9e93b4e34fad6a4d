//! A part of a whole, exact and comparable.

/// Parts per million, 0 to a million.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Share(u32);

impl Share {
    /// The whole.
    pub const WHOLE: Self = Self(1_000_000);

    /// So many parts per million; more than the whole is the whole.
    pub const fn from_ppm(ppm: u32) -> Self {
        Self(if ppm < 1_000_000 { ppm } else { 1_000_000 })
    }

    /// Parts per million.
    pub const fn ppm(self) -> u32 {
        self.0
    }

    /// This share of `whole`, rounded down.
    pub const fn of(self, whole: u64) -> u64 {
        (whole as u128 * self.0 as u128 / 1_000_000) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_rounds_down_and_ends_at_the_whole() {
        assert_eq!(Share::from_ppm(500_000).of(3), 1);
        assert_eq!(Share::from_ppm(2_000_000), Share::WHOLE);
        assert_eq!(Share::WHOLE.of(u64::MAX), u64::MAX);
        assert_eq!(Share::default().of(7), 0);
    }
}
