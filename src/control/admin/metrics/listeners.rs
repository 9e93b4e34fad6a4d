//! Listeners. Every reason has its series from the start: a rate can be taken of the first one.

use std::sync::Arc;

use super::text::{Family, Kind, Labels, Text, Value};
use crate::proxy::{ListenerState, Snapshot};
use crate::telemetry::counters::Totals;
use crate::telemetry::latency::BucketCounts;
use crate::telemetry::{Dropped, Opening, Reason};

const ACTIVE: Family = Family {
    name: "ringress_listener_active_sessions",
    kind: Kind::Gauge,
    help: "Sessions now.",
};
const CLOSED: Family = Family {
    name: "ringress_listener_sessions_closed_total",
    kind: Kind::Counter,
    help: "Sessions that ended and connections that were refused, by reason.",
};
const BYTES: Family = Family {
    name: "ringress_listener_bytes_total",
    kind: Kind::Counter,
    help: "Bytes from clients (received) and to clients (sent).",
};
const HANDSHAKES: Family = Family {
    name: "ringress_listener_tls_handshakes_total",
    kind: Kind::Counter,
    help: "TLS handshakes that went well, by version and whether an earlier session was resumed. Those that \
           failed are sessions closed for client-tls or handshake-timeout.",
};
const HELLOS: Family = Family {
    name: "ringress_listener_hellos_total",
    kind: Kind::Counter,
    help: "Connections whose hello is looked at and passed on, by what was found.",
};
const DATAGRAMS: Family = Family {
    name: "ringress_listener_datagrams_total",
    kind: Kind::Counter,
    help: "Datagrams from clients, dropped ones included (received), and to clients (sent).",
};
const DROPPED: Family = Family {
    name: "ringress_listener_datagrams_dropped_total",
    kind: Kind::Counter,
    help: "Datagrams that went no further, in either direction, by reason.",
};
const DURATION: Family = Family {
    name: "ringress_listener_session_duration_seconds",
    kind: Kind::Histogram,
    help: "From accept to end, of sessions that were let in.",
};

type Count = fn(&Totals) -> u64;

/// Plain numbers.
const COUNTS: [(Family, Count); 4] = [
    (
        Family {
            name: "ringress_listener_connections_total",
            kind: Kind::Counter,
            help: "Connections that were accepted, refused ones included; of datagrams, sessions.",
        },
        |totals| totals.accepted,
    ),
    (
        Family {
            name: "ringress_listener_connect_failures_total",
            kind: Kind::Counter,
            help: "Failed tries to connect to a backend, of sessions that may have found another.",
        },
        |totals| totals.connect_failures,
    ),
    (
        Family {
            name: "ringress_listener_accept_pauses_total",
            kind: Kind::Counter,
            help: "Times that accepting had to pause, because the system had no descriptor or memory.",
        },
        |totals| totals.accept_pauses,
    ),
    (
        Family {
            name: "ringress_listener_rate_limit_dry_run_total",
            kind: Kind::Counter,
            help: "What rate_limit would have refused, had it not been a dry run.",
        },
        |totals| totals.rate_limit_dry_run,
    ),
];

struct View {
    labels: Labels,
    state: Arc<ListenerState>,
    totals: Totals,
    takes_datagrams: bool,
    terminates_tls: bool,
    passes_hellos: bool,
}

impl View {
    fn new(state: &Arc<ListenerState>) -> Self {
        let (totals, policy) = (state.totals(), state.policy.load());
        let has = |openings: &[Opening]| openings.iter().any(|it| totals.opened(*it) > 0);
        let versions = VERSIONS.map(|(_, _, opening)| opening);
        Self {
            labels: Labels::of(&[("listener", &state.name)]),
            state: state.clone(),
            takes_datagrams: state.takes_datagrams(&totals),
            terminates_tls: policy.tls.is_some() || has(&versions),
            passes_hellos: policy.looks_at_hellos() || has(&FOUND),
            totals,
        }
    }

    fn duration(&self) -> BucketCounts {
        let workers = self.state.counters.iter();
        BucketCounts::sum(workers.map(|counters| &counters.duration.buckets))
    }
}

pub(super) fn write(text: &mut Text, snapshot: &Snapshot) {
    let views: Vec<_> = snapshot.listeners.iter().map(View::new).collect();
    for (family, count) in &COUNTS {
        text.family(family);
        for view in &views {
            text.sample(&view.labels, None, count(&view.totals));
        }
    }
    text.family(&ACTIVE);
    for view in &views {
        text.sample(&view.labels, None, view.state.active.now());
    }
    text.family(&BYTES);
    for view in &views {
        let (received, sent) = (view.totals.bytes_received, view.totals.bytes_sent);
        write_both(text, &view.labels, (received, sent));
    }
    text.family(&CLOSED);
    for view in &views {
        for reason in Reason::ALL {
            let more = Some(("reason", reason.as_str()));
            text.sample(&view.labels, more, view.totals.closed(reason));
        }
    }
    write_openings(text, &views);
    write_datagrams(text, &views);
    text.family(&DURATION);
    for view in &views {
        text.histogram(&view.labels, &view.duration());
    }
}

/// Versions of TLS, as they and resumption are written.
const VERSIONS: [(&str, &str, Opening); 4] = [
    ("1.2", "false", Opening::Tls12),
    ("1.2", "true", Opening::Tls12Resumed),
    ("1.3", "false", Opening::Tls13),
    ("1.3", "true", Opening::Tls13Resumed),
];

const FOUND: [Opening; 4] = [
    Opening::Named,
    Opening::NoName,
    Opening::NotTls,
    Opening::Silent,
];

fn write_openings(text: &mut Text, views: &[View]) {
    text.family(&HANDSHAKES);
    for view in views.iter().filter(|view| view.terminates_tls) {
        for (version, resumed, opening) in VERSIONS {
            let listener = ("listener", &*view.state.name);
            let labels = Labels::of(&[listener, ("version", version), ("resumed", resumed)]);
            text.sample(&labels, None, view.totals.opened(opening));
        }
    }
    text.family(&HELLOS);
    for view in views.iter().filter(|view| view.passes_hellos) {
        for opening in FOUND {
            let more = Some(("found", opening.as_str()));
            text.sample(&view.labels, more, view.totals.opened(opening));
        }
    }
}

fn write_datagrams(text: &mut Text, views: &[View]) {
    let of_datagrams = || views.iter().filter(|view| view.takes_datagrams);
    text.family(&DATAGRAMS);
    for view in of_datagrams() {
        let totals = &view.totals;
        let both = (totals.datagrams_received, totals.datagrams_sent);
        write_both(text, &view.labels, both);
    }
    text.family(&DROPPED);
    for view in of_datagrams() {
        for reason in Dropped::ALL {
            let more = Some(("reason", reason.as_str()));
            text.sample(&view.labels, more, view.totals.dropped(reason));
        }
    }
}

/// In both directions.
pub(super) fn write_both(text: &mut Text, labels: &Labels, both: (u64, u64)) {
    for (direction, count) in [("received", both.0), ("sent", both.1)] {
        let more = Some(("direction", direction));
        text.sample(labels, more, Value::Count(count));
    }
}
