//! Backends, of which there may be thousands: a reason, a fault or a histogram of one has its series from the
//! first time on that there is something in it.

use std::sync::Arc;

use super::listeners::write_both;
use super::text::{Family, Kind, Labels, Text};
use crate::proxy::Snapshot;
use crate::ring;
use crate::telemetry::Reason;
use crate::telemetry::latency::BucketCounts;
use crate::telemetry::tallies::{BackendTotals, ConnectFault, Probed};
use crate::time::Instant;
use crate::upstream::{Backend, Order};

struct View {
    labels: Labels,
    backend: Arc<Backend>,
    totals: BackendTotals,
    healthy: bool,
    enabled: bool,
    ejected: bool,
    breaker: u64,
}

impl View {
    fn new(upstream: &str, backend: &Arc<Backend>, now: Instant) -> Self {
        Self {
            labels: Labels::of(&[("upstream", upstream), ("backend", &backend.name)]),
            backend: backend.clone(),
            totals: backend.state.tallies.totals(),
            healthy: backend.is_healthy(),
            enabled: backend.state.order() == Order::Enabled,
            ejected: backend.ejected_until() > Some(now),
            breaker: match backend.broken_until() {
                Some(_) => 2,
                None => backend.is_half_open().into(),
            },
        }
    }
}

type Number = fn(&View) -> u64;
type Counts = fn(&BackendTotals) -> &BucketCounts;

/// Those that every backend has.
const NUMBERS: [(Family, Number); 11] = [
    (
        Family {
            name: "ringress_backend_connections_total",
            kind: Kind::Counter,
            help: "Connections that were opened, those ahead of sessions included; of datagrams, sockets.",
        },
        |view| view.totals.connections,
    ),
    (
        Family {
            name: "ringress_backend_sessions_total",
            kind: Kind::Counter,
            help: "Sessions that got a connection, those whose connection was stale included.",
        },
        |view| view.totals.sessions,
    ),
    (
        Family {
            name: "ringress_backend_active_sessions",
            kind: Kind::Gauge,
            help: "Sessions now.",
        },
        |view| view.backend.state.load.active.now() as u64,
    ),
    (
        Family {
            name: "ringress_backend_open_connections",
            kind: Kind::Gauge,
            help: "Connections now: sessions' and those open ahead.",
        },
        |view| view.backend.state.open.now() as u64,
    ),
    (
        Family {
            name: "ringress_backend_pool_hits_total",
            kind: Kind::Counter,
            help: "Sessions that took a connection that was open ahead.",
        },
        |view| view.totals.pool_hits,
    ),
    (
        Family {
            name: "ringress_backend_pool_stale_total",
            kind: Kind::Counter,
            help: "Connections open ahead that the backend had closed when a session came or before.",
        },
        |view| view.totals.pool_stale,
    ),
    (
        Family {
            name: "ringress_backend_healthy",
            kind: Kind::Gauge,
            help: "1 while health checks say so, or there are none.",
        },
        |view| view.healthy.into(),
    ),
    (
        Family {
            name: "ringress_backend_enabled",
            kind: Kind::Gauge,
            help: "0 while it drains by order.",
        },
        |view| view.enabled.into(),
    ),
    (
        Family {
            name: "ringress_backend_ejected",
            kind: Kind::Gauge,
            help: "1 while it is left out for what sessions have met.",
        },
        |view| view.ejected.into(),
    ),
    (
        Family {
            name: "ringress_backend_breaker_state",
            kind: Kind::Gauge,
            help: "Its breaker: 0 = closed, 1 = half-open, 2 = open.",
        },
        |view| view.breaker,
    ),
    (
        Family {
            name: "ringress_backend_weight",
            kind: Kind::Gauge,
            help: "As ordered, or else as configured.",
        },
        |view| view.backend.weight().into(),
    ),
];

const BYTES: Family = Family {
    name: "ringress_backend_bytes_total",
    kind: Kind::Counter,
    help: "Bytes from clients to the backend (received), and from it to clients (sent).",
};
const FAILURES: Family = Family {
    name: "ringress_backend_connect_failures_total",
    kind: Kind::Counter,
    help: "Failed tries to connect, by what was in the way.",
};
const CLOSED: Family = Family {
    name: "ringress_backend_sessions_closed_total",
    kind: Kind::Counter,
    help: "Sessions that ended, by reason.",
};
const EJECTIONS: Family = Family {
    name: "ringress_backend_ejections_total",
    kind: Kind::Counter,
    help: "Times that it was left out for what sessions have met.",
};
const TRANSITIONS: Family = Family {
    name: "ringress_backend_breaker_transitions_total",
    kind: Kind::Counter,
    help: "Changes of its breaker, by what it became.",
};
const PROBES: Family = Family {
    name: "ringress_backend_probes_total",
    kind: Kind::Counter,
    help: "Probes of its health, by what came of them.",
};
const PROBE_DURATION: Family = Family {
    name: "ringress_backend_probe_duration_seconds",
    kind: Kind::Histogram,
    help: "How long probes took.",
};

