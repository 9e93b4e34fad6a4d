//! The tables of a status that say what has gone through, how fast, and how it ended. Who has met nothing yet has
//! no row. They are made for 100 columns.

use super::row;
use crate::cli::numbers::{by_count, bytes, time};
use crate::control::socket::status::{
    BackendStatus, LatencyStatus, ListenerStatus, UpstreamStatus,
};

/// Of the listeners: bytes, and how long sessions take.
pub(super) fn listeners(listeners: &[ListenerStatus]) -> Vec<Vec<String>> {
    let head = row([
        "TRAFFIC",
        "RECEIVED",
        "SENT",
        "REFUSED",
        "ENDED",
        "DURATION P50",
        "P99",
    ]);
    let met = listeners
        .iter()
        .filter(|listener| !listener.closed.is_empty());
    let rows = met.map(|listener| {
        let ended: u64 = listener.closed.values().sum();
        let [p50, p99] = quantiles(&listener.duration);
        row([
            &listener.name,
            &bytes(listener.bytes_received),
            &bytes(listener.bytes_sent),
            &listener.refused.to_string(),
            &ended.to_string(),
            &p50,
            &p99,
        ])
    });
    std::iter::once(head).chain(rows).collect()
}

/// Why sessions ended, the most frequent first; a reason a row.
pub(super) fn endings(listeners: &[ListenerStatus]) -> Vec<Vec<String>> {
    let head = row(["ENDED", "SESSIONS", "REASON"]);
    let rows = listeners.iter().flat_map(|listener| {
        let reasons = by_count(&listener.closed);
        reasons
            .into_iter()
            .map(|(reason, count)| row([&listener.name, &count.to_string(), reason]))
    });
    std::iter::once(head).chain(rows).collect()
}

/// Of the upstreams: what was asked of them, and how fast they are.
pub(super) fn upstreams(upstreams: &[UpstreamStatus]) -> Vec<Vec<String>> {
    let head = row([
        "UPSTREAM",
        "REQUESTS",
        "RETRIES",
        "DENIED",
        "WAITING",
        "CONNECT P50",
        "P99",
        "FIRST BYTE P50",
        "P99",
    ]);
    let met = upstreams.iter().filter(|upstream| upstream.requests > 0);
    let rows = met.map(|upstream| {
        let [connect_p50, connect_p99] = quantiles(&upstream.connect);
        let [first_p50, first_p99] = quantiles(&upstream.first_byte);
        row([
            &upstream.name,
            &upstream.requests.to_string(),
            &upstream.retries.to_string(),
            &upstream.retries_denied.to_string(),
            &upstream.waiting.to_string(),
            &connect_p50,
            &connect_p99,
            &first_p50,
            &first_p99,
        ])
    });
    std::iter::once(head).chain(rows).collect()
}

/// Of the backends: what was tried, and what came of it.
pub(super) fn backends(upstreams: &[UpstreamStatus]) -> Vec<Vec<String>> {
    let head = row([
        "BACKEND",
        "SERVED",
        "FAILED",
        "EJECTED",
        "BREAKER OPENED",
        "FIRST BYTE P50",
        "P99",
    ]);
    let pairs = upstreams
        .iter()
        .flat_map(|upstream| upstream.backends.iter().map(move |it| (upstream, it)));
    let met = |it: &BackendStatus| it.sessions_total + it.failed + it.ejections > 0;
    let rows = pairs
        .filter(|(_, backend)| met(backend))
        .map(|(upstream, backend)| {
            let [p50, p99] = quantiles(&backend.first_byte);
            row([
                &format!("{}/{}", upstream.name, backend.name),
                &backend.sessions_total.to_string(),
                &backend.failed.to_string(),
                &backend.ejections.to_string(),
                &backend.breaker_opened.to_string(),
                &p50,
                &p99,
            ])
        });
    std::iter::once(head).chain(rows).collect()
}

fn quantiles(latency: &LatencyStatus) -> [String; 2] {
    let known = latency.count > 0;
    [latency.p50_us, latency.p99_us].map(|micros| time(known.then_some(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::write_table;

    fn latency(p50_us: u64, p99_us: u64) -> LatencyStatus {
        LatencyStatus {
            count: 9,
            p50_us,
            p99_us,
        }
    }

    fn written(rows: &[Vec<String>]) -> String {
        let mut out = String::new();
        write_table(&mut out, rows);
        assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
        out
    }

    #[test]
    fn listeners_tell_bytes_and_times_and_why_sessions_ended() {
        let web = ListenerStatus {
            name: "web".to_owned(),
            bytes_received: 1536,
            bytes_sent: 5 << 30,
            refused: 12,
            duration: latency(1_234, 61_000_000),
            closed: [("denied".to_owned(), 12), ("client-closed".to_owned(), 400)].into(),
            ..ListenerStatus::default()
        };
        let fresh = ListenerStatus::default();
        let expected = "\
TRAFFIC  RECEIVED  SENT   REFUSED  ENDED  DURATION P50  P99
web      1.5kB     5.4GB  12       412    1.2ms         61s
";
        let both = [web, fresh];
        assert_eq!(written(&listeners(&both)), expected);
        let expected = "\
ENDED  SESSIONS  REASON
web    400       client-closed
web    12        denied
";
        assert_eq!(written(&endings(&both)), expected);
    }

    #[test]
    fn upstreams_and_backends_tell_what_they_have_met() {
        let backend = BackendStatus {
            name: "10.0.0.1:8080".to_owned(),
            sessions_total: 1_234_567,
            failed: 3,
            ejections: 1,
            breaker_opened: 2,
            first_byte: latency(900, 8_000),
            ..BackendStatus::default()
        };
        let app = UpstreamStatus {
            name: "app".to_owned(),
            requests: 1_234_570,
            retries: 3,
            waiting: 7,
            connect: latency(80, 1_000),
            backends: vec![backend, BackendStatus::default()],
            ..UpstreamStatus::default()
        };
        let both = [app, UpstreamStatus::default()];
        let expected = "\
UPSTREAM  REQUESTS  RETRIES  DENIED  WAITING  CONNECT P50  P99    FIRST BYTE P50  P99
app       1234570   3        0       7        80µs         1.0ms  -               -
";
        assert_eq!(written(&upstreams(&both)), expected);
        let expected = "\
BACKEND            SERVED   FAILED  EJECTED  BREAKER OPENED  FIRST BYTE P50  P99
app/10.0.0.1:8080  1234567  3       1        2               900µs           8.0ms
";
        assert_eq!(written(&backends(&both)), expected);
    }
}
