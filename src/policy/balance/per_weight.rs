//! Amounts per weight, compared without dividing and so without rounding.

use std::cmp::Ordering;

/// `amount / weight`, in the order of that number.
#[derive(Clone, Copy, Debug)]
pub(super) struct PerWeight {
    amount: u128,
    weight: u16,
}

impl PerWeight {
    /// `amount` is below 2^112, so that it can be multiplied by any weight; `weight` is above 0.
    pub(super) fn new(amount: impl Into<u128>, weight: u16) -> Self {
        Self {
            amount: amount.into(),
            weight,
        }
    }
}

impl Ord for PerWeight {
    fn cmp(&self, other: &Self) -> Ordering {
        let left = self.amount * u128::from(other.weight);
        left.cmp(&(other.amount * u128::from(self.weight)))
    }
}

impl PartialOrd for PerWeight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PerWeight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PerWeight {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirds_are_not_rounded() {
        assert_eq!(PerWeight::new(1_u64, 3), PerWeight::new(2_u64, 6));
        assert!(PerWeight::new(33_333_u64, 3) < PerWeight::new(22_223_u64, 2));
    }

    #[test]
    fn the_largest_amount_can_be_compared() {
        let largest = PerWeight::new((1_u128 << 112) - 1, u16::MAX);
        assert!(largest < PerWeight::new((1_u128 << 112) - 1, u16::MAX - 1));
    }
}
