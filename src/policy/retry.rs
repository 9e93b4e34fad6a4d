//! Trying again: how often, after which pause, and within which budget.

use std::time::Duration;

use super::share::Share;

/// `[upstreams.NAME.retry]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Further tries after the first, each on another backend.
    pub attempts: u32,
    /// Longest pause before the second retry; doubles with each.
    pub backoff: Duration,
    /// No pause is longer.
    pub max_backoff: Duration,
    /// Failed retries per request, over the last 10 s.
    pub budget: Share,
}
