//! The circuit breaker of a backend.

use std::num::NonZeroU32;
use std::time::Duration;

use super::share::Share;

/// `[upstreams.NAME.circuit_breaker]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Failures among the results of the window that open it; above 0.
    pub failure_ratio: Share,
    /// Results in the window below which it stays closed.
    pub min_requests: NonZeroU32,
    /// What the ratio is taken over.
    pub window: Duration,
    /// How long it stays open.
    pub open_for: Duration,
    /// Sessions that try the backend before it closes, exact over all workers.
    pub half_open_requests: NonZeroU32,
}
