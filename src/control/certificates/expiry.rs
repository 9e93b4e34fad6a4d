//! Certificates that come to their end, told once a day.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::tls::Pair;

const DAY: i64 = 24 * 3600;
/// How long before its end a certificate is worth a word.
const SOON: i64 = 14 * DAY;

/// What was told, and when: seconds since 1970.
#[derive(Default)]
pub(super) struct Expiry(HashMap<(PathBuf, i64), i64>);

/// A certificate that has come to its end, or is about to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ending {
    pair: Arc<Pair>,
    expired: bool,
}

impl Expiry {
    /// Those of `pairs` that are worth a word at `now`, in seconds since 1970.
    pub(super) fn note<'a>(
        &mut self,
        pairs: impl Iterator<Item = &'a Arc<Pair>>,
        now: i64,
    ) -> Vec<Ending> {
        let mut endings = Vec::new();
        let before = std::mem::take(&mut self.0);
        for pair in pairs.filter(|pair| pair.not_after.saturating_sub(now) < SOON) {
            let key = (pair.certificate.clone(), pair.not_after);
            let told = before.get(&key).or(self.0.get(&key)).copied();
            // A clock that was set back tells it again.
            let fresh = told.filter(|told| (*told..*told + DAY).contains(&now));
            self.0.insert(key, fresh.unwrap_or(now));
            if fresh.is_none() {
                endings.push(Ending {
                    pair: pair.clone(),
                    expired: pair.not_after < now,
                });
            }
        }
        endings
    }
}

pub(super) fn log(ending: &Ending) {
    let Ending { pair, expired } = ending;
    let (file, names) = (pair.certificate.display(), pair.names.join(", "));
    let not_after = date(pair.not_after);
    match expired {
        true => tracing::warn!(%file, names, not_after, "certificate has expired"),
        false => tracing::warn!(%file, names, not_after, "certificate expires soon"),
    }
}

/// Seconds since 1970 as people write them: `2026-03-01T12:00:00Z`.
pub(in crate::control) fn date(unix_seconds: i64) -> String {
    /// Beyond there is no such form.
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = u64::try_from(unix_seconds).ok();
    let seconds = seconds.filter(|seconds| *seconds < YEAR_10000);
    let at = seconds.map(|it| UNIX_EPOCH + Duration::from_secs(it));
    at.map_or_else(
        || format!("{unix_seconds} s after 1970"),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    )
}

/// Seconds since 1970, by the machine's calendar.
pub(super) fn unix_seconds() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge: certificates end by the calendar"
    )]
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
