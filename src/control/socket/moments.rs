//! What the flight recorders of a process hold, as it is told: one object per moment.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::telemetry::recorder::{Moment, What};
use crate::telemetry::{Names, calendar};
use crate::time::Instant;

/// Which moments are asked for; all of them by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Wanted {
    /// Those of this worker only.
    pub worker: Option<usize>,
    /// Those of the session that has this number on that worker; numbers of sessions are a worker's own.
    pub session: Option<u32>,
    /// Of those that fit, so many of the last ones.
    pub last: Option<usize>,
}

/// A moment. What there is nothing of is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ToldMoment {
    /// When, in UTC to the microsecond, as the system's clock is now.
    pub at: String,
    /// The same in nanoseconds of the monotonic clock, which nobody sets.
    pub monotonic_ns: u64,
    /// The worker's number.
    pub worker: u64,
    /// Its number for the session.
    pub session: u32,
    /// What has happened: a word of [`What`].
    pub what: String,
    /// The listener that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// The backend that it is about, behind its upstream's name and a slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Why the session has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long connecting took, in vain or not, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// From the question to the backend's first byte, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u64>,
    /// Of the session, in both directions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Moments as they were noted, and who tells them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Noted {
    /// Knows what their numbers stand for.
    pub teller: Teller,
    /// Each behind its worker's number, in the order of time.
    pub moments: Vec<(usize, Moment)>,
}

/// Who knows names, and the time of day.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Teller {
    names: Vec<Arc<str>>,
    /// The clock of the moments began then.
    epoch: SystemTime,
}

impl Default for Teller {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            epoch: SystemTime::UNIX_EPOCH,
        }
    }
}

impl Teller {
    /// Tells moments up to `now` by the machine's calendar as it is now.
    pub fn new(names: &Names, now: Instant) -> Self {
        Self {
            names: names.all(),
            epoch: calendar::ago(now - Instant::default()),
        }
    }

    /// A moment of this worker.
    pub fn tell(&self, worker: usize, moment: &Moment) -> ToldMoment {
        let monotonic_ns = moment.at.as_nanos();
        let at = self.epoch + Duration::from_nanos(monotonic_ns);
        let name = self.names.get(moment.subject as usize);
        // Names of listeners have no slash, those of backends stand behind their upstream's and one.
        let (backend, listener) = match name {
            Some(name) if name.contains('/') => (Some(name.to_string()), None),
            name => (None, name.map(ToString::to_string)),
        };
        let value = |of: &[What]| of.contains(&moment.what).then_some(moment.value);
        ToldMoment {
            at: humantime::format_rfc3339_micros(at).to_string(),
            monotonic_ns,
            worker: worker as u64,
            session: moment.session,
            what: moment.what.as_str().to_owned(),
            listener,
            backend,
            reason: moment.reason.map(|reason| reason.as_str().to_owned()),
            connect_us: value(&[What::Connect, What::ConnectFailed]),
            first_byte_us: value(&[What::FirstByte]),
            bytes: value(&[What::Close]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Reason;

    fn moment(nanos: u64, what: What, subject: u32) -> Moment {
        Moment {
            at: Instant::from_nanos(nanos),
            session: 7,
            what,
            reason: (what == What::Close).then_some(Reason::Idle),
            subject,
            value: 1500,
        }
    }

    fn names() -> Names {
        let names = Names::default();
        for name in ["web", "app/unix:/run/b.sock"] {
            names.number(name);
        }
        names
    }

    #[test]
    fn a_moment_says_what_its_numbers_are() {
        let teller = Teller::new(&names(), Instant::default());
        let tell = |what, subject| {
            let told = teller.tell(3, &moment(5, what, subject));
            let told = serde_json::to_value(told).expect("it is told");
            let fields = told.as_object().expect("an object").clone();
            let own = fields.into_iter().filter(|(name, _)| {
                !["at", "monotonic_ns", "worker", "session"].contains(&name.as_str())
            });
            serde_json::Value::Object(own.collect())
        };
        for (what, subject, expected) in [
            (What::Accept, 0, r#"{"what":"accept","listener":"web"}"#),
            (
                What::Pick,
                1,
                r#"{"what":"pick","backend":"app/unix:/run/b.sock"}"#,
            ),
            (
                What::ConnectFailed,
                1,
                r#"{"what":"connect-failed","backend":"app/unix:/run/b.sock","connect_us":1500}"#,
            ),
            (
                What::Close,
                0,
                r#"{"what":"close","listener":"web","reason":"idle","bytes":1500}"#,
            ),
            (
                What::FirstByte,
                9,
                r#"{"what":"first-byte","first_byte_us":1500}"#,
            ),
        ] {
            let expected: serde_json::Value = serde_json::from_str(expected).expect("it is JSON");
            assert_eq!(tell(what, subject), expected);
        }
    }

    #[test]
    fn a_time_of_day_is_told_with_its_microseconds() {
        let teller = Teller {
            names: Vec::new(),
            epoch: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let told = teller.tell(0, &moment(1_000_123_456, What::Accept, 0));
        assert_eq!(told.at, "2023-11-14T22:13:21.000123Z");
        assert_eq!(told.monotonic_ns, 1_000_123_456);
    }
}
