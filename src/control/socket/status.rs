//! What a process tells about itself. Every field has a default and every word an "unknown", so that the
//! answer of an older or a newer process can be shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::protocol::Part;
use crate::config::diff::Change;

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its number.
    pub pid: u32,
    /// Of the binary that it runs.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// The file that it reads on a reload; `None` = it has none.
    pub configuration: Option<String>,
    /// What it does with new connections.
    pub state: ProcessState,
    /// Number of the configuration in effect: 1 at start, one more with each reload.
    pub generation: u64,
    /// The last attempt; `None` = there was none.
    pub last_reload: Option<ReloadReport>,
    /// How many there are.
    pub workers: u64,
    /// How often one has begun again after a panic.
    pub worker_restarts: u64,
    /// Sessions now.
    pub sessions: u64,
    /// Their cap.
    pub max_connections: u64,
    /// In the order of the file.
    pub listeners: Vec<ListenerStatus>,
    /// In the order of the file.
    pub upstreams: Vec<UpstreamStatus>,
    /// Parts that were ordered to drain, until they are resumed.
    pub draining: Vec<DrainStatus>,
    /// Processes before this one that still have sessions.
    pub old_processes: u32,
    /// What it writes down.
    pub log: Option<LogStatus>,
}

/// What a process writes down.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogStatus {
    /// The least severe level of the log.
    pub level: String,
    /// Of the log and the access log: text or json.
    pub format: String,
    /// off, stdout or a file.
    pub access_log: String,
}

/// How long something took, over all of the process's life, to two digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyStatus {
    /// How many were counted.
    pub count: u64,
    /// Half of them took no longer, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 of them took no longer, in microseconds.
    pub p99_us: u64,
}

impl LatencyStatus {
    fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a process does with new connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessState {
    /// It takes them.
    Serving,
    /// It takes them, and is not ready any more: `drain_delay`.
    Delaying,
    /// It takes none, and ends with its last session.
    Draining,
    /// A word that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// An attempt to reload.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadReport {
    /// When it ended, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// It took effect.
    pub ok: bool,
    /// The generation after it.
    pub generation: u64,
    /// Why it did not take effect; may have several lines.
    pub error: Option<String>,
    /// What it changed.
    pub changes: Vec<Change>,
}

/// A listener.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Whether it takes new connections.
    pub state: ListenerState,
    /// Where, with the ports that the kernel chose.
    pub addresses: Vec<String>,
    /// Name of the upstream that sessions go to.
    pub upstream: String,
    /// Sessions now.
    pub sessions: u64,
    /// Connections taken in since the process started.
    pub accepted: u64,
    /// Bytes from clients since the process started.
    pub bytes_received: u64,
    /// Bytes to clients since the process started.
    pub bytes_sent: u64,
    /// Sessions of `closed` that were turned away, by a rule or as there was no room.
    pub refused: u64,
    /// From accept to end, of all sessions that were let in, also of those that were refused later.
    #[serde(skip_serializing_if = "LatencyStatus::is_empty")]
    pub duration: LatencyStatus,
    /// Sessions that ended since the process started, by reason: those that were refused as well, which
    /// [`ListenerPulse::ended`](super::pulse::ListenerPulse::ended) leaves out.
    pub closed: BTreeMap<String, u64>,
    /// Sessions that have begun in one of several ways, by which it was: versions of TLS, or what was found
    /// where a hello of TLS may stand.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub opened: BTreeMap<String, u64>,
    /// What its TLS has from files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// Of a listener that takes datagrams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams: Option<DatagramStatus>,
}

/// A certificate with its key, or a file of authorities.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateStatus {
    /// Where it was read.
    pub file: String,
    /// DNS names that it is for; none of authorities.
    pub names: Vec<String>,
    /// When it expires, like `2026-03-01T12:00:00Z`; `None` = these are authorities.
    pub not_after: Option<String>,
    /// Why what was read before stays in use; `None` = what is in the file is in use.
    pub error: Option<String>,
}

