//! What the flight recorders of a process hold, as it is told: one object per moment.

use serde::{Deserialize, Serialize};

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
    /// What has happened: a word of [`What`](crate::telemetry::recorder::What).
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
