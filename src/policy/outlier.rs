//! Ejection of a backend for its failures on live traffic.

use std::num::NonZeroU32;
use std::time::Duration;

use super::share::Share;

/// `[upstreams.NAME.outlier]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Failures in a row that eject.
    pub consecutive_failures: NonZeroU32,
    /// How long the first time; doubles with every ejection in a row.
    pub eject_for: Duration,
    /// At most so long.
    pub max_eject_for: Duration,
    /// Share of the upstream that may be ejected at once.
    pub max_ejected: Share,
}
