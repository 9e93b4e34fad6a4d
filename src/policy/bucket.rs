//! Token buckets.

use std::num::NonZeroU64;

/// A rate and how much of it may come at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: NonZeroU64,
    /// Tokens that a full bucket holds.
    pub burst: NonZeroU64,
}
