//! The machine's calendar. People are told by it when something was, and nothing is decided by it: somebody may
//! set it at any time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::time::millis;

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// When it was that long before now; 1970 where that is before it.
pub fn ago(time: Duration) -> SystemTime {
    let at = now().checked_sub(time);
    at.filter(|at| *at >= UNIX_EPOCH).unwrap_or(UNIX_EPOCH)
}

#[expect(
    clippy::disallowed_methods,
    reason = "people are told when it was, and nothing is decided by it"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_1970_was_then() {
        assert_eq!(ago(Duration::MAX), UNIX_EPOCH);
        assert_eq!(ago(Duration::from_secs(1 << 40)), UNIX_EPOCH);
    }

    #[test]
    fn an_hour_ago_is_an_hour_less() {
        let hour_ms = 3_600_000;
        let before = unix_ms();
        let then = ago(Duration::from_millis(hour_ms));
        let then = then.duration_since(UNIX_EPOCH).map_or(0, millis);
        assert!((before..=unix_ms()).contains(&(then + hour_ms)));
    }
}