/// Lengths of time.
const TIMES: [(Family, Counts); 3] = [
    (
        Family {
            name: "ringress_backend_connect_duration_seconds",
            kind: Kind::Histogram,
            help: "From the first packet to the connection, TLS and all, of those that were opened for a session.",
        },
        |totals| &totals.connect,
    ),
    (
        Family {
            name: "ringress_backend_first_byte_seconds",
            kind: Kind::Histogram,
            help: "From the first byte to the backend, or the connection if it speaks first, to its first byte.",
        },
        |totals| &totals.first_byte,
    ),
    (
        Family {
            name: "ringress_backend_session_duration_seconds",
            kind: Kind::Histogram,
            help: "From accept to end.",
        },
        |totals| &totals.duration,
    ),
];

/// Backends that are read before others are let in front: some 100 µs.
const BREATH: usize = 64;

pub(super) fn write(text: &mut Text, snapshot: &Snapshot) {
    let mut views = Vec::new();
    for upstream in &snapshot.upstreams {
        for backend in upstream.backends() {
            views.push(View::new(upstream.name(), backend, ring::now()));
            if views.len().is_multiple_of(BREATH) {
                std::thread::yield_now();
            }
        }
    }
    for (family, number) in &NUMBERS {
        text.family(family);
        for view in &views {
            text.sample(&view.labels, None, number(view));
        }
    }
    text.family(&BYTES);
    for view in &views {
        let both = (view.totals.bytes_received, view.totals.bytes_sent);
        write_both(text, &view.labels, both);
    }
    write_reasons(text, &views);
    write_turns(text, &views);
    for (family, times) in &TIMES {
        let counts = |view: &View| *times(&view.totals);
        write_histograms(text, family, &views, counts);
    }
    write_histograms(text, &PROBE_DURATION, &views, |view| {
        BucketCounts::sum([&view.backend.state.tallies.probe_duration])
    });
}

fn write_reasons(text: &mut Text, views: &[View]) {
    text.family(&CLOSED);
    for view in views {
        let closed = Reason::ALL.into_iter().zip(view.totals.closed);
        for (reason, count) in closed.filter(|(_, count)| *count > 0) {
            let more = Some(("reason", reason.as_str()));
            text.sample(&view.labels, more, count);
        }
    }
    text.family(&FAILURES);
    for view in views {
        let failed = ConnectFault::ALL.into_iter().zip(view.totals.failed);
        for (fault, count) in failed.filter(|(_, count)| *count > 0) {
            let more = Some(("reason", fault.as_str()));
            text.sample(&view.labels, more, count);
        }
    }
}

/// What has become of it at times.
fn write_turns(text: &mut Text, views: &[View]) {
    text.family(&EJECTIONS);
    for view in views {
        let ejections = view.backend.state.tallies.ejections.value();
        if ejections > 0 {
            text.sample(&view.labels, None, ejections);
        }
    }
    text.family(&TRANSITIONS);
    for view in views {
        let tallies = ["open", "half-open", "closed"].into_iter();
        for (state, tally) in tallies.zip(&view.backend.state.tallies.breaker) {
            if tally.value() > 0 {
                let more = Some(("to", state));
                text.sample(&view.labels, more, tally.value());
            }
        }
    }
    text.family(&PROBES);
    for view in views {
        for (what, tally) in Probed::ALL.iter().zip(&view.backend.state.tallies.probes) {
            if tally.value() > 0 {
                let more = Some(("result", what.as_str()));
                text.sample(&view.labels, more, tally.value());
            }
        }
    }
}

fn write_histograms(
    text: &mut Text,
    family: &Family,
    views: &[View],
    counts: impl Fn(&View) -> BucketCounts,
) {
    text.family(family);
    for view in views {
        let counts = counts(view);
        if counts.count() > 0 {
            text.histogram(&view.labels, &counts);
        }
    }
}
