//! Upstreams: what their sessions have met, whichever backend it was.

use super::text::{Family, Kind, Labels, Text};
use crate::proxy::Snapshot;
use crate::ring;
use crate::telemetry::counters::Counter;
use crate::telemetry::latency::{BucketCounts, Times};
use crate::telemetry::tallies::UpstreamCounters;
use crate::upstream::Upstream;

type Count = fn(&UpstreamCounters) -> &Counter;
type Gauge = fn(&Upstream) -> u64;
type Time = fn(&UpstreamCounters) -> &Times;

/// What workers count.
const COUNTS: [(Family, Count); 4] = [
    (
        Family {
            name: "ringress_upstream_requests_total",
            kind: Kind::Counter,
            help: "Sessions that asked for a backend.",
        },
        |counters| &counters.requests,
    ),
    (
        Family {
            name: "ringress_upstream_retries_total",
            kind: Kind::Counter,
            help: "Further tries to connect after one that failed.",
        },
        |counters| &counters.retries,
    ),
    (
        Family {
            name: "ringress_upstream_retries_denied_total",
            kind: Kind::Counter,
            help: "Further tries that retry.budget has not allowed.",
        },
        |counters| &counters.retries_denied,
    ),
    (
        Family {
            name: "ringress_upstream_queued_total",
            kind: Kind::Counter,
            help: "Waits for a place at a backend; a session may wait again for its next try.",
        },
        |counters| &counters.queued,
    ),
];

/// What is so at the moment.
const GAUGES: [(Family, Gauge); 4] = [
    (
        Family {
            name: "ringress_upstream_queue_length",
            kind: Kind::Gauge,
            help: "Sessions that wait for a place at a backend.",
        },
        |upstream| upstream.waiting() as u64,
    ),
    (
        Family {
            name: "ringress_upstream_backends",
            kind: Kind::Gauge,
            help: "Backends that there are.",
        },
        |upstream| upstream.backends().len() as u64,
    ),
    (
        Family {
            name: "ringress_upstream_ready_backends",
            kind: Kind::Gauge,
            help: "Backends that may be chosen, backups among them.",
        },
        |upstream| upstream.ready(ring::now()) as u64,
    ),
    (
        Family {
            name: "ringress_upstream_failing_open",
            kind: Kind::Gauge,
            help: "1 while health is ignored, because too few backends are healthy.",
        },
        |upstream| upstream.is_failing_open().into(),
    ),
];

/// Lengths of time.
const TIMES: [(Family, Time); 4] = [
    (
        Family {
            name: "ringress_upstream_queue_duration_seconds",
            kind: Kind::Histogram,
            help: "How long sessions waited for a place at a backend, whatever came of it.",
        },
        |counters| &counters.queue,
    ),
    (
        Family {
            name: "ringress_upstream_connect_duration_seconds",
            kind: Kind::Histogram,
            help: "From the first packet to the connection, TLS and all, of those that were opened for a session.",
        },
        |counters| &counters.connect,
    ),
    (
        Family {
            name: "ringress_upstream_first_byte_seconds",
            kind: Kind::Histogram,
            help: "From the first byte to the backend, or the connection if it speaks first, to its first byte.",
        },
        |counters| &counters.first_byte,
    ),
    (
        Family {
            name: "ringress_upstream_session_duration_seconds",
            kind: Kind::Histogram,
            help: "From accept to end, of sessions that had a backend.",
        },
        |counters| &counters.duration,
    ),
];

pub(super) fn write(text: &mut Text, snapshot: &Snapshot) {
    let upstreams = snapshot.upstreams.iter();
    let views: Vec<_> = upstreams
        .map(|upstream| (Labels::of(&[("upstream", upstream.name())]), upstream))
        .collect();
    for (family, counter) in &COUNTS {
        text.family(family);
        for (labels, upstream) in &views {
            let workers = upstream.counters().iter();
            let sum: u64 = workers.map(|counters| counter(counters).value()).sum();
            text.sample(labels, None, sum);
        }
    }
    for (family, value) in &GAUGES {
        text.family(family);
        for (labels, upstream) in &views {
            text.sample(labels, None, value(upstream));
        }
    }
    for (family, times) in &TIMES {
        text.family(family);
        for (labels, upstream) in &views {
            let workers = upstream.counters().iter();
            let sum = BucketCounts::sum(workers.map(|counters| &times(counters).buckets));
            text.histogram(labels, &sum);
        }
    }
}
