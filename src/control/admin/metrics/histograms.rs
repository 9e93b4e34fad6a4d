//! The raw histograms, in the log format of HdrHistogram: its tools read it, and histograms of several processes
//! can be added up. Values are microseconds. <https://hdrhistogram.github.io/HdrHistogram>

use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::Source;
use crate::proxy::{ListenerState, Snapshot};
use crate::telemetry::latency::{Times, histogram};
use crate::telemetry::tallies::UpstreamCounters;
use crate::upstream::Upstream;

type Of = fn(&UpstreamCounters) -> &Times;

/// Its times, by name.
const OF_UPSTREAM: [(&str, Of); 4] = [
    ("queue", |counters| &counters.queue),
    ("connect", |counters| &counters.connect),
    ("first-byte", |counters| &counters.first_byte),
    ("session-duration", |counters| &counters.duration),
];

/// One interval, from the start of the process until now, per listener or upstream and what was measured.
pub(super) fn log(source: &Source, snapshot: &Snapshot) -> Vec<u8> {
    let (mut log, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let started = UNIX_EPOCH + source.started;
    let mut builder = IntervalLogWriterBuilder::new();
    let builder = builder
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(1000.0)
        .add_comment("times in microseconds; maxima in milliseconds");
    let Ok(mut writer) = builder.begin_log_with(&mut log, &mut serializer) else {
        return Vec::new();
    };
    for (name, histogram) in of_listeners(snapshot).chain(of_upstreams(snapshot)) {
        let name = name.replace([' ', ',', '\n', '\r'], "_");
        // Writing to memory doesn't fail, and such a histogram can be serialized.
        let _ = writer.write_histogram(&histogram, Duration::ZERO, source.uptime, Tag::new(&name));
        std::thread::yield_now();
    }
    log
}

fn of_listeners(snapshot: &Snapshot) -> impl Iterator<Item = (String, Histogram<u64>)> {
    let listeners = snapshot.listeners.iter();
    listeners.map(|listener: &std::sync::Arc<ListenerState>| {
        let workers = listener.counters.iter();
        let sum = sum(workers.map(|counters| &counters.duration));
        (format!("listener/{}/session-duration", listener.name), sum)
    })
}

fn of_upstreams(snapshot: &Snapshot) -> impl Iterator<Item = (String, Histogram<u64>)> {
    let upstreams = snapshot.upstreams.iter();
    upstreams.flat_map(|upstream: &std::sync::Arc<Upstream>| {
        OF_UPSTREAM.iter().map(move |(what, times)| {
            let sum = sum(upstream.counters().iter().map(times));
            (format!("upstream/{}/{what}", upstream.name()), sum)
        })
    })
}

fn sum<'a>(times: impl Iterator<Item = &'a Times>) -> Histogram<u64> {
    let mut sum = histogram();
    times.for_each(|times| times.bins.add_to(&mut sum));
    sum
}
