//! What a process tells of one second: what it has counted since the pulse before, and what is so now. As in a
//! status every field has a default and every word an "unknown".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::status::{BackendState, BreakerState, ListenerState, ProcessState};

/// A process, as of a moment and since the pulse before.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pulse {
    /// When it was taken, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Milliseconds that it counts for; at least 1.
    pub period_ms: u64,
    /// What the process does with new connections.
    pub state: ProcessState,
    /// Number of the configuration in effect.
    pub generation: u64,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// Sessions now.
    pub sessions: u64,
    /// Their cap.
    pub max_connections: u64,
    /// In the order of their numbers.
    pub workers: Vec<WorkerPulse>,
    /// In the order of the file.
    pub listeners: Vec<ListenerPulse>,
    /// In the order of the file.
    pub upstreams: Vec<UpstreamPulse>,
}

/// A worker in the period.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerPulse {
    /// The share of the time that it did not wait, 0.0..=1.0.
    pub busy: f64,
    /// Turns.
    pub turns: u64,
    /// Completions.
    pub completions: u64,
}

/// A listener.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerPulse {
    /// Its name.
    pub name: String,
    /// Whether it takes new connections.
    pub state: ListenerState,
    /// The first of those it listens on, with the port that the kernel chose; empty if there is none.
    pub address: String,
    /// Sessions now.
    pub sessions: u64,
    /// Connections taken in, in the period, refused ones included.
    pub accepted: u64,
    /// Sessions that ended in the period, without those that were refused, which a status counts among those
    /// that are closed.
    pub ended: u64,
    /// Clients that were turned away in the period.
    pub refused: u64,
    /// Those that ended and those that were refused, by reason, where there are any.
    pub reasons: BTreeMap<String, u64>,
    /// Bytes from clients in the period.
    pub bytes_received: u64,
    /// Bytes to clients in the period.
    pub bytes_sent: u64,
    /// Datagrams from clients in the period.
    pub datagrams_received: u64,
    /// Datagrams that went no further in the period, in either direction.
    pub datagrams_dropped: u64,
    /// From accept to end, of all sessions that were let in and ended in the period, also of those that were
    /// refused later.
    pub duration: Quantiles,
}

/// An upstream.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamPulse {
    /// Its name.
    pub name: String,
    /// Sessions that asked for a backend in the period.
    pub requests: u64,
    /// Further tries in the period.
    pub retries: u64,
    /// Sessions that wait for a place now.
    pub queued: u64,
    /// From the first packet to the connection.
    pub connect: Quantiles,
    /// From the first byte to a backend to the first one from it.
    pub first_byte: Quantiles,
    /// From accept to end.
    pub duration: Quantiles,
    /// In the order of the file; none where nobody has asked for them.
    pub backends: Vec<BackendPulse>,
}

/// A backend.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendPulse {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// Whether it may be chosen.
    pub state: BackendState,
    /// Why not, or what else there is to say, in words.
    pub why: Option<String>,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Sessions now.
    pub sessions: u64,
    /// As ordered or else configured.
    pub weight: u32,
    /// Connections that were opened in the period; of datagrams, sockets.
    pub connections: u64,
    /// Tries to connect that failed in the period.
    pub failed: u64,
    /// Bytes to it in the period.
    pub bytes_received: u64,
    /// Bytes from it in the period.
    pub bytes_sent: u64,
    /// As of an upstream, from wide buckets.
    pub first_byte: Quantiles,
    /// As of an upstream, from wide buckets.
    pub connect: Quantiles,
}

/// Lengths of time in the period, in microseconds; `None` where there were none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantiles {
    /// How many there were.
    pub count: u64,
    /// The median.
    pub p50_us: Option<u64>,
    /// Nine of ten took no longer.
    pub p90_us: Option<u64>,
    /// 99 of a hundred took no longer.
    pub p99_us: Option<u64>,
    /// The longest.
    pub max_us: Option<u64>,
}

/// A line of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NewsLine {
    /// Counts up from 1 with every line of the process.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// `error`, `warn` or `info`.
    pub level: String,
    /// What happened, with the fields behind it.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_with_missing_and_unknown_fields_is_read() {
        let text = r#"{"upstreams":[{"name":"app","backends":[{"name":"b","mood":1}]}],"x":{}}"#;
        let pulse: Pulse = serde_json::from_str(text).unwrap();
        let backend = &pulse.upstreams[0].backends[0];
        assert_eq!(
            (&*backend.name, backend.state),
            ("b", BackendState::Unknown)
        );
        assert_eq!(backend.first_byte.p99_us, None);
    }
}