/// Datagrams since the process started.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatagramStatus {
    /// From clients, dropped ones included.
    pub received: u64,
    /// To clients.
    pub sent: u64,
    /// Those that went no further, in either direction, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// Whether a listener takes new connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenerState {
    /// It does.
    Accepting,
    /// It was ordered not to.
    Drained,
    /// A word that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// An upstream.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// How a backend is chosen.
    pub balance: String,
    /// Health is ignored, as too few backends are healthy.
    pub failing_open: bool,
    /// Sessions that asked for a backend.
    pub requests: u64,
    /// Further tries after one that failed.
    pub retries: u64,
    /// Further tries that the budget has not allowed.
    pub retries_denied: u64,
    /// Sessions that wait for a place now.
    pub waiting: u64,
    /// Until a backend was connected, TLS and all.
    #[serde(skip_serializing_if = "LatencyStatus::is_empty")]
    pub connect: LatencyStatus,
    /// From the question to a backend's first byte.
    #[serde(skip_serializing_if = "LatencyStatus::is_empty")]
    pub first_byte: LatencyStatus,
    /// In the order of the file.
    pub backends: Vec<BackendStatus>,
    /// What its TLS has from files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// Whether it may be chosen.
    pub state: BackendState,
    /// Why not, or what else there is to say, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// By its health checks.
    pub healthy: bool,
    /// By order of the operator.
    pub enabled: bool,
    /// Left out for what live traffic met.
    pub ejected: bool,
    /// Its breaker.
    pub breaker: BreakerState,
    /// As ordered or else configured.
    pub weight: u32,
    /// As configured, where another one is ordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configured_weight: Option<u32>,
    /// Sessions now.
    pub sessions: u64,
    /// Connections now: sessions' and those kept ahead.
    pub connections: u64,
    /// Sessions that have got it, so far.
    pub sessions_total: u64,
    /// Tries to connect to it that failed.
    pub failed: u64,
    /// Times it was ejected.
    pub ejections: u64,
    /// Times its breaker opened.
    pub breaker_opened: u64,
    /// From the question to its first byte; estimated within wide bounds.
    #[serde(skip_serializing_if = "LatencyStatus::is_empty")]
    pub first_byte: LatencyStatus,
}

/// Whether a backend may be chosen: the first of these that holds, from the bottom up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// It may.
    Up,
    /// Its breaker lets a few sessions try.
    HalfOpen,
    /// Its breaker lets nobody.
    Open,
    /// It is left out for what live traffic met.
    Ejected,
    /// By its health checks.
    Down,
    /// By order of the operator.
    Disabled,
    /// A word that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

impl BackendState {
    /// Its word, as people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
            Self::Ejected => "ejected",
            Self::Down => "down",
            Self::Disabled => "disabled",
            Self::Unknown => "unknown",
        }
    }
}

/// A backend's breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// Traffic passes.
    Closed,
    /// None passes.
    Open,
    /// A few sessions try.
    HalfOpen,
    /// A word that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

impl BreakerState {
    /// Its word, as people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::Unknown => "unknown",
        }
    }
}

/// A part that was ordered to drain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Which part.
    pub part: Part,
    /// Sessions that it still has.
    pub sessions_left: u64,
    /// Milliseconds until they are aborted; `None` = never.
    #[serde(default)]
    pub deadline_in_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(state: impl Serialize) -> String {
        serde_json::to_string(&state).unwrap()
    }

    #[test]
    fn states_are_words_of_the_lexicon() {
        assert_eq!(word(ProcessState::Serving), "\"serving\"");
        assert_eq!(word(ListenerState::Drained), "\"drained\"");
        assert_eq!(word(BreakerState::HalfOpen), "\"half-open\"");
        assert_eq!(word(BackendState::HalfOpen), "\"half-open\"");
        assert_eq!(word(BackendState::Disabled), "\"disabled\"");
        let newer: BreakerState = serde_json::from_str("\"melted\"").unwrap();
        assert_eq!(newer, BreakerState::Unknown);
        let newer: BackendState = serde_json::from_str("\"asleep\"").unwrap();
        assert_eq!(newer, BackendState::Unknown);
    }

    #[test]
    fn people_and_machines_read_the_same_words() {
        for state in [
            BackendState::Up,
            BackendState::HalfOpen,
            BackendState::Open,
            BackendState::Ejected,
            BackendState::Down,
            BackendState::Disabled,
        ] {
            assert_eq!(word(state), format!("\"{}\"", state.as_str()));
        }
        for state in [
            BreakerState::Closed,
            BreakerState::Open,
            BreakerState::HalfOpen,
        ] {
            assert_eq!(word(state), format!("\"{}\"", state.as_str()));
        }
    }

    #[test]
    fn an_older_status_without_most_fields_is_read() {
        let text = r#"{"listeners":[{"name":"web"}],"upstreams":[{"backends":[{"name":"b"}]}],
            "last_reload":{"ok":true},"draining":[{"part":{"listener":"web"},"sessions_left":1}]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(status.listeners[0].state, ListenerState::Unknown);
        assert_eq!(
            status.upstreams[0].backends[0].breaker,
            BreakerState::Unknown
        );
        assert_eq!(status.draining[0].deadline_in_ms, None);
    }
}
